/**
 * Session credentials: JWT-SVIDs (ES256, at most 5 minutes) that the head issues and every raylet verifies with the trust bundle.
 * Must never: accept an algorithm, header or claim that this file does not name, or take the key from the token.
 */
import { compactVerify } from 'jose/jws/compact/verify';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { parseSpiffeId, type TrustDomain } from '../base/ids.ts';
import { CLOCK_SKEW_MS, SESSION_TTL_MS } from '../base/limits.ts';
import { principalFromSpiffeId, type Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import type { TrustBundle } from './trust-bundle.ts';

const MAX_TOKEN_CHARS = 4_096;

/** Signs with the JWT key in force, whose `kid` goes into what is signed. Implemented by `CertificateAuthority`. */
export interface JwtSigner {
  readonly trustDomain: TrustDomain;
  signJwt(input: (kid: string) => Uint8Array): Promise<{ signed: Uint8Array; signature: Uint8Array }>;
}

export interface SessionRequest {
  readonly principal: Principal;
  /** SPIFFE ID or URL of the one party that the session is for. */
  readonly audience: string;
  /** At most `SESSION_TTL_MS`, the default. */
  readonly ttlMs?: number;
  /** Unique; what revokes or finds the session. */
  readonly jti: string;
  /** The tenant's number in object ids; 0 for principals without a tenant. */
  readonly tenantNumber: number;
}

export interface VerifiedSession {
  readonly principal: Principal;
  readonly tenantNumber: number;
  readonly jti: string;
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
}

const ClaimsSchema = z.strictObject({
  sub: z.string().max(2048),
  aud: z.tuple([z.string().min(1).max(512)]),
  iat: z.int(),
  exp: z.int(),
  jti: z.string().regex(/^[A-Za-z0-9_-]{1,128}$/),
  tenant_number: z.int().min(0).max(0xffff_ffff),
  submitter: z.strictObject({ kind: z.enum(['user', 'service']), name: z.string().max(64) }).optional(),
});
const HeaderSchema = z.strictObject({ alg: z.literal('ES256'), kid: z.string().max(128), typ: z.literal('JWT') });

export class JwtAuthority {
  readonly #signer: JwtSigner;
  readonly #clock: Pick<Clock, 'nowMs'>;

  constructor(options: { signer: JwtSigner; clock: Pick<Clock, 'nowMs'> }) {
    this.#signer = options.signer;
    this.#clock = options.clock;
  }

  /** Throws INVALID_ARGUMENT for a foreign principal or a life beyond the limit. */
  async issueSession(request: SessionRequest): Promise<{ token: string; expiresAtMs: number }> {
    const ttlMs = request.ttlMs ?? SESSION_TTL_MS;
    if (!(ttlMs >= 1_000 && ttlMs <= SESSION_TTL_MS)) throw new BulkheadError('INVALID_ARGUMENT', `a session lives 1000 to ${SESSION_TTL_MS} ms`);
    if (parseSpiffeId(request.principal.spiffeId).trustDomain !== this.#signer.trustDomain) throw new BulkheadError('INVALID_ARGUMENT', 'the principal is of another trust domain');
    const iat = Math.floor(this.#clock.nowMs() / 1000);
    const exp = iat + Math.floor(ttlMs / 1000);
    const { submitter } = request.principal;
    const claims = ClaimsSchema.safeParse({ sub: request.principal.spiffeId, aud: [request.audience], iat, exp, jti: request.jti, tenant_number: request.tenantNumber, ...(submitter === undefined ? {} : { submitter: { kind: submitter.kind, name: submitter.name } }) });
    if (!claims.success) throw new BulkheadError('INVALID_ARGUMENT', 'the session has a malformed audience, jti, tenant number or submitter', { cause: claims.error });
    const { signed, signature } = await this.#signer.signJwt((kid) => Buffer.from(`${base64url({ alg: 'ES256', kid, typ: 'JWT' })}.${base64url(claims.data)}`, 'ascii'));
    return { token: `${Buffer.from(signed).toString('ascii')}.${Buffer.from(signature).toString('base64url')}`, expiresAtMs: exp * 1000 };
  }
}

function base64url(json: object): string {
  return Buffer.from(JSON.stringify(json), 'utf8').toString('base64url');
}

function refusal(why: string): string {
  return `session credential refused: ${why}`;
}

function refuse(why: string, cause?: unknown): never {
  throw new BulkheadError('UNAUTHENTICATED', refusal(why), cause === undefined ? {} : { cause });
}

/** Only the canonical encoding counts, so that one session has one spelling. */
function readPart(part: string): Buffer {
  const bytes = Buffer.from(part, 'base64url');
  return bytes.length > 0 && bytes.toString('base64url') === part ? bytes : refuse('it is not canonical base64url');
}

function readJson(part: string): unknown {
  const text = readPart(part).toString('utf8');
  try {
    return JSON.parse(text);
  } catch (error) {
    return refuse('it is not JSON', error);
  }
}

/** Throws UNAUTHENTICATED with the reason. `audience` must be the token's only one. */
export async function verifySession(token: unknown, options: { audience: string; nowMs: number; bundle: TrustBundle }): Promise<VerifiedSession> {
  const session = await authenticSession(token, options);
  const why = untimely(session.issuedAtMs, session.expiresAtMs, options.nowMs);
  if (why !== undefined) throw new BulkheadError('UNAUTHENTICATED', why);
  return session;
}

/** Why a session is not in force, as `verifySession` says it; undefined: it is. An end is an end; a beginning may be ahead by what clocks differ. */
export function untimely(issuedAtMs: number, expiresAtMs: number, nowMs: number): string | undefined {
  if (issuedAtMs > nowMs + CLOCK_SKEW_MS) return refusal('it is from the future; compare the clocks of both machines');
  return expiresAtMs > nowMs ? undefined : refusal('it has expired');
}

/** Whose session it is, in force or not: nothing may be done on it that does not ask `untimely` as well. Throws as `verifySession`. */
export async function authenticSession(token: unknown, options: { audience: string; bundle: TrustBundle }): Promise<VerifiedSession> {
  const { audience, bundle } = options;
  if (typeof token !== 'string' || token.length > MAX_TOKEN_CHARS) return refuse('it is not a text of at most 4096 characters');
  const [headerPart, payloadPart, signaturePart, ...more] = token.split('.');
  if (headerPart === undefined || payloadPart === undefined || signaturePart === undefined || more.length > 0) return refuse('it does not have three parts');
  const header = HeaderSchema.safeParse(readJson(headerPart));
  if (!header.success) return refuse('its header is not exactly { alg: ES256, kid, typ: JWT }');
  if (readPart(signaturePart).length !== 64) refuse('its signature is not 64 bytes');
  const key = bundle.jwtKeys.get(header.data.kid);
  if (key === undefined) return refuse('its key is not in the trust bundle');
  try {
    await compactVerify(token, key.publicKey, { algorithms: ['ES256'] });
  } catch (error) {
    return refuse('its signature does not hold', error);
  }
  const claims = ClaimsSchema.safeParse(readJson(payloadPart));
  if (!claims.success) return refuse('its claims are not those of a session', claims.error);
  const { sub, aud, iat, exp, jti, tenant_number: tenantNumber, submitter } = claims.data;
  if (aud[0] !== audience) refuse('it is for another audience');
  if (exp <= iat || (exp - iat) * 1000 > SESSION_TTL_MS) refuse('it lives longer than a session may');
  let principal: Principal;
  try {
    principal = principalFromSpiffeId(sub, submitter);
  } catch (error) {
    return refuse('its SPIFFE ID is not valid', error);
  }
  if (parseSpiffeId(sub).trustDomain !== bundle.trustDomain) refuse('its trust domain is not ours');
  if (submitter !== undefined && principal.kind !== 'job') refuse('only a job has a submitter');
  if ((principal.tenant === undefined) !== (tenantNumber === 0)) refuse('its tenant number does not fit its SPIFFE ID');
  return { principal, tenantNumber, jti, issuedAtMs: iat * 1000, expiresAtMs: exp * 1000 };
}
