/**
 * From a description of a jail to bubblewrap's arguments (pure), and to a running process. The root is an empty read-only tmpfs that
 * holds only what the description binds: no /proc, no /sys, no shell, no writable place but the staging directory. The process is
 * PID 1 of its own PID namespace, so that its death is the death of everything in it.
 * Must never: pass the raylet's environment, a path of the host in an argument that the jailed program can read, or a descriptor
 * besides 0 to 3.
 */
import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { BulkheadError } from '../../base/errors.ts';

export interface Bind {
  readonly source: string;
  readonly target: string;
}

export interface JailSpec {
  /** Absolute path inside the jail, bound by `readOnly`. */
  readonly program: string;
  readonly args: readonly string[];
  readonly readOnly: readonly Bind[];
  readonly readWrite: readonly Bind[];
  /** Character devices of the host: /dev/null and /dev/urandom, nothing more. */
  readonly devices: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** User and group that the process is inside its user namespace. */
  readonly uid: number;
  readonly gid: number;
}

/** Descriptors that bubblewrap gets; none of 4 to 6 reaches the jailed program. */
export const JAIL_FD = { channel: 3, info: 4, block: 5, seccomp: 6 } as const;
const ALLOWED_DEVICES: ReadonlySet<string> = new Set(['/dev/null', '/dev/zero', '/dev/urandom']);

function absolute(path: string): string {
  if (!/^\/[^\0]*$/.test(path) || path.split('/').includes('..')) throw new BulkheadError('INTERNAL', 'a jail takes absolute paths without ..');
  return path;
}

export function bubblewrapArgs(spec: JailSpec): string[] {
  const args = [
    '--unshare-user', '--unshare-ipc', '--unshare-pid', '--unshare-net', '--unshare-uts', '--unshare-cgroup',
    '--uid', String(spec.uid), '--gid', String(spec.gid), '--hostname', 'worker',
    '--die-with-parent', '--new-session', '--as-pid-1', '--cap-drop', 'ALL', '--clearenv',
    '--info-fd', String(JAIL_FD.info), '--block-fd', String(JAIL_FD.block), '--seccomp', String(JAIL_FD.seccomp),
  ];
  for (const [name, value] of Object.entries(spec.env)) args.push('--setenv', name, value);
  for (const bind of spec.readOnly) args.push('--ro-bind', absolute(bind.source), absolute(bind.target));
  for (const bind of spec.readWrite) args.push('--bind', absolute(bind.source), absolute(bind.target));
  for (const device of spec.devices) {
    if (!ALLOWED_DEVICES.has(device)) throw new BulkheadError('INTERNAL', `a jail never gets the device ${device}`);
    args.push('--dev-bind', device, device);
  }
  args.push('--remount-ro', '/', '--chdir', '/', '--', absolute(spec.program), ...spec.args);
  return args;
}

/** Limits of setrlimit(2) that hold for the jailed process whatever happens to its cgroup. */
export interface ResourceLimits {
  readonly openFiles: number;
  /** Bytes of one file that the process writes. */
  readonly fileBytes: number;
}

export function prlimitArgs(limits: ResourceLimits): string[] {
  // No core dump: it would hold the tenant's memory. No locked memory, message queues or real-time priority.
  return ['--core=0', `--nofile=${limits.openFiles}`, `--fsize=${limits.fileBytes}`, '--memlock=0', '--msgqueue=0', '--rtprio=0', '--nice=0', '--sigpending=64'];
}

export interface JailCommand {
  readonly bwrap: string;
  readonly prlimit: string;
  readonly spec: JailSpec;
  readonly limits: ResourceLimits;
  /** File with the start-up filter. */
  readonly seccompFile: string;
  /** User of the host that the jailed process is; undefined keeps the raylet's own (it is not root then). */
  readonly hostUid: number | undefined;
}

export interface JailProcess {
  /** The bubblewrap process that waits outside; its exit is the jail's. */
  readonly monitor: ChildProcess;
  readonly channel: Socket;
  readonly stdout: Socket;
  readonly stderr: Socket;
  /** PID, on the host, of the jailed process: it waits, before anything of its own runs, until `release` is called. */
  readonly pid: Promise<number>;
  release(): void;
}

