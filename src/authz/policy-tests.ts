/**
 * `policy check` and `policy test`: parses every file, compiles them together and runs the tests that the files carry. The head applies nothing that
 * this does not pass. The answer is whole: every finding of every file, not the first one.
 */
import { resource } from '../base/decision.ts';
import { principalFromSpiffeId, type Principal } from '../base/principal.ts';
import { createDecisionPoint } from './decision-point.ts';
import { explain, explanationText } from './explain.ts';
import { compileOrExplain, roleKey, type IdentityRole, type PolicySource } from './core/compile.ts';
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
  const assignable = new Set(sources.flatMap(({ document }) => (document.tenant === '' ? document.roles.filter((r) => r.assignable).map((r) => r.name) : [])));
  const tests = sources.flatMap((source) => runPolicyTests(snapshot, source, input.nowMs, assignable));
  return { ok: tests.every((t) => t.passed), diagnostics, tests, snapshot };
}

/** `assignable`: the platform's roles that a tenant's identity can carry. */
export function runPolicyTests(snapshot: PolicySnapshot, { name: file, document }: PolicySource, nowMs: number, assignable: ReadonlySet<string>): TestOutcome[] {
  const point = createDecisionPoint(snapshot);
  return document.tests.map((test): TestOutcome => {
    const identity = `${test.as.tenant === '' || test.as.tenant === document.tenant ? '' : `tenant/${test.as.tenant}/`}${test.as.kind}/${test.as.name}`;
    const base = { file, ...test.at, what: `${identity} ${test.do}: ${test.expect}` };
    const unknown = test.roles.find((role) => carriedRole(snapshot, test, role, assignable) === undefined);
    if (unknown !== undefined) return { ...base, passed: false, rule: '', message: `role '${unknown}' of this test does not exist, or cannot be carried by ${identity}` };
    const asked = test.roles.length === 0 ? snapshot : { ...snapshot, members: [...snapshot.members, ...test.roles.map((role) => carriedRole(snapshot, test, role, assignable) as SnapshotMember)] };
    const principal = principalOf(test.as);
    const request = {
      principal, action: test.do, nowMs: test.atMs ?? nowMs,
      resource: resource(KIND_OF_ACTION.get(test.do) as never, { tenant: document.tenant !== '' ? document.tenant : (principal.tenant ?? ''), ...test.on }),
    };
    const { allow, rule } = (asked === snapshot ? point : createDecisionPoint(asked)).decide(request);
    const asExpected = test.expect === 'permit' ? allow : !allow && (test.expect === 'deny' || rule.includes('/forbid/'));
    const passed = asExpected && (test.rule === undefined || test.rule === rule);
    const message = passed ? '' : `expected ${test.expect}${test.rule === undefined ? '' : ` by ${test.rule}`}, but it is ${allow ? 'permitted' : 'denied'} (${rule}): ${explanationText(explain(asked, request))}`;
    return { ...base, passed, rule, message };
  });
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
