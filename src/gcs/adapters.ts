/** The real pki, authz and audit behind the ports of the services. Only main.ts imports this. Must never: decide anything itself. */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { compilePolicies, diagnosticText, parsePolicyFile, rolesOf, snapshotText, type PolicyDocument, type PolicySnapshot } from '../authz/authz.ts';
import { readLogMaterial } from '../audit/audit-export.ts';
import { signCheckpoint, type CheckpointSigner } from '../audit/checkpoint-signer.ts';
import { parseCheckpoint, parseNote, type Checkpoint } from '../audit/core/note.ts';
import { stats, tail } from '../audit/audit-query.ts';
import type { AuditStore } from '../audit/audit-store.ts';
import { BulkheadError } from '../base/errors.ts';
import { parseSpiffeId, type SpiffeId, type TenantName } from '../base/ids.ts';
import type { Clock, RandomSource } from '../base/time.ts';
import { publicKeyFromCsr, verifySession, type AuthorityStorage, type CertificateAuthority, type IssuedCertificate, type JwtAuthority, type KeyManager } from '../pki/pki.ts';
import type { IdentityRow } from './core/identities.ts';
import type { CurrentFile } from './core/policy-versions.ts';
import type { HeadState } from './head-state.ts';
import { PolicyChecks, shownName } from './policy-check.ts';
import type { AuditReader, CheckpointReader, CompiledPolicy, HeadPki, PolicyCompiler } from './ports.ts';
import { SESSION_AUDIENCE } from './services/sessions.ts';
import type { Store } from './store.ts';

export const systemClock: Clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
export const systemRandom: RandomSource = { bytes: (length) => randomBytes(length) };

/** The authority's public state lives in the head's store, so that one file holds everything that is not a key. */
export function authorityStorage(store: Store): AuthorityStorage {
  const key = 'authority/state';
  return {
    load: async () => {
      const stored = await store.get(key);
      return stored && new TextDecoder().decode(stored.value);
    },
    save: async (text) => void (await store.put(key, new TextEncoder().encode(text))),
  };
}

/** Records an issued certificate; it is on disk when this resolves, and only then the certificate is handed out. */
export function recordIssued(head: HeadState): (issued: IssuedCertificate) => Promise<void> {
  return (issued) => head.commit((nowMs, out) => {
    const path = issued.kind === 'svid' || issued.kind === 'server' ? parseSpiffeId(issued.spiffeId).path : undefined;
    const tenant = path !== undefined && 'tenant' in path && head.tenants.get(path.tenant) !== undefined ? path.tenant : '';
    head.issuance.step({ type: 'issued', ...issued, tenant }, nowMs, out);
  });
}

const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const DATA_KEY_BYTES = 32;

export function headPki(parts: { readonly authority: CertificateAuthority; readonly sessions: JwtAuthority; readonly keyManager: KeyManager; readonly keyManagerName: string; readonly clock: Pick<Clock, 'nowMs'> }): HeadPki {
  const { authority, sessions, keyManager, keyManagerName, clock } = parts;
  return {
    trustDomain: authority.trustDomain, keyManagerName,
    issue: (spiffeId: SpiffeId, csrDer, ttlMs) => authority.issueX509Svid({ spiffeId, publicKeySpkiDer: publicKeyFromCsr(csrDer), ttlMs }),
    certifyServer: (spiffeId, csrDer, ttlMs, moreNames = []) => authority.issueServerCertificate({ spiffeId, publicKeySpkiDer: publicKeyFromCsr(csrDer), ttlMs, moreNames }),
    checkCsr: (csrDer) => void publicKeyFromCsr(csrDer),
    trustBundlePem: () => authority.trustBundlePem(),
    trustBundleJwks: () => authority.trustBundleJwks(),
    authorities: () => {
      const { roots, intermediate } = authority.describe();
      const notBefore = new Map(authority.bundle().roots.map((r) => [r.serial, r.notBeforeMs]));
      return [
        ...roots.map((r) => ({ kind: 'root' as const, serial: r.serial, notBeforeMs: notBefore.get(r.serial) ?? 0, notAfterMs: r.notAfterMs, active: r.state === 'active' })),
        { kind: 'intermediate' as const, serial: intermediate.serial, notBeforeMs: intermediate.notBeforeMs, notAfterMs: intermediate.notAfterMs, active: true },
      ];
    },
    rotate: async () => {
      await authority.rotateIntermediate();
      await authority.rotateJwtKey();
    },
    createTenantKey: (tenant: TenantName) => keyManager.createTenantKey(tenant),
    createDataKey: async (tenant: TenantName, nodeId: string) => {
      const key = randomBytes(DATA_KEY_BYTES);
      return { key, wrapped: await keyManager.wrap(tenant, key, Buffer.from(`spill ${nodeId}`, 'utf8')) };
    },
    destroyTenantKey: (tenant: TenantName) => keyManager.destroyTenantKey(tenant),
    verifySession: (credential) => verifySession(credential, { audience: SESSION_AUDIENCE, nowMs: clock.nowMs(), bundle: authority.bundle() }),
    seal: async (tenant, bytes, what) => {
      const aad = new TextEncoder().encode(what);
      const key = randomBytes(32);
      const wrapped = Buffer.from(await keyManager.wrap(tenant, key, aad));
      const nonce = randomBytes(NONCE_BYTES);
      const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: TAG_BYTES }).setAAD(aad);
      const sealed = Buffer.concat([cipher.update(bytes), cipher.final()]);
      const head = Buffer.alloc(2);
      head.writeUInt16LE(wrapped.length);
      return Buffer.concat([head, wrapped, nonce, cipher.getAuthTag(), sealed]).toString('base64');
    },
    unseal: async (tenant, text, what) => {
      const aad = new TextEncoder().encode(what);
      const all = Buffer.from(text, 'base64');
      try {
        const start = 2 + all.readUInt16LE(0);
        const key = await keyManager.unwrap(tenant, all.subarray(2, start), aad);
        const decipher = createDecipheriv('aes-256-gcm', key, all.subarray(start, start + NONCE_BYTES), { authTagLength: TAG_BYTES }).setAAD(aad).setAuthTag(all.subarray(start + NONCE_BYTES, start + NONCE_BYTES + TAG_BYTES));
        return Buffer.concat([decipher.update(all.subarray(start + NONCE_BYTES + TAG_BYTES)), decipher.final()]);
      } catch (cause) {
        throw new BulkheadError('INVALID_ARGUMENT', 'what was sealed for the tenant cannot be opened: its key is gone, or it was altered', { cause });
      }
    },
    issueSession: ({ principal, tenantNumber, jti }) => sessions.issueSession({ principal, tenantNumber, jti, audience: SESSION_AUDIENCE }),
  };
}

