/**
 * Compiles allow-lists of system calls into classic BPF programs. Pure: no IO. Two filters, and the kernel applies the stricter
 * answer of both:
 *  - START_UP, loaded by bubblewrap just before it executes node. What is not listed answers EPERM, because libc, libuv and V8 probe
 *    for newer calls and fall back; clone3 answers ENOSYS, whose flags BPF cannot read, so that libc falls back to clone.
 *  - RUN_TIME, loaded by the worker host into all of its threads before a tenant is assigned. Calls that only foreign code makes kill
 *    the process; what is on neither list answers EPERM, so that a rare call of libc or V8 costs no tenant a worker.
 * Must never list a call that creates a socket, a process, a namespace, a mount or a kernel object with a large attack surface.
 */
import { BulkheadError } from '../../base/errors.ts';

export type SeccompArch = 'x86_64' | 'aarch64';

const AUDIT_ARCH: Readonly<Record<SeccompArch, number>> = { x86_64: 0xc000_003e, aarch64: 0xc000_00b7 };

/** Numbers [x86_64, aarch64] of the calls that the filters name; -1 where an architecture has no such call. */
const NUMBERS = {
  read: [0, 63], write: [1, 64], open: [2, -1], close: [3, 57], stat: [4, -1], fstat: [5, 80], lstat: [6, -1], poll: [7, -1], lseek: [8, 62],
  mmap: [9, 222], mprotect: [10, 226], munmap: [11, 215], brk: [12, 214], rt_sigaction: [13, 134], rt_sigprocmask: [14, 135], rt_sigreturn: [15, 139],
  ioctl: [16, 29], pread64: [17, 67], pwrite64: [18, 68], readv: [19, 65], writev: [20, 66], access: [21, -1], sched_yield: [24, 124], mremap: [25, 216],
  madvise: [28, 233], nanosleep: [35, 101], getpid: [39, 172], shutdown: [48, 210], getsockname: [51, 204], getsockopt: [55, 209], clone: [56, 220],
  execve: [59, 221], exit: [60, 93], uname: [63, 160], fcntl: [72, 25], fsync: [74, 82], fdatasync: [75, 83], ftruncate: [77, 46], getcwd: [79, 17], readlink: [89, -1],
  gettimeofday: [96, 169], getrusage: [98, 165], sysinfo: [99, 179], times: [100, 153], getuid: [102, 174], getgid: [104, 176], geteuid: [107, 175], getegid: [108, 177],
  getppid: [110, 173], capget: [125, 90], sigaltstack: [131, 132], prctl: [157, 167], arch_prctl: [158, -1], gettid: [186, 178], futex: [202, 98],
  sched_getaffinity: [204, 123], set_tid_address: [218, 96], restart_syscall: [219, 128], clock_gettime: [228, 113], clock_getres: [229, 114], clock_nanosleep: [230, 115],
  exit_group: [231, 94], epoll_wait: [232, -1], epoll_ctl: [233, 21], tgkill: [234, 131], openat: [257, 56], newfstatat: [262, 79], readlinkat: [267, 78], faccessat: [269, 48],
  set_robust_list: [273, 99], epoll_pwait: [281, 22], eventfd2: [290, 19], epoll_create1: [291, 20], dup3: [292, 24], pipe2: [293, 59], prlimit64: [302, 261],
  seccomp: [317, 277], getrandom: [318, 278], membarrier: [324, 283], pkey_mprotect: [329, 288], pkey_alloc: [330, 289], pkey_free: [331, 290], statx: [332, 291],
  rseq: [334, 293], clone3: [435, 435], faccessat2: [439, 439], epoll_pwait2: [441, 441], sched_getparam: [143, 121], sched_getscheduler: [145, 120], getcpu: [309, 168],
  // Named only to kill.
  execveat: [322, 281], fork: [57, -1], vfork: [58, -1], kill: [62, 129], tkill: [200, 130], rt_sigqueueinfo: [129, 138], ptrace: [101, 117],
  process_vm_readv: [310, 270], process_vm_writev: [311, 271], pidfd_open: [434, 434], pidfd_getfd: [438, 438], pidfd_send_signal: [424, 424],
  socket: [41, 198], socketpair: [53, 199], connect: [42, 203], accept: [43, 202], accept4: [288, 242], bind: [49, 200], listen: [50, 201], sendto: [44, 206], recvfrom: [45, 207],
  sendmsg: [46, 211], recvmsg: [47, 212], sendmmsg: [307, 269], recvmmsg: [299, 243], io_uring_setup: [425, 425], io_uring_enter: [426, 426], io_uring_register: [427, 427],
  bpf: [321, 280], userfaultfd: [323, 282], perf_event_open: [298, 241], keyctl: [250, 219], add_key: [248, 217], request_key: [249, 218],
  mount: [165, 40], umount2: [166, 39], pivot_root: [155, 41], chroot: [161, 51], unshare: [272, 97], setns: [308, 268], open_tree: [428, 428], move_mount: [429, 429], fsopen: [430, 430],
  fsmount: [432, 432], mount_setattr: [442, 442], open_by_handle_at: [304, 265], name_to_handle_at: [303, 264], mknodat: [259, 33], linkat: [265, 37], symlinkat: [266, 36],
  setuid: [105, 146], setgid: [106, 144], setreuid: [113, 145], setregid: [114, 143], setresuid: [117, 147], setresgid: [119, 149], setgroups: [116, 159], capset: [126, 91],
  personality: [135, 92], modify_ldt: [154, -1], ioperm: [173, -1], iopl: [172, -1], reboot: [169, 142], kexec_load: [246, 104], kexec_file_load: [320, 294], init_module: [175, 105],
  finit_module: [313, 273], delete_module: [176, 106], memfd_create: [319, 279], memfd_secret: [447, 447],
} as const satisfies Readonly<Record<string, readonly [number, number]>>;
export type SyscallName = keyof typeof NUMBERS;

