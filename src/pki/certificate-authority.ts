/**
 * The cluster's certificate authority: root (10 years) → intermediate (1 year, path length 0) → SVIDs. Decides what is signed from the
 * identity it is told and a proven public key. Must never: copy anything else from a request, hand out an SVID whose record failed, or
 * start over when its state and its keys do not fit together.
 *
 * Root rotation: prepareRoot (both roots in the bundle) → wait until every node has the bundle → activateRoot (new intermediate under
 * the new root) → wait until the last SVID of the old one ended → retireRoots.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { BulkheadError, invariant } from '../base/errors.ts';
import { parseSpiffeId, type SpiffeId, type TrustDomain } from '../base/ids.ts';
import { CLOCK_SKEW_MS, SESSION_TTL_MS, SVID_TTL_MS } from '../base/limits.ts';
import type { Clock, RandomSource } from '../base/time.ts';
import { MAX_SVID_TTL_MS, isNamedIssuer, spiffeIdOfLeaf } from './core/acceptable.ts';
import { parseCertificate, type ParsedCertificate } from './core/certificate.ts';
import { bytesEqual } from './core/der.ts';
import { isAuthorityDue } from './core/rotation.ts';
import { authorityBody, serverBody, signedCertificate, svidBody, type CertificateFields } from './core/svid-template.ts';
import { encodeDer } from './forge-der.ts';
import type { JwtSigner } from './jwt-svid.ts';
import type { KeyManager } from './key-manager.ts';
import { toPem } from './pem.ts';
import { readGuardedFile, writeFileAtomic } from './private-file.ts';
import { isSignedBy, publicKeyFromSpki, type ProvenPublicKey } from './signature.ts';
import { TrustBundle, keyName, type TrustBundleSource } from './trust-bundle.ts';

const DAY_MS = 24 * 3_600_000;
const ROOT_TTL_MS = 3_652 * DAY_MS;
const INTERMEDIATE_TTL_MS = 365 * DAY_MS;
const MIN_SVID_TTL_MS = 1_000;
/** A JWT key signs only after every node has had time to hear of it. */
const JWT_KEY_PUBLISH_MS = 60_000;

/** Where the authority keeps what is public but must not change behind its back. */
export interface AuthorityStorage {
  load(): Promise<string | undefined>;
  /** Durable once it returns. */
  save(text: string): Promise<void>;
}

export function fileStorage(path: string): AuthorityStorage {
  return {
    load: async () => (await readGuardedFile(path))?.toString('utf8'),
    save: (text) => writeFileAtomic(path, text, 0o600),
  };
}

export interface IssuedCertificate {
  readonly kind: 'svid' | 'server' | 'intermediate' | 'root';
  /** Of an authority: `spiffe://<trust domain>`; of a server's certificate: of whom it was issued to. */
  readonly spiffeId: string;
  readonly serial: string;
  readonly notAfterMs: number;
  /** Lower-case hex, over the SubjectPublicKeyInfo. */
  readonly publicKeySha256: string;
}

export interface IssuedSvid {
  /** Leaf and intermediate. */
  readonly certificateChainPem: string;
  readonly chainDer: readonly Uint8Array[];
  readonly notAfterMs: number;
  readonly serial: string;
}

export interface AuthorityOptions {
  readonly trustDomain: TrustDomain;
  readonly keyManager: KeyManager;
  readonly storage: AuthorityStorage;
  readonly clock: Pick<Clock, 'nowMs'>;
  readonly random: RandomSource;
  /** Must be durable when it resolves (the audit record); when it rejects, the certificate is not handed out. */
  readonly onIssued: (issued: IssuedCertificate) => Promise<void>;
}

const StateSchema = z.strictObject({
  version: z.literal(1),
  trustDomain: z.string(),
  /** Of the trust bundle; grows with every change. */
  sequence: z.int().min(1),
  roots: z.array(z.strictObject({ keyId: z.string(), certificate: z.base64(), state: z.enum(['prepared', 'active', 'retired']) })).min(1),
  intermediate: z.strictObject({ keyId: z.string(), certificate: z.base64() }),
  jwtKeys: z.array(z.strictObject({ keyId: z.string(), publicKey: z.base64(), activeFromMs: z.int() })).min(1),
});
type State = z.infer<typeof StateSchema>;

