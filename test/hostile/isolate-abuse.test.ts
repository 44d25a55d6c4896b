/**
 * Guest code that does its worst, inside a real jail: each case ends as a typed error of its slot or its worker; slots beside it answer
 * where the process lives, and another tenant's worker never notices.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { WorkerPool } from '../../src/sandbox/worker-pool.ts';
import type { WorkerProcess } from '../../src/sandbox/worker-process.ts';
import { ALLOWED_GLOBALS } from '../../src/sandbox/isolate/lockdown.ts';
import { openProbes, startTestPool, type SlotProbe } from './sandbox-fixture.ts';

// Real processes on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

const GUEST = 'const R = globalThis.__bulkhead_runtime;';
let pool: WorkerPool;
let bystander: SlotProbe;
let counter = 0;

beforeAll(async () => {
  pool = await startTestPool({ warm: 1 });
  [bystander] = openProbes(await pool.acquire({ tenant: 'bystander', memoryBytes: 64 * 2 ** 20, cpus: 1 }), 1) as [SlotProbe];
}, 60_000);

afterAll(async () => {
  expect(await bystander.run('20 + 3')).toBe('ok:23');
  await pool?.close();
});

async function attacker(slots = 2, memoryMiB = 32): Promise<{ worker: WorkerProcess; probes: SlotProbe[] }> {
  const worker = await pool.acquire({ tenant: `attacker-${counter++}`, memoryBytes: slots * memoryMiB * 2 ** 20, cpus: 1 });
  const probes = openProbes(worker, slots, memoryMiB);
  for (const probe of probes) expect(await probe.run('1')).toBe('ok:1');
  return { worker, probes };
}

/** Ways to never give the thread back. Most ignore isolated-vm's own time limit, because they sit in one native call. */
const HANGS: Record<string, string> = {
  'endless loop': 'for (;;);',
  'BigInt power': '(3n ** 99999999n) % 7n',
  'BigInt to string': '(2n ** 30000000n).toString().length',
  'fill on a huge array-like': 'Array.prototype.fill.call({ length: 2 ** 52 }, 0)',
  'indexOf on a huge array-like': 'Array.prototype.indexOf.call({ length: 2 ** 52 }, 1)',
  'sparse reverse': 'const a = []; a[2 ** 32 - 2] = 1; a.reverse()',
  'sparse sort': 'const a = []; a.length = 2 ** 32 - 1; a.copyWithin(1, 0)',
  'thrown object with a looping getter': 'throw { get message() { for (;;); }, get stack() { for (;;); }, get name() { for (;;); }, toString() { for (;;); } }',
  'thrown proxy that loops': 'throw new Proxy({}, { get() { for (;;); }, getPrototypeOf() { for (;;); }, has() { for (;;); } })',
  'value whose toString loops': '({ toString() { for (;;); } })',
  'regular expression': "/^(a+)+$/.test('a'.repeat(40) + 'b')",
  'microtask storm': 'const again = () => Promise.resolve().then(again); again(); 1',
  'async generator storm': '(async () => { for await (const x of (async function* () { for (;;) yield 1; })()); })(); 1',
  'then getter that loops': 'Promise.resolve({ get then() { for (;;); } }); 1',
};

describe('code that never returns', () => {
  test.each(Object.entries(HANGS))('%s: other slots answer, the outside kill ends it', async (_name, code) => {
    const { worker, probes: [hung, beside] } = await attacker() as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    hung.send(`${GUEST} ${code}`);
    expect(await beside.run('40 + 2')).toBe('ok:42');
    expect(await bystander.run('6 * 7')).toBe('ok:42');
    hung.send('"after"');
    worker.kill('TIMEOUT', 'wall clock');
    for (;;) {
      const answer = await hung.next();
      if (answer === 'exit:TIMEOUT:wall clock') break;
      // A microtask storm has answered its call before; nothing that came later is ever run.
      expect(answer).toBe('ok:1');
    }
    expect(await beside.next()).toBe('exit:TIMEOUT:wall clock');
    await worker.gone;
    expect(existsSync(`/proc/${worker.pid}`)).toBe(false);
  });
});

