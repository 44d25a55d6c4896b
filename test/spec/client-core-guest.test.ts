/** The guest prelude in a real isolate: execution, async, cancelling, globals, the clock. */
import { webcrypto } from 'node:crypto';
import { parse } from 'acorn';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FrameWriter, OP, STREAMS } from '../../src/base/frame.ts';
import { MAX_LOG_BYTES } from '../../src/base/limits.ts';
import { encodeValue } from '../../src/base/value.ts';
import { buildPrelude } from '../../src/sandbox/isolate/build-prelude.ts';
import { sha256, sha384, sha512 } from '../../src/sandbox/isolate/guest/sha2.ts';
import { atob, btoa, TextDecoder as GuestDecoder, TextEncoder as GuestEncoder } from '../../src/sandbox/isolate/guest/text-codecs.ts';
import { ALLOWED_GLOBALS } from '../../src/sandbox/isolate/lockdown.ts';
import { GUEST_GLOBALS } from '../../src/sdk/guest-globals.ts';
import { freeVariables } from '../../src/sdk/inline-function.ts';
import { GuestIsolate } from './guest-isolate.ts';

const SOURCE = `
const { task, actor, put, get, wait, context, BulkheadError } = __bulkhead_runtime;
let open;
class Counter { n = 0; constructor(start) { this.n = start; } add(x) { return this.n += x; } async later(x) { await null; return this.n += x; } boom() { throw new Error('from a method'); } }
var __bulkhead_exports = {
  add: (a, b) => a + b, later: async (x) => { await null; return x * 2; }, boom: () => { throw new TypeError('no'); }, rejects: async () => { await null; throw new RangeError('late'); }, throws: (what) => { throw what; },
  hostile: () => { throw new Proxy({}, { get() { throw 1; }, getPrototypeOf() { throw 2; } }); }, big: (n) => new Uint8Array(n), thenable: () => ({ then(resolve) { resolve('then'); } }),
  stuck: () => new Promise(() => {}), nested: async () => { await null; return get(task(__bulkhead_exports.add)(1, 2)); }, waitForever: async () => { try { return await get(await put(1)); } catch (error) { console.log(error.code); throw error; } },
  log: (...args) => console.log(...args), warn: (text) => console.warn(text), flood: () => { for (let i = 0; i < 200; i++) console.log('x'.repeat(10_000)); },
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms, 'slept')), interval: () => new Promise((resolve) => { let n = 0; const id = setInterval(() => { if (++n === 3) { clearInterval(id); resolve(n); } }, 1); }),
  badTimer: () => new Promise((resolve) => { setTimeout(() => { throw new Error('in a timer'); }, 1); setTimeout(resolve, 5); }),
  clock: async () => { const a = Date.now(); for (let i = 0; i < 3e6; i++); const b = Date.now(), c = new Date().getTime(), p = performance.now(); await new Promise((resolve) => setTimeout(resolve, 20)); return [b - a, c - a, Date.now() > a, performance.now() > p, new Date(5).getTime(), new Date() instanceof Date, typeof Date()]; },
  globals: () => Object.getOwnPropertyNames(globalThis).sort(), who: () => context(), pair: () => [1, 2],
  digest: async (name, data) => new Uint8Array(await crypto.subtle.digest(name, data)), random: () => [crypto.randomUUID(), crypto.getRandomValues(new Uint8Array(40))],
  clone: () => { const a = { m: new Map([[1, new Date(5)]]) }; a.self = a; const b = structuredClone(a); return [b !== a, b.self === b, b.m.get(1).getTime()]; },
  abort: async () => { const c = new AbortController(); const seen = []; c.signal.addEventListener('abort', (e) => seen.push(e.type)); c.abort(); c.abort(); try { c.signal.throwIfAborted(); } catch (e) { seen.push(e.name); } const t = AbortSignal.timeout(2); await new Promise((r) => t.addEventListener('abort', r)); seen.push(t.reason.name); return seen; },
  endless: function* () { try { for (let i = 0; ; i++) yield i; } finally { console.log('endless is closed'); } },
  many: function* (n) { for (let i = 0; i < n; i++) yield i; },
  inline: () => { try { task((x) => x); } catch (e) { return e.message; } }, Counter, value: 5,
};`;

let guest: GuestIsolate;
beforeAll(async () => {
  guest = await GuestIsolate.start(SOURCE);
});
afterAll(() => guest[Symbol.dispose]());

