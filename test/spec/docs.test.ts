/**
 * What the documents claim about the repository is true: quoted files are the files, every promise and every threat names code and
 * tests that exist, and the tables of areas and commands are complete. What a reader pastes is run by docs-walkthrough.test.ts.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FILES, read, ROOT } from '../source-tree.ts';

/** A test named as in the documents: `test/hostile/rpc.test.ts` "without a certificate". */
const PROOF = /\[`?(test\/[\w./-]+\.test\.ts)`?\]\([^)]*\)((?:\s*(?:,|and)?\s*“[^”]+”)+)/g;

interface Proof {
  readonly file: string;
  readonly title: string;
}

function proofsIn(text: string): Proof[] {
  return [...text.replace(/\n\s*/g, ' ').matchAll(PROOF)].flatMap(([, file, titles]) => [...(titles ?? '').matchAll(/“([^”]+)”/g)].map(([, title]) => ({ file: file ?? '', title: title ?? '' })));
}

/** Titles of tests and groups in a file, as written; `%s` and `${…}` stand for what a table fills in. */
function hasTitle(file: string, title: string): boolean {
  const text = read(file);
  const quoted = title.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replace(/'/g, "(?:'|\\\\'|’)");
  return new RegExp(`['"\`]${quoted}['"\`]`).test(text);
}

function missing(proofs: readonly Proof[]): string[] {
  return proofs.filter(({ file, title }) => !FILES.includes(file) || !hasTitle(file, title)).map(({ file, title }) => `${file}: “${title}”`);
}

function sections(text: string, heading: RegExp): { title: string; body: string }[] {
  return text.split(/^(?=## )/m).filter((part) => heading.test(part)).map((part) => ({ title: part.split('\n')[0] ?? '', body: part }));
}

describe('README.md', () => {
  const readme = read('README.md');

  test('quotes its example files as they are', () => {
    const quoted = [...readme.matchAll(/<!-- (examples\/\S+) -->\n```ts\n([\s\S]*?)```/g)];
    expect(quoted.length).toBe(2);
    for (const [, file, text] of quoted) expect(text, file).toBe(read(file ?? ''));
  });

  test('names only commands and scripts that exist', () => {
    const scripts = Object.keys((JSON.parse(read('package.json')) as { scripts: Record<string, string> }).scripts);
    for (const [, script] of readme.matchAll(/npm run (\w+)/g)) expect(scripts).toContain(script);
    const program = read('src/cli/program.ts');
    for (const [, command] of readme.matchAll(/npx bulkhead ([a-z][a-z-]*)/g)) expect(program).toMatch(new RegExp(`'${command}[ '[<]`));
  });
});

describe('GUARANTEES.md', () => {
  const promises = sections(read('GUARANTEES.md'), /^## \d+\. /);

  test('has the ten promises, in order', () => {
    expect(promises.map(({ title }) => Number(/^## (\d+)\./.exec(title)?.[1]))).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  });

  test('names at least one test for each promise, all of them exist, and says what is not kept yet', () => {
    for (const { title, body } of promises) {
      const proofs = proofsIn(body);
      expect(proofs.length, title).toBeGreaterThan(0);
      expect(missing(proofs), title).toEqual([]);
      expect(body, title).toMatch(/^\*\*(?:Kept\.|Partly kept\.)\*\*/m);
    }
  });
});

describe('SECURITY.md', () => {
  const security = read('SECURITY.md');
  const rows = security.split('\n').filter((line) => line.startsWith('| ') && !/^\| (?:threat|---)/.test(line) && line.split(' | ').length === 4);

  test('has a threat model', () => {
    expect(rows.length).toBeGreaterThan(20);
    expect(security).toMatch(/## Reporting/);
  });

  test('names a promise, existing code and an existing test for every threat', () => {
    for (const row of rows) {
      const [, promise, code, tests] = row.split(' | ');
      expect(promise, row).toMatch(/GUARANTEES\.md#\d+-/);
      const files = [...(code ?? '').matchAll(/`([^`]+)`/g)].map(([, path]) => path ?? '');
      expect(files.length, row).toBeGreaterThan(0);
      expect(files.filter((path) => !existsSync(join(ROOT, path))), row).toEqual([]);
      const proofs = proofsIn(tests ?? '');
      expect(proofs.length, row).toBeGreaterThan(0);
      expect(missing(proofs), row).toEqual([]);
    }
  });
});

describe('docs/', () => {
  test('every decision has its number once, and the four parts', () => {
    const adrs = FILES.filter((f) => f.startsWith('docs/adr/'));
    expect(adrs.map((f) => Number(/\/(\d{4})-/.exec(f)?.[1]))).toEqual(adrs.map((_, i) => i + 1));
    for (const adr of adrs) for (const part of ['Context', 'Decision', 'Consequences', 'Test plan']) expect(read(adr), adr).toMatch(new RegExp(`^## ${part}`, 'm'));
  });

  test('ARCHITECTURE.md tells of every area, and it and TESTING.md show their pictures', () => {
    const text = read('docs/ARCHITECTURE.md');
    const areas = new Set(FILES.filter((f) => /^src\/[^/]+\//.test(f)).map((f) => f.split('/')[1] ?? ''));
    for (const area of areas) expect(text).toContain(`src/${area}`);
    const pictures = FILES.filter((f) => /^docs\/.*\.svg$/.test(f));
    expect(pictures.length).toBeGreaterThan(1);
    const shown = text + read('docs/TESTING.md') + read('docs/PERFORMANCE.md');
    for (const picture of pictures) expect(shown).toContain(`](${picture.slice('docs/'.length)})`);
    // A picture is shown by other people's browsers: nothing in it runs or loads anything.
    for (const picture of pictures) expect(read(picture)).not.toMatch(/<script|<foreignObject|\bhref=|\bon\w+=|url\(\s*['"]?(?!#)/i);
  });

  test('names in backticks that look like files of the repository are files of it', () => {
    const documents = FILES.filter((f) => /^(?:[A-Z]+|docs\/[\w/-]+|src\/[\w/]+README)\.md$/.test(f));
    const lost = documents.flatMap((file) =>
      [...read(file).replace(/```[\s\S]*?```/g, '').matchAll(/`((?:src|test|docs|policies|proto|scripts|examples|bench)\/[\w./-]+\.(?:ts|md|yaml|json|proto|sh))`/g)]
        .map(([, path]) => path ?? '')
        .filter((path) => !FILES.includes(path))
        .map((path) => `${file}: ${path}`),
    );
    expect(lost).toEqual([]);
  });
});
