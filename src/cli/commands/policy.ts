/**
 * `bulkhead policy …`. check, test, explain and who-can read files only and need no cluster; apply, history and rollback ask the head. Must
 * never: send a file that does not even parse here.
 */
import { readFileSync, readdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { checkPolicies, checkText, defaultPolicy, explain, explanationText, KIND_OF_ACTION, parsePolicyFile, whoCan, type PolicyCheck, type PolicySnapshot } from '../../authz/authz.ts';
import { ACTIONS, resource, type Action, type Resource } from '../../base/decision.ts';
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { principalFromSpiffeId } from '../../base/principal.ts';
import { parseMemory } from '../../base/resources.ts';
import { Policies, type PolicyVersion } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { ExitCode, printable, timeText, UsageError, type Terminal } from '../terminal.ts';

interface PolicyFile {
  readonly path: string;
  readonly name: string;
  readonly content: Uint8Array;
}

/** Policies are applied and reported by their whole path here, by their own name on the head. */
function readFiles(paths: readonly string[]): PolicyFile[] {
  return paths.flatMap((path) => {
    try {
      if (!statSync(path).isDirectory()) return [{ path, name: basename(path), content: readFileSync(path) }];
      // methods.yaml has the rows of RPCs, which are not policy.
      const inside = readdirSync(path).filter((name) => /\.ya?ml$/.test(name) && name !== 'methods.yaml').sort();
      if (inside.length === 0) throw new UsageError(`${path} holds no policy files (*.yaml)`);
      return inside.map((name) => ({ path: join(path, name), name, content: readFileSync(join(path, name)) }));
    } catch (error) {
      if (error instanceof UsageError) throw error;
      throw new UsageError(`${path} cannot be read (${(error as NodeJS.ErrnoException).code}); give policy files, or a directory of them`);
    }
  });
}

/** Files are checked together with the platform policy that ships with Bulkhead, unless one of them is a platform policy itself. */
function check(files: readonly PolicyFile[], nowMs: number): PolicyCheck {
  const platform = files.some((f) => parsePolicyFile(f.path, f.content).document?.tenant === '');
  const given = files.map((f) => ({ name: f.path, content: f.content }));
  return checkPolicies({ files: platform ? given : [{ ...defaultPolicy(), name: 'policies/defaults.yaml' }, ...given], identityRoles: [], version: 1, nowMs });
}

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;

export function checkFiles(terminal: Terminal, paths: readonly string[], showTests: boolean): void {
  const files = readFiles(paths);
  const result = check(files, Date.now());
  const own = new Set(files.map((f) => f.path));
  const tests = result.tests.filter((t) => own.has(t.file));
  terminal.answer({ ok: result.ok, diagnostics: result.diagnostics, tests });
  if (!terminal.json && showTests) for (const t of tests) terminal.say(printable(`${t.passed ? 'ok  ' : 'FAIL'} ${t.file}:${t.line} ${t.what}${t.passed ? ` (${t.rule})` : `: ${t.message}`}`));
  const text = checkText(showTests ? { ...result, tests: [] } : result);
  if (text !== '') terminal.say(printable(text, true));
  const failed = result.tests.filter((t) => !t.passed).length;
  if (result.ok) terminal.say(`${terminal.colour('green', 'ok')}: ${plural(files.length, 'file')}, ${plural(tests.length, 'test')} passed`);
  else terminal.say(`${terminal.colour('red', 'not ok')}: ${plural(result.diagnostics.filter((d) => d.severity === 'error').length, 'error')}, ${plural(failed, 'failed test')}; nothing was changed`);
  if (result.ok && showTests && tests.length === 0) terminal.warn("these files have no tests; add some under 'tests:', so that a later change cannot open what must stay closed");
  if (!result.ok) throw new ExitCode(1);
}

function compiled(terminal: Terminal, paths: readonly string[]): { snapshot: PolicySnapshot; tenants: string[] } {
  const files = readFiles(paths);
  const result = check(files, Date.now());
  if (result.snapshot === undefined) {
    terminal.note(printable(checkText(result), true));
    throw new BulkheadError('UNAVAILABLE', 'the policy files do not check, so nothing can be said about what they permit; correct them first');
  }
  const tenants = files.map((f) => parsePolicyFile(f.path, f.content).document?.tenant ?? '').filter((t) => t !== '');
  return { snapshot: result.snapshot, tenants: [...new Set(tenants)] };
}

function parseAction(text: string): Action {
  const action = ACTIONS.find((a) => a === text);
  if (action === undefined) {
    const near = ACTIONS.filter((a) => a.split('.')[0] === text.split('.')[0]);
    throw new UsageError(`there is no action ${quote(text)}; ${near.length > 0 ? `near it: ${near.join(', ')}` : `actions are: ${ACTIONS.join(', ')}`}`);
  }
  return action;
}

/** `user/ana` is of the only tenant among the files, or of `--tenant`. */
function parsePrincipal(text: string, tenants: readonly string[], tenant: string | undefined) {
  const own = tenant ?? (tenants.length === 1 ? tenants[0] : undefined);
  const short = /^(user|service)\//.test(text);
  if (short && own === undefined) throw new UsageError(`of which tenant is ${quote(text)}? give tenant/NAME/${text}, or --tenant NAME`);
  const path = text.replace(/^spiffe:\/\/[^/]*\//, '');
  try {
    return principalFromSpiffeId(`spiffe://policy/${short ? `tenant/${own}/` : ''}${path}`);
  } catch (error) {
    throw new UsageError(`${toSafeError(error).safeMessage}; give user/NAME, service/NAME, tenant/T/user/NAME, system/admin or node/ID`);
  }
}

function resourceOf(action: Action, tenant: string, on: Readonly<Record<string, string>>): Resource {
  const kind = KIND_OF_ACTION.get(action);
  if (kind === undefined) throw new BulkheadError('INTERNAL', `the action ${action} has no kind`);
  const defaults = resource(kind, {}).attributes as unknown as Readonly<Record<string, unknown>>;
  const values = Object.entries(on).map(([name, text]): [string, unknown] => {
    if (!Object.hasOwn(defaults, name)) throw new UsageError(`--on: there is no attribute ${quote(name)}; attributes are: ${Object.keys(defaults).join(', ')}`);
    if (name === 'memory' || name === 'size') return [name, parseMemory(/^\d+$/.test(text) ? Number(text) : text)];
    if (typeof defaults[name] === 'boolean') return [name, text === 'true'];
    if (typeof defaults[name] === 'number' && !Number.isFinite(Number(text))) throw new UsageError(`--on: ${name} is a number`);
    return [name, typeof defaults[name] === 'number' ? Number(text) : text];
  });
  return resource(kind, { tenant, ...Object.fromEntries(values) });
}

export function explainDecision(terminal: Terminal, who: string, what: string, paths: readonly string[], options: { readonly tenant?: string | undefined; readonly on: Readonly<Record<string, string>>; readonly roles: readonly string[] }): void {
  const action = parseAction(what);
  const { snapshot, tenants } = compiled(terminal, paths);
  const principal = parsePrincipal(who, tenants, options.tenant);
  const { kind, name } = principal;
  if (kind === 'job' && options.roles.length > 0) throw new UsageError('a job has the roles of its submitter; ask about that user or service');
  const known = (tenant: string, role: string): boolean => snapshot.rules.some((r) => r.tenant === tenant && r.role === role);
  const carried = options.roles.map((role) => {
    const roleTenant = principal.tenant !== undefined && known(principal.tenant, role) ? principal.tenant : '';
    if (!known(roleTenant, role)) throw new UsageError(`--role: there is no role ${quote(role)} in these files`);
    return { tenant: principal.tenant ?? '', kind: kind as 'user', name, roleTenant, role };
  });
  const asked = { ...snapshot, members: [...snapshot.members, ...carried] };
  const result = explain(asked, { principal, action, resource: resourceOf(action, principal.tenant ?? '', options.on), nowMs: Date.now() });
  terminal.answer({ allow: result.decision.allow, rule: result.decision.rule, why: explanationText(result), wall: result.wall, roles: result.roles, rules: result.rules, grants: result.grants });
  terminal.say(`${result.decision.allow ? terminal.colour('green', 'permitted') : terminal.colour('red', 'denied')} by ${result.decision.rule}: ${printable(explanationText(result))}`);
  terminal.say(`roles: ${result.roles.length === 0 ? 'none' : result.roles.join(', ')}`);
  if (result.rules.length + result.grants.length > 0) terminal.table(['RULE', 'EFFECT', 'MATCHES', 'WHY NOT'], [...result.rules, ...result.grants].map((r) => [r.id, r.effect, r.matched ? 'yes' : 'no', r.unmet.join('; ')]));
}

export function whoCanDo(terminal: Terminal, what: string, paths: readonly string[], options: { readonly tenant?: string | undefined; readonly on: Readonly<Record<string, string>> }): void {
  const action = parseAction(what);
  const { snapshot, tenants } = compiled(terminal, paths);
  const tenant = options.on['tenant'] ?? options.tenant ?? (tenants.length === 1 ? (tenants[0] as string) : '');
  const people = whoCan(snapshot, action, resourceOf(action, tenant, options.on), Date.now());
  terminal.answer({ action, tenant, who: people });
  terminal.say(`${action} on a resource of ${tenant === '' ? 'the cluster' : `tenant ${tenant}`} (roles that identities were issued with are not in files):`);
  terminal.table(['WHO', 'RULE'], people.map((p) => [`${p.tenant === '' ? '' : `tenant/${p.tenant}/`}${p.kind}/${p.name}`, p.rule]));
  if (people.length === 0) terminal.say('nobody');
}

// --- with a cluster ---------------------------------------------------------------------------------------------------

function shown(terminal: Terminal, v: PolicyVersion): void {
  terminal.say(`version ${v.version} of ${v.tenant === '' ? 'the platform policy' : `tenant ${v.tenant}`} is in force on ${v.inForceOn.length} node${v.inForceOn.length === 1 ? '' : 's'} (${v.digest.slice(0, 19)}…)`);
}

export async function applyFiles(terminal: Terminal, paths: readonly string[], profile: string | undefined): Promise<void> {
  const files = readFiles(paths).map((f) => ({ ...f, parsed: parsePolicyFile(f.path, f.content) }));
  const unread = files.filter((f) => f.parsed.document === undefined);
  if (unread.length > 0) {
    const diagnostics = unread.flatMap((f) => f.parsed.diagnostics);
    terminal.note(printable(checkText({ ok: false, diagnostics, tests: [], snapshot: undefined }), true));
    terminal.fail(new BulkheadError('INVALID_ARGUMENT', `${unread.map((f) => f.path).join(', ')}: not a valid policy file; nothing was changed`));
    throw new ExitCode(1);
  }
  await using session = await CallerSession.open(profile);
  for (const file of files) {
    try {
      const version = await terminal.progress(`applying ${file.path}`, session.to(Policies).apply({ tenant: file.parsed.document?.tenant ?? '', fileName: file.name, content: file.content }, { timeoutMs: CALL_TIMEOUT_MS }));
      terminal.answer({ file: file.path, ...version });
      shown(terminal, version);
    } catch (thrown) {
      const error = toSafeError(thrown);
      // The command was right; the file is not.
      if (error.code !== 'INVALID_ARGUMENT') throw thrown;
      terminal.fail(new BulkheadError('INVALID_ARGUMENT', `${file.path}: ${error.safeMessage}`));
      throw new ExitCode(1);
    }
  }
}

export async function policyHistory(terminal: Terminal, tenant: string | undefined, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const { versions } = await session.to(Policies).history({ tenant: tenant ?? session.tenant ?? '' }, { timeoutMs: CALL_TIMEOUT_MS });
  const sorted = [...versions].sort((a, b) => b.version - a.version);
  terminal.answer({ versions: sorted });
  terminal.table(['VERSION', 'TENANT', 'APPLIED', 'BY', 'DIGEST'], sorted.map((v) => [String(v.version), v.tenant === '' ? '(platform)' : v.tenant, timeText(Number(v.appliedMs)), v.appliedBy, v.digest.slice(0, 19)]), [0]);
}

export async function rollbackPolicy(terminal: Terminal, version: number, tenant: string | undefined, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const result = await terminal.progress('rolling back', session.to(Policies).rollback({ tenant: tenant ?? session.tenant ?? '', version }, { timeoutMs: CALL_TIMEOUT_MS }));
  terminal.answer(result);
  shown(terminal, result);
}
