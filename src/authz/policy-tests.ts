/**
 * `policy check` and `policy test`: parses every file, compiles them together and runs the tests that the files carry. The head applies nothing that
 * this does not pass. The answer is whole: every finding of every file, not the first one.
 *
 * A file's tests see the platform's files and its own tenant's, and no issued identities. So they mean the same on every cluster, no tenant's file can
 * fail another's tests, and nobody learns by a test in its own file what a neighbour's policy says.
 */
import { resource, type PolicyDecisionPoint } from '../base/decision.ts';
import { principalFromSpiffeId, type Principal } from '../base/principal.ts';
import { createDecisionPoint } from './decision-point.ts';
import { explain, explanationText } from './explain.ts';
import { compileOrExplain, compilePolicies, roleKey, type IdentityRole, type PolicySource } from './core/compile.ts';
import { diagnosticText, type Diagnostic, type TestDocument } from './core/policy-schema.ts';
import type { PolicySnapshot, SnapshotMember } from './core/snapshot.ts';
import { KIND_OF_ACTION } from './core/vocabulary.ts';
import { parsePolicyFile } from './policy-file.ts';

export interface TestOutcome {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** `user/ana task.submit: permit`. */
  readonly what: string;
  readonly passed: boolean;
  readonly rule: string;
  /** Empty when it passed. */
  readonly message: string;
}

export interface PolicyCheck {
  /** No error, and every test passed. */
  readonly ok: boolean;
  readonly diagnostics: readonly Diagnostic[];
  readonly tests: readonly TestOutcome[];
  /** Undefined when there is an error in any file. */
  readonly snapshot: PolicySnapshot | undefined;
}

export interface CheckInput {
  /** `tenant` is whose file it must be ('' the platform's): a file that says otherwise is refused. Leave it out where the file alone decides (`policy check`). */
  readonly files: readonly { readonly name: string; readonly content: string | Uint8Array; readonly tenant?: string }[];
  readonly identityRoles: readonly IdentityRole[];
  readonly version: number;
  /** The time at which tests without `at` ask. */
  readonly nowMs: number;
  /** Runs the tests of this tenant's files only (a tenant's file cannot change what others' tests see); undefined: of all. */
  readonly testsOf?: string;
}

export function checkPolicies(input: CheckInput): PolicyCheck {
  const sources: PolicySource[] = [];
  const diagnostics: Diagnostic[] = [];
  let failed = false;
  for (const { name, content, tenant } of input.files) {
    const parsed = parsePolicyFile(name, content);
    diagnostics.push(...parsed.diagnostics);
    if (parsed.document === undefined) failed = true;
    else if (tenant !== undefined && parsed.document.tenant !== tenant) {
      failed = true;
      diagnostics.push({ file: name, line: 1, column: 1, severity: 'error', message: tenant === '' ? "this is not a platform policy; it must say 'platform: true'" : `this is not a policy of tenant '${tenant}'; it must say 'tenant: ${tenant}'` });
    } else sources.push({ name, document: parsed.document });
  }
  if (failed) return { ok: false, diagnostics, tests: [], snapshot: undefined };
  const compiled = compileOrExplain({ files: sources, identityRoles: input.identityRoles, version: input.version });
  diagnostics.push(...compiled.diagnostics);
  const { snapshot } = compiled;
  if (snapshot === undefined) return { ok: false, diagnostics, tests: [], snapshot };
  const tests: TestOutcome[] = [];
  const platform = sources.filter((source) => source.document.tenant === '');
  for (const author of new Set(sources.map((source) => source.document.tenant))) {
    if (input.testsOf !== undefined && input.testsOf !== author) continue;
    const own = sources.filter((source) => source.document.tenant === author);
    if (own.every((source) => source.document.tests.length === 0)) continue;
    tests.push(...runPolicyTests(author === '' ? platform : [...platform, ...own], author, input.nowMs));
  }
  return { ok: tests.every((t) => t.passed), diagnostics, tests, snapshot };
}

/** Different pairs of identity and carried roles in the tests of one author: each needs a decision point of its own, on a head that others share. */
const MAX_CARRIERS = 64;
/** Failures that are explained; the others only say that they failed. */
const MAX_EXPLAINED = 20;

