/**
 * Which layers of isolation really hold a process, read back from /proc: what was asked for is never taken as what is. Used before a
 * worker gets a tenant, and by `doctor`. Must never report a layer as on that it has not seen.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { BulkheadError } from '../../base/errors.ts';
import type { Cgroup, CgroupLimits } from './cgroup.ts';

export const LAYERS = [
  'user-namespace', 'mount-namespace', 'pid-namespace', 'network-namespace', 'ipc-namespace', 'uts-namespace', 'cgroup-namespace', 'empty-network', 'empty-root',
  'no-capabilities', 'no-new-privileges', 'seccomp', 'unprivileged-user', 'no-core-dump', 'own-descriptors', 'cgroup',
] as const;
export type LayerName = (typeof LAYERS)[number];

export interface Layer {
  readonly layer: LayerName;
  readonly on: boolean;
  /** What was seen. */
  readonly detail: string;
}

export const LAYER_REMEDIES: Readonly<Record<LayerName, string>> = {
  'user-namespace': 'allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns=0)',
  'mount-namespace': 'install bubblewrap 0.8 or later', 'pid-namespace': 'install bubblewrap 0.8 or later', 'network-namespace': 'allow network namespaces (sysctl user.max_net_namespaces)',
  'ipc-namespace': 'allow IPC namespaces (sysctl user.max_ipc_namespaces)', 'uts-namespace': 'allow UTS namespaces (sysctl user.max_uts_namespaces)',
  'cgroup-namespace': 'use a kernel of 4.6 or later', 'empty-network': 'allow network namespaces (sysctl user.max_net_namespaces)', 'empty-root': 'install bubblewrap 0.8 or later',
  'no-capabilities': 'install bubblewrap 0.8 or later', 'no-new-privileges': 'use a kernel of 3.17 or later', seccomp: 'use a kernel with CONFIG_SECCOMP_FILTER',
  'unprivileged-user': 'start the raylet as root or as an ordinary user with user namespaces allowed', 'no-core-dump': 'install prlimit (util-linux)', 'own-descriptors': 'start the raylet without inherited descriptors',
  cgroup: 'start the raylet as root, or under a delegated group (systemd-run --scope -p Delegate=yes)',
};

const NAMESPACES: readonly (readonly [LayerName, string])[] = [
  ['user-namespace', 'user'], ['mount-namespace', 'mnt'], ['pid-namespace', 'pid'], ['network-namespace', 'net'], ['ipc-namespace', 'ipc'], ['uts-namespace', 'uts'], ['cgroup-namespace', 'cgroup'],
];

export interface LayerExpectation {
  /** Filters that must be loaded: 1 by bubblewrap, 1 by the worker host. */
  readonly seccompFilters: number;
  /** The user of the host that the process must be; undefined: any but root. */
  readonly hostUid: number | undefined;
  readonly cgroup: Cgroup | undefined;
  readonly limits: CgroupLimits | undefined;
  /** The only places that may be mounted writable. */
  readonly writable: readonly string[];
}

function attempt(read: () => string): string {
  try {
    return read();
  } catch {
    return '';
  }
}

function field(status: string, name: string): string {
  for (const line of status.split('\n')) if (line.startsWith(`${name}:`)) return line.slice(name.length + 1).trim();
  return '';
}

/** Mounts of a mountinfo text as [mount point, type, writable, root]. */
function parseMounts(text: string): { point: string; type: string; writable: boolean }[] {
  return text.split('\n').filter((line) => line !== '').map((line) => {
    const [before, after] = line.split(' - ');
    const fields = (before ?? '').split(' ');
    return { point: fields[4] ?? '', type: (after ?? '').split(' ')[0] ?? '', writable: (fields[5] ?? '').split(',').includes('rw') };
  });
}