export type SeccompAction = 'allow' | 'kill' | { readonly errno: number };

/** A condition on an argument. `mask`/`equals` look at the low 32 bits; `zero` at all 64. */
type Condition =
  | { readonly kind: 'oneOf'; readonly argument: number; readonly values: readonly number[] }
  | { readonly kind: 'masked'; readonly argument: number; readonly mask: number; readonly equals: number }
  | { readonly kind: 'zero'; readonly argument: number };

export interface SyscallRule {
  readonly call: SyscallName;
  readonly action: SeccompAction;
  /** Without a condition the action always holds; with one, a call that does not meet it gets `otherwise`, or the filter's own. */
  readonly when?: Condition;
  readonly otherwise?: SeccompAction;
}

export interface SeccompPolicy {
  readonly name: 'start-up' | 'run-time';
  readonly rules: readonly SyscallRule[];
  readonly otherwise: SeccompAction;
}

const EPERM = 1;
const ENOSYS = 38;
const CLONE_VM = 0x100;
const CLONE_SIGHAND = 0x800;
const CLONE_THREAD = 0x1_0000;
/** CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET. */
const CLONE_NEW_ANY = 0x7e02_0000;
const PR_SET_NAME = 15;
const PR_SET_NO_NEW_PRIVS = 38;
const PR_GET_NO_NEW_PRIVS = 39;
const PR_SET_VMA = 0x5356_4d41;
const FIONBIO = 0x5421;
const FIOCLEX = 0x5451;
const TCGETS = 0x5401;
const FIONREAD = 0x541b;

function allow(...calls: SyscallName[]): SyscallRule[] {
  return calls.map((call) => ({ call, action: 'allow' }));
}

/** A thread of this process and nothing else: no child process, no namespace. */
const CLONE_THREAD_ONLY: SyscallRule = {
  call: 'clone',
  action: 'allow',
  when: { kind: 'masked', argument: 0, mask: (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEW_ANY) >>> 0, equals: CLONE_VM | CLONE_SIGHAND | CLONE_THREAD },
};
/** Reading a limit, never setting one: the new-limit pointer is null. */
const READ_LIMITS: SyscallRule = { call: 'prlimit64', action: 'allow', when: { kind: 'zero', argument: 2 } };
const CLONE3_ABSENT: SyscallRule = { call: 'clone3', action: { errno: ENOSYS } };

/** Most frequent first; the kernel caches the unconditional ones anyway. `openat` stays: the root holds nothing but what the jail bound. */
const STEADY: readonly SyscallRule[] = [
  ...allow(
    'futex', 'read', 'write', 'writev', 'readv', 'epoll_wait', 'epoll_pwait', 'epoll_ctl', 'madvise', 'mmap', 'munmap', 'mprotect', 'mremap', 'brk', 'clock_gettime',
    'clock_nanosleep', 'nanosleep', 'getpid', 'gettid', 'rt_sigprocmask', 'rt_sigaction', 'rt_sigreturn', 'sigaltstack', 'sched_yield', 'sched_getaffinity', 'openat', 'close',
    'fstat', 'newfstatat', 'statx', 'pread64', 'pwrite64', 'lseek', 'ftruncate', 'fsync', 'exit', 'exit_group', 'tgkill', 'set_robust_list', 'rseq', 'getrandom', 'membarrier',
    'restart_syscall', 'getrusage', 'gettimeofday', 'clock_getres', 'shutdown', 'fcntl', 'getuid', 'geteuid', 'getgid', 'getegid', 'capget', 'sysinfo', 'eventfd2', 'pkey_mprotect',
    'sched_getparam', 'sched_getscheduler', 'getcpu',
  ),
  CLONE_THREAD_ONLY,
  READ_LIMITS,
  CLONE3_ABSENT,
  { call: 'ioctl', action: 'allow', when: { kind: 'oneOf', argument: 1, values: [FIONBIO, FIOCLEX, FIONREAD] } },
  { call: 'prctl', action: 'allow', when: { kind: 'oneOf', argument: 0, values: [PR_SET_NAME, PR_SET_VMA] } },
];