describe('the prelude', () => {
  it('uses no global that it has not captured', async () => {
    const program = parse(await buildPrelude(), { ecmaVersion: 'latest' });
    expect(freeVariables(program).map(({ name }) => name).sort()).toEqual(['NaN', 'globalThis']);
  });

  it('leaves tenant code the globals that were promised, and no others', async () => {
    const names = (await guest.value('globals')) as string[];
    expect(names.filter((name) => !ALLOWED_GLOBALS.includes(name))).toEqual([]);
    expect(names.filter((name) => !GUEST_GLOBALS.has(name) && name !== '__bulkhead_runtime')).toEqual([]);
    const missing = [...GUEST_GLOBALS].filter((name) => !names.includes(name));
    expect(missing.filter((name) => !/Disposable|Suppressed|Float16|Iterator/.test(name))).toEqual([]);
  });
});

describe('calls', () => {
  it('run, sync and async, and fail with message and stack', async () => {
    const answers = await guest.runAll([['add', 1, 2], ['later', 4], ['boom'], ['rejects'], ['thenable'], ['add', 'a', 'b'], ['hostile'], ['throws', 'text'], ['throws', { a: 1 }], ['throws', null]]);
    expect(answers).toMatchObject([
      { value: 3 }, { value: 8 }, { code: 'TASK_FAILED', message: 'TypeError: no', stack: expect.stringContaining('at boom') }, { code: 'TASK_FAILED', message: 'RangeError: late' }, { value: 'then' }, { value: 'ab' },
      { code: 'TASK_FAILED', message: 'the thrown value cannot be shown' }, { code: 'TASK_FAILED', message: 'text' }, { code: 'TASK_FAILED', message: 'thrown: { a: 1 }' }, { code: 'TASK_FAILED', message: 'thrown: null' },
    ]);
  });

  it('of what is not there are refused', async () => {
    expect(await guest.runAll([['nope'], ['toString'], ['__proto__'], ['value']])).toMatchObject(['nope', 'toString', '__proto__', 'value'].map((name) => ({ code: 'INVALID_ARGUMENT', message: `the module exports no function named '${name}'` })));
  });

  it('answer in few flushes', async () => {
    const before = guest.flushes.length;
    await guest.runAll(Array.from({ length: 300 }, (_, i) => ['later', i] as [string, number]));
    expect(guest.flushes.length - before).toBeLessThanOrEqual(3);
  });

  it('leave early when much has gathered, in order', async () => {
    const before = guest.flushes.length;
    const answers = await guest.runAll(Array.from({ length: 12 }, () => ['big', 20_000] as [string, number]));
    expect(answers.every((answer) => 'value' in answer && (answer.value as Uint8Array).length === 20_000)).toBe(true);
    expect(guest.flushes.length - before).toBeGreaterThanOrEqual(3);
  });

  it('collect what generators yield', async () => {
    const before = guest.calls.length;
    expect(await guest.value('many', 3)).toEqual(Array.from({ length: 3 }, () => expect.stringMatching(/^obj-(01){20}/)));
    expect(guest.calls.slice(before).filter(([op]) => op === OP.PUT)).toHaveLength(3);
  });

  it('stream what generators yield, as far as there is room, and close them when they are cancelled', async () => {
    const writer = new FrameWriter();
    const counts = guest.exec(writer, guest.template(writer, 'many', { returns: STREAMS }), [5]);
    const endless = guest.exec(writer, guest.template(writer, 'endless', { returns: STREAMS }), []);
    const plain = guest.exec(writer, guest.template(writer, 'add', { returns: STREAMS }), [1, 2]);
    await guest.send(writer);
    expect(guest.items.get(counts)).toBeUndefined();
    writer.begin(OP.PULL).u32(counts).u32(0).u32(2).u64(1_000).end();
    writer.begin(OP.PULL).u32(endless).u32(3).u32(6).u64(1_000).end();
    await guest.send(writer);
    expect([await guest.itemsOf(counts, 2), await guest.itemsOf(endless, 3)]).toEqual([[0, 1], [3, 4, 5]]);
    writer.begin(OP.PULL).u32(counts).u32(0).u32(100).u64(1).end();
    await guest.send(writer);
    expect(guest.items.get(counts)).toEqual([0, 1]);
    writer.begin(OP.PULL).u32(counts).u32(0).u32(100).u64(1_000).end();
    writer.begin(OP.PULL).u32(endless).u32(3).u32(1_000_000).u64(40).end();
    writer.begin(OP.CANCEL_EXEC).u32(endless).end();
    await guest.send(writer);
    expect(await guest.itemsOf(counts, 5)).toEqual([0, 1, 2, 3, 4]);
    expect([await guest.answer(counts), await guest.answer(endless), await guest.answer(plain)]).toMatchObject([{ value: undefined }, { code: 'CANCELLED' }, { code: 'INVALID_ARGUMENT', message: expect.stringContaining('must be a generator') }]);
    // Each takes an octet or more, and 40 were allowed.
    expect(guest.items.get(endless)?.length).toBeLessThanOrEqual(40);
    expect(guest.logs.some(({ text }) => text.includes('endless is closed'))).toBe(true);
  });

  it('stage what is large, before the frame that names it', async () => {
    expect((await guest.value('big', 300_000)) as Uint8Array).toHaveLength(300_000);
    expect([...guest.staged.values()].at(-1)).toHaveLength(encodeValue(new Uint8Array(300_000)).bytes.length);
  });

  it('give several returns', async () => {
    const writer = new FrameWriter();
    const two = guest.exec(writer, guest.template(writer, 'pair', { returns: 2 }), []);
    const three = guest.exec(writer, guest.template(writer, 'pair', { returns: 3 }), []);
    const none = guest.exec(writer, guest.template(writer, 'pair', { returns: 0 }), []);
    await guest.send(writer);
    expect([await guest.answer(two), await guest.answer(three), await guest.answer(none)]).toMatchObject([{ value: [1, 2] }, { code: 'INVALID_ARGUMENT', message: expect.stringContaining('array of 3 values') }, { value: undefined }]);
  });

  it('that are cancelled answer CANCELLED once, and what they wait for rejects', async () => {
    const writer = new FrameWriter();
    const execs = [guest.exec(writer, guest.template(writer, 'stuck'), []), guest.exec(writer, guest.template(writer, 'waitForever'), []), guest.exec(writer, guest.template(writer, 'sleep'), [5_000])];
    await guest.send(writer);
    for (const exec of execs) writer.begin(OP.CANCEL_EXEC).u32(exec).end();
    await guest.send(writer);
    for (const exec of execs) expect(await guest.answer(exec)).toMatchObject({ code: 'CANCELLED' });
    expect(guest.logs.at(-1)?.text).toBe('CANCELLED\n');
    expect(await guest.value('add', 1, 1)).toBe(2);
  });

  it('make nested calls in their own name', async () => {
    const writer = new FrameWriter();
    const execs = [1, 2, 3].map(() => guest.exec(writer, guest.template(writer, 'waitForever'), []));
    const before = guest.calls.length;
    await guest.send(writer);
    await new Promise((done) => setTimeout(done, 20));
    const made = guest.calls.slice(before);
    expect(made.filter(([op]) => op === OP.PUT).map(([, parent]) => parent)).toEqual(execs);
    expect(made.filter(([op]) => op === OP.GET)).toHaveLength(3);
    for (const exec of execs) writer.begin(OP.CANCEL_EXEC).u32(exec).end();
    await guest.send(writer);
    expect(await guest.value('inline')).toMatch(/what its own module exports/);
    expect(await guest.value('who')).toMatchObject({ jobId: 'job-1', tenant: 'acme', name: 'who', attempt: 0 });
  });
});