test('hung slots, more than there are processors, do not starve the next one', async () => {
  const { worker, probes } = await attacker(9, 16);
  for (const probe of probes.slice(0, 8)) probe.send('for (;;);');
  expect(await probes[8]?.run('40 + 2')).toBe('ok:42');
  worker.kill('KILLED');
});

/** Ways to take more memory than there is. isolated-vm stops some; the rest ends the process by its group's limit or by V8's own hand. */
const HOGS: Record<string, string> = {
  'growing Map': 'const m = new Map(); for (let i = 0; ; i++) m.set(i, [i]);',
  'growing Set of strings': "const s = new Set(); for (let i = 0; ; i++) s.add('x'.repeat(1000) + i);",
  'array of arrays': 'const a = []; for (;;) a.push(new Array(1000).fill(1.5));',
  'array buffers': 'const a = []; for (;;) a.push(new Uint8Array(1e6).fill(1));',
  'one huge array buffer': 'new Uint8Array(1.5e9).fill(1).length',
  'huge strings': "const a = []; for (;;) { let s = 'ab'; for (let i = 0; i < 24; i++) s += s; a.push(s.split('')); }",
  'nested proxies': 'let p = {}; for (;;) p = new Proxy(p, { held: new Array(100).fill(0) });',
  'closures': 'let f = () => 0; for (;;) { const g = f; const held = new Array(100).fill(0); f = () => [g, held]; }',
  'big bigints': 'const a = []; for (;;) a.push(2n ** 8000000n);',
  'error stacks': 'const a = []; Error.stackTraceLimit = 200; const f = (n) => n === 0 ? a.push(new Error("x").stack + n) : f(n - 1); for (;;) f(150);',
  'promise storm': 'const hold = []; for (;;) hold.push(new Promise((r) => hold.push(r)).then(() => hold));',
  'symbols and regexes': 'const a = []; for (let i = 0; ; i++) a.push(new RegExp("x".repeat(1000) + i), Symbol("y".repeat(1000) + i));',
  'json': "const a = []; for (;;) a.push(JSON.parse('[' + '[1],'.repeat(100000) + '1]'));",
};

describe('code that takes all memory', () => {
  test.each(Object.entries(HOGS))('%s ends typed', async (name, code) => {
    const { worker, probes: [hog, beside] } = await attacker(2, 16) as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    const answer = await hog.run(`${GUEST} ${code}`);
    expect(await bystander.run('6 * 7')).toBe('ok:42');
    // The slot that did it is named before the process that V8 gave up ends, if V8 lets it.
    const last = answer.startsWith('failed:OUT_OF_MEMORY') ? await Promise.race([hog.next(), beside.run('1 + 1')]) : answer;
    if (last.startsWith('exit:')) {
      expect(last, name).toMatch(/^exit:(OUT_OF_MEMORY|CRASHED):/);
    } else if (answer.startsWith('failed:')) {
      expect(last).toBe('ok:2');
      worker.kill('KILLED');
    } else {
      // Refused inside (a RangeError of the language) or the slot is gone; the process goes on.
      expect(answer, name).toMatch(/^(failed:OUT_OF_MEMORY:|error:RangeError)/);
      expect(await beside.run('1 + 1')).toBe('ok:2');
      worker.kill('KILLED');
    }
  });

  test('a deep recursion is an error of the guest', async () => {
    const { worker, probes: [probe] } = await attacker(1) as { worker: WorkerProcess; probes: [SlotProbe] };
    expect(await probe.run('const f = () => f(); f()')).toBe('error:RangeError: Maximum call stack size exceeded');
    expect(await probe.run('let o = []; for (let i = 0; i < 1e5; i++) o = [o]; JSON.stringify(o)')).toMatch(/^error:RangeError/);
    expect(await probe.run('"alive"')).toBe('ok:alive');
    worker.kill('KILLED');
  });
});

