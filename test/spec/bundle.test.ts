/** Bundling of modules and inline functions: works for real packages, says what is in the way, gives the same text for the same sources. */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bundleModule, type Bundle } from '../../src/sdk/bundle.ts';
import { bundleFunction } from '../../src/sdk/inline-function.ts';

const text = (bundle: Bundle): string => new TextDecoder().decode(bundle.source);
/** As the worker host wraps it. */
const load = (bundle: Bundle): Record<string, (...args: unknown[]) => unknown> => (new Function(`"use strict";${text(bundle)}\n;return __bulkhead_exports;`) as () => never)();
let folder = '';

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'bundle-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

function file(name: string, source: string, under = folder): string {
  mkdirSync(under, { recursive: true });
  writeFileSync(join(under, name), source);
  return join(under, name);
}

async function refusal(path: string): Promise<string> {
  try {
    await bundleModule(path);
  } catch (thrown) {
    expect((thrown as { code?: string }).code).toMatch(/INVALID_ARGUMENT|RESOURCE_EXHAUSTED/);
    return (thrown as Error).message;
  }
  throw new Error('it was bundled');
}

describe('modules', () => {
  it('takes TypeScript and JavaScript, with what they import, and tells functions from classes', async () => {
    file('part.js', 'export const twice = (n) => 2 * n;\n');
    const bundle = await bundleModule(file('main.ts', `
      import { twice } from './part.js';
      export type Shape = { n: number };
      export function four(shape: Shape): number { return twice(twice(shape.n)); }
      export const three = async (n: number): Promise<number> => 3 * n;
      export class Counter { #n = 0; add(n: number): number { return (this.#n += n); } }
      export default class extends Counter {}
      export function* many(): Generator<number> { yield 1; }
      export const limit = 5;
      export const wrapped = Object.assign(() => 1, {});
      const inner = (): number => 9;
      export { inner as renamed };
    `));
    expect(Object.fromEntries(bundle.exports)).toEqual({ four: 'function', three: 'function', Counter: 'class', default: 'class', many: 'generator', limit: 'value', wrapped: 'unknown', renamed: 'function' });
    const exports = load(bundle);
    expect(exports['four']?.({ n: 2 })).toBe(8);
    expect(exports['four']?.name).toBe('four');
    expect(exports['renamed']?.()).toBe(9);
  });

  it('tells which methods of its classes are generators, inherited ones too', async () => {
    const bundle = await bundleModule(file('streams.ts', `
      export class Base { *all(): Generator<number> { yield 1; } async *late(): AsyncGenerator<number> { yield 1; } plain(): number { return 1; } static *no(): Generator<number> { yield 1; } }
      export class Derived extends Base { override plain(): number { return 2; } *more(): Generator<number> { yield 2; } override late(): never { throw new Error(); } }
      export const Named = class { *some(): Generator<number> { yield 1; } };
      export default class { *here(): Generator<number> { yield 1; } }
      export class Plain { get x(): number { return 1; } }
    `));
    expect(Object.fromEntries(bundle.streams)).toEqual({ Base: ['all', 'late'], Derived: ['all', 'more'], Named: ['some'], default: ['here'] });
  });

  it('bundles npm packages: hyparquet and fzstd decode without Node', async () => {
    const bundle = await bundleModule(new URL('./fixtures/packages.ts', import.meta.url));
    expect(load(bundle)['magic']?.()).toEqual(['function', 'function']);
    expect(text(bundle)).not.toMatch(/require\(|\bimport\s*[({]/);
  });

  it('is the same text and digest for the same sources, wherever they lie', async () => {
    const source = 'import { a } from "./lib/a.ts";\nexport const f = (): number => a;\n';
    const one = join(folder, 'one');
    file('a.ts', 'export const a = 1;\n', join(one, 'lib'));
    file('f.ts', source, one);
    cpSync(one, join(folder, 'deep', 'er', 'two'), { recursive: true });
    const [first, second] = [await bundleModule(join(one, 'f.ts')), await bundleModule(join(folder, 'deep', 'er', 'two', 'f.ts'))];
    expect(second.digest).toBe(first.digest);
    expect(text(first)).not.toContain(folder);
    expect(first.digest).toMatch(/^[0-9a-f]{64}$/);
    writeFileSync(join(one, 'lib', 'a.ts'), 'export const a = 2;\n');
    expect((await bundleModule(join(one, 'f.ts'))).digest).not.toBe(first.digest);
  });

  it('names the chain of imports to a module of Node', async () => {
    file('deep.ts', 'import { readFileSync } from "node:fs";\nexport const read = () => readFileSync("x");\n');
    file('middle.ts', 'export { read } from "./deep.ts";\n');
    expect(await refusal(file('top.ts', 'import { read } from "./middle.ts";\nexport const f = () => read();\n'))).toContain('top.ts → middle.ts → deep.ts → node:fs');
    expect(await refusal(file('bare.ts', 'import path from "path";\nexport const f = () => path.sep;\n'))).toContain('bare.ts → path');
  });

  it('says where a source is wrong', async () => {
    expect(await refusal(file('broken.ts', 'export const a = ;\n'))).toMatch(/broken\.ts:1:17: Unexpected ";"/);
    expect(await refusal(file('missing.ts', 'import "./not-there.ts";\nexport const a = 1;\n'))).toMatch(/missing\.ts:1:7: Could not resolve/);
    expect(await refusal(file('sdk.ts', 'import { connect } from "bulkhead";\nexport const f = () => connect();\n'))).toContain("imports from 'bulkhead/runtime'");
    expect(await refusal(file('empty.ts', 'const a = 1;\nconsole.log(a);\n'))).toContain('exports nothing');
    expect(await refusal(file('waits.ts', 'const a = await 1;\nexport const f = () => a;\n'))).toMatch(/[Tt]op-level await/);
    expect(await refusal(join(folder, 'nowhere.ts'))).toContain('nowhere.ts');
  });

  it('refuses more code than the limit', async () => {
    const message = await refusal(file('large.ts', `export const data = () => "${'x'.repeat(16 * 2 ** 20)}";\n`));
    expect(message).toMatch(/bundles to \d+ bytes; the limit is 16777216/);
  });
});

describe('inline functions', () => {
  const outer = 5;
  let counter = 0;

  it('become bundles with one default export', async () => {
    const add = (a: number, b = 1): number => a + b;
    const bundle = bundleFunction(add);
    expect(load(bundle)['default']?.(2)).toBe(3);
    expect(bundleFunction(add)).toBe(bundle);
    await expect(load(bundleFunction(async function fact(n: number): Promise<number> { return n < 2 ? 1 : n * (await fact(n - 1)); }))['default']?.(1)).resolves.toBe(1);
  });

  it('may use parameters, locals of every kind, and the globals of the cluster', () => {
    const everything = ({ a, b: [c = 1, ...d] }: { a: number; b: number[] }, ...rest: number[]): unknown => {
      var hoisted = later();
      function later(): number { return a; }
      class Local { static made = 0; #secret = c; reveal(): number { Local.made++; return this.#secret; } }
      label: for (const [i, n] of rest.entries()) { if (n > 2) continue label; hoisted += i; }
      for (let i = 0; i < 1; i++) hoisted += i;
      try { throw new Error('x'); } catch (caught) { const { message } = caught as Error; hoisted += message.length; }
      const named = function self(n: number): number { return n === 0 ? 0 : self(n - 1); };
      const object = { key: a, method() { return this.key; }, [`computed${a}`]: 1 };
      switch (a) { case 1: { const inCase = 1; hoisted += inCase; } }
      return [hoisted, d, named(3), object.method(), new Local().reveal(), typeof setTimeout, new Map([[1, new TextEncoder()]]).size];
    };
    expect(load(bundleFunction(everything))['default']?.({ a: 1, b: [2, 3] }, 1, 2, 3)).toEqual([4, [3], 0, 1, 2, 'function', 1]);
  });

  const refused: [unknown, RegExp][] = [
    [() => outer + 1, /uses 'outer' \(line 1 of the function\)/],
    [() => {
      const ok = 1;
      return ok + counter++;
    }, /uses 'counter' \(line 3 of the function\)/],
    [() => { { let hidden = 1; hidden++; } return (globalThis as never)['x'] ?? Number(process.argv0); }, /uses 'process'/],
    [() => fetch('https://example.com'), /uses 'fetch'/],
    [new Function("return () => import('node:fs')")(), /line 1: import\(\) does not work/],
    [{ method() { return 1; } }.method, /a method cannot be sent/],
    [class Thing {}, /a class is an actor/],
    [Math.max, /native and bound/], [((): number => 1).bind(null), /native and bound/], [42, /this is a number/], [null, /this is null/],
  ];
  for (const [fn, message] of refused) {
    it(`are refused: ${message.source}`, () => {
      expect(() => bundleFunction(fn)).toThrow(message);
    });
  }

  it('that are generators are sent as such', () => {
    expect([...bundleFunction(function* () { yield 1; }).exports, ...bundleFunction(async function* () { yield 1; }).exports]).toEqual([['default', 'generator'], ['default', 'generator']]);
  });

  it('that a runner instrumented with __name still work', () => {
    const fn = new Function('return (a) => { const inner = __name(() => a, "inner"); return inner(); }')() as (a: number) => number;
    expect(load(bundleFunction(fn))['default']?.(4)).toBe(4);
  });
});