/**
 * Descriptors of this process that a child would inherit, besides the standard ones. Node opens none such itself, but whoever started
 * the raylet, or a native addon, may have.
 */
export function inheritableDescriptors(): number[] {
  const found: number[] = [];
  for (const name of readdirSync('/proc/self/fd')) {
    const fd = Number(name);
    if (fd < 3) continue;
    try {
      const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'));
      if (flags?.[1] !== undefined && (Number.parseInt(flags[1], 8) & O_CLOEXEC) === 0) found.push(fd);
    } catch {
      // The descriptor of this very listing.
    }
  }
  return found;
}

/**
 * Ends bubblewrap processes whose arguments name `path` (a directory of ours). Needed where bubblewrap's first process died before it
 * let its child run: that child waits for ever, outside of any group, and has not yet asked to die with its parent.
 */
export function killStrays(path: string): void {
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    try {
      const [program = '', ...args] = readFileSync(`/proc/${name}/cmdline`, 'latin1').split('\0');
      if (/\/(?:bwrap|prlimit|unshare|sh|setpriv|runsc[^/]*)$/.test(program) && args.some((argument) => argument.startsWith(`${path}/`))) process.kill(Number(name), 'SIGKILL');
    } catch {
      // It ended in the meantime, or is not ours to see.
    }
  }
}

const O_CLOEXEC = 0o2000000;
const MAX_INFO_BYTES = 4_096;

/** Starts the jail up to the point where its cgroup must be set. The caller places `pid`, then calls `release`. */
export function startJail(command: JailCommand): JailProcess {
  // A descriptor of its own for each start: bubblewrap reads it to the end, and the offset belongs to the open file.
  const seccomp = openSync(command.seccompFile, 'r');
  const nothing = openSync('/dev/null', 'r');
  let monitor: ChildProcess;
  try {
    const stdio: StdioOptions = ['ignore', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', seccomp];
    for (const fd of inheritableDescriptors()) {
      while (stdio.length <= fd) stdio.push('ignore');
      // The jail gets /dev/null where it would have inherited something of ours.
      if (fd > JAIL_FD.seccomp) stdio[fd] = nothing;
    }
    monitor = spawn(command.prlimit, [...prlimitArgs(command.limits), '--', command.bwrap, ...bubblewrapArgs(command.spec)], {
      stdio,
      env: {},
      cwd: '/',
      ...(command.hostUid === undefined ? {} : { uid: command.hostUid, gid: command.hostUid }),
    });
  } finally {
    closeSync(seccomp);
    closeSync(nothing);
  }
  const stream = (fd: number): Socket => {
    const found = monitor.stdio[fd] as Socket | null | undefined;
    if (found === null || found === undefined) throw new BulkheadError('UNAVAILABLE', 'a jail could not be started: no descriptors are left; raise the limit on open files');
    return found;
  };
  const info = stream(JAIL_FD.info);
  const block = stream(JAIL_FD.block);
  // A pipe whose other end died reports it here too; the monitor's exit tells what happened.
  block.on('error', () => undefined);
  const pid = new Promise<number>((resolve, reject) => {
    let text = '';
    const fail = (cause?: unknown): void => reject(new BulkheadError('LAYER_MISSING', 'bubblewrap ended before the jail stood', { cause }));
    info.on('data', (part: Buffer) => {
      text += part.toString('latin1');
      const found = /"child-pid":\s*(\d{1,10})\s*,/.exec(text);
      if (found?.[1] !== undefined) resolve(Number(found[1]));
      else if (text.length > MAX_INFO_BYTES) fail();
    });
    info.on('error', fail);
    info.on('end', () => fail());
    info.on('close', () => fail());
    monitor.on('error', fail);
  });
  pid.catch(() => undefined);
  return {
    monitor,
    channel: stream(JAIL_FD.channel),
    stdout: stream(1),
    stderr: stream(2),
    pid,
    // `info` stays open until bubblewrap closes it: it writes in parts, and a broken pipe would kill it.
    release: () => {
      block.end('1');
    },
  };
}