describe('actors', () => {
  it('live in their isolate and take calls in order', async () => {
    using own = await GuestIsolate.start(SOURCE);
    const writer = new FrameWriter();
    const method = (name: string): number => own.template(writer, 'Counter', { kind: 2, method: name });
    const early = own.exec(writer, method('add'), [1], 2);
    const made = own.exec(writer, own.template(writer, 'Counter', { kind: 1 }), [10], 1);
    const execs = [own.exec(writer, method('add'), [1], 2), own.exec(writer, method('later'), [5], 2), own.exec(writer, method('add'), [1], 2), own.exec(writer, method('boom'), [], 2), own.exec(writer, method('constructor'), [], 2), own.exec(writer, method('toString'), [], 2), own.exec(writer, method('n'), [], 2)];
    await own.send(writer);
    expect(await own.answer(early)).toMatchObject({ code: 'ACTOR_DIED' });
    expect(await own.answer(made)).toEqual({ value: undefined });
    const answers = await Promise.all(execs.map((exec) => own.answer(exec)));
    expect(answers).toMatchObject([{ value: 11 }, { value: 17 }, { value: 12 }, { code: 'TASK_FAILED', message: 'from a method' }, { code: 'INVALID_ARGUMENT' }, { code: 'INVALID_ARGUMENT' }, { code: 'INVALID_ARGUMENT' }]);
  });
});

