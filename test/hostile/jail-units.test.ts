/** The pure parts of the jail, asked directly: filters as the kernel would evaluate them, arguments, envelopes, the crash-loop breaker. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MAX_BATCH_BYTES } from '../../src/base/limits.ts';
import { CrashLoopBreaker } from '../../src/sandbox/core/crash-loop.ts';
import { StartTurns } from '../../src/sandbox/core/start-turns.ts';
import { EnvelopeReader } from '../../src/sandbox/envelope.ts';
import { bubblewrapArgs, type JailSpec } from '../../src/sandbox/jail/bubblewrap.ts';
import { findProgram } from '../../src/sandbox/jail/image.ts';
import { readLayers, requireLayers } from '../../src/sandbox/jail/layers.ts';
import { compileSeccomp, evaluateSeccomp, RUN_TIME, seccompArch, SECCOMP_AUDIT_ARCH, START_UP, syscallNumber, type SeccompArch, type SyscallName } from '../../src/sandbox/jail/seccomp.ts';

const ALLOW = 0x7fff_0000;
const KILL = 0x8000_0000;
const EPERM = 0x0005_0001;
const ENOSYS = 0x0005_0026;
const ARCHES: SeccompArch[] = ['x86_64', 'aarch64'];

describe.each(ARCHES)('the filters on %s', (arch) => {
  const startUp = compileSeccomp(START_UP, arch);
  const runTime = compileSeccomp(RUN_TIME, arch);
  const ask = (program: Uint8Array, call: SyscallName, ...args: bigint[]): number => evaluateSeccomp(program, SECCOMP_AUDIT_ARCH[arch], syscallNumber(arch, call) as number, args);

  test('another architecture and, on x86_64, the x32 ABI are killed', () => {
    for (const program of [startUp, runTime]) {
      expect(evaluateSeccomp(program, 0x4000_0003, 0)).toBe(KILL);
      expect(evaluateSeccomp(program, SECCOMP_AUDIT_ARCH[arch === 'x86_64' ? 'aarch64' : 'x86_64'], 0)).toBe(KILL);
      if (arch === 'x86_64') expect(evaluateSeccomp(program, SECCOMP_AUDIT_ARCH[arch], 0x4000_0000)).toBe(KILL);
    }
  });

  test('execve is for start-up only', () => {
    expect(ask(startUp, 'execve')).toBe(ALLOW);
    expect(ask(runTime, 'execve')).toBe(KILL);
    expect(ask(startUp, 'execveat')).toBe(EPERM);
    expect(ask(runTime, 'execveat')).toBe(KILL);
  });

  test('clone makes threads and nothing else', () => {
    const thread = 0x3d0f00n;
    expect(ask(startUp, 'clone', thread)).toBe(ALLOW);
    expect(ask(runTime, 'clone', thread)).toBe(ALLOW);
    for (const namespace of [0x0002_0000n, 0x0200_0000n, 0x0400_0000n, 0x0800_0000n, 0x1000_0000n, 0x2000_0000n, 0x4000_0000n]) {
      expect(ask(startUp, 'clone', thread | namespace)).toBe(EPERM);
      expect(ask(runTime, 'clone', thread | namespace)).toBe(KILL);
    }
    expect(ask(startUp, 'clone', 17n)).toBe(EPERM);
    expect(ask(runTime, 'clone', 0x4111n)).toBe(KILL);
    expect(ask(runTime, 'clone3')).toBe(ENOSYS);
  });

  test('limits can be read and not set, with the pointer looked at in full', () => {
    expect(ask(runTime, 'prlimit64', 0n, 7n, 0n)).toBe(ALLOW);
    expect(ask(runTime, 'prlimit64', 0n, 7n, 1n)).toBe(EPERM);
    expect(ask(runTime, 'prlimit64', 0n, 7n, 0x1_0000_0000n)).toBe(EPERM);
  });

  test('ioctl and prctl take only what is listed', () => {
    expect(ask(runTime, 'ioctl', 0n, 0x5421n)).toBe(ALLOW);
    expect(ask(runTime, 'ioctl', 0n, 0x5412n)).toBe(EPERM);
    expect(ask(startUp, 'ioctl', 0n, 0x5412n)).toBe(EPERM);
    expect(ask(runTime, 'prctl', 15n)).toBe(ALLOW);
    expect(ask(runTime, 'prctl', 38n)).toBe(EPERM);
    expect(ask(startUp, 'prctl', 38n)).toBe(ALLOW);
  });

  test('whatever number is asked: only the listed ones pass, and run-time passes nothing that start-up does not', () => {
    const listed = new Set(START_UP.rules.flatMap((rule) => (rule.action === 'allow' ? [syscallNumber(arch, rule.call)] : [])));
    fc.assert(fc.property(fc.integer({ min: 0, max: 1_024 }), fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), { minLength: 6, maxLength: 6 }), (number, args) => {
      const first = evaluateSeccomp(startUp, SECCOMP_AUDIT_ARCH[arch], number, args);
      const second = evaluateSeccomp(runTime, SECCOMP_AUDIT_ARCH[arch], number, args);
      if (first === ALLOW) expect(listed.has(number)).toBe(true);
      if (second === ALLOW) expect(first).toBe(ALLOW);
    }), { numRuns: 2_000 });
  });
});

test('a program that is not installed is a missing layer that says what to install', () => {
  expect(findProgram('sh', 'install a shell')).toMatch(/^\/.*\/sh$/);
  expect(() => findProgram('no-such-program', 'install the package bubblewrap')).toThrow(/no-such-program is not installed; install the package bubblewrap/);
});

test('an architecture without a table is a missing layer', () => {
  expect(() => seccompArch('riscv64')).toThrow(/layer seccomp is missing/);
});

describe('bubblewrap arguments', () => {
  const spec: JailSpec = { program: '/app/node', args: ['x'], readOnly: [{ source: '/a', target: '/b' }], readWrite: [{ source: '/s', target: '/staging' }], devices: ['/dev/null'], env: { A: '1' }, uid: 65534, gid: 65534 };

  test('are exactly these', () => {
    expect(bubblewrapArgs(spec)).toEqual([
      '--unshare-user', '--unshare-ipc', '--unshare-pid', '--unshare-net', '--unshare-uts', '--unshare-cgroup', '--uid', '65534', '--gid', '65534', '--hostname', 'worker',
      '--die-with-parent', '--new-session', '--as-pid-1', '--cap-drop', 'ALL', '--clearenv', '--info-fd', '4', '--block-fd', '5', '--seccomp', '6',
      '--setenv', 'A', '1', '--ro-bind', '/a', '/b', '--bind', '/s', '/staging', '--dev-bind', '/dev/null', '/dev/null', '--remount-ro', '/', '--chdir', '/', '--', '/app/node', 'x',
    ]);
  });

  test.each([
    ['a relative source', { ...spec, readOnly: [{ source: 'a', target: '/b' }] }],
    ['a path upwards', { ...spec, readWrite: [{ source: '/a/../etc', target: '/b' }] }],
    ['an option in place of a program', { ...spec, program: '--share-net' }],
    ['a device that gives more', { ...spec, devices: ['/dev/kvm'] }],
  ])('refuse %s', (_what, bad) => {
    expect(() => bubblewrapArgs(bad)).toThrow(/jail/);
  });
});

describe('layers', () => {
  test('of this very process are off, and the first is named with a remedy', () => {
    const layers = readLayers(process.pid, { seccompFilters: 2, hostUid: undefined, cgroup: undefined, limits: undefined, writable: [] });
    expect(layers.every((layer) => layer.on)).toBe(false);
    expect(layers.find((layer) => layer.layer === 'pid-namespace')?.on).toBe(false);
    expect(() => requireLayers(layers, [])).toThrow(/layer user-namespace is missing .*: allow user namespaces/s);
    expect(() => requireLayers(layers, layers.map((layer) => layer.layer))).not.toThrow();
  });

  test('of a process that is not there are all off', () => {
    expect(readLayers(2 ** 22 + 1, { seccompFilters: 0, hostUid: undefined, cgroup: undefined, limits: undefined, writable: [] }).filter((layer) => layer.on)).toEqual([]);
  });
});

function envelope(slot: number, batch: Uint8Array): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(batch.length + 4, 0);
  header.writeUInt32LE(slot, 4);
  return Buffer.concat([header, batch]);
}

describe('envelopes', () => {
  test('come out as they went in, however the stream is cut', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(0xffff_ffff), fc.uint8Array({ minLength: 1, maxLength: 300 })), { maxLength: 20 }), fc.array(fc.integer({ min: 1, max: 97 }), { minLength: 1 }), (sent, cuts) => {
      const stream = Buffer.concat(sent.map(([slot, batch]) => envelope(slot, batch)));
      const got: [number, string][] = [];
      const reader = new EnvelopeReader((slot, batch) => got.push([slot, batch.toString('hex')]));
      for (let at = 0, i = 0; at < stream.length; i++) {
        const n = cuts[i % cuts.length] as number;
        expect(reader.push(stream.subarray(at, at + n))).toBeUndefined();
        at += n;
      }
      expect(got).toEqual(sent.map(([slot, batch]) => [slot, Buffer.from(batch).toString('hex')]));
    }), { numRuns: 200 });
  });

  test('with a bad length are told, once, and nothing follows', () => {
    for (const length of [0, 1, 4, MAX_BATCH_BYTES + 5, 0xffff_ffff]) {
      const got: number[] = [];
      const reader = new EnvelopeReader((slot) => got.push(slot));
      const bad = Buffer.alloc(8);
      bad.writeUInt32LE(length, 0);
      expect(reader.push(Buffer.concat([envelope(1, Buffer.from('a')), bad, envelope(2, Buffer.from('b'))])), String(length)).toMatch(/out of bounds/);
      reader.push(envelope(3, Buffer.from('c')));
      expect(got).toEqual([1]);
    }
  });

  test('stop in the middle of a chunk', () => {
    const got: number[] = [];
    const reader: EnvelopeReader = new EnvelopeReader((slot) => {
      got.push(slot);
      reader.stop();
    });
    reader.push(Buffer.concat([envelope(1, Buffer.from('a')), envelope(2, Buffer.from('b'))]));
    expect(got).toEqual([1]);
  });
});

describe('the crash-loop breaker', () => {
  const limits = { deaths: 3, windowMs: 1_000, firstWaitMs: 100, longestWaitMs: 350 };

  test('opens at the limit, doubles, is capped, and forgives a quiet tenant', () => {
    const breaker = new CrashLoopBreaker(limits);
    breaker.died('a', 0);
    breaker.died('a', 10);
    expect(breaker.waitMs('a', 10)).toBe(0);
    breaker.died('a', 20);
    expect(breaker.waitMs('a', 20)).toBe(100);
    expect(breaker.waitMs('b', 20)).toBe(0);
    expect(breaker.waitMs('a', 120)).toBe(0);
    breaker.died('a', 130);
    expect(breaker.waitMs('a', 130)).toBe(200);
    breaker.died('a', 340);
    expect(breaker.waitMs('a', 340)).toBe(350);
    expect(breaker.waitMs('a', 690)).toBe(0);
    expect(breaker.waitMs('a', 2_000)).toBe(0);
    breaker.died('a', 2_001);
    expect(breaker.waitMs('a', 2_001)).toBe(0);
  });

  test('deaths far apart never open it', () => {
    const breaker = new CrashLoopBreaker(limits);
    for (let i = 0; i < 50; i++) {
      breaker.died('a', i * 600);
      expect(breaker.waitMs('a', i * 600)).toBe(0);
    }
  });
});

describe('starts of processes', () => {
  test('whoever asks for one waits for what is under way and for a turn of each other tenant, not for all that they want', () => {
    const turns = new StartTurns<string>(2);
    const started: string[] = [];
    for (let i = 0; i < 30; i++) if (turns.begin('greedy', `greedy ${i}`)) started.push(`greedy ${i}`);
    expect(turns.begin('modest', 'modest 0')).toBe(false);
    expect(turns.begin('other', 'other 0')).toBe(false);
    expect(started).toEqual(['greedy 0', 'greedy 1']);
    for (let next = turns.ended(); next !== undefined; next = turns.ended()) started.push(next);
    expect(started.slice(2, 6)).toEqual(['greedy 2', 'modest 0', 'other 0', 'greedy 3']);
    expect(started.filter((name) => name.startsWith('greedy'))).toEqual(Array.from({ length: 30 }, (_, i) => `greedy ${i}`));
  });

  test('never more at once than allowed, nothing is lost, and all is free at the end', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 5 }), fc.array(fc.oneof(fc.constantFrom('a', 'b', 'c'), fc.constant(undefined)), { maxLength: 200 }), (most, events) => {
      const turns = new StartTurns<number>(most);
      let running = 0;
      let asked = 0;
      let begun = 0;
      const end = (): void => {
        if (turns.ended() === undefined) running--;
        else begun++;
      };
      for (const tenant of events) {
        if (tenant === undefined) {
          if (running > 0) end();
        } else if (turns.begin(tenant, asked++)) {
          running++;
          begun++;
        }
        expect(running).toBeLessThanOrEqual(most);
      }
      while (running > 0) end();
      expect(begun).toBe(asked);
      for (let i = 0; i < most; i++) expect(turns.begin('a', 0)).toBe(true);
      expect(turns.begin('a', 0)).toBe(false);
    }));
  });
});
