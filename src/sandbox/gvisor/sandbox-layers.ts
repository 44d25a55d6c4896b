/**
 * What really surrounds a running Python sandbox, read back from /proc: of gVisor's kernel process (the "sentry"), which runs the tenant's system calls.
 * Must never: take the command line's word for a layer.
 */
import { readFileSync, readlinkSync } from 'node:fs';
import type { Cgroup, CgroupLimits } from '../jail/cgroup.ts';
import { readCgroupLayer, type Layer, type LayerName } from '../jail/layers.ts';

const NAMESPACES: readonly (readonly [LayerName, string])[] = [
  ['user-namespace', 'user'], ['mount-namespace', 'mnt'], ['pid-namespace', 'pid'], ['network-namespace', 'net'], ['ipc-namespace', 'ipc'], ['uts-namespace', 'uts'],
];

function attempt(read: () => string): string {
  try {
    return read();
  } catch {
    return '';
  }
}

/** The sentry among the processes of a group. */
export function sentryOf(pids: readonly number[]): number | undefined {
  return pids.find((pid) => {
    const [, ...args] = attempt(() => readFileSync(`/proc/${pid}/cmdline`, 'latin1')).split('\0');
    return args.includes('boot') && args.some((argument) => argument.startsWith('--platform=systrap'));
  });
}

function field(status: string, name: string): string {
  return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1] ?? '';
}

export interface SandboxExpectation {
  readonly hostUid: number | undefined;
  readonly cgroup: Cgroup | undefined;
  readonly limits: CgroupLimits;
}

/** `pid`: of the process that started it. Never throws: what cannot be read is off. */
export function readSandboxLayers(pid: number, expected: SandboxExpectation): Layer[] {
  const layers: Layer[] = [];
  const sentry = expected.cgroup === undefined ? undefined : sentryOf(expected.cgroup.pids());
  const of = sentry ?? 0;
  for (const [layer, name] of NAMESPACES) {
    const theirs = attempt(() => readlinkSync(`/proc/${of}/ns/${name}`));
    layers.push({ layer, on: theirs !== '' && theirs !== attempt(() => readlinkSync(`/proc/self/ns/${name}`)), detail: theirs === '' ? 'cannot be read' : `gVisor: ${theirs}` });
  }
  const status = attempt(() => readFileSync(`/proc/${of}/status`, 'latin1'));
  layers.push({ layer: 'seccomp', on: field(status, 'Seccomp') === '2', detail: `gVisor: mode ${field(status, 'Seccomp') || '?'}` });
  const uids = field(status, 'Uid').split(/\s+/).map(Number);
  layers.push({ layer: 'unprivileged-user', on: uids.length === 4 && uids.every((uid) => uid !== 0 && (expected.hostUid === undefined || uid === expected.hostUid)), detail: `gVisor: uid ${uids[0]} on the host` });
  const interfaces = attempt(() => readFileSync(`/proc/${of}/net/dev`, 'latin1')).split('\n').slice(2).map((line) => line.split(':')[0]?.trim() ?? '').filter((name) => name !== '');
  layers.push({ layer: 'empty-network', on: interfaces.every((name) => name === 'lo') && status !== '', detail: `gVisor: interfaces: ${interfaces.join(' ') || 'none'}` });
  const core = /^Max core file size\s+(\S+)\s+(\S+)/m.exec(attempt(() => readFileSync(`/proc/${of}/limits`, 'latin1')));
  layers.push({ layer: 'no-core-dump', on: core?.[1] === '0', detail: `gVisor: core limit ${core?.[1] ?? '?'}` });
  layers.push(expected.cgroup === undefined ? { layer: 'cgroup', on: false, detail: 'no group' } : readCgroupLayer(pid, expected.cgroup, expected.limits, undefined));
  return layers;
}
