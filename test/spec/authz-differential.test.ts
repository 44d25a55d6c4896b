/** The decision point against the naive decider, on thousands of generated policies and requests; and the proof that this would notice. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { compilePolicies } from '../../src/authz/core/compile.ts';
import { parseSnapshot, snapshotText } from '../../src/authz/core/snapshot.ts';
import { createDecisionPoint, LiveDecisionPoint } from '../../src/authz/decision-point.ts';
import { explain } from '../../src/authz/explain.ts';
import type { DecisionRequest } from '../../src/base/decision.ts';
import { naiveDecide, type NaivePolicy } from './naive-decider.ts';
import { request, world } from './authz-worlds.ts';

const RUNS = { numRuns: 1_000, endOnFailure: true } as const;
const requests = fc.array(request, { minLength: 20, maxLength: 20 });

test('the decision point and the naive decider agree, on the answer and on the determining rule', () => {
  const seen = { permit: 0, forbid: 0, wall: 0, grant: 0, none: 0, error: 0 };
  fc.assert(
    fc.property(world, requests, (policy, asked) => {
      const point = createDecisionPoint(compilePolicies({ ...policy, version: 3 }));
      for (const q of asked) {
        const { allow, rule, policyVersion } = point.decide(q);
        expect({ allow, rule }).toEqual(naiveDecide(policy, q));
        expect(policyVersion).toBe(3);
        const kind = rule === 'default-deny' ? 'none' : rule.includes('/') ? (rule.split('/').at(-2) as 'permit') : (rule as 'wall');
        seen[kind]++;
      }
    }),
    RUNS,
  );
  // A generator that never reaches a kind of answer would prove nothing about it.
  for (const [kind, count] of Object.entries(seen)) expect(count, `answers of kind ${kind}`).toBeGreaterThan(kind === 'grant' ? 10 : 50);
}, 60_000);

test('a snapshot decides the same after its journey as JSON text, through a live decision point', () => {
  fc.assert(
    fc.property(world, requests, (policy, asked) => {
      const snapshot = compilePolicies({ ...policy, version: 1 });
      const live = new LiveDecisionPoint();
      expect(live.swap(parseSnapshot(snapshotText(snapshot)))).toBe(true);
      const point = createDecisionPoint(snapshot);
      for (const q of asked) expect(live.decide(q)).toEqual(point.decide(q));
    }),
    { ...RUNS, numRuns: 100 },
  );
}, 60_000);

test('what explain says is why: the last matching rule it shows is the determining one', () => {
  fc.assert(
    fc.property(world, fc.array(request, { minLength: 5, maxLength: 5 }), (policy, asked) => {
      const snapshot = compilePolicies({ ...policy, version: 1 });
      for (const q of asked) {
        const e = explain(snapshot, q);
        if (e.decision.rule === 'error' || e.decision.rule === 'wall') continue;
        const matched = e.rules.filter((r) => r.matched);
        const last = (matched.findLast((r) => r.effect === 'forbid') ?? matched.findLast((r) => r.effect === 'permit'))?.id ?? 'default-deny';
        const grant = e.grants.findLast((g) => g.matched)?.id;
        expect(e.decision.rule).toBe(e.decision.allow && grant !== undefined ? grant : q.principal.kind === 'job' && q.principal.submitter === undefined ? 'default-deny' : last);
      }
    }),
    { ...RUNS, numRuns: 100 },
  );
}, 60_000);

/** Wrong deciders, each with one classic mistake; the generated worlds must tell every one of them from the right one. */
const CANARIES: Record<string, (policy: NaivePolicy, q: DecisionRequest) => { allow: boolean; rule: string }> = {
  'permit beats forbid': (policy, q) => naiveDecide({ ...policy, files: policy.files.map((f) => ({ ...f, document: { ...f.document, roles: f.document.roles.map((r) => ({ ...r, forbid: [] })) } })) }, q),
  'grants never end': (policy, q) => naiveDecide(policy, { ...q, nowMs: 0 }),
  'a job without submitter is its name': (policy, q) => naiveDecide(policy, q.principal.kind === 'job' && q.principal.submitter === undefined ? { ...q, principal: { ...q.principal, submitter: { kind: 'user', name: 'ana' } } } : q),
  'conditions are not looked at': (policy, q) => naiveDecide({ ...policy, files: policy.files.map((f) => ({ ...f, document: { ...f.document, roles: f.document.roles.map((r) => ({ ...r, permit: r.permit.map((p) => ({ ...p, when: [] })) })) } })) }, q),
  'no wall': (policy, q) => naiveDecide(policy, q.principal.tenant === undefined || q.resource.attributes.tenant === '' ? q : { ...q, resource: { ...q.resource, attributes: { ...q.resource.attributes, tenant: q.principal.tenant } } }),
};

test.each(Object.keys(CANARIES))('a decider in which %s is found out', (name) => {
  const wrong = CANARIES[name] as (typeof CANARIES)[string];
  const { failed } = fc.check(
    fc.property(world, requests, (policy, asked) => {
      const point = createDecisionPoint(compilePolicies({ ...policy, version: 1 }));
      return asked.every((q) => point.decide(q).allow === wrong(policy, q).allow);
    }),
    { ...RUNS, seed: 7 },
  );
  expect(failed).toBe(true);
}, 60_000);
