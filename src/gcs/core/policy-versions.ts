/**
 * Policy files and the one number that says which policy is in force. Transitions: 1. none → version n (apply a file); 2. version n → n+1
 * (apply, roll back, or a change of what else decides: roles of identities, tenants). The number only rises, so that a raylet can refuse
 * what is older. A rollback is a new version with old content. Whether a file checks is decided before, by authz.
 */
import { quote } from '../../base/ids.ts';
import { MAX_POLICY_FILES_PER_TENANT, MAX_POLICY_HISTORY_PER_TENANT } from '../../base/limits.ts';
import { full, refuse, unknown, type Effect, type Table } from './table.ts';

export interface PolicyFileVersion {
  readonly version: number;
  /** '': the platform. */
  readonly tenant: string;
  readonly fileName: string;
  /** Lower-case hex SHA-256 of the content, which is kept once under it. */
  readonly digest: string;
  readonly appliedMs: number;
  /** SPIFFE ID; '' for the defaults of the first start. */
  readonly appliedBy: string;
  readonly change: 'apply' | 'rollback';
}

export type PolicyEvent =
  | { readonly type: 'apply'; readonly tenant: string; readonly fileName: string; readonly digest: string; readonly content: string; readonly by: string; readonly change: 'apply' | 'rollback' }
  /** Something else that the compiled policy depends on has changed. */
  | { readonly type: 'bump' }
  | { readonly type: 'tenantGone'; readonly tenant: string; readonly limit: number };

export interface CurrentFile {
  readonly tenant: string;
  readonly fileName: string;
  readonly content: string;
}

const FILE_NAME = /^[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?$/;
const VERSION_DIGITS = 10;

export function parsePolicyFileName(text: string): string {
  return FILE_NAME.test(text) && !text.includes('..') ? text : refuse(`policy file name ${quote(text)} is not valid: lower-case letters, digits and inner . _ -, 1 to 100 characters, no path`);
}

export class PolicyVersions implements Table<PolicyEvent> {
  readonly prefix = 'policy/';
  #version = 0;
  readonly #versions = new Map<number, PolicyFileVersion>();
  readonly #contents = new Map<string, string>();
  /** Newest version of each file, by tenant and file name. */
  readonly #current = new Map<string, PolicyFileVersion>();

  /** Of the whole policy; 0 before the first file. */
  get version(): number {
    return this.#version;
  }

  /** The versions in force, one of each file. */
  inForce(): PolicyFileVersion[] {
    return [...this.#current.values()];
  }

  /** Every file in force. */
  current(): CurrentFile[] {
    return [...this.#current.values()].map((v) => ({ tenant: v.tenant, fileName: v.fileName, content: this.content(v.digest) }));
  }

  /** The files as they would be with this one replaced. */
  currentWith(file: CurrentFile): CurrentFile[] {
    return [...this.current().filter((f) => f.tenant !== file.tenant || f.fileName !== file.fileName), file];
  }

  content(digest: string): string {
    const content = this.#contents.get(digest);
    if (content === undefined) throw unknown('the content of this policy version');
    return content;
  }

  /** Newest first. */
  history(tenant: string): PolicyFileVersion[] {
    return [...this.#versions.values()].filter((v) => v.tenant === tenant).sort((a, b) => b.version - a.version);
  }

  /** `version` 0: the newest, of the file if one is named. Throws DENIED when the tenant has no such version. */
  find(tenant: string, version: number, fileName = ''): PolicyFileVersion {
    const found = version === 0 ? this.history(tenant).find((v) => fileName === '' || v.fileName === fileName) : this.#versions.get(version);
    if (found === undefined || found.tenant !== tenant || (fileName !== '' && found.fileName !== fileName)) throw unknown(version === 0 ? 'a policy file' : `policy version ${version}`);
    return found;
  }

  step(event: PolicyEvent, nowMs: number, out: Effect[]): void {
    const version = this.#version + 1;
    if (event.type === 'apply') {
      const { tenant, digest, content, by, change } = event;
      const fileName = parsePolicyFileName(event.fileName);
      const files = [...this.#current.values()].filter((v) => v.tenant === tenant);
      if (files.length >= MAX_POLICY_FILES_PER_TENANT && !files.some((v) => v.fileName === fileName)) throw full('policy files of this tenant', MAX_POLICY_FILES_PER_TENANT, 'put the rules into one of them');
      out.push({ type: 'put', key: this.#versionKey(version), row: { version, tenant, fileName, digest, appliedMs: nowMs, appliedBy: by, change } satisfies PolicyFileVersion });
      if (!this.#contents.has(digest)) out.push({ type: 'put', key: `${this.prefix}content/${digest}`, row: { content } });
      out.push({ type: 'record', tenant, event: change === 'apply' ? 'policy.applied' : 'policy.rolled-back', principal: by, kind: 'policy', resource: fileName, detail: `version ${version} sha256:${digest}` });
      this.#forget(this.history(tenant).filter((v) => !this.#isCurrent(v)).slice(MAX_POLICY_HISTORY_PER_TENANT - 1), digest, out);
    } else if (event.type === 'tenantGone') {
      const versions = this.history(event.tenant).slice(0, event.limit);
      if (versions.length === 0) return;
      this.#forget(versions, '', out);
    }
    out.push({ type: 'put', key: `${this.prefix}version`, row: { version } }, { type: 'push', part: 'policy' });
  }

  #versionKey(version: number): string {
    return `${this.prefix}versions/${String(version).padStart(VERSION_DIGITS, '0')}`;
  }

  #isCurrent(v: PolicyFileVersion): boolean {
    return this.#current.get(`${v.tenant}/${v.fileName}`)?.version === v.version;
  }

  /** Drops versions, and contents that no other version needs (`kept` is about to be needed). */
  #forget(versions: readonly PolicyFileVersion[], kept: string, out: Effect[]): void {
    const gone = new Set(versions.map((v) => v.version));
    const needed = new Set([kept, ...[...this.#versions.values()].filter((v) => !gone.has(v.version)).map((v) => v.digest)]);
    for (const v of versions) out.push({ type: 'delete', key: this.#versionKey(v.version) });
    for (const digest of new Set(versions.map((v) => v.digest))) if (!needed.has(digest)) out.push({ type: 'delete', key: `${this.prefix}content/${digest}` });
  }

  absorb(key: string, row: unknown): void {
    const [kind, name = ''] = key.slice(this.prefix.length).split('/');
    if (kind === 'version') this.#version = (row as { version: number } | undefined)?.version ?? 0;
    else if (kind === 'content') {
      if (row === undefined) this.#contents.delete(name);
      else this.#contents.set(name, (row as { content: string }).content);
    } else if (row === undefined) this.#drop(Number(name));
    else {
      const v = row as PolicyFileVersion;
      this.#versions.set(v.version, v);
      const file = `${v.tenant}/${v.fileName}`;
      if ((this.#current.get(file)?.version ?? 0) < v.version) this.#current.set(file, v);
    }
  }

  #drop(version: number): void {
    const v = this.#versions.get(version);
    if (v === undefined) return;
    if (this.#isCurrent(v)) this.#current.delete(`${v.tenant}/${v.fileName}`);
    this.#versions.delete(version);
  }
}