interface Authority {
  readonly keyId: string;
  readonly certificate: ParsedCertificate;
}

export class CertificateAuthority implements JwtSigner, TrustBundleSource {
  readonly trustDomain: TrustDomain;
  readonly #options: AuthorityOptions;
  #state: State;
  #intermediate: Authority;
  #intermediatePem: string;
  #bundle: TrustBundle;
  readonly #listeners = new Set<(bundle: TrustBundle) => void>();
  #tail: Promise<unknown> = Promise.resolve();

  private constructor(options: AuthorityOptions, state: State, bundle: TrustBundle) {
    this.trustDomain = options.trustDomain;
    this.#options = options;
    this.#state = state;
    this.#bundle = bundle;
    this.#intermediate = authority(state.intermediate);
    this.#intermediatePem = toPem('CERTIFICATE', this.#intermediate.certificate.der);
  }

  /** Loads the authority, or makes root, intermediate and JWT key at the first start. Throws INVALID_ARGUMENT when stored state and keys do not fit. */
  static async open(options: AuthorityOptions): Promise<CertificateAuthority> {
    const text = await options.storage.load();
    if (text !== undefined) {
      const state = parseState(text);
      const loaded = new CertificateAuthority(options, state, await checkState(options, state));
      await establish(options.keyManager);
      return loaded;
    }
    if ((await options.keyManager.publicKey(ESTABLISHED)) !== undefined) throw new BulkheadError('INVALID_ARGUMENT', 'the state of the certificate authority is gone but its keys are there; restore the data directory from a backup, or remove all of it to start a new cluster');
    const nowMs = options.clock.nowMs();
    const root = await makeAuthority(options, 'ca-root', undefined, nowMs);
    const intermediate = await makeAuthority(options, 'ca-intermediate', root, nowMs);
    const state: State = { version: 1, trustDomain: options.trustDomain, sequence: 1, roots: [{ ...stored(root), state: 'active' }], intermediate: stored(intermediate), jwtKeys: [await makeJwtKey(options, nowMs)] };
    const made = new CertificateAuthority(options, state, await checkState(options, state));
    await options.storage.save(JSON.stringify(state, undefined, 1));
    await establish(options.keyManager);
    return made;
  }

