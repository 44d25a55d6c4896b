/** Snapshots from somebody else than the compiler: every field of every part, missing, added, of a wrong type, or out of its list. */
import { describe, expect, test, vi } from 'vitest';
import { checkPolicies, defaultPolicy, parseSnapshot, snapshotText } from '../../src/authz/authz.ts';

vi.setConfig({ testTimeout: 30_000 });

const ACME = `version: 1
tenant: acme
roles:
  r:
    permit: [ { action: task.submit, resource: task, when: { cpus: { lte: 4 }, code: { in: [a, b] }, function: { eq: f } } } ]
    forbid: [ { action: actor.kill, resource: actor, when: { detached: { eq: true } } } ]
bindings: [ { role: r, to: ['user/*', service/etl] } ]
grants:
  - { to: tenant/globex/user/bob, action: object.get, resource: object, when: { label: { ne: x } }, until: 2027-01-01 }
  - { to: system/admin, action: log.read, resource: log, until: 2027-01-01 }
`;
const { snapshot } = checkPolicies({ files: [defaultPolicy(), { name: 'acme.yaml', content: ACME }], identityRoles: [{ tenant: 'acme', kind: 'user', name: 'ana', role: 'developer' }], version: 9, nowMs: 0 });
const good = (): Record<string, unknown> => JSON.parse(snapshotText(snapshot as never)) as Record<string, unknown>;

type Path = (string | number)[];
function paths(value: unknown, at: Path = []): Path[] {
  if (typeof value !== 'object' || value === null) return [at];
  // Of long lists the first and last part are enough.
  const keys = Array.isArray(value) ? [...new Set([0, value.length - 1])].filter((i) => i >= 0) : Object.keys(value);
  return [at, ...keys.flatMap((key) => paths((value as Record<string | number, unknown>)[key], [...at, key]))];
}
function edited(path: Path, change: (parent: Record<string | number, unknown>, key: string | number) => void): unknown {
  const copy: unknown = good();
  let parent = copy as Record<string | number, unknown>;
  for (const key of path.slice(0, -1)) parent = parent[key] as Record<string | number, unknown>;
  change(parent, path.at(-1) as string | number);
  return copy;
}
const REFUSAL = /^policy snapshot is not valid: /;
const places = paths(good()).filter((p) => p.length > 0);

test('the good one is taken, as text and as value, and comes out the same', () => {
  expect(snapshotText(parseSnapshot(snapshotText(snapshot as never)))).toBe(snapshotText(snapshot as never));
  expect(parseSnapshot(good())).toEqual(snapshot);
  expect(places.length).toBeGreaterThan(70);
});