describe('code that wants out', () => {
  let worker: WorkerProcess;
  let probe: SlotProbe;
  beforeAll(async () => {
    const made = await attacker(1);
    worker = made.worker;
    probe = made.probes[0] as SlotProbe;
  });
  afterAll(() => worker.kill('KILLED'));

  test('its globals are an allow-list', async () => {
    const answer = await probe.run('JSON.stringify(Object.getOwnPropertyNames(globalThis))');
    const names = JSON.parse(answer.slice(3)) as string[];
    expect(names.length).toBeGreaterThan(40);
    expect(names.filter((name) => !ALLOWED_GLOBALS.includes(name))).toEqual([]);
    for (const name of ['WebAssembly', 'SharedArrayBuffer', 'Atomics', 'WeakRef', 'FinalizationRegistry', 'Intl']) expect(await probe.run(`typeof ${name}`), name).toBe('ok:undefined');
  });

  const ESCAPES: Record<string, string> = {
    'constructor of a plain object': 'this.constructor.constructor("return typeof process + typeof require")()',
    'constructor of emit': `${GUEST} R.emit.constructor("return typeof process + typeof require")()`,
    'prototype of emit': `${GUEST} Object.getPrototypeOf(R.emit).constructor("return typeof process + typeof require")()`,
    'async function constructor': '(async () => {}).constructor("return 1") && new (Object.getPrototypeOf(function* () {}).constructor)("yield typeof process + typeof require")().next().value',
    'error stack API': 'Error.prepareStackTrace = (_, frames) => frames.map((f) => typeof f.getThis() + typeof f.getFunction()).includes("objectfunction"); const e = new Error("x"); String(typeof process + typeof require)',
    'eval in every realm': '(0, eval)("typeof process + typeof require")',
  };
  test.each(Object.entries(ESCAPES))('%s finds no host', async (_name, code) => {
    expect(await probe.run(code)).toBe('ok:undefinedundefined');
  });

  test('dynamic import, and code from bytes, are not there', async () => {
    await probe.run(`${GUEST} import('fs').then(() => R.say('imported'), (error) => R.say('refused'))`);
    expect(await probe.next()).toBe('say:refused');
  });

  test('emit has nothing to give', async () => {
    const answer = await probe.run(`${GUEST} JSON.stringify([typeof R.emit, Object.getOwnPropertyNames(R.emit), String(R.emit(0, 0, R.utf8('x')))])`);
    // The emitted frame came first, the answer after.
    expect(answer).toBe('x');
    const shown = JSON.parse((await probe.next()).slice(3)) as [string, string[], string];
    expect(shown[0]).toBe('function');
    expect(shown[2]).toBe('undefined');
  });

  test('polluted prototypes do not cross', async () => {
    await probe.run("Object.prototype.polluted = 1; Array.prototype[0] = 'p'; Object.prototype.then = 1; Object.prototype.get = () => 1; 1");
    expect(await probe.run('"alive"')).toBe('ok:alive');
    expect(await bystander.run('typeof ({}).polluted')).toBe('ok:undefined');
    await probe.run('delete Object.prototype.polluted; delete Array.prototype[0]; delete Object.prototype.then; delete Object.prototype.get; 1');
  });
});