/** The tests in the files of one author, asked of exactly these files. Throws INVALID_ARGUMENT when they do not compile. */
export function runPolicyTests(files: readonly PolicySource[], author: string, nowMs: number): TestOutcome[] {
  const snapshot = compilePolicies({ files, identityRoles: [], version: 1 });
  const point = createDecisionPoint(snapshot);
  const carriers = new Map<string, { readonly snapshot: PolicySnapshot; readonly point: PolicyDecisionPoint }>();
  let explained = 0;
  const assignable = new Set(files.flatMap(({ document }) => (document.tenant === '' ? document.roles.filter((r) => r.assignable).map((r) => r.name) : [])));
  return files.filter(({ document }) => document.tenant === author).flatMap(({ name: file, document }) => document.tests.map((test): TestOutcome => {
    const identity = `${test.as.tenant === '' || test.as.tenant === document.tenant ? '' : `tenant/${test.as.tenant}/`}${test.as.kind}/${test.as.name}`;
    const base = { file, ...test.at, what: `${identity} ${test.do}: ${test.expect}` };
    const unknown = test.roles.find((role) => carriedRole(snapshot, test, role, assignable) === undefined);
    if (unknown !== undefined) return { ...base, passed: false, rule: '', message: `role '${unknown}' of this test does not exist, or cannot be carried by ${identity}` };
    const carrier = [test.as.tenant, test.as.kind, test.as.name, ...test.roles].join('/');
    let asked = test.roles.length === 0 ? { snapshot, point } : carriers.get(carrier);
    if (asked === undefined) {
      if (carriers.size >= MAX_CARRIERS) return { ...base, passed: false, rule: '', message: `the tests of ${author === '' ? 'the platform' : 'a tenant'} may use ${MAX_CARRIERS} different identities with 'roles'; use the same identity in several tests` };
      const members = [...snapshot.members, ...test.roles.map((role) => carriedRole(snapshot, test, role, assignable) as SnapshotMember)];
      carriers.set(carrier, (asked = { snapshot: { ...snapshot, members }, point: createDecisionPoint({ ...snapshot, members }) }));
    }
    const principal = principalOf(test.as);
    const request = {
      principal, action: test.do, nowMs: test.atMs ?? nowMs,
      resource: resource(KIND_OF_ACTION.get(test.do) as never, { tenant: document.tenant !== '' ? document.tenant : (principal.tenant ?? ''), ...test.on }),
    };
    const { allow, rule } = asked.point.decide(request);
    const asExpected = test.expect === 'permit' ? allow : !allow && (test.expect === 'deny' || rule.includes('/forbid/'));
    const passed = asExpected && (test.rule === undefined || test.rule === rule);
    const message = passed ? '' : `expected ${test.expect}${test.rule === undefined ? '' : ` by ${test.rule}`}, but it is ${allow ? 'permitted' : 'denied'} (${rule})${++explained > MAX_EXPLAINED ? '' : `: ${explanationText(explain(asked.snapshot, request))}`}`;
    return { ...base, passed, rule, message };
  }));
}

function principalOf(as: TestDocument['as']): Principal {
  return principalFromSpiffeId(`spiffe://policy-test/${as.tenant === '' ? '' : `tenant/${as.tenant}/`}${as.kind}/${as.name}`);
}

/** The membership that an identity issued with this role would have. */
function carriedRole(snapshot: PolicySnapshot, { as }: TestDocument, role: string, assignable: ReadonlySet<string>): SnapshotMember | undefined {
  const defined = (tenant: string): boolean => snapshot.rules.some((r) => roleKey(r.tenant, r.role) === roleKey(tenant, role));
  const roleTenant = as.tenant !== '' && defined(as.tenant) ? as.tenant : defined('') && (as.tenant === '' || assignable.has(role)) ? '' : undefined;
  return roleTenant === undefined ? undefined : { ...as, roleTenant, role };
}

/** All findings and failed tests as lines for people, `file:line:column: what`. */
export function checkText(check: PolicyCheck): string {
  const failures = check.tests.filter((t) => !t.passed).map((t) => `${t.file}:${t.line}:${t.column}: test failed: ${t.what}: ${t.message}`);
  return [...check.diagnostics.map(diagnosticText), ...failures].join('\n');
}