describe('refused', () => {
  test('text that is no JSON, and JSON that is no snapshot', () => {
    for (const text of ['', '{', 'null', '[]', '"x"', '{}', '{"format":1}', `${snapshotText(snapshot as never)}x`, '\ufeff{}']) expect(() => parseSnapshot(text)).toThrow(REFUSAL);
    for (const value of [undefined, null, 1, [], {}, Symbol('x'), () => 1]) expect(() => parseSnapshot(value)).toThrow(REFUSAL);
  });

  test('any field missing', () => {
    for (const path of places.filter((p) => typeof p.at(-1) === 'string')) expect(() => parseSnapshot(edited(path, (o, k) => delete o[k])), path.join('.')).toThrow(REFUSAL);
  });

  test('any object with a field more, __proto__ included', () => {
    for (const path of places) {
      const isObject = edited(path, () => undefined) !== undefined && typeof path.reduce<unknown>((v, k) => (v as Record<string, unknown>)[k], good()) === 'object';
      if (!isObject || Array.isArray(path.reduce<unknown>((v, k) => (v as Record<string, unknown>)[k], good()))) continue;
      for (const extra of ['extra', '__proto__', 'constructor']) {
        const text = JSON.stringify(edited(path, (o, k) => ((o[k] as Record<string, unknown>)['zzz'] = 1))).replace('"zzz"', `"${extra}"`);
        expect(() => parseSnapshot(text), `${path.join('.')} + ${extra}`).toThrow(REFUSAL);
      }
    }
  });

  test('any field of another type', () => {
    for (const path of places) {
      const was = path.reduce<unknown>((v, k) => (v as Record<string, unknown>)[k], good());
      for (const value of [null, true, 1.5, -1, 'zzz', [], {}, [[]], [null], { length: 1 }]) {
        if (typeof value === typeof was && (typeof was === 'string' || typeof was === 'boolean')) continue;
        if (Array.isArray(value) && Array.isArray(was) && value.length === 0) continue;
        // An operand is any number; its type is what counts.
        if (path.at(-1) === 'value' && typeof value === typeof was) continue;
        if (path.at(-2) === 'value' && typeof value === 'string') continue;
        expect(() => parseSnapshot(edited(path, (o, k) => (o[k] = value))), `${path.join('.')} = ${JSON.stringify(value)}`).toThrow(REFUSAL);
      }
    }
  });

  test('any word out of its list', () => {
    const closed = new Set(['effect', 'scope', 'kind', 'attribute', 'operator']);
    for (const path of places.filter((p) => closed.has(String(p.at(-1))) || p.at(-2) === 'actions' || p.at(-2) === 'kinds')) {
      for (const word of ['', 'all', 'manage', '*', '__proto__', 'toString', '$regex', 'PERMIT']) expect(() => parseSnapshot(edited(path, (o, k) => (o[k] = word))), `${path.join('.')} = ${word}`).toThrow(REFUSAL);
    }
  });

  test('rights that no compiler gives', () => {
    const rules = good()['rules'] as { tenant: string; effect: string; scope: string }[];
    const acmePermit = rules.findIndex((r) => r.tenant === 'acme' && r.effect === 'permit');
    const members = good()['members'] as { tenant: string; kind: string; roleTenant: string }[];
    const admin = members.findIndex((m) => m.kind === 'system');
    const acme = members.findIndex((m) => m.roleTenant === 'acme');
    const everyone = members.findIndex((m) => m.tenant === '*');
    const set = (path: Path, value: unknown): unknown => edited(path, (o, k) => (o[k] = value));
    // A tenant's permit that reaches the cluster; a tenant's role for another tenant or for the administrator; a user without tenant; a system with one.
    expect(() => parseSnapshot(set(['rules', acmePermit, 'scope'], 'any'))).toThrow(/reaches beyond tenants/);
    expect(() => parseSnapshot(set(['members', acme, 'tenant'], 'globex'))).toThrow(/outside that tenant/);
    expect(() => parseSnapshot(set(['members', everyone, 'roleTenant'], 'acme'))).toThrow(/outside that tenant/);
    expect(() => parseSnapshot(set(['members', admin, 'roleTenant'], 'acme'))).toThrow(/outside that tenant/);
    expect(() => parseSnapshot(set(['members', admin, 'tenant'], 'acme'))).toThrow(/it cannot have/);
    expect(() => parseSnapshot(set(['members', everyone, 'tenant'], ''))).toThrow(/it cannot have/);
    expect(() => parseSnapshot(set(['grants', 0, 'tenant'], ''))).toThrow(/not owned by a tenant/);
    expect(() => parseSnapshot(set(['grants', 0, 'actions'], ['policy.apply']))).toThrow(/no grant can give/);
    expect(() => parseSnapshot({ ...good(), rules: [...rules].reverse() })).toThrow(/a permit after a forbid/);
    expect(() => parseSnapshot({ ...good(), format: 2 })).toThrow(/cannot read it/);
    for (const version of [-1, 0.5, '9', 2 ** 53, null]) expect(() => parseSnapshot({ ...good(), version })).toThrow(REFUSAL);
  });
});