export const START_UP: SeccompPolicy = {
  name: 'start-up',
  otherwise: { errno: EPERM },
  rules: [
    ...STEADY.filter((rule) => rule.call !== 'ioctl' && rule.call !== 'prctl'),
    ...allow(
      'execve', 'open', 'stat', 'lstat', 'poll', 'access', 'readlink', 'readlinkat', 'faccessat', 'faccessat2', 'getcwd', 'uname', 'arch_prctl', 'set_tid_address',
      'epoll_create1', 'epoll_pwait2', 'pipe2', 'dup3', 'getsockname', 'getsockopt', 'getppid', 'times', 'seccomp', 'pkey_alloc', 'pkey_free', 'fdatasync',
    ),
    { call: 'ioctl', action: 'allow', when: { kind: 'oneOf', argument: 1, values: [FIONBIO, FIOCLEX, FIONREAD, TCGETS] } },
    { call: 'prctl', action: 'allow', when: { kind: 'oneOf', argument: 0, values: [PR_SET_NAME, PR_SET_VMA, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS] } },
  ],
};

/** No line of node, V8 or libc makes these once they run: whoever does is foreign code. */
const FOREIGN: readonly SyscallName[] = [
  'execve', 'execveat', 'fork', 'vfork', 'kill', 'tkill', 'rt_sigqueueinfo', 'ptrace', 'process_vm_readv', 'process_vm_writev', 'pidfd_open', 'pidfd_getfd', 'pidfd_send_signal',
  'socket', 'socketpair', 'connect', 'accept', 'accept4', 'bind', 'listen', 'sendto', 'recvfrom', 'sendmsg', 'recvmsg', 'sendmmsg', 'recvmmsg',
  'io_uring_setup', 'io_uring_enter', 'io_uring_register', 'bpf', 'userfaultfd', 'perf_event_open', 'keyctl', 'add_key', 'request_key',
  'mount', 'umount2', 'pivot_root', 'chroot', 'unshare', 'setns', 'open_tree', 'move_mount', 'fsopen', 'fsmount', 'mount_setattr', 'open_by_handle_at', 'name_to_handle_at', 'mknodat', 'linkat', 'symlinkat',
  'setuid', 'setgid', 'setreuid', 'setregid', 'setresuid', 'setresgid', 'setgroups', 'capset', 'seccomp', 'personality', 'modify_ldt', 'ioperm', 'iopl', 'reboot',
  'kexec_load', 'kexec_file_load', 'init_module', 'finit_module', 'delete_module', 'memfd_create', 'memfd_secret',
];

export const RUN_TIME: SeccompPolicy = {
  name: 'run-time',
  otherwise: { errno: EPERM },
  rules: [...STEADY.map((rule): SyscallRule => (rule.call === 'clone' ? { ...rule, otherwise: 'kill' } : rule)), ...FOREIGN.map((call): SyscallRule => ({ call, action: 'kill' }))],
};

/** The architecture of `process.arch`, or LAYER_MISSING: a filter for the wrong one would kill every process or, worse, none. */
export function seccompArch(processArch: string): SeccompArch {
  if (processArch === 'x64') return 'x86_64';
  if (processArch === 'arm64') return 'aarch64';
  throw new BulkheadError('LAYER_MISSING', `layer seccomp is missing: there is no system call table for ${processArch}; run on x86_64 or aarch64`);
}

/** The call's number, or undefined where the architecture has no such call. */
export function syscallNumber(arch: SeccompArch, call: SyscallName): number | undefined {
  const number = NUMBERS[call][arch === 'x86_64' ? 0 : 1];
  return number < 0 ? undefined : number;
}

// --- the program ----------------------------------------------------------------------------------------------------

const LOAD_WORD = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_OR_EQUAL = 0x35;
const AND = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN = 0x06;
// struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]; both architectures are little-endian.
const AT_NUMBER = 0;
const AT_ARCH = 4;
const atArgument = (index: number): number => 16 + 8 * index;
/** Calls of the x32 ABI carry this bit; none is listed. */
const X32_BIT = 0x4000_0000;
const MAX_INSTRUCTIONS = 4_096;

function returnValue(action: SeccompAction): number {
  if (action === 'allow') return 0x7fff_0000;
  if (action === 'kill') return 0x8000_0000;
  return 0x0005_0000 | (action.errno & 0xffff);
}

interface Instruction {
  readonly code: number;
  /** Instructions to skip when the test holds, and when it does not. */
  readonly yes: number;
  readonly no: number;
  readonly k: number;
}