  /**
   * Issues an X.509-SVID. `ttlMs` defaults to an hour and is at most 30 days (profiles of people); it is cut to the end of the intermediate.
   * Throws INVALID_ARGUMENT for a foreign SPIFFE ID or time, and whatever `onIssued` throws.
   */
  async issueX509Svid(request: { spiffeId: SpiffeId; publicKeySpkiDer: ProvenPublicKey; ttlMs?: number }): Promise<IssuedSvid> {
    const { id, trustDomain } = parseSpiffeId(request.spiffeId);
    const ttlMs = request.ttlMs ?? SVID_TTL_MS;
    if (trustDomain !== this.trustDomain) throw new BulkheadError('INVALID_ARGUMENT', 'the SPIFFE ID is of another trust domain');
    if (!Number.isFinite(ttlMs) || ttlMs < MIN_SVID_TTL_MS || ttlMs > MAX_SVID_TTL_MS) throw new BulkheadError('INVALID_ARGUMENT', `the life of an SVID is ${MIN_SVID_TTL_MS} ms to ${MAX_SVID_TTL_MS / DAY_MS} days`);
    const nowMs = this.#options.clock.nowMs();
    const issuer = this.#intermediate;
    if (nowMs > issuer.certificate.notAfterMs) throw new BulkheadError('UNAVAILABLE', 'the intermediate certificate has expired; run: bulkhead pki rotate');
    const fields: CertificateFields = {
      serial: this.#options.random.bytes(16), issuerDer: issuer.certificate.subjectDer, issuerKeyId: subjectKeyIdOf(issuer.certificate), subjectKeyId: keyIdentifier(request.publicKeySpkiDer),
      spkiDer: request.publicKeySpkiDer, notBeforeMs: nowMs - CLOCK_SKEW_MS, notAfterMs: Math.min(nowMs + ttlMs, issuer.certificate.notAfterMs),
    };
    const der = await signCertificate(this.#options.keyManager, issuer.keyId, encodeDer(svidBody(fields, id)));
    // Our own verifier reads every SVID before it leaves: what it would refuse is never issued.
    const leaf = parseCertificate(der);
    invariant(spiffeIdOfLeaf(leaf, this.trustDomain).id === id && bytesEqual(leaf.spkiDer, request.publicKeySpkiDer) && isNamedIssuer(leaf, issuer.certificate), 'an issued SVID says what was asked');
    await this.#options.onIssued({ kind: 'svid', spiffeId: id, serial: leaf.serial, notAfterMs: leaf.notAfterMs, publicKeySha256: sha256Hex(leaf.spkiDer) });
    return { certificateChainPem: toPem('CERTIFICATE', der) + this.#pemOf(issuer), chainDer: [der, issuer.certificate.der], notAfterMs: leaf.notAfterMs, serial: leaf.serial };
  }

  /**
   * A certificate that says who a node or component is as DNS has names: `raylet.<trust domain>` and `<node>.raylet.<trust domain>`, or
   * `<component>.<trust domain>`. Throws INVALID_ARGUMENT for any other identity.
   */
  async issueServerCertificate(request: { spiffeId: SpiffeId; publicKeySpkiDer: ProvenPublicKey; ttlMs: number; moreNames?: readonly string[] }): Promise<IssuedSvid & { readonly dnsNames: readonly string[] }> {
    const { id, path, trustDomain } = parseSpiffeId(request.spiffeId);
    if (trustDomain !== this.trustDomain) throw new BulkheadError('INVALID_ARGUMENT', 'the SPIFFE ID is of another trust domain');
    const dnsNames = path.kind === 'node' ? [`raylet.${trustDomain}`, `${path.node}.raylet.${trustDomain}`] : path.kind === 'system' ? [`${path.component}.${trustDomain}`] : [];
    dnsNames.push(...(request.moreNames ?? []));
    if (path.kind !== 'node' && path.kind !== 'system') throw new BulkheadError('INVALID_ARGUMENT', 'only nodes and components of the cluster are servers');
    const nowMs = this.#options.clock.nowMs();
    const issuer = this.#intermediate;
    if (nowMs > issuer.certificate.notAfterMs) throw new BulkheadError('UNAVAILABLE', 'the intermediate certificate has expired; run: bulkhead pki rotate');
    const fields: CertificateFields = {
      serial: this.#options.random.bytes(16), issuerDer: issuer.certificate.subjectDer, issuerKeyId: subjectKeyIdOf(issuer.certificate), subjectKeyId: keyIdentifier(request.publicKeySpkiDer),
      spkiDer: request.publicKeySpkiDer, notBeforeMs: nowMs - CLOCK_SKEW_MS, notAfterMs: Math.min(nowMs + request.ttlMs, issuer.certificate.notAfterMs),
    };
    const der = await signCertificate(this.#options.keyManager, issuer.keyId, encodeDer(serverBody(fields, dnsNames)));
    const leaf = parseCertificate(der);
    invariant(!isIdentity(leaf, this.trustDomain) && bytesEqual(leaf.spkiDer, request.publicKeySpkiDer) && isNamedIssuer(leaf, issuer.certificate), 'a server certificate says what was asked and is no identity');
    await this.#options.onIssued({ kind: 'server', spiffeId: id, serial: leaf.serial, notAfterMs: leaf.notAfterMs, publicKeySha256: sha256Hex(leaf.spkiDer) });
    return { certificateChainPem: toPem('CERTIFICATE', der) + this.#pemOf(issuer), chainDer: [der, issuer.certificate.der], notAfterMs: leaf.notAfterMs, serial: leaf.serial, dnsNames };
  }

  bundle(): TrustBundle {
    return this.#bundle;
  }

  trustBundlePem(): string {
    return this.#bundle.toPem();
  }

  /** JSON text of the SPIFFE JWK set. */
  trustBundleJwks(): string {
    return JSON.stringify(this.#bundle.toJwks());
  }

  /** Called with the new bundle after roots or JWT keys changed. Returns the way to stop. */
  onChange(listener: (bundle: TrustBundle) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** What `bulkhead pki show` shows. */
  describe(): { roots: { serial: string; state: string; notAfterMs: number }[]; intermediate: { serial: string; notBeforeMs: number; notAfterMs: number }; sequence: number } {
    const { serial, notBeforeMs, notAfterMs } = this.#intermediate.certificate;
    return {
      roots: this.#state.roots.map((r) => ({ serial: authority(r).certificate.serial, state: r.state, notAfterMs: authority(r).certificate.notAfterMs })),
      intermediate: { serial, notBeforeMs, notAfterMs }, sequence: this.#bundle.sequence,
    };
  }

  /** A new intermediate under the active root. SVIDs of the old one stay valid: its certificate travels with them. The old key is destroyed. */
  rotateIntermediate(): Promise<void> {
    return this.#change(async (state) => {
      const active = state.roots.find((r) => r.state === 'active');
      invariant(active !== undefined, 'there is an active root');
      await this.#newIntermediate(state, authority(active));
    });
  }

  /** Adds a second root to the bundle without using it yet. */
  prepareRoot(): Promise<void> {
    return this.#change(async (state) => {
      if (state.roots.some((r) => r.state === 'prepared')) throw new BulkheadError('INVALID_ARGUMENT', 'a root is prepared already; activate it first');
      const root = await makeAuthority(this.#options, 'ca-root', undefined, this.#options.clock.nowMs());
      state.roots.push({ ...stored(root), state: 'prepared' });
      state.sequence++;
    });
  }

  /** Signs under the prepared root from now on; the old root stays in the bundle. Only after every node has the bundle of `prepareRoot`. */
  activateRoot(): Promise<void> {
    return this.#change(async (state) => {
      const prepared = state.roots.find((r) => r.state === 'prepared');
      if (prepared === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'no root is prepared; prepare one first');
      for (const root of state.roots) if (root.state === 'active') root.state = 'retired';
      prepared.state = 'active';
      await this.#newIntermediate(state, authority(prepared));
    });
  }

  /** Takes retired roots out of the bundle: SVIDs under them are refused from then on. */
  retireRoots(): Promise<void> {
    return this.#change(async (state) => {
      const retired = state.roots.filter((r) => r.state === 'retired');
      if (retired.length === 0) return [];
      state.roots = state.roots.filter((r) => r.state !== 'retired');
      state.sequence++;
      return retired.map((r) => r.keyId);
    });
  }

  /** A new JWT key, published at once and used a minute later; keys whose last session has ended leave the bundle. */
  rotateJwtKey(): Promise<void> {
    return this.#change(async (state) => {
      const nowMs = this.#options.clock.nowMs();
      const gone = state.jwtKeys.filter((_, i) => (state.jwtKeys[i + 1]?.activeFromMs ?? Number.POSITIVE_INFINITY) + SESSION_TTL_MS + CLOCK_SKEW_MS < nowMs);
      state.jwtKeys = [...state.jwtKeys.filter((key) => !gone.includes(key)), await makeJwtKey(this.#options, nowMs + JWT_KEY_PUBLISH_MS)];
      state.sequence++;
      return gone.map((key) => key.keyId);
    });
  }

  /** Rotates the intermediate when it is due; the head calls it hourly. Returns whether it did. */
  async rotateIfDue(): Promise<boolean> {
    const { notBeforeMs, notAfterMs } = this.#intermediate.certificate;
    if (!isAuthorityDue(notBeforeMs, notAfterMs, this.#options.clock.nowMs(), MAX_SVID_TTL_MS)) return false;
    await this.rotateIntermediate();
    return true;
  }

  /** For `JwtAuthority`: ES256 with the key in force. */
  async signJwt(input: (kid: string) => Uint8Array): Promise<{ signed: Uint8Array; signature: Uint8Array }> {
    const nowMs = this.#options.clock.nowMs();
    const key = this.#state.jwtKeys.findLast((k) => k.activeFromMs <= nowMs) ?? this.#state.jwtKeys[0];
    invariant(key !== undefined, 'there is a JWT key');
    const signed = input(keyName(Buffer.from(key.publicKey, 'base64')));
    return { signed, signature: await this.#options.keyManager.sign(key.keyId, signed, 'jws') };
  }

  #pemOf(issuer: Authority): string {
    return issuer === this.#intermediate ? this.#intermediatePem : toPem('CERTIFICATE', issuer.certificate.der);
  }

  async #newIntermediate(state: State, root: Authority): Promise<void> {
    state.intermediate = stored(await makeAuthority(this.#options, 'ca-intermediate', root, this.#options.clock.nowMs()));
  }

  /** One change at a time, on a copy, in force once it is stored. Returned key ids, and the key of a replaced intermediate, are destroyed afterwards. */
  #change(change: (state: State) => Promise<string[] | void>): Promise<void> {
    const done = this.#tail.then(async () => {
      const before = this.#state;
      const state = structuredClone(before);
      const gone = (await change(state)) ?? [];
      const bundle = await checkState(this.#options, state);
      await this.#options.storage.save(JSON.stringify(state, undefined, 1));
      this.#state = state;
      this.#bundle = bundle;
      this.#intermediate = authority(state.intermediate);
      this.#intermediatePem = toPem('CERTIFICATE', this.#intermediate.certificate.der);
      if (state.sequence !== before.sequence) for (const listener of [...this.#listeners]) listener(bundle);
      if (before.intermediate.keyId !== state.intermediate.keyId) gone.push(before.intermediate.keyId);
      for (const keyId of gone) await this.#options.keyManager.deleteKey(keyId);
    });
    this.#tail = done.catch(() => undefined);
    return done;
  }
}

function parseState(text: string): State {
  try {
    return StateSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new BulkheadError('INVALID_ARGUMENT', 'the stored state of the certificate authority is damaged; restore the data directory from a backup', { cause: error });
  }
}

/** The state says only which public certificates are ours; the key manager proves it. So someone who can write the file cannot add a root. */
async function checkState({ trustDomain, keyManager }: AuthorityOptions, state: State): Promise<TrustBundle> {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the stored state of the certificate authority does not hold: ${why}; restore the data directory from a backup`);
  };
  if (state.trustDomain !== trustDomain) refuse('it is of another trust domain');
  const holdsKey = async (keyId: string, spkiDer: Uint8Array): Promise<void> => {
    const own = await keyManager.publicKey(keyId);
    if (own === undefined || !bytesEqual(own, spkiDer)) refuse(`the key manager does not hold key ${keyId}`);
  };
  const roots = state.roots.map((r) => ({ ...authority(r), state: r.state }));
  const active = roots.filter((r) => r.state === 'active');
  if (active.length !== 1) refuse('it does not have exactly one active root');
  const intermediate = authority(state.intermediate);
  for (const { keyId, certificate } of [...roots, intermediate]) await holdsKey(keyId, certificate.spkiDer);
  for (const { keyId, publicKey } of state.jwtKeys) await holdsKey(keyId, Buffer.from(publicKey, 'base64'));
  if (!roots.some((root) => root.state === 'active' && isSignedBy(intermediate.certificate, root.certificate))) refuse('the intermediate is not signed by the active root');
  const jwtKeys = state.jwtKeys.map(({ publicKey }) => {
    const spkiDer = Buffer.from(publicKey, 'base64');
    return { kid: keyName(spkiDer), publicKey: publicKeyFromSpki(spkiDer) };
  });
  return new TrustBundle(trustDomain, state.sequence, roots.map((r) => r.certificate), jwtKeys);
}

async function makeAuthority(options: AuthorityOptions, role: 'ca-root' | 'ca-intermediate', issuer: Authority | undefined, nowMs: number): Promise<Authority> {
  const keyId = freshKeyId(options, role);
  const spkiDer = await options.keyManager.generateKey(keyId);
  const subjectKeyId = keyIdentifier(spkiDer);
  const fields: CertificateFields = {
    serial: options.random.bytes(16), issuerDer: issuer?.certificate.subjectDer, issuerKeyId: issuer === undefined ? subjectKeyId : subjectKeyIdOf(issuer.certificate), subjectKeyId, spkiDer,
    notBeforeMs: nowMs - CLOCK_SKEW_MS, notAfterMs: issuer === undefined ? nowMs + ROOT_TTL_MS : Math.min(nowMs + INTERMEDIATE_TTL_MS, issuer.certificate.notAfterMs),
  };
  const der = await signCertificate(options.keyManager, issuer?.keyId ?? keyId, encodeDer(authorityBody(fields, options.trustDomain, `${options.trustDomain.slice(0, 40)} ${keyId}`, issuer === undefined ? 1 : 0)));
  const certificate = parseCertificate(der);
  await options.onIssued({ kind: issuer === undefined ? 'root' : 'intermediate', spiffeId: `spiffe://${options.trustDomain}`, serial: certificate.serial, notAfterMs: certificate.notAfterMs, publicKeySha256: sha256Hex(spkiDer) });
  return { keyId, certificate };
}

async function makeJwtKey(options: AuthorityOptions, activeFromMs: number): Promise<State['jwtKeys'][number]> {
  const keyId = freshKeyId(options, 'jwt');
  return { keyId, publicKey: base64(await options.keyManager.generateKey(keyId)), activeFromMs };
}

/** Random, never counted: a crash between key and stored state leaves a key that no later one can meet. */
function freshKeyId(options: AuthorityOptions, role: string): string {
  return `${role}-${Buffer.from(options.random.bytes(6)).toString('hex')}`;
}

/** A key that only says "an authority was stored once", so that lost state is told from a first start. */
const ESTABLISHED = 'ca-established';

async function establish(keyManager: KeyManager): Promise<void> {
  if ((await keyManager.publicKey(ESTABLISHED)) === undefined) await keyManager.generateKey(ESTABLISHED);
}

async function signCertificate(keyManager: KeyManager, keyId: string, bodyDer: Uint8Array): Promise<Uint8Array> {
  return encodeDer(signedCertificate(bodyDer, await keyManager.sign(keyId, bodyDer, 'asn1')));
}

function authority(entry: { keyId: string; certificate: string }): Authority {
  return { keyId: entry.keyId, certificate: parseCertificate(Uint8Array.from(Buffer.from(entry.certificate, 'base64'))) };
}

function stored({ keyId, certificate }: Authority): { keyId: string; certificate: string } {
  return { keyId, certificate: base64(certificate.der) };
}

function subjectKeyIdOf(certificate: ParsedCertificate): Uint8Array {
  invariant(certificate.subjectKeyId !== undefined, 'our authorities have a subject key id');
  return certificate.subjectKeyId;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64');
}

function sha256Hex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Key ids only tell keys apart (RFC 5280 §4.2.1.2, RFC 7093 method 1: the leftmost 160 bits of a SHA-256). */
function keyIdentifier(spkiDer: Uint8Array): Uint8Array {
  return createHash('sha256').update(spkiDer).digest().subarray(0, 20);
}

/** Whether our own verifier would take a leaf for an SVID. */
function isIdentity(leaf: ParsedCertificate, trustDomain: TrustDomain): boolean {
  try {
    spiffeIdOfLeaf(leaf, trustDomain);
    return true;
  } catch {
    return false;
  }
}