/** Calls of `emit` that the prelude never makes: the slot fails, the process and its other slots go on. */
const BAD_EMITS: Record<string, string> = {
  'no arguments': 'R.emit()',
  'an unknown kind': 'R.emit(99, 1, R.utf8("x"))',
  'a kind that is text': 'R.emit("0", 1, R.utf8("x"))',
  'a negative number': 'R.emit(1, -1, R.utf8("x"))',
  'a fraction': 'R.emit(1, 0.5, R.utf8("x"))',
  'a number beyond 32 bits': 'R.emit(1, 2 ** 40, R.utf8("x"))',
  'a path instead of a number': 'R.emit(1, "../../etc/passwd", R.utf8("x"))',
  'a timer without a delay': 'R.emit(2, 1, new ArrayBuffer(3))',
  'one staged number twice': 'R.emit(1, 7, R.utf8("x")); R.emit(1, 7, R.utf8("y"))',
  'a batch over the limit': 'R.emit(0, 0, new ArrayBuffer(17 * 2 ** 20))',
  'too many timers': 'const d = new Uint32Array([1e6]).buffer; for (let i = 0; i < 20000; i++) R.emit(2, i, d)',
  'a flood of frames': 'const b = new ArrayBuffer(2 ** 20); for (let i = 0; i < 400; i++) R.emit(0, 0, b)',
};

describe('misuse of the bridge', () => {
  test.each(Object.entries(BAD_EMITS))('%s fails the slot alone', async (name, code) => {
    const { worker, probes: [bad, beside] } = await attacker(2, 64) as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    const flood = name === 'a flood of frames';
    // A raylet that is behind stops reading; a guest that goes on must not fill the host's memory.
    if (flood) worker.pauseReading();
    bad.send(`${GUEST} ${code}; 'done'`);
    if (flood) {
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      worker.resumeReading();
    }
    let answer = await bad.next();
    while (!answer.startsWith('failed:') && !answer.startsWith('exit:')) answer = await bad.next();
    expect(answer).toMatch(/^failed:(INTERNAL|RESOURCE_EXHAUSTED):/);
    expect(await beside.run('1 + 1')).toBe('ok:2');
    worker.kill('KILLED');
  });

  test('what emit cannot carry is an error of the guest', async () => {
    const { worker, probes: [probe] } = await attacker(1) as { worker: WorkerProcess; probes: [SlotProbe] };
    for (const value of ['"text"', '() => 1', 'new Uint8Array(3)', 'new DataView(new ArrayBuffer(1))', '{ byteLength: 1 }', '{ a: 1 }', 'Symbol("x")', 'new Proxy({}, {})', 'globalThis']) {
      const answer = await probe.run(`${GUEST} R.emit(0, 0, ${value})`);
      expect(answer, value).toMatch(/^error:TypeError/);
    }
    worker.kill('KILLED');
  });

  test('a timer storm leaves the host and other slots responsive', async () => {
    const { worker, probes: [storm, beside] } = await attacker() as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    await storm.run(`${GUEST} let n = 0; const d = new Uint32Array([0]).buffer; for (let i = 0; i < 1000; i++) { R.timers.set(i, () => { n++; R.emit(2, i, d); }); R.emit(2, i, d); } globalThis.__n = () => n; 1`);
    for (let i = 0; i < 5; i++) expect(await beside.run('1 + 1')).toBe('ok:2');
    expect(await bystander.run('6 * 7')).toBe('ok:42');
    worker.kill('KILLED');
  });
});