/** The filter as an array of `struct sock_filter` (u16 code, u8 jt, u8 jf, u32 k), ready for seccomp(2) and `bwrap --seccomp`. */
export function compileSeccomp(policy: SeccompPolicy, arch: SeccompArch): Uint8Array {
  const program: Instruction[] = [];
  const emit = (code: number, k: number, yes = 0, no = 0): void => {
    program.push({ code, yes, no, k });
  };
  emit(LOAD_WORD, AT_ARCH);
  emit(JUMP_EQUAL, AUDIT_ARCH[arch], 1, 0);
  emit(RETURN, returnValue('kill'));
  emit(LOAD_WORD, AT_NUMBER);
  if (arch === 'x86_64') {
    emit(JUMP_GREATER_OR_EQUAL, X32_BIT, 0, 1);
    emit(RETURN, returnValue('kill'));
  }
  const seen = new Set<SyscallName>();
  for (const rule of policy.rules) {
    if (seen.has(rule.call)) throw new BulkheadError('INTERNAL', `the ${policy.name} filter has two rules for ${rule.call}`);
    seen.add(rule.call);
    const number = syscallNumber(arch, rule.call);
    if (number === undefined) continue;
    const decided = returnValue(rule.action);
    const otherwise = returnValue(rule.otherwise ?? policy.otherwise);
    if (rule.when === undefined) {
      emit(JUMP_EQUAL, number, 0, 1);
      emit(RETURN, decided);
    } else if (rule.when.kind === 'oneOf') {
      const values = rule.when.values;
      emit(JUMP_EQUAL, number, 0, values.length + 3);
      emit(LOAD_WORD, atArgument(rule.when.argument));
      values.forEach((value, i) => emit(JUMP_EQUAL, value, values.length - i, 0));
      emit(RETURN, otherwise);
      emit(RETURN, decided);
    } else if (rule.when.kind === 'masked') {
      emit(JUMP_EQUAL, number, 0, 5);
      emit(LOAD_WORD, atArgument(rule.when.argument));
      emit(AND, rule.when.mask);
      emit(JUMP_EQUAL, rule.when.equals, 1, 0);
      emit(RETURN, otherwise);
      emit(RETURN, decided);
    } else {
      emit(JUMP_EQUAL, number, 0, 6);
      emit(LOAD_WORD, atArgument(rule.when.argument));
      emit(JUMP_EQUAL, 0, 0, 2);
      emit(LOAD_WORD, atArgument(rule.when.argument) + 4);
      emit(JUMP_EQUAL, 0, 1, 0);
      emit(RETURN, otherwise);
      emit(RETURN, decided);
    }
  }
  emit(RETURN, returnValue(policy.otherwise));
  if (program.length > MAX_INSTRUCTIONS) throw new BulkheadError('INTERNAL', `the ${policy.name} filter has ${program.length} instructions, more than the kernel takes`);
  const bytes = new Uint8Array(program.length * 8);
  const view = new DataView(bytes.buffer);
  program.forEach((instruction, i) => {
    view.setUint16(i * 8, instruction.code, true);
    view.setUint8(i * 8 + 2, instruction.yes);
    view.setUint8(i * 8 + 3, instruction.no);
    view.setUint32(i * 8 + 4, instruction.k, true);
  });
  return bytes;
}

/**
 * What the kernel would answer: a BPF interpreter over the program, so that tests and `doctor` can ask the compiled filter rather than
 * the list it came from. Arguments are 64-bit, as bigints.
 */
export function evaluateSeccomp(program: Uint8Array, auditArch: number, number: number, args: readonly bigint[] = []): number {
  const view = new DataView(program.buffer, program.byteOffset, program.byteLength);
  const load = (offset: number): number => {
    if (offset === AT_NUMBER) return number >>> 0;
    if (offset === AT_ARCH) return auditArch >>> 0;
    const value = args[(offset - 16) >> 3] ?? 0n;
    return Number(((offset - 16) & 4) === 0 ? value & 0xffff_ffffn : (value >> 32n) & 0xffff_ffffn);
  };
  let accumulator = 0;
  for (let i = 0; i < program.length / 8; i++) {
    const code = view.getUint16(i * 8, true);
    const k = view.getUint32(i * 8 + 4, true);
    if (code === RETURN) return k;
    if (code === LOAD_WORD) accumulator = load(k);
    else if (code === AND) accumulator = (accumulator & k) >>> 0;
    else {
      const holds = code === JUMP_EQUAL ? accumulator === k : accumulator >= k;
      i += view.getUint8(i * 8 + (holds ? 2 : 3));
    }
  }
  throw new BulkheadError('INTERNAL', 'a filter ended without an answer');
}

export const SECCOMP_AUDIT_ARCH = AUDIT_ARCH;