export interface CompiledSnapshot extends CompiledPolicy {
  readonly snapshot: PolicySnapshot;
}

function identityRoles(identities: readonly IdentityRow[]) {
  return identities.flatMap(({ tenant, kind, name, roles }) => roles.map((role) => ({ tenant, kind, name, role })));
}

/** Parsed files kept for the next compilation: most changes touch one file, or none. */
const MAX_PARSED_FILES = 1_000;

export function policyCompiler(clock: Pick<Clock, 'nowMs'>): PolicyCompiler {
  const parsed = new Map<string, PolicyDocument>();
  const checks = new PolicyChecks();
  const keyOf = (file: CurrentFile): string => `${shownName(file)}\0${file.content}`;
  const keep = (file: CurrentFile, document: PolicyDocument): void => {
    if (parsed.size >= MAX_PARSED_FILES) parsed.clear();
    parsed.set(keyOf(file), document);
  };
  const documentOf = (file: CurrentFile): PolicyDocument => {
    let document = parsed.get(keyOf(file));
    if (document === undefined) {
      const read = parsePolicyFile(shownName(file), file.content);
      if (read.document === undefined) throw new BulkheadError('INVALID_ARGUMENT', read.diagnostics.map(diagnosticText).join('\n'));
      keep(file, (document = read.document));
    }
    return document;
  };

  return {
    compile({ version, files, identities }): CompiledSnapshot {
      const snapshot = compilePolicies({ version, files: files.map((f) => ({ name: shownName(f), document: documentOf(f) })), identityRoles: identityRoles(identities) });
      return { version, snapshot, text: snapshotText(snapshot), rolesOf: (principal) => [...rolesOf(snapshot, principal)] };
    },
    async checkFile(file, all) {
      const { findings, document } = await checks.check({ file, all, nowMs: clock.nowMs() });
      if (findings.length > 0) throw new BulkheadError('INVALID_ARGUMENT', findings.join('\n'));
      if (document !== undefined) keep(file, document);
    },
  };
}

export function auditReader(store: AuditStore): AuditReader {
  return {
    counts: () => store.counts(),
    async *tail(tenant, { last, follow, signal }) {
      for await (const { seq, record } of tail(store, tenant, { limit: last, follow, signal })) yield { index: seq, record: JSON.stringify(record) };
    },
    async *material(tenant) {
      const log = await readLogMaterial(store, tenant);
      if (log === undefined) return;
      yield { header: JSON.stringify({ origin: log.origin, checkpoint: log.checkpoint, vkeys: log.vkeys }) };
      for await (const entries of log.entries) yield { entries };
    },
    async stats(tenant) {
      const s = await stats(store, tenant);
      if (s === undefined) return undefined;
      const byAction = Object.create(null) as Record<string, number>;
      for (const [name, { allow, deny }] of Object.entries(s.actions)) byAction[name] = allow + deny;
      return { records: s.records, bytes: s.bytes, allowed: s.allow, denied: s.deny, byAction, firstMs: s.firstMs ?? 0, lastMs: s.lastMs ?? 0, rootHash: s.rootHash };
    },
  };
}

export function checkpointReader(signer: CheckpointSigner, clock: Pick<Clock, 'nowMs'>): CheckpointReader {
  const read = (note: Uint8Array): Checkpoint => {
    let text: string;
    try {
      text = new TextDecoder('utf-8', { fatal: true }).decode(note);
    } catch (cause) {
      throw new BulkheadError('INVALID_ARGUMENT', 'the checkpoint is not text', { cause });
    }
    return parseCheckpoint(parseNote(text).text);
  };
  return {
    parse(note) {
      const { origin, treeSize, rootHash } = read(note);
      return { origin, treeSize, rootHash: Buffer.from(rootHash).toString('hex') };
    },
    sign: (note) => new TextEncoder().encode(signCheckpoint(read(note), signer, undefined, clock.nowMs())),
  };
}
