/** An attacker in a Python task: the sandbox from inside, on a real cluster with real gVisor. What it tries is contained and typed, and neighbours go on. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { running, TestCluster, until } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

const python = testPython();

if ('missing' in python) {
  test('without gVisor no Python runs at all', () => {
    expect(python.missing).toMatch(/^layer gvisor is missing: /);
  });
} else {
  describe('code in a Python sandbox', () => {
    let cluster: TestCluster;
    const run = (program: string, profile = 'acme-dev', args: readonly string[] = []): Promise<unknown> => python.run(cluster, profile, `import json, os, sys\nimport bulkhead.ray as ray\nray.init()\ndef show(x): print("RESULT", json.dumps(x))\n${program}`, args).then((out) => JSON.parse(out.split('\n').findLast((l) => l.startsWith('RESULT '))?.slice(7) ?? 'null') as unknown);
    const neighbour = (): Promise<unknown> => run('@ray.remote\ndef one(): return 1\nshow(ray.get(one.remote(), timeout=30))', 'globex-dev');

    beforeAll(async () => {
      cluster = await TestCluster.start({ cpus: 2, python: python.interpreter });
    });

    afterAll(async () => {
      await cluster.stop();
    });

    /** Runs each expression's function in a task; what it threw, as the name of its error number or class. */
    const attempts = (calls: Readonly<Record<string, string>>): Promise<unknown> => run(`
@ray.remote
def attack(calls):
    import ctypes, errno, mmap, os, socket, subprocess
    libc = ctypes.CDLL(None, use_errno=True)
    def sys_(number, *args):
        ctypes.set_errno(0)
        if libc.syscall(number, *args) == -1: raise OSError(ctypes.get_errno(), "")
        return "done"
    said = {}
    for name, code in calls.items():
        try: said[name] = eval(code, dict(globals(), **locals()))
        except OSError as e: said[name] = errno.errorcode.get(e.errno, str(e))
        except Exception as e: said[name] = type(e).__name__
    return said
show(ray.get(attack.remote(json.loads(sys.argv[1]))))
`, 'acme-dev', [JSON.stringify(calls)]);

    test('is an ordinary user without capabilities, and stays one', async () => {
      expect(await attempts({
        uid: 'os.getresuid()', groups: 'os.getgroups()', caps: "[l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')]", 'new privileges': "[l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')]",
        setuid: 'os.setuid(0)', chown: "os.chown('/tmp', 0, 0)",
      })).toEqual({ uid: [65_534, 65_534, 65_534], groups: [], caps: Array.from({ length: 5 }, () => '0000000000000000'), 'new privileges': ['1'], setuid: 'EPERM', chown: 'EPERM' });
    });

    test('sees no process, file, secret or device of the host', async () => {
      const said = await attempts({
        processes: "len([p for p in os.listdir('/proc') if p.isdigit()]) < 20", 'first process': "'bulkhead.worker' in open('/proc/1/cmdline').read()", environment: "sorted(k for k in os.environ if 'BULKHEAD' in k or 'TOKEN' in k)",
        root: "sorted(n for n in os.listdir('/') if n not in ('lib', 'lib64', 'usr', 'opt', 'proc', 'tmp', 'dev', 'sys', 'objects', 'code', 'staging'))",
        'disks': "[d for d in os.listdir('/dev') if d.startswith(('sd', 'vd', 'mem', 'kmsg', 'kvm'))]", 'passwords': "open('/etc/shadow').read()", 'others’ files': "os.listdir('/staging')", 'memory of process 1': "open('/proc/1/mem', 'rb').read(1)",
        write: "open('/opt/x', 'w')", 'write code': "open('/code/x', 'w')", 'write objects': "open('/objects/x', 'w')",
      }) as Record<string, unknown>;
      expect(said).toMatchObject({ processes: true, 'first process': true, environment: [], root: [], disks: [], passwords: 'ENOENT', 'others’ files': 'EACCES' });
      for (const what of ['write', 'write code', 'write objects', 'memory of process 1']) expect(['EROFS', 'EACCES', 'EPERM', 'EIO', 'ENOENT']).toContain(said[what]);
    });

    test('gets nothing of the kernel that it could leave by', async () => {
      const said = await attempts({
        mount: "sys_(165, b'none', b'/tmp', b'tmpfs', 0, 0)", 'ptrace of the supervisor': 'sys_(101, 16, 1, 0, 0)', mknod: "os.mknod('/tmp/mem', 0o666 | 0o20000, os.makedev(1, 1))", chroot: "os.chroot('/tmp')", bpf: 'sys_(321, 0, 0, 0)', 'io_uring': 'sys_(425, 8, 0)',
        keyctl: 'sys_(250, 11, 1, 0, 0)', 'a key': "sys_(248, b'user', b'x', b'y', 1, -3)", kexec: 'sys_(246, 0, 0, 0, 0)', 'a module': "sys_(175, b'', 0, b'')", userfaultfd: 'sys_(323, 0)', 'kill the supervisor': 'os.kill(1, 9)', reboot: 'sys_(169, 0xfee1dead, 672274793, 0x1234567, 0)',
      }) as Record<string, unknown>;
      for (const [what, answer] of Object.entries(said)) expect(['EPERM', 'ENOSYS', 'EACCES', 'EINVAL', 'ESRCH', 'EFAULT', 'EOPNOTSUPP'], what).toContain(answer);
      expect(await neighbour()).toBe(1);
    });

    test('has no network: no raw socket, no host, no raylet', async () => {
      const [host, port] = (cluster.nodes[0]?.address ?? '').split(':');
      const said = await attempts({
        raw: 'socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) and "made"', packet: 'socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3) and "made"',
        raylet: `socket.create_connection((${JSON.stringify(host)}, ${port}), 3) and "connected"`, outside: "socket.create_connection(('192.0.2.1', 80), 3) and 'connected'", names: "socket.gethostbyname('localhost.invalid')",
      }) as Record<string, unknown>;
      expect(Object.values(said)).not.toContain('connected');
      expect(said).toMatchObject({ raw: 'EPERM' });
      expect(said['packet']).not.toBe('made');
    });

    test('forks until it may not, and neither the node nor a neighbour minds', async () => {
      const said = await run(`
@ray.remote(max_retries=0)
def bomb():
    import time
    made = []
    try:
        while len(made) < 5000:
            pid = os.fork()
            if pid == 0: time.sleep(600); os._exit(0)
            made.append(pid)
    except OSError: pass
    return len(made)
try: show(ray.get(bomb.remote(), timeout=40) < 5000)
except ray.exceptions.RayError as e: show(type(e).__name__ in ("WorkerCrashedError", "OutOfMemoryError"))
`);
      expect(said).toBe(true);
      expect(await neighbour()).toBe(1);
    });

    test('that takes all memory ends with OutOfMemoryError, and one that fills /tmp with its limit', async () => {
      expect(await run(`
@ray.remote(max_retries=0, memory=64 * 2**20)
def fill():
    held = []
    while True: held.append(bytearray(b"x") * (16 * 2**20))
@ray.remote
def disk():
    wrote = 0
    try:
        with open("/tmp/fill", "wb", buffering=0) as f:
            while wrote < 2**30: wrote += f.write(b"x" * 2**20)
    except OSError as e: return e.errno, wrote <= 64 * 2**20
    finally: os.unlink("/tmp/fill")
def caught(ref):
    try: return ray.get(ref)
    except ray.exceptions.RayError as e: return type(e).__name__
show([caught(fill.remote()), caught(disk.remote())])
`)).toEqual(['OutOfMemoryError', [28, true]]);
      expect(await neighbour()).toBe(1);
    });

    test.each([
      ['a length out of bounds', 'b"\\xff\\xff\\xff\\xff\\x01\\0\\0\\0"'],
      ['a frame that ends early', 'own(b"\\x20\\0\\0\\0\\x20\\1\\0")'],
      ['an operation of nobody', 'own(b"\\1\\0\\0\\0\\xee")'],
      ['a result of a call that it never got, with a file that is not there', 'own(frame(0x20, (9).to_bytes(4, "little"), b"\\1\\1\\0\\0\\0\\0", (77).to_bytes(4, "little"), (5).to_bytes(8, "little")))'],
      ['another slot’s number', '(5).to_bytes(4, "little") + (99).to_bytes(4, "little") + b"x"'],
      ['words of the supervisor', '(9).to_bytes(4, "little") + bytes(4) + b"\\1\\0\\0\\0\\x90"'],
      ['noise', 'bytes(range(256)) * 400'],
    ])('that writes %s into its channel ends itself at most', async (_what, octets) => {
      expect(await run(`
@ray.remote(max_retries=0)
def noisy():
    from bulkhead import api
    from bulkhead.frames import frame
    slot = api.runtime()
    own = lambda batch: (len(batch) + 4).to_bytes(4, "little") + slot._number.to_bytes(4, "little") + batch
    slot._channel.sendall(${octets})
    return 1
@ray.remote
def one(): return 1
try: first = ray.get(noisy.remote(), timeout=30)
except ray.exceptions.RayError as e: first = type(e).__name__
show([first in (1, "WorkerCrashedError", "RaySystemError"), ray.get(one.remote(), timeout=30)])
`)).toEqual([true, 1]);
      expect(await neighbour()).toBe(1);
    });

    test('cannot pass off a link or somebody else’s file as its result', async () => {
      expect(await run(`
@ray.remote(max_retries=0)
def linked(how):
    from bulkhead import api, values
    slot = api.runtime()
    name = f"/staging/{slot._number}-{slot._staged + 1}"
    try:
        os.unlink(name)
        (os.symlink if how == "symbolic" else os.link)("/proc/1/cmdline" if how == "symbolic" else "/opt/bulkhead/bulkhead/worker.py", name)
    except OSError as e: return e.errno
    return "replaced"
show([ray.get(linked.remote("symbolic")), ray.get(linked.remote("hard"))])
`)).toEqual([13, 13]);
    });

    test('leaves no process behind: double forks and ignored signals end with the sandbox', async () => {
      const before = new Set(cluster.pids());
      await run(`
@ray.remote
def linger():
    import signal, time
    for s in range(1, 32):
        try: signal.signal(s, signal.SIG_IGN)
        except (OSError, ValueError): pass
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(3600)
        os._exit(0)
    return 1
show(ray.get(linger.remote()))
`);
      // The job has ended: its sandbox goes, with all that was in it.
      await until('no more processes than before, but the warm sandbox’s', () => cluster.pids().filter((pid) => !before.has(pid)).length < 12, 30_000);
      expect(await neighbour()).toBe(1);
    });

    test('dies with its raylet, also when that is killed', async () => {
      const sandboxes = cluster.pids().filter((pid) => cluster.jailOf(pid).length > 0);
      expect(sandboxes.length).toBeGreaterThan(0);
      await cluster.kill('raylet-1');
      await until('no process of a worker is left', () => !sandboxes.some((pid) => running(pid)));
      await cluster.restart('raylet-1');
      await cluster.settled();
      expect(await neighbour()).toBe(1);
    });

    test('a pickle is opened by nobody but its tenant’s own programs', async () => {
      const directory = mkdtempSync(join(tmpdir(), 'bulkhead-pickle-'));
      try {
        const marker = join(directory, 'opened');
        await run(`
class Trap:
    def __reduce__(self): return (os.mkdir, (sys.argv[1],))
ref = ray.put(Trap())
@ray.remote
def hold(refs): return len(refs)
@ray.remote
def fail(): raise ValueError("x")
ready, _ = ray.wait([ref])
show([ray.get(hold.remote([ref])), len(ready)])
`, 'acme-dev', [marker]);
        expect(existsSync(marker)).toBe(false);
      } finally {
        rmSync(directory, { recursive: true, force: true });
      }
    });
  });
}
