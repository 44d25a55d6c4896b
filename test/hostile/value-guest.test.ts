/** Tenant code against the prelude that shares its isolate: it must not reach the way out, other calls' frames or a broken frame. */
import { afterEach, describe, expect, it } from 'vitest';
import { GuestIsolate } from '../spec/guest-isolate.ts';

let guest: GuestIsolate | undefined;
afterEach(() => guest?.[Symbol.dispose]());

async function start(body: string): Promise<GuestIsolate> {
  guest = await GuestIsolate.start(`
    const { task, get, put } = __bulkhead_runtime;
    var __bulkhead_exports = { add: (a, b) => a + b, later: async (x) => { await null; return [x, { x }]; }, ${body} };`);
  return guest;
}

/** The isolate still computes and answers, sync, async and logged. */
async function stillWorks(isolate: GuestIsolate): Promise<void> {
  expect(await isolate.runAll([['add', 1, 2], ['later', 'z'], ['add', 'x', 'y']])).toEqual([{ value: 3 }, { value: ['z', { x: 'z' }] }, { value: 'xy' }]);
}

describe('replacing built-ins', () => {
  const patches: [what: string, code: string][] = [
    ['Uint8Array.prototype.set', 'Object.getPrototypeOf(Uint8Array.prototype).set = spy'], ['subarray by defineProperty', 'Object.defineProperty(Object.getPrototypeOf(Uint8Array.prototype), "subarray", { value: spy })'],
    ['DataView.prototype.setUint32', 'DataView.prototype.setUint32 = spy'], ['Array.prototype.push', 'Array.prototype.push = spy'], ['a setter for index 0', 'Object.defineProperty(Array.prototype, "0", { set: spy })'],
    ['a setter on Object.prototype', 'Object.defineProperty(Object.prototype, "code", { set: spy })'], ['a getter for then', 'Object.defineProperty(Object.prototype, "then", { get: spy })'], ['Promise.prototype.then', 'Promise.prototype.then = spy'],
    ['Map.prototype.get', 'Map.prototype.get = spy'], ['WeakMap.prototype.get', 'WeakMap.prototype.get = spy'], ['Reflect.apply', 'Reflect.apply = spy'], ['Function.prototype.call', 'Function.prototype.call = spy'], ['Object.keys', 'Object.keys = spy'],
    ['Object.prototype.toString', 'Object.prototype.toString = spy'], ['String.prototype.charCodeAt', 'String.prototype.charCodeAt = spy'], ['array iteration', 'Object.getPrototypeOf([][Symbol.iterator]()).next = spy'], ['Map iteration', 'Object.getPrototypeOf(new Map()[Symbol.iterator]()).next = spy'],
    ['the prototype of Array.prototype', 'Object.setPrototypeOf(Array.prototype, { push: spy })'], ['JSON.parse', 'JSON.parse = spy'], ['ArrayBuffer.prototype.transfer', 'ArrayBuffer.prototype.transfer = spy'], ['Error.prototype.name', 'Object.defineProperty(Error.prototype, "name", { get: spy })'],
    ['the runtime', '__bulkhead_runtime.get = spy'], ['the runtime global', 'Object.defineProperty(globalThis, "__bulkhead_runtime", { value: spy })'], ['BulkheadError', '__bulkhead_runtime.BulkheadError.prototype.message = spy'],
  ];
  for (const [what, code] of patches) {
    it(`fails for ${what}`, async () => {
      const isolate = await start(`patch: () => { const seen = []; const spy = function (...args) { seen.push(args); }; try { ${code}; } catch (error) { return error instanceof TypeError ? 'refused' : String(error); } return 'patched'; }`);
      expect(await isolate.value('patch')).toBe('refused');
      await stillWorks(isolate);
    });
  }

  it('as globals changes nothing for the prelude', async () => {
    const isolate = await start(`patch: () => { for (const name of Object.getOwnPropertyNames(globalThis)) { if (name === 'globalThis' || name === 'Infinity' || name === 'NaN' || name === 'undefined') continue; try { globalThis[name] = () => { throw new Error('patched'); }; } catch {} } return 1; }`);
    expect(await isolate.value('patch')).toBe(1);
    await stillWorks(isolate);
  });

  it('that stay open, RegExp and Error, hurt nobody else', async () => {
    const isolate = await start(`
      patch: () => { RegExp.prototype.exec = () => { throw new Error('exec'); }; RegExp.prototype[Symbol.replace] = () => { throw new Error('replace'); }; Error.prepareStackTrace = (error, frames) => { globalThis.frames = frames; return { forged: true }; }; Error.stackTraceLimit = Infinity; },
      boom: () => { throw new TypeError('boom'); }, peek: () => { try { put(() => 1); } catch (e) { e.stack; } return (globalThis.frames ?? []).map((f) => [typeof f.getThis(), typeof f.getFunction()].join()); }`);
    await isolate.value('patch');
    expect(await isolate.run('boom')).toMatchObject({ code: 'TASK_FAILED', message: expect.stringContaining('boom') });
    for (const frame of (await isolate.value('peek')) as string[]) expect(frame).toBe('undefined,undefined');
    await stillWorks(isolate);
  });

  it('is not needed: what programs override on their own objects stays assignable', async () => {
    const isolate = await start(`own: () => {
      function Legacy() {} Legacy.prototype.toString = () => 'legacy'; Legacy.prototype.constructor = Legacy;
      function OldError(m) { this.message = m; } OldError.prototype = Object.create(Error.prototype); OldError.prototype.name = 'OldError'; OldError.prototype.constructor = OldError;
      const o = {}; o.hasOwnProperty = 1; o.valueOf = () => 7; const f = () => 1; f.toString = () => 'f';
      class E extends Error { name = 'E'; } const e = new E('m'); e.message = 'changed';
      return [String(new Legacy()), String(new OldError('x')), new OldError('x') instanceof Error, o.hasOwnProperty, o + 1, String(f), e.name, e.message, Object.keys(o)];
    }`);
    expect(await isolate.value('own')).toEqual(['legacy', 'OldError: x', true, 1, 8, 'f', 'E', 'changed', ['hasOwnProperty', 'valueOf']]);
  });
});