/** Reads the layers of a running process. Never throws: what cannot be read is off. */
export function readLayers(pid: number, expected: LayerExpectation): Layer[] {
  const layers: Layer[] = [];
  const put = (layer: LayerName, on: boolean, detail: string): void => {
    layers.push({ layer, on, detail });
  };
  for (const [layer, name] of NAMESPACES) {
    const theirs = attempt(() => readlinkSync(`/proc/${pid}/ns/${name}`));
    const ours = attempt(() => readlinkSync(`/proc/self/ns/${name}`));
    put(layer, theirs !== '' && ours !== '' && theirs !== ours, theirs === '' ? 'cannot be read' : theirs);
  }
  const interfaces = attempt(() => readFileSync(`/proc/${pid}/net/dev`, 'latin1')).split('\n').slice(2).map((line) => line.split(':')[0]?.trim() ?? '').filter((name) => name !== '');
  put('empty-network', interfaces.length === 1 && interfaces[0] === 'lo', interfaces.length === 0 ? 'cannot be read' : `interfaces: ${interfaces.join(' ')}`);

  const mounts = parseMounts(attempt(() => readFileSync(`/proc/${pid}/mountinfo`, 'latin1')));
  const writable = mounts.filter((mount) => mount.writable && !mount.point.startsWith('/dev/')).map((mount) => mount.point);
  const root = mounts.find((mount) => mount.point === '/');
  const forbidden = mounts.filter((mount) => ['proc', 'sysfs', 'cgroup', 'cgroup2', 'devpts', 'mqueue', 'debugfs', 'securityfs'].includes(mount.type));
  const emptyRoot = root?.type === 'tmpfs' && !root.writable && forbidden.length === 0 && writable.every((point) => expected.writable.includes(point));
  put('empty-root', emptyRoot, mounts.length === 0 ? 'cannot be read' : `${mounts.length} mounts, writable: ${writable.join(' ') || 'none'}${forbidden.length > 0 ? `, kernel file systems: ${forbidden.map((mount) => mount.point).join(' ')}` : ''}`);

  const status = attempt(() => readFileSync(`/proc/${pid}/status`, 'latin1'));
  const capabilities = ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'].map((name) => field(status, name));
  put('no-capabilities', capabilities.every((set) => /^0+$/.test(set)), `effective ${field(status, 'CapEff') || '?'}, bounding ${field(status, 'CapBnd') || '?'}`);
  put('no-new-privileges', field(status, 'NoNewPrivs') === '1', `no_new_privs ${field(status, 'NoNewPrivs') || '?'}`);
  // A filter holds a thread, not a process: the weakest thread counts.
  let filters = Number(field(status, 'Seccomp_filters') || '0');
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) filters = Math.min(filters, Number(field(readFileSync(`/proc/${pid}/task/${thread}/status`, 'latin1'), 'Seccomp_filters') || '0'));
  } catch {
    // A thread that ended in the meantime; one that starts inherits what its maker has.
  }
  // Seccomp_filters came with Linux 5.9; before it only the mode can be seen.
  const filtersHold = field(status, 'Seccomp_filters') === '' ? expected.seccompFilters <= 1 : filters >= expected.seccompFilters;
  put('seccomp', field(status, 'Seccomp') === '2' && filtersHold, `mode ${field(status, 'Seccomp') || '?'}, ${filters} filters`);
  const uids = field(status, 'Uid').split(/\s+/).map(Number);
  const gids = field(status, 'Gid').split(/\s+/).map(Number);
  const unprivileged = uids.length === 4 && [...uids, ...gids].every((id) => id !== 0 && (expected.hostUid === undefined || id === expected.hostUid));
  put('unprivileged-user', unprivileged, `uid ${uids[0]}, gid ${gids[0]} on the host`);
  const core = /^Max core file size\s+(\S+)\s+(\S+)/m.exec(attempt(() => readFileSync(`/proc/${pid}/limits`, 'latin1')));
  put('no-core-dump', core?.[1] === '0' && core[2] === '0', `core limit ${core?.[1] ?? '?'}`);

  const descriptors: string[] = [];
  try {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) descriptors.push(`${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`)}`);
  } catch {
    descriptors.length = 0;
  }
  // Standard output and error, and the channel: no other socket, and no file of the host.
  const foreign = descriptors.filter((entry) => !/^\d+ (?:\/dev\/null|\/dev\/urandom|pipe:\[\d+\]|anon_inode:\[(?:eventfd|eventpoll)\])$|^[123] socket:\[\d+\]$/.test(entry));
  put('own-descriptors', descriptors.length > 0 && foreign.length === 0, descriptors.length === 0 ? 'cannot be read' : foreign.length > 0 ? `foreign: ${foreign.join(', ')}` : `${descriptors.length} descriptors`);

  layers.push(expected.cgroup === undefined || expected.limits === undefined ? { layer: 'cgroup', on: false, detail: 'no group' } : readCgroupLayer(pid, expected.cgroup, expected.limits, undefined));
  return layers;
}

const CPU_ROUNDING = 0.011;

/** The limits of a worker's group, and with `tenantCpus` those of the tenant's group that it must be in by now. */
export function readCgroupLayer(pid: number, cgroup: Cgroup, limits: CgroupLimits, tenantCpus: number | undefined): Layer {
  try {
    const held = cgroup.readLimits();
    const inside = cgroup.pids().includes(pid);
    const ofTenant = cgroup.readTenantCpus();
    const tenantHeld = tenantCpus === undefined || (ofTenant !== undefined && ofTenant <= Math.max(tenantCpus, CPU_ROUNDING) + CPU_ROUNDING);
    const on = inside && tenantHeld && held.memoryBytes > 0 && held.memoryBytes <= limits.memoryBytes && held.cpus > 0 && held.cpus <= limits.cpus + CPU_ROUNDING && held.pids > 0 && held.pids <= limits.pids;
    const tenant = ofTenant === undefined ? (tenantCpus === undefined ? '' : ', not in its tenant’s group') : `, all of its tenant ${ofTenant === Number.POSITIVE_INFINITY ? 'without a limit of cpus' : `cpus ${ofTenant}`}`;
    return { layer: 'cgroup', on, detail: `${inside ? '' : 'process not in it, '}memory ${held.memoryBytes}, cpus ${held.cpus}, pids ${held.pids}${tenant}` };
  } catch {
    return { layer: 'cgroup', on: false, detail: 'cannot be read' };
  }
}

/** Throws LAYER_MISSING that names the first layer that is off and was not given up by name. */
export function requireLayers(layers: readonly Layer[], insecureDev: readonly string[]): void {
  const off = layers.filter((layer) => !layer.on && !insecureDev.includes(layer.layer));
  const first = off[0];
  if (first === undefined) return;
  throw new BulkheadError('LAYER_MISSING', `layer ${first.layer} is missing (${first.detail})${off.length > 1 ? `, and ${off.slice(1).map((layer) => layer.layer).join(', ')}` : ''}: ${LAYER_REMEDIES[first.layer]}`);
}
