/** The pages for policy authors, kept true: every example checks and its tests pass; every action, attribute and role named there exists. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { checkPolicies, checkText, defaultPolicy } from '../../src/authz/authz.ts';
import { GRANTABLE_ACTIONS, TYPE_OF_ATTRIBUTE } from '../../src/authz/core/vocabulary.ts';

const page = readFileSync('docs/policies.md', 'utf8');
const examples = [...page.matchAll(/```yaml\n([\s\S]*?)```/g)].map((m) => m[1] as string);

test.each(examples.map((content, i) => [i + 1, content] as const))('example %i of docs/policies.md checks, without a warning, and its tests pass', (i, content) => {
  const check = checkPolicies({ files: [defaultPolicy(), { name: `example-${i}.yaml`, content }], identityRoles: [], version: 1, nowMs: Date.UTC(2026, 10, 24) });
  expect(checkText(check)).toBe('');
  expect(check.ok).toBe(true);
  expect(check.tests.filter((t) => t.file === `example-${i}.yaml`).length).toBeGreaterThanOrEqual(5);
});

test('the files in policies/examples check together, without a warning, and their tests pass', () => {
  const files = readdirSync('policies/examples').map((name) => ({ name, content: readFileSync(`policies/examples/${name}`), tenant: name.replace('.yaml', '') }));
  const check = checkPolicies({ files: [defaultPolicy(), ...files], identityRoles: [], version: 1, nowMs: Date.UTC(2026, 10, 24) });
  expect([checkText(check), check.ok, files.length]).toEqual(['', true, 2]);
});

test('the table of attributes is the vocabulary', () => {
  expect(examples.length).toBe(4);
  const rows = [...page.matchAll(/^\| (text|number|true\/false) \| (.*?) \|/gm)].map((m) => [m[1], [...(m[2] as string).matchAll(/`([a-z]+)`/g)].map((a) => a[1])]);
  const of = (type: string): string[] => Object.entries(TYPE_OF_ATTRIBUTE).filter(([, t]) => t === type).map(([name]) => name).sort();
  expect(rows.map(([type, names]) => [type, [...(names as string[])].sort()])).toEqual([['text', of('string')], ['number', of('number')], ['true/false', of('boolean')]]);
});

test('what can be granted is what the page says: reading, and calling actors', () => {
  for (const action of GRANTABLE_ACTIONS) expect(action).toMatch(/\.(get|wait|read|list|find|export)$|^actor\.call$/);
});
