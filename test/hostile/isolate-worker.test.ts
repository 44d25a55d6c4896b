/** The real prelude in a real jail: calls run, hostile values come back as typed failures of their call, and the calls beside them go on. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { decodeValue, encodeValue } from '../../src/base/value.ts';
import { ALLOWED_GLOBALS } from '../../src/sandbox/isolate/lockdown.ts';
import { buildPrelude } from '../../src/sandbox/isolate/build-prelude.ts';
import type { WorkerPool } from '../../src/sandbox/worker-pool.ts';
import type { WorkerProcess } from '../../src/sandbox/worker-process.ts';
import { startTestPool } from './sandbox-fixture.ts';

// Real processes on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

const MODULE = `var __bulkhead_exports = (() => ({
  add: (a, b) => a + b,
  names: () => Object.getOwnPropertyNames(globalThis),
  reach: () => [typeof process, typeof require, (function () {}).constructor('return typeof process + typeof require')(), typeof WebAssembly, typeof SharedArrayBuffer, typeof Atomics],
  clock: () => { const first = Date.now(); for (let i = 0; i < 3e6; i++); return [Date.now() - first, new Date().getTime() - first, performance.now() - performance.now()]; },
  random: () => crypto.randomUUID(),
  getters: () => ({ get value() { throw new Error('from a getter'); } }),
  proxy: () => new Proxy({}, { ownKeys() { throw new Error('from a proxy'); } }),
  thrown: () => { throw { get message() { throw 1; }, get stack() { throw 2; }, get name() { throw 3; }, toString() { throw 4; } }; },
  rebind: () => { for (const name of ['Map', 'Uint8Array', 'DataView', 'Promise', 'JSON', 'Object', 'Error']) { try { globalThis[name] = undefined; } catch {} } return 'tried'; },
  pollute: () => { try { Object.prototype.then = (f) => f(); } catch {} try { Uint8Array.prototype.set = () => { throw 1; }; } catch {} return 'tried'; },
  deep: () => { let value = 1; for (let i = 0; i < 5000; i++) value = [value]; return value; },
  never: () => new Promise(() => {}),
  stray: () => { for (const wrong of [new Error('x'), null, undefined, { get message() { throw 1; } }]) void (async () => { throw wrong; })(); return 5; },
  strayLater: () => { setTimeout(() => { void Promise.reject(new Error('later')); }, 1); return new Promise((resolve) => { setTimeout(() => { resolve(6); }, 10); }); },
  large: (n) => new Uint8Array(n).fill(3),
  log: () => { console.log('\\u001b[31mred'); return 1; },
}))();`;

let pool: WorkerPool;
let worker: WorkerProcess;
let exec = 0;
const templates = new Map<string, number>();
const frames = new FrameWriter();
const waiting = new Map<number, (outcome: unknown) => void>();
const logs: string[] = [];

beforeAll(async () => {
  pool = await startTestPool({ prelude: await buildPrelude() });
  worker = await pool.acquire({ tenant: 'acme', memoryBytes: 256 * 2 ** 20, cpus: 1 });
  const reader = new FrameReader();
  worker.onBatch = (_slot, batch) => {
    reader.reset(batch);
    while (reader.next()) {
      if (reader.op === OP.LOG) {
        reader.u32();
        reader.u8();
        logs.push(Buffer.from(reader.rest()).toString('utf8'));
        continue;
      }
      const number = reader.u32();
      if (reader.op === OP.FAILURE) waiting.get(number)?.({ failure: reader.str(), message: reader.text(100_000), stack: reader.text(100_000) });
      else if (reader.op === OP.RESULT) {
        reader.u8();
        const staged = reader.u8() === 1;
        for (let n = reader.refCount(100); n > 0; n--) reader.id();
        waiting.get(number)?.(staged ? { staged: reader.u32(), size: reader.u64() } : decodeValue(reader.bytes(2 ** 22).slice()));
      }
    }
  };
  worker.openSlot(1, { memoryMiB: 128, sessionPrefix: new Uint8Array(20) });
  writeFileSync(join(worker.codeDir, 'module.js'), MODULE);
  worker.loadCode(1, 1, new Uint8Array(32), 'module.js');
}, 60_000);

afterAll(async () => {
  await pool?.close();
});

function call(name: string, ...args: unknown[]): Promise<unknown> {
  let template = templates.get(name);
  if (template === undefined) {
    templates.set(name, (template = templates.size + 1));
    frames.begin(OP.TEMPLATE).u32(template).u8(0).u32(1).str(name).str('').u8(1).text('{}').end();
  }
  const number = ++exec;
  frames.begin(OP.EXEC).u32(number).u8(0).u32(template).u32(0).u32(number).u16(0).raw(encodeValue(args).bytes).end();
  const outcome = new Promise((resolve) => waiting.set(number, resolve));
  worker.send(1, frames.take());
  return outcome;
}

test('a call runs and answers', async () => {
  expect(await call('add', 1, 2)).toBe(3);
  expect(await Promise.all(Array.from({ length: 500 }, (_, i) => call('add', i, 1)))).toEqual(Array.from({ length: 500 }, (_, i) => i + 1));
});

test('tenant code sees the allow-list and no way out', async () => {
  const names = (await call('names')) as string[];
  expect(names.filter((name) => !ALLOWED_GLOBALS.includes(name))).toEqual([]);
  expect(await call('reach')).toEqual(['undefined', 'undefined', 'undefinedundefined', 'undefined', 'undefined', 'undefined']);
});

test('the clock stands still inside a call, and randomness is not repeated', async () => {
  expect(await call('clock')).toEqual([0, 0, 0]);
  const [a, b] = await Promise.all([call('random'), call('random')]);
  expect(a).toMatch(/^[0-9a-f-]{36}$/);
  expect(a).not.toBe(b);
});

test.each(['getters', 'proxy', 'thrown', 'deep'])('%s is a failure of its call alone', async (name) => {
  const [bad, good] = await Promise.all([call(name), call('add', 20, 22)]);
  expect(bad).toMatchObject({ failure: expect.stringMatching(/^(TASK_FAILED|INVALID_ARGUMENT)$/) });
  expect(good).toBe(42);
});

test.each([['stray', 5], ['strayLater', 6]])('a rejection that nobody handles (%s) is not the end of the isolate', async (name, value) => {
  expect(await call(name)).toBe(value);
  expect(await call('add', 1, 1)).toBe(2);
});

test('tampering with prototypes changes nothing for the next call', async () => {
  expect(await call('pollute')).toBe('tried');
  expect(await call('add', 1, 1)).toBe(2);
});

test('a call that never settles holds nobody up', async () => {
  void call('never');
  expect(await call('add', 2, 2)).toBe(4);
});

test('a large result is staged and can be taken', async () => {
  const staged = (await call('large', 500_000)) as { staged: number; size: number };
  expect(staged.size).toBeGreaterThan(500_000);
  worker.takeStaged(1, staged.staged, staged.size, join((pool as WorkerPool & { testRunDir: string }).testRunDir, 'result'));
});

test('logs come as frames', async () => {
  expect(await call('log')).toBe(1);
  expect(logs.join('')).toContain('red');
});

// Last: from here on the tenant's own code lacks what it took away from itself.
test('rebinding the globals that the prelude uses changes nothing for the next call', async () => {
  expect(await call('rebind')).toBe('tried');
  expect(await call('add', 1, 2)).toBe(3);
  expect(await call('thrown')).toMatchObject({ failure: 'TASK_FAILED' });
});
