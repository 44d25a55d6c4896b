/** The page about Ray's names is what its script makes of the committed list, and what it calls supported is in the package. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { withTable } from '../../scripts/ray-names.ts';
import { testPython } from '../support/python.ts';

const ROOT = join(import.meta.dirname, '../..');
const page = readFileSync(join(ROOT, 'docs/ray-compatibility.md'), 'utf8');

test('docs/ray-compatibility.md is what scripts/ray-names.ts writes: node scripts/ray-names.ts', () => {
  expect(withTable(page)).toBe(page);
});

const python = testPython();

test.runIf(!('missing' in python))('every name that the page calls supported is in the package', () => {
  if ('missing' in python) throw new Error(python.missing);
  const rows = [...page.matchAll(/^\| `(ray[\w.]*)` \| (.*?) \| (supported|not yet|never) \|/gm)].map(([, of, names, state]) => ({ of, names: [...(names ?? '').matchAll(/`(\w+)`/g)].map(([, name]) => name), supported: state === 'supported' }));
  expect(rows.length).toBeGreaterThan(30);
  const said = execFileSync(python.interpreter, ['-c', `
import importlib, json, sys
def at(path):
    parts = ("bulkhead." + path).split(".")
    for n in range(len(parts), 0, -1):
        try: found = importlib.import_module(".".join(parts[:n]))
        except ImportError: continue
        for part in parts[n:]: found = getattr(found, part, None)
        return found
wrong = []
for row in json.load(sys.stdin):
    owner = at(row["of"])
    wrong += [row["of"] + "." + name for name in row["names"] if row["supported"] and not hasattr(owner, name)]
print(json.dumps(wrong))
`], { input: JSON.stringify(rows), encoding: 'utf8', timeout: 60_000, env: { PATH: process.env['PATH'], PYTHONPATH: join(ROOT, 'python'), PYTHONDONTWRITEBYTECODE: '1' } });
  expect(JSON.parse(said)).toEqual([]);
});
