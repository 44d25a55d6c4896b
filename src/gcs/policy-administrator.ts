/**
 * The policy administrator (NIST SP 800-207): the only writer of the policy in force. Compiles the whole policy for every change before the
 * change is stored, so that what is stored always compiles, and puts it in force here before it is pushed.
 * Must never: store or push a policy that does not compile or whose tests fail, or keep a version once a newer one is stored.
 */
import { createHash } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import type { Identities, IdentityEvent, IdentityRow } from './core/identities.ts';
import type { CurrentFile, PolicyFileVersion } from './core/policy-versions.ts';
import type { Effect } from './core/table.ts';
import type { HeadState } from './head-state.ts';
import type { CompiledPolicy, PolicyCompiler } from './ports.ts';

/** A file whose neighbours change under its check is checked so often again. */
const RECHECKS = 2;

export class PolicyAdministrator {
  readonly #head: HeadState;
  readonly #compiler: PolicyCompiler;
  readonly #activate: (compiled: CompiledPolicy) => void;
  #current: CompiledPolicy | undefined;

  /** `activate` puts a policy in force in this process. */
  constructor(options: { readonly head: HeadState; readonly compiler: PolicyCompiler; readonly activate: (compiled: CompiledPolicy) => void }) {
    this.#head = options.head;
    this.#compiler = options.compiler;
    this.#activate = options.activate;
  }

  /** Compiles what is stored. A policy that no longer compiles (an older program wrote it) keeps the head from starting. */
  start(): void {
    const { policies, identities } = this.#head;
    if (policies.version === 0) return;
    this.#inForce(this.#compiler.compile({ version: policies.version, files: policies.current(), identities: identities.all() }));
  }

  get current(): CompiledPolicy | undefined {
    return this.#current;
  }

