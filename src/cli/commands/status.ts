/** `bulkhead status`: the cluster at a glance. */
import { describeLabels } from '../../base/labels.ts';
import type { Node } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { Cluster } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { bytesText, durationText, jsonText, timeText, type Cell, type Terminal } from '../terminal.ts';

const CPU = 10_000;

export function nodeRow(node: Node): Cell[] {
  const cpus = (units: bigint | undefined): string => String(Number(units ?? 0n) / CPU);
  const of = (available: string, total: string): string => (node.available === undefined ? total : `${available} free of ${total}`);
  return [
    node.nodeId, { text: node.state, colour: node.state === 'alive' ? 'green' : 'red' }, node.address, of(cpus(node.available?.cpuUnits), cpus(node.total?.cpuUnits)),
    of(bytesText(Number(node.available?.memoryBytes ?? 0n)), bytesText(Number(node.total?.memoryBytes ?? 0n))),
    Object.keys(node.total?.custom ?? {}).sort().map((name) => `${name}=${cpus(node.available?.custom[name] ?? node.total?.custom[name])}`).join(' '),
    describeLabels(node.labels), String(node.queuedTasks), String(node.policyVersion), [node.insecureDev ? 'INSECURE-DEV' : '', node.state === 'alive' ? '' : `last seen ${durationText(Date.now() - Number(node.lastSeenMs))} ago`].filter((text) => text !== '').join(', '),
  ];
}

export const NODE_HEADERS = ['NODE', 'STATE', 'ADDRESS', 'CPUS', 'MEMORY', 'RESOURCES', 'LABELS', 'QUEUED', 'POLICY', 'REASON'];

export async function status(terminal: Terminal, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const s = await terminal.progress('asking the head', session.to(Cluster).status({}, { timeoutMs: CALL_TIMEOUT_MS }));
  const nodes = [...s.nodes].sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
  if (terminal.json) return terminal.answer({ ...(JSON.parse(jsonText(s)) as object), address: session.head.address, nodes });
  const alive = nodes.filter((n) => n.state === 'alive').length;
  terminal.say(`cluster ${s.trustDomain}, head ${session.head.address}, version ${s.version}, up ${durationText(Date.now() - Number(s.startedMs))} (since ${timeText(Number(s.startedMs))})`);
  terminal.say(`nodes ${alive} alive of ${nodes.length}, tenants ${s.tenants}, policy version ${s.policyVersion}, gateway ${s.gateway === '' ? 'none' : s.gateway}`);
  if (s.insecureDev || nodes.some((n) => n.insecureDev)) terminal.warn('INSECURE-DEV: isolation layers may be missing; see bulkhead doctor');
  terminal.say('');
  terminal.table(NODE_HEADERS, nodes.map(nodeRow), [7, 8]);
}
