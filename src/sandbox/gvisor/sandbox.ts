/**
 * From a description of a Python sandbox to an OCI bundle (pure), and to a running `runsc`. As root the raylet gives each sandbox a user of the host
 * of its own: a private mount namespace shows that user what it may read, then `runsc --rootless` makes the rest. The sandbox has no network,
 * no device of the host, a read-only root, and channels that are inherited: descriptor 3 for the whole, and some that slots are given.
 * Must never: use the platform kvm; start before the process is in its control group; pass the raylet's environment or a descriptor besides those.
 */
import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { chownSync, closeSync, mkdirSync, openSync, statSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { BulkheadError } from '../../base/errors.ts';
import { inheritableDescriptors, prlimitArgs, type Bind, type ResourceLimits } from '../jail/bubblewrap.ts';
import type { PythonEnvironment } from './python-environment.ts';

/** Systrap needs no hardware virtualisation; gVisor's own cgroup handling would undo ours. */
export const RUNSC_FLAGS = ['--platform=systrap', '--network=none', '--ignore-cgroups', '--host-uds=none', '--overlay2=none', '--oci-seccomp=false'] as const;
/** Of /tmp, kept in the sandbox's memory and so counted in its control group too. */
const TMP_BYTES = 64 * 2 ** 20;
/**
 * Of what comes and goes while a sandbox runs (objects, staged files, code): gVisor keeps no name that nobody uses. It would keep the file open with it, and
 * the pages of a file that the raylet has deleted would stay charged to the sandbox until its limit is reached.
 */
const FORGETS = 'dcache=0';
/**
 * Of the supervisor alone, and only of the sandbox's own kernel: it makes its children the user below and may end them. Tenant code has none.
 */
const SUPERVISOR_CAPABILITIES = ['CAP_SETUID', 'CAP_SETGID', 'CAP_KILL', 'CAP_SETPCAP'];
export const GVISOR_LIMITS: ResourceLimits = { openFiles: 4_096, fileBytes: 2 * 2 ** 30 };

/**
 * Channels that lie ready for slots, one each and never for two: what a slot says need not pass the supervisor then. Later slots are relayed by it.
 */
const DIRECT_CHANNELS = 8;
const FIRST_DIRECT_FD = 5;

export interface SandboxSpec {
  readonly environment: PythonEnvironment;
  readonly readOnly: readonly Bind[];
  readonly readWrite: readonly Bind[];
  readonly rootDir: string;
  readonly tmpBytes?: number;
}

/** The OCI runtime configuration. */
export function ociConfig(spec: SandboxSpec): Record<string, unknown> {
  const { environment } = spec;
  const bind = (...more: string[]) => ({ source, target }: Bind): Record<string, unknown> => ({ destination: target, type: 'bind', source, options: ['bind', 'nosuid', 'nodev', ...more] });
  const none: string[] = [];
  return {
    ociVersion: '1.0.2',
    hostname: 'worker',
    process: {
      // Root of the sandbox's own kernel only: on the host it is an ordinary user. Tenant code is not even that, see python/bulkhead/worker.py.
      user: { uid: 0, gid: 0 }, args: [environment.program, ...environment.args], env: environment.env, cwd: '/', noNewPrivileges: true,
      capabilities: { bounding: SUPERVISOR_CAPABILITIES, effective: SUPERVISOR_CAPABILITIES, permitted: SUPERVISOR_CAPABILITIES, inheritable: none, ambient: none },
      rlimits: [
        { type: 'RLIMIT_NOFILE', soft: 1_024, hard: 1_024 }, { type: 'RLIMIT_CORE', soft: 0, hard: 0 }, { type: 'RLIMIT_FSIZE', soft: GVISOR_LIMITS.fileBytes, hard: GVISOR_LIMITS.fileBytes },
        { type: 'RLIMIT_MEMLOCK', soft: 0, hard: 0 }, { type: 'RLIMIT_NPROC', soft: 256, hard: 256 },
      ],
    },
    root: { path: spec.rootDir, readonly: true },
    mounts: [
      ...environment.readOnly.map(bind('ro')),
      ...spec.readOnly.map(bind('ro', FORGETS)),
      ...spec.readWrite.map(bind('rw', 'noexec', FORGETS)),
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/tmp', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'nodev', 'mode=1777', `size=${spec.tmpBytes ?? TMP_BYTES}`] },
    ],
    linux: { namespaces: ['pid', 'ipc', 'uts', 'mount', 'network'].map((type) => ({ type })) },
  };
}

/** Waits for the control group, shows the sandbox's user what it is given, and becomes `runsc`. `$1`: pairs of source and place to show; `$2`: the user. */
const START_AS_ROOT = `
read -r _ <&4 || exit 1
exec 4<&-
n=$1; user=$2; shift 2
while [ "$n" -gt 0 ]; do mount --bind -- "$1" "$2" || exit 1; shift 2; n=$((n - 1)); done
exec "$PRLIMIT" $LIMITS -- "$SETPRIV" --reuid "$user" --regid "$user" --clear-groups --pdeathsig KILL -- "$@"
`;
const START_AS_USER = `
read -r _ <&4 || exit 1
exec 4<&-
exec "$PRLIMIT" $LIMITS -- "$SETPRIV" --pdeathsig KILL -- "$@"
`;

export interface SandboxCommand {
  readonly runsc: string;
  readonly unshare: string;
  readonly setpriv: string;
  readonly prlimit: string;
  /** Of this worker alone; passed by nobody but its user. */
  readonly directory: string;
  readonly name: string;
  readonly environment: PythonEnvironment;
  readonly readOnly: readonly Bind[];
  readonly readWrite: readonly Bind[];
  readonly hostUid: number | undefined;
  /** Of its /tmp; more for what installs packages. */
  readonly tmpBytes?: number;
}

export interface SandboxProcess {
  readonly monitor: ChildProcess;
  readonly pid: number;
  readonly channel: Socket;
  readonly direct: readonly Socket[];
  readonly stdout: Socket;
  readonly stderr: Socket;
  release(): void;
}

/** Starts the sandbox up to the point where its control group must be set. The caller places `pid`, then calls `release`. */
export function startSandbox(command: SandboxCommand): SandboxProcess {
  const { directory, hostUid, environment } = command;
  const own = (name: string, mode = 0o700): string => {
    const path = join(directory, name);
    mkdirSync(path, { mode });
    if (hostUid !== undefined) chownSync(path, hostUid, hostUid);
    return path;
  };
  const rootDir = own('root', 0o755);
  const bundle = own('bundle');
  const state = own('state');
  const shown: string[] = [];
  const places = hostUid === undefined ? '' : own('shown');
  // The sandbox's user cannot pass every directory of the host on the way to what it is shown.
  const show = (source: string): string => {
    if (hostUid === undefined) return source;
    const place = join(places, String(shown.length / 2));
    if (statSync(source).isDirectory()) mkdirSync(place);
    else closeSync(openSync(place, 'w'));
    shown.push(source, place);
    return place;
  };
  const showAll = (binds: readonly Bind[]): Bind[] => binds.map(({ source, target }) => ({ source: show(source), target }));
  const config = ociConfig({ environment: { ...environment, readOnly: showAll(environment.readOnly) }, readOnly: command.readOnly, readWrite: command.readWrite, rootDir, ...(command.tmpBytes === undefined ? {} : { tmpBytes: command.tmpBytes }) });
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(config), { mode: 0o644 });
  const directFds = Array.from({ length: DIRECT_CHANNELS }, (_, i) => FIRST_DIRECT_FD + i);
  const runsc = [show(command.runsc), '--rootless', ...RUNSC_FLAGS, '--root', state, 'run', '--bundle', bundle, '--pass-fd=3:3', ...directFds.map((fd) => `--pass-fd=${fd}:${fd}`), command.name];
  const nothing = openSync('/dev/null', 'r');
  let monitor: ChildProcess;
  try {
    const stdio: StdioOptions = ['ignore', 'pipe', 'pipe', 'pipe', 'pipe', ...directFds.map(() => 'pipe' as const)];
    for (const fd of inheritableDescriptors()) {
      while (stdio.length <= fd) stdio.push('ignore');
      if (fd >= FIRST_DIRECT_FD + DIRECT_CHANNELS) stdio[fd] = nothing;
    }
    const env = { PRLIMIT: command.prlimit, SETPRIV: command.setpriv, LIMITS: prlimitArgs(GVISOR_LIMITS).join(' '), PATH: '/usr/sbin:/usr/bin:/sbin:/bin' };
    monitor = hostUid === undefined
      ? spawn('/bin/sh', ['-c', START_AS_USER, 'start', ...runsc], { stdio, env, cwd: '/', detached: true })
      : spawn(command.unshare, ['--mount', '--propagation', 'private', '/bin/sh', '-c', START_AS_ROOT, 'start', String(shown.length / 2), String(hostUid), ...shown, ...runsc], { stdio, env, cwd: '/', detached: true });
  } finally {
    closeSync(nothing);
  }
  monitor.on('error', () => undefined);
  const stream = (fd: number): Socket => {
    const found = monitor.stdio[fd] as Socket | null | undefined;
    if (found === null || found === undefined) throw new BulkheadError('UNAVAILABLE', 'a sandbox could not be started: no descriptors are left; raise the limit on open files');
    return found;
  };
  if (monitor.pid === undefined) throw new BulkheadError('LAYER_MISSING', 'layer gvisor is missing: unshare, prlimit or sh could not be started; install the package util-linux');
  const block = stream(4);
  block.on('error', () => undefined);
  return { monitor, pid: monitor.pid, channel: stream(3), direct: directFds.map(stream), stdout: stream(1), stderr: stream(2), release: () => void block.end('go\n') };
}