describe('what a slot is for', () => {
  test('code, attachments, staged files, timers and order', async () => {
    const { worker, probes: [probe, beside] } = await attacker() as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    const runDir = (pool as WorkerPool & { testRunDir: string }).testRunDir;
    writeFileSync(join(worker.codeDir, 'good.js'), 'var __bulkhead_exports = { add: (a, b) => a + b };');
    worker.loadCode(1, 5, new Uint8Array(32), 'good.js');
    expect(await probe.run(`${GUEST} R.codes.get(5)().add(1, 2)`)).toBe('ok:3');
    writeFileSync(join(worker.codeDir, 'bad.js'), 'var __bulkhead_exports = {{;');
    worker.loadCode(1, 6, new Uint8Array(32), 'bad.js');
    expect(await probe.next()).toMatch(/^code-failed:6:SyntaxError|^code-failed:6:/);

    for (const size of [5, 3 * 2 ** 20]) {
      const object = join(runDir, `object-${size}`);
      writeFileSync(object, Buffer.alloc(size, 7));
      worker.attach(1, size, object, size);
      expect(await probe.run(`${GUEST} const b = new Uint8Array(R.attachments.get(${size})); [b.length, b[0], b[b.length - 1]].join()`)).toBe(`ok:${size},7,7`);
      worker.detach(`object-${size}`);
    }
    expect(readdirSync(worker.objectsDir)).toEqual([]);

    // The frame that names a staged file comes after the file is whole.
    expect(await probe.run(`${GUEST} R.emit(1, 3, new Uint8Array(200000).fill(9).buffer); 'staged'`)).toBe('ok:staged');
    const sealed = join(runDir, 'sealed');
    worker.takeStaged(1, 3, 200_000, sealed);
    expect(existsSync(sealed)).toBe(true);
    expect(readdirSync(worker.stagingDir)).toEqual([]);

    await probe.run(`${GUEST} R.timers.set(1, () => R.say('fired')); R.timers.set(2, () => R.say('never')); R.emit(2, 1, new Uint32Array([20]).buffer); R.emit(2, 2, new Uint32Array([10]).buffer); R.emit(3, 2); 1`);
    expect(await probe.next()).toBe('say:fired');

    probe.send(`${GUEST} R.say('first'); Promise.resolve().then(() => R.say('third')); 'second'`);
    expect([await probe.next(), await probe.next(), await probe.next()]).toEqual(['say:first', 'ok:second', 'say:third']);

    worker.closeSlot(1);
    expect(await beside.run('"still"')).toBe('ok:still');
    worker.openSlot(1, { memoryMiB: 16, sessionPrefix: new Uint8Array(20) });
    expect(await probe.run(`${GUEST} R.codes.size + ' ' + JSON.parse(R.config).slot`)).toBe('ok:0 1');
    worker.kill('KILLED');
  });

  test('a slot may use what it was given, and staged objects do not count against it once sealed', async () => {
    const { worker, probes: [probe] } = await attacker(1, 256) as { worker: WorkerProcess; probes: [SlotProbe] };
    expect(await probe.run('const a = []; for (let i = 0; i < 140; i++) a.push(new Array(131072).fill(i + 0.5)); a.length')).toBe('ok:140');
    const runDir = (pool as WorkerPool & { testRunDir: string }).testRunDir;
    // Far more in sum than the group's limit: each is sealed, moved away, and some are freed.
    for (let n = 0; n < 16; n++) {
      expect(await probe.run(`${GUEST} R.emit(1, ${n}, new ArrayBuffer(32 * 2 ** 20)); 'staged'`)).toBe('ok:staged');
      const destination = join(runDir, `sealed-${n}`);
      worker.takeStaged(1, n, 32 * 2 ** 20, destination);
      expect(statSync(destination).mode & 0o7777).toBe(0o444);
      if (n >= 6) rmSync(join(runDir, `sealed-${n - 4}`));
    }
    // Freed ones lower the limit again, so that staging is no way to more memory.
    const held = Number(readFileSync(execFileSync('find', ['/sys/fs/cgroup', '-path', `*${worker.id}/memory.limit_in_bytes`, '-o', '-path', `*${worker.id}/memory.max`], { encoding: 'utf8' }).trim(), 'latin1'));
    expect(held).toBeLessThan(worker.limits.memoryBytes + 13 * 32 * 2 ** 20);
    worker.kill('KILLED');
  });

  test('an object of another size than announced fails the slot', async () => {
    const { worker, probes: [probe, beside] } = await attacker() as { worker: WorkerProcess; probes: [SlotProbe, SlotProbe] };
    const object = join((pool as WorkerPool & { testRunDir: string }).testRunDir, 'short');
    writeFileSync(object, 'abc');
    worker.attach(1, 1, object, 4);
    expect(await probe.next()).toMatch(/^failed:INTERNAL:/);
    expect(await beside.run('1 + 1')).toBe('ok:2');
    worker.kill('KILLED');
  });
});