describe('globals', () => {
  it('log, formatted and capped', async () => {
    await guest.value('log', 'a %s of %d%% %o', 'list', 5, { b: [1, new Map([[1, 'x']])] }, new Set([null]));
    expect(guest.logs.at(-1)).toMatchObject({ stream: 1, text: "a list of 5% { b: [ 1, Map(1) { 1 => 'x' } ] } Set(1) { null }\n" });
    await guest.value('warn', 'careful');
    expect(guest.logs.at(-1)).toMatchObject({ stream: 2, text: 'careful\n' });
    const before = guest.logs.length;
    await guest.value('flood');
    const flood = guest.logs.slice(before);
    expect(flood.reduce((n, { text }) => n + text.length, 0)).toBeLessThan(MAX_LOG_BYTES + 100);
    expect(flood.at(-1)?.text).toContain('the rest is dropped');
  });

  it('have timers', async () => {
    expect(await guest.value('sleep', 3)).toBe('slept');
    expect(await guest.value('interval')).toBe(3);
    await guest.value('badTimer');
    expect(guest.logs.at(-1)).toMatchObject({ stream: 2, text: expect.stringMatching(/^Uncaught Error: in a timer/) });
  });

  it('have a clock that stands still between turns', async () => {
    expect(await guest.value('clock')).toEqual([0, 0, true, true, 5, true, 'string']);
  });

  it('clone, abort and draw random values', async () => {
    expect(await guest.value('clone')).toEqual([true, true, 5]);
    expect(await guest.value('abort')).toEqual(['abort', 'AbortError', 'TimeoutError']);
    const [first, second] = [(await guest.value('random')) as [string, Uint8Array], (await guest.value('random')) as [string, Uint8Array]];
    expect(first[0]).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    expect(second).not.toEqual(first);
    using unseeded = await GuestIsolate.start(SOURCE, { sessionPrefix: Array.from({ length: 20 }, () => 1) });
    expect(await unseeded.run('random')).toMatchObject({ code: 'TASK_FAILED', message: expect.stringContaining('without a random seed') });
  });

  it('digest as Node does', async () => {
    const data = new Uint8Array([1, 2, 3]);
    for (const name of ['SHA-256', 'SHA-384', 'SHA-512']) expect(await guest.value('digest', name, data)).toEqual(new Uint8Array(await webcrypto.subtle.digest(name, data)));
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (octets) => {
      for (const [name, digest] of [['SHA-256', sha256], ['SHA-384', sha384], ['SHA-512', sha512]] as const) expect(digest(octets)).toEqual(new Uint8Array(await webcrypto.subtle.digest(name, new Uint8Array(octets))));
    }), { numRuns: 60 });
  });

  it('encode and decode as Node does', () => {
    fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => {
      expect(new GuestEncoder().encode(text)).toEqual(new Uint8Array(new TextEncoder().encode(text)));
    }), { numRuns: 300 });
    const noisy = fc.array(fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(0xe0, 0xa0, 0x80, 0xed, 0x9f, 0xf0, 0x90, 0xf4, 0x8f, 0xc2, 0xef, 0xbb, 0xbf)), { maxLength: 30 }).map((octets) => Uint8Array.from(octets));
    fc.assert(fc.property(noisy, fc.nat(30), (octets, cut) => {
      expect(new GuestDecoder().decode(octets)).toBe(new TextDecoder().decode(octets));
      const [ours, theirs] = [new GuestDecoder(), new TextDecoder()];
      const [head, tail] = [octets.subarray(0, cut), octets.subarray(cut)];
      expect(ours.decode(head, { stream: true }) + ours.decode(tail)).toBe(theirs.decode(head, { stream: true }) + theirs.decode(tail));
    }), { numRuns: 500 });
    fc.assert(fc.property(fc.uint8Array(), (octets) => {
      const binary = Buffer.from(octets).toString('latin1');
      expect(btoa(binary)).toBe(Buffer.from(octets).toString('base64'));
      expect(atob(btoa(binary))).toBe(binary);
    }), { numRuns: 300 });
    expect(() => atob('a')).toThrow();
    expect(() => btoa('水')).toThrow();
  });
});
