/**
 * The trust bundle of a cluster: its roots and the public keys of its JWT-SVIDs, as PEM (roots only) and as a SPIFFE JWK set. Immutable;
 * a change is a new bundle with a higher sequence. Must never: hold a root that is not self-signed and a CA.
 */
import { createHash, type KeyObject } from 'node:crypto';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { quote, type TrustDomain } from '../base/ids.ts';
import { KEY_USAGE, parseCertificate, refuseCertificate, type ParsedCertificate } from './core/certificate.ts';
import { isNamedIssuer } from './core/acceptable.ts';
import { fromPem, toPem } from './pem.ts';
import { isSignedBy, publicKeyFromSpki } from './signature.ts';

export interface JwtVerificationKey {
  readonly kid: string;
  readonly publicKey: KeyObject;
}

/** Where the bundle in force comes from: the authority itself in the head, the SVID source elsewhere. */
export interface TrustBundleSource {
  bundle(): TrustBundle;
  /** Called after the bundle changed. Returns the way to stop. */
  onChange(listener: () => void): () => void;
}

const MAX_KEYS = 32;
const coordinate = z.string().regex(/^[A-Za-z0-9_-]{43,64}$/);
const JwkSchema = z.discriminatedUnion('use', [
  z.object({ use: z.literal('x509-svid'), kty: z.literal('EC'), crv: z.enum(['P-256', 'P-384']), x: coordinate, y: coordinate, x5c: z.array(z.base64().max(16_384)).length(1) }),
  z.object({ use: z.literal('jwt-svid'), kty: z.literal('EC'), crv: z.literal('P-256'), x: coordinate, y: coordinate, kid: z.string().regex(/^[A-Za-z0-9_-]{1,128}$/) }),
]);
const JwksSchema = z.object({ keys: z.array(JwkSchema).min(1).max(MAX_KEYS), spiffe_sequence: z.int().min(0), spiffe_refresh_hint: z.int().min(0).optional() });

export class TrustBundle {
  readonly trustDomain: TrustDomain;
  readonly sequence: number;
  readonly roots: readonly ParsedCertificate[];
  readonly jwtKeys: ReadonlyMap<string, JwtVerificationKey>;

  constructor(trustDomain: TrustDomain, sequence: number, roots: readonly ParsedCertificate[], jwtKeys: readonly JwtVerificationKey[]) {
    for (const root of roots) checkRoot(root, trustDomain);
    if (roots.length === 0) throw new BulkheadError('INVALID_ARGUMENT', 'a trust bundle needs at least one root');
    this.trustDomain = trustDomain;
    this.sequence = sequence;
    this.roots = roots;
    this.jwtKeys = new Map(jwtKeys.map((key) => [key.kid, key]));
  }

  static fromPem(trustDomain: TrustDomain, pem: string, sequence = 0): TrustBundle {
    return new TrustBundle(trustDomain, sequence, fromPem('CERTIFICATE', pem, 'trust bundle').map(parseCertificate), []);
  }

  /** Parses the JWK set that `toJwks` writes (text or parsed JSON). Unknown members are ignored, as the SPIFFE format demands; unknown `use` values are refused. */
  static fromJwks(trustDomain: TrustDomain, jwks: unknown): TrustBundle {
    const parsed = JwksSchema.safeParse(typeof jwks === 'string' ? parseJson(jwks) : jwks);
    if (!parsed.success) throw new BulkheadError('INVALID_ARGUMENT', 'the trust bundle is not a SPIFFE JWK set', { cause: parsed.error });
    const roots: ParsedCertificate[] = [];
    const jwtKeys: JwtVerificationKey[] = [];
    for (const jwk of parsed.data.keys) {
      if (jwk.use === 'jwt-svid') {
        jwtKeys.push({ kid: jwk.kid, publicKey: publicKeyFromSpki(spkiFromCoordinates(jwk.x, jwk.y)) });
      } else {
        const root = parseCertificate(Uint8Array.from(Buffer.from(jwk.x5c[0] ?? '', 'base64')));
        const own = coordinates(root.spkiDer);
        if (own.x !== jwk.x || own.y !== jwk.y) throw new BulkheadError('INVALID_ARGUMENT', 'a root of the trust bundle has another key than its JWK says');
        roots.push(root);
      }
    }
    return new TrustBundle(trustDomain, parsed.data.spiffe_sequence, roots, jwtKeys);
  }

  /** Roots only: what TLS and `bundle.pem` need. */
  toPem(): string {
    return this.roots.map((root) => toPem('CERTIFICATE', root.der)).join('');
  }

  /** SPIFFE trust bundle (SPIFFE_Trust_Domain_and_Bundle §4). */
  toJwks(): { keys: Record<string, unknown>[]; spiffe_sequence: number; spiffe_refresh_hint: number } {
    return {
      keys: [
        ...this.roots.map((root) => ({ use: 'x509-svid', kty: 'EC', crv: root.curve, ...coordinates(root.spkiDer), x5c: [Buffer.from(root.der).toString('base64')] })),
        ...[...this.jwtKeys.values()].map(({ kid, publicKey }) => ({ use: 'jwt-svid', kty: 'EC', crv: 'P-256', kid, ...coordinates(publicKey.export({ format: 'der', type: 'spki' })) })),
      ],
      spiffe_sequence: this.sequence,
      spiffe_refresh_hint: 300,
    };
  }
}

/** RFC 7638-like name of a key: the SHA-256 of its SubjectPublicKeyInfo. */
export function keyName(spkiDer: Uint8Array): string {
  return createHash('sha256').update(spkiDer).digest('base64url');
}

function parseJson(text: string): unknown {
  if (text.length > 2 ** 20) throw new BulkheadError('INVALID_ARGUMENT', 'the trust bundle is larger than 1 MiB');
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new BulkheadError('INVALID_ARGUMENT', 'the trust bundle is not JSON', { cause: error });
  }
}

/** Works for both curves: the uncompressed point ends the SubjectPublicKeyInfo. */
function coordinates(spkiDer: Uint8Array): { x: string; y: string } {
  const size = spkiDer.length > 100 ? 48 : 32;
  const point = Buffer.from(spkiDer).subarray(-2 * size);
  return { x: point.subarray(0, size).toString('base64url'), y: point.subarray(size).toString('base64url') };
}

const P256_SPKI_PREFIX = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex');

function spkiFromCoordinates(x: string, y: string): Uint8Array {
  const [a, b] = [Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')];
  if (a.length !== 32 || b.length !== 32) throw new BulkheadError('INVALID_ARGUMENT', 'a key of the trust bundle is not a point of P-256');
  return Buffer.concat([P256_SPKI_PREFIX, a, b]);
}

function checkRoot(root: ParsedCertificate, trustDomain: TrustDomain): void {
  if (root.basicConstraints?.ca !== true || root.keyUsage?.bits.includes(KEY_USAGE.keyCertSign) !== true) refuseCertificate('a root of the trust bundle is not a CA');
  if (!isNamedIssuer(root, root) || !isSignedBy(root, root)) refuseCertificate('a root of the trust bundle is not signed by itself');
  for (const name of root.alternativeNames ?? []) {
    if (name.kind !== 'uri' || name.value !== `spiffe://${trustDomain}`) refuseCertificate(`a root of the trust bundle is not for ${quote(trustDomain)}`);
  }
}
