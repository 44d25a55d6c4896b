/** The kept bundles of the sandbox's programs: used while their sources are the same and nobody else could have written them. */
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { bundled } from '../../src/sandbox/bundle-cache.ts';

const KEPT_IN = fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url));
let directory: string;
let entry: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'bulkhead-bundle-'));
  entry = join(directory, 'entry.ts');
  writeFileSync(join(directory, 'part.ts'), 'export const part = "first";\n');
  writeFileSync(entry, 'import { part } from "./part.ts"; console.log(part);\n');
});
const keptFor = (): string[] => readdirSync(KEPT_IN).filter((name) => name.startsWith('bundle-')).map((name) => join(KEPT_IN, name)).filter((path) => readFileSync(path, 'utf8').includes(directory));
afterEach(() => {
  for (const path of keptFor()) rmSync(path);
  rmSync(directory, { recursive: true, force: true });
});

const make = (): Promise<string> => bundled(entry, { format: 'iife', logLevel: 'silent' });
const poison = (path: string): void => writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as object), text: 'poisoned' }));

it('is made once, and again when any of its sources changes', async () => {
  expect(await make()).toContain('first');
  const [path = ''] = keptFor();
  poison(path);
  expect(await make()).toBe('poisoned');
  writeFileSync(join(directory, 'part.ts'), 'export const part = "other";\n');
  expect(await make()).toContain('other');
});

it('counts for nothing when others may write it, or it is not what was kept', async () => {
  await make();
  const [path = ''] = keptFor();
  expect(statSync(path).mode & 0o022).toBe(0);
  poison(path);
  for (const mode of [0o666, 0o664]) {
    chmodSync(path, mode);
    expect(await make()).toContain('first');
    poison(keptFor()[0] ?? '');
  }
  for (const content of ['', '{', '[]', '{"inputs":[],"text":"poisoned"}', '{"inputs":null,"text":"poisoned"}']) {
    writeFileSync(keptFor()[0] ?? path, content);
    chmodSync(keptFor()[0] ?? path, 0o644);
    expect(await make()).toContain('first');
  }
});
