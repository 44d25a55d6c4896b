/** `bulkhead metrics`: what Prometheus would scrape, by RPC. With the same rights and records as its scrape. */
import { BulkheadError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { Metrics } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { CALL_TIMEOUT_MS, CallerSession, type RayletConnection } from '../session.ts';
import { printable, type Terminal } from '../terminal.ts';

const HEAD = 'head';

export async function metrics(terminal: Terminal, options: { readonly tenant: string | undefined; readonly node: string | undefined }, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant ?? '';
  const head: RayletConnection = { nodeId: HEAD, to: (service) => session.to(service) };
  const components = [...(options.node === undefined || options.node === HEAD ? [head] : []), ...(options.node === HEAD ? [] : await reachable(session)).filter((r) => options.node === undefined || r.nodeId === options.node)];
  if (components.length === 0) throw new BulkheadError('INVALID_ARGUMENT', `there is no node ${quote(options.node ?? '')} that lives; give 'head' or an id of 'bulkhead list nodes'`);
  const { answers, unreachable } = await terminal.progress('asking head and raylets', session.ask(components, async (component) => ({ component: component.nodeId, text: (await component.to(Metrics).read({ tenant }, { timeoutMs: CALL_TIMEOUT_MS })).text })));
  answers.sort((a, b) => (a.component < b.component ? -1 : 1));
  terminal.answer({ tenant, components: answers, unreachable: unreachable.map((u) => u.nodeId) });
  // A family may stand only once in a text: so each component's is one of its own.
  for (const { component, text } of answers) terminal.say(`# component ${printable(component)}\n${printable(text, true)}`);
  for (const { nodeId, error } of unreachable) terminal.warn(printable(`${nodeId} did not answer: ${error.safeMessage}`));
}

/** A monitor may not list the nodes: then the head is all there is to ask. */
async function reachable(session: CallerSession): ReturnType<CallerSession['raylets']> {
  try {
    return await session.raylets();
  } catch (thrown) {
    if (thrown instanceof BulkheadError && thrown.code === 'DENIED') return [];
    throw thrown;
  }
}