describe('results and errors that fight back', () => {
  it('end as an answer of their own call', async () => {
    const isolate = await start(`
      getter: () => ({ get x() { throw new Error('in a getter'); } }), calls: () => ({ get x() { task(__bulkhead_exports.add)(1, 2); return 1; } }), thenThrows: () => ({ get then() { throw new Error('then'); } }), thenTwice: () => ({ then(ok, no) { ok(1); ok(2); no(3); throw 4; } }),
      nestedProxy: () => { let p = {}; for (let i = 0; i < 50; i++) p = new Proxy(p, {}); return p; }, message: () => { throw { get message() { throw 1; }, get stack() { throw 2; } }; }, longMessage: () => { throw new Error('m'.repeat(1e6)); }, notText: () => { const e = new Error('x'); e.message = { toString() { throw 1; } }; e.stack = 5; throw e; },
      deep: () => { let d = []; for (let i = 0; i < 1e5; i++) d = [d]; return d; }, constructorTrap: () => new Promise((ok) => ok(1)).constructor = 5, symbolThrown: () => { throw Symbol('s'); }, subclass: () => { class P extends Promise { then() { throw new Error('sub'); } } return P.resolve(1); }`);
    const names = ['getter', 'calls', 'thenThrows', 'thenTwice', 'nestedProxy', 'message', 'longMessage', 'notText', 'deep', 'symbolThrown', 'subclass'];
    const answers = await isolate.runAll(names.map((name) => [name]));
    expect(answers.map((answer) => ('code' in answer ? answer.code : 'value'))).toEqual(['TASK_FAILED', 'value', 'TASK_FAILED', 'value', 'value', 'TASK_FAILED', 'TASK_FAILED', 'TASK_FAILED', 'INVALID_ARGUMENT', 'TASK_FAILED', 'TASK_FAILED']);
    for (const answer of answers) if ('code' in answer) expect(answer.message.length).toBeLessThanOrEqual(8_192);
    await stillWorks(isolate);
  });

  it('thrown where nobody listens end nothing', async () => {
    const isolate = await start(`loose: () => { Promise.reject(new Error('loose')); (async () => { throw new Proxy({}, { get() { throw 1; } }); })(); put(() => 1); return 1; }`);
    expect(await isolate.value('loose')).toBe(1);
    expect(isolate.unhandled.length).toBe(1);
    await stillWorks(isolate);
  });

  it('leave no torn frame when the stack ends inside the runtime', async () => {
    const isolate = await start(`
      exhaust: () => { let made = 0; const dig = () => { try { dig(); } catch {} try { put(1); made++; } catch {} try { console.log('x'); } catch {} try { task(__bulkhead_exports.add)(1, made); } catch {} }; dig(); return made > 0; }`);
    const answer = await isolate.run('exhaust');
    expect('value' in answer || answer.code === 'TASK_FAILED').toBe(true);
    await stillWorks(isolate);
  });
});

describe('what is reachable', () => {
  it('holds no function of the host and no way to other calls', async () => {
    const isolate = await start(`walk: () => {
      const seen = new Set(); const found = []; const queue = [[globalThis, 'globalThis'], [__bulkhead_runtime, 'runtime'], [(function () { return this; })(), 'this']];
      while (queue.length > 0 && seen.size < 20_000) {
        const [object, path] = queue.pop();
        if ((typeof object !== 'object' && typeof object !== 'function') || object === null || seen.has(object)) continue;
        seen.add(object);
        for (const key of Reflect.ownKeys(object)) {
          if (/^(deliver|attach|fireTimer|emit|install|core|hooks|load)$/.test(String(key))) found.push(path + '.' + String(key));
          const d = Reflect.getOwnPropertyDescriptor(object, key);
          for (const next of [d.value, d.get, d.set]) if (next !== undefined) queue.push([next, path + '.' + String(key)]);
        }
        queue.push([Reflect.getPrototypeOf(object), path + '.__proto__']);
      }
      return [seen.size > 500, found];
    }`);
    expect(await isolate.value('walk')).toEqual([true, []]);
  });

  it('has no caller, no callee and no memory of the prelude', async () => {
    const isolate = await start(`look: () => { const tried = []; const probe = function () { try { tried.push(typeof probe.caller); } catch { tried.push('refused'); } }; try { structuredClone({ get x() { probe(); return 1; } }); } catch {} return tried; },
      sloppy: () => { const f = new Function('return function f() { return f.caller; }')(); let got; structuredClone({ get x() { got = f(); return 1; } }); return got === null || got === undefined ? 'nothing' : typeof got; }`);
    for (const kind of (await isolate.value('look')) as string[]) expect(kind).not.toBe('function');
    expect(await isolate.value('sloppy')).toBe('nothing');
  });
});