  #inForce(compiled: CompiledPolicy): void {
    this.#current = compiled;
    this.#activate(compiled);
  }

  /** Throws INVALID_ARGUMENT with positions; then nothing has changed. Resolves when the version is stored and in force here. */
  apply(file: CurrentFile, by: string): Promise<PolicyFileVersion> {
    return this.#apply(file, by, 'apply', true);
  }

  /** The policy that ships with Bulkhead, at the first start. Its own tests ran when it was built. */
  applyDefault(file: CurrentFile): Promise<PolicyFileVersion> {
    return this.#apply(file, '', 'apply', false);
  }

  async #apply(file: CurrentFile, by: string, change: 'apply' | 'rollback', check: boolean): Promise<PolicyFileVersion> {
    const checked = check ? await this.#check(file) : undefined;
    return this.#commit((nowMs, out) => {
      const { policies, identities, tenants } = this.#head;
      if (file.tenant !== '') tenants.active(file.tenant);
      const files = policies.currentWith(file);
      const digest = createHash('sha256').update(file.content, 'utf8').digest('hex');
      policies.step({ type: 'apply', ...file, digest, by, change }, nowMs, out);
      if (checked !== undefined && checked !== this.#neighbours(file)) throw new BulkheadError('UNAVAILABLE', 'other policy files changed while this one was checked: apply it again');
      const version = policies.version + 1;
      const compiled = this.#compiler.compile({ version, files, identities: identities.all() });
      return { compiled, result: { version, tenant: file.tenant, fileName: file.fileName, digest, appliedMs: nowMs, appliedBy: by, change } };
    });
  }

  /** Checks a file with those that it can meet, and again when they changed meanwhile. Returns which they were. */
  async #check(file: CurrentFile): Promise<string> {
    const { policies, tenants } = this.#head;
    if (file.tenant !== '') tenants.active(file.tenant);
    // What the change itself is refused for comes first.
    policies.step({ type: 'apply', ...file, digest: '', by: '', change: 'apply' }, 0, []);
    for (let i = 0; ; i++) {
      const before = this.#neighbours(file);
      await this.#compiler.checkFile(file, policies.currentWith(file));
      if (before === this.#neighbours(file) || i === RECHECKS) return before;
    }
  }

  /** The versions in force that a file of this author is checked with: its own and the platform's; the platform's with all. */
  #neighbours(file: CurrentFile): string {
    return this.#head.policies.inForce().filter((v) => file.tenant === '' || v.tenant === '' || v.tenant === file.tenant).map((v) => v.version).sort((a, b) => a - b).join();
  }

  /** Puts the content of an earlier version of the tenant's in force as a new version. */
  rollback(tenant: string, version: number, by: string): Promise<PolicyFileVersion> {
    const earlier = this.#head.policies.find(tenant, version);
    return this.#apply({ tenant, fileName: earlier.fileName, content: this.#head.policies.content(earlier.digest) }, by, 'rollback', true);
  }

  /** Stores an identity and its roles. A role that does not exist is refused: a typing error would silently give nothing. */
  putIdentity(event: Extract<IdentityEvent, { type: 'issue' }>): Promise<IdentityRow> {
    return this.#commit((nowMs, out) => {
      const { identities, tenants } = this.#head;
      tenants.active(event.tenant);
      const row = identities.issued(event, nowMs);
      identities.step(event, nowMs, out);
      const before = identities.get(row.spiffeId);
      if (before !== undefined && before.roles.join() === row.roles.join() && this.#current !== undefined) return { compiled: undefined, result: row };
      const compiled = this.#recompile(withRow(identities, row), nowMs, out);
      const given = compiled.rolesOf({ spiffeId: row.spiffeId, kind: row.kind, tenant: row.tenant, name: row.name, submitter: undefined });
      const missing = row.roles.find((role) => !given.includes(`${row.tenant}/${role}`) && !given.includes(`platform/${role}`));
      if (missing !== undefined) throw new BulkheadError('INVALID_ARGUMENT', `role ${quote(missing)} does not exist for tenant ${quote(row.tenant)}: define it in a policy file and apply that first, or name a role that exists`);
      return { compiled, result: row };
    });
  }

  /** Removes a batch of the identities and policy files of a deleted tenant. */
  async forgetTenant(tenant: string, limit: number): Promise<void> {
    await this.#commit((nowMs, out) => {
      const { identities, policies } = this.#head;
      const gone = identities.ofTenant(tenant).slice(0, limit);
      identities.step({ type: 'tenantGone', tenant, limit }, nowMs, out);
      const files = policies.history(tenant).slice(0, limit);
      policies.step({ type: 'tenantGone', tenant, limit }, nowMs, out);
      if (files.length === 0) policies.step({ type: 'bump' }, nowMs, out);
      const compiled = this.#compiler.compile({ version: policies.version + 1, files: policies.current().filter((f) => f.tenant !== tenant), identities: identities.all().filter((i) => !gone.includes(i)) });
      return { compiled, result: undefined };
    });
  }

  #recompile(identities: readonly IdentityRow[], nowMs: number, out: Effect[]): CompiledPolicy {
    const { policies } = this.#head;
    policies.step({ type: 'bump' }, nowMs, out);
    return this.#compiler.compile({ version: policies.version + 1, files: policies.current(), identities });
  }

  async #commit<T>(decide: (nowMs: number, out: Effect[]) => { compiled: CompiledPolicy | undefined; result: T }): Promise<T> {
    const { result } = await this.#head.commit(decide, ({ compiled }) => {
      if (compiled !== undefined) this.#inForce(compiled);
    });
    return result;
  }

  /** Ids of the living nodes that have reported this version or a newer one; waits for all of them, at most `timeoutMs`. */
  async inForceOn(version: number, timeoutMs: number): Promise<string[]> {
    const { nodes } = this.#head;
    const behind = (): boolean => nodes.alive().some((n) => n.policyVersion < version);
    if (behind()) {
      await new Promise<void>((resolve) => {
        const finish = (): void => {
          clearTimeout(timer);
          stop();
          resolve();
        };
        const timer = setTimeout(finish, timeoutMs);
        const stop = this.#head.onPush((parts) => {
          if (parts.has('nodes') && !behind()) finish();
        });
      });
    }
    return nodes.alive().filter((n) => n.policyVersion >= version).map((n) => n.id);
  }
}

function withRow(identities: Identities, row: IdentityRow): IdentityRow[] {
  return [...identities.all().filter((i) => i.spiffeId !== row.spiffeId), row];
}
