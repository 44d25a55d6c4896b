/** What every PolicyDecisionPoint must do, whoever stands behind it: the port of src/base/decision.ts as tests. */
import { describe, expect, test } from 'vitest';
import { compilePolicies, createDecisionPoint, LiveDecisionPoint, parsePolicyFile, parseSnapshot, snapshotText, type CompileInput } from '../../src/authz/authz.ts';
import { resource, type DecisionRequest, type PolicyDecisionPoint } from '../../src/base/decision.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { naiveDecide } from '../spec/naive-decider.ts';

const ACME = `
version: 1
tenant: acme
roles:
  analyst:
    permit:
      - { action: task.submit, resource: task, when: { cpus: { lte: 4 }, function: { in: [report, clean] } } }
      - { action: [object.get, object.put], resource: object }
    forbid:
      - { action: object.get, resource: object, when: { label: { eq: secret } } }
bindings:
  - { role: analyst, to: ['user/*', service/etl] }
grants:
  - { to: tenant/globex, action: object.get, resource: object, when: { label: { eq: published } }, until: 2027-01-01 }
`;
const GLOBEX = `
version: 1
tenant: globex
roles:
  reader: { permit: [ { action: object.get, resource: object } ] }
bindings:
  - { role: reader, to: user/bob }
`;

const input: CompileInput = {
  files: [['acme.yaml', ACME], ['globex.yaml', GLOBEX]].map(([name, text]) => {
    const { document, diagnostics } = parsePolicyFile(name as string, text as string);
    if (document === undefined) throw new Error(JSON.stringify(diagnostics));
    return { name: name as string, document };
  }),
  identityRoles: [{ tenant: 'acme', kind: 'service', name: 'cron', role: 'analyst' }],
  version: 5,
};

const POINTS: Record<string, () => PolicyDecisionPoint> = {
  'createDecisionPoint': () => createDecisionPoint(compilePolicies(input)),
  'createDecisionPoint after a journey as text': () => createDecisionPoint(parseSnapshot(snapshotText(compilePolicies(input)))),
  'LiveDecisionPoint': () => new LiveDecisionPoint(compilePolicies(input)),
  'LiveDecisionPoint after a swap': () => {
    const live = new LiveDecisionPoint();
    live.swap(compilePolicies(input));
    return live;
  },
  'the naive decider': () => ({ version: 5, decide: (q) => ({ ...naiveDecide(input, q), policyVersion: 5 }) }),
};

const who = (path: string, submitter?: { kind: 'user' | 'service'; name: string }): DecisionRequest['principal'] => principalFromSpiffeId(`spiffe://test/${path}`, submitter);
const task = (attributes: object): DecisionRequest => ({ principal: who('tenant/acme/user/ana'), action: 'task.submit', resource: resource('task', { tenant: 'acme', function: 'report', cpus: 1, ...attributes }), nowMs: 0 });
const get = (principal: string, attributes: object, nowMs = 0): DecisionRequest => ({ principal: who(principal), action: 'object.get', resource: resource('object', { tenant: 'acme', ...attributes }), nowMs });
const END = Date.UTC(2027, 0, 1);

const CASES: [string, DecisionRequest, boolean, string][] = [
  ['a permit whose conditions hold', task({}), true, 'acme/analyst/permit/0'],
  ['at the edge of a condition', task({ cpus: 4, function: 'clean' }), true, 'acme/analyst/permit/0'],
  ['beyond it', task({ cpus: 4.0001 }), false, 'default-deny'],
  ['a value outside the list', task({ function: 'reports' }), false, 'default-deny'],
  ['an action that no rule names', { ...task({}), action: 'task.cancel' }, false, 'default-deny'],
  ['a forbid over a permit', get('tenant/acme/user/ana', { label: 'secret' }), false, 'acme/analyst/forbid/0'],
  ['a service bound by name', get('tenant/acme/service/etl', {}), true, 'acme/analyst/permit/1'],
  ['a service that is not', get('tenant/acme/service/other', {}), false, 'default-deny'],
  ['a role that the identity carries', get('tenant/acme/service/cron', {}), true, 'acme/analyst/permit/1'],
  ['a user of that name does not carry it elsewhere', get('tenant/globex/service/cron', { tenant: 'globex' }), false, 'default-deny'],
  ['a job has its submitter’s roles', { ...get('node/n1', {}), principal: who('tenant/acme/job/job-1', { kind: 'service', name: 'etl' }) }, true, 'acme/analyst/permit/1'],
  ['a job of a nobody has none', { ...get('node/n1', {}), principal: who('tenant/acme/job/job-1', { kind: 'service', name: 'other' }) }, false, 'default-deny'],
  ['a job without submitter has none', { ...get('node/n1', {}), principal: who('tenant/acme/job/etl') }, false, 'default-deny'],
  ['another tenant’s resource', get('tenant/globex/user/bob', {}), false, 'wall'],
  ['another tenant’s resource that it granted', get('tenant/globex/user/bob', { label: 'published' }), true, 'acme/grant/0'],
  ['until the grant ends', get('tenant/globex/user/bob', { label: 'published' }, END - 1), true, 'acme/grant/0'],
  ['which it does to the millisecond', get('tenant/globex/user/bob', { label: 'published' }, END), false, 'wall'],
  ['a grant is no role: the grantee needs its own permit', get('tenant/globex/user/zoe', { label: 'published' }), false, 'default-deny'],
  ['a grant is not for third parties', get('tenant/initech/user/bob', { label: 'published' }), false, 'wall'],
  ['a tenant’s rules do not reach the cluster’s resources', get('tenant/acme/user/ana', { tenant: '' }), false, 'default-deny'],
  ['the administrator', get('system/admin', {}), false, 'wall'],
  ['a node', get('node/n1', {}), false, 'wall'],
  ['an action on another kind than its own', { ...task({}), resource: resource('object', { tenant: 'acme' }) }, false, 'error'],
];

describe.each(Object.keys(POINTS))('%s', (name) => {
  const point = (POINTS[name] as () => PolicyDecisionPoint)();
  test.each(CASES)('%s', (_what, request, allow, rule) => {
    expect(point.decide(request)).toEqual({ allow, rule, policyVersion: 5 });
    expect(point.version).toBe(5);
  });
});

test('decisions are interned: the hot path allocates none', () => {
  const point = createDecisionPoint(compilePolicies(input));
  for (const [, request] of CASES) expect(point.decide(request)).toBe(point.decide({ ...request }));
  expect(Object.isFrozen(point.decide(task({})))).toBe(true);
});
