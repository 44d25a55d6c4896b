/** Builds certificates of any shape, good or bad, properly signed: what a hostile but skilled peer, or a foreign authority, can make. */
import { generateKeyPairSync, sign, type KeyObject } from 'node:crypto';
import { ascii, contextTag, derBitString, derBoolean, derOid, derSequence, derTime, derUnsigned, TAG, type DerTree } from '../../src/pki/core/der.ts';
import { OID, parseCertificate, type ParsedCertificate } from '../../src/pki/core/certificate.ts';
import { encodeDer } from '../../src/pki/forge-der.ts';
import { parseTrustDomain } from '../../src/base/ids.ts';
import { TrustBundle } from '../../src/pki/trust-bundle.ts';

export const NOW_MS = Date.UTC(2026, 5, 1, 12);
export const HOUR_MS = 3_600_000;
export const trustDomain = parseTrustDomain('cluster.test');
export const goodUri = 'spiffe://cluster.test/tenant/acme/user/ana';

export const uri = (text: string): DerTree => ({ tag: contextTag(6, false), content: ascii(text) });
export const dns = (text: string): DerTree => ({ tag: contextTag(2, false), content: ascii(text) });
export const name = (cn: string): DerTree => derSequence({ tag: TAG.set, content: [derSequence(derOid(OID.commonName), { tag: TAG.utf8String, content: ascii(cn) })] });

export function extension(oid: string, critical: boolean, value: DerTree | Uint8Array): DerTree {
  return derSequence(derOid(oid), ...(critical ? [derBoolean(true)] : []), { tag: TAG.octetString, content: value instanceof Uint8Array ? value : encodeDer(value) });
}

/** KeyUsage from bit numbers. */
export function keyUsage(...bits: number[]): DerTree {
  const value = bits.reduce((sum, bit) => sum | (0x80 >> bit), 0);
  return derBitString(Uint8Array.of(value), bits.length === 0 ? 0 : 7 - Math.max(...bits));
}

export interface Extensions {
  basicConstraints: DerTree | undefined;
  keyUsage: DerTree | undefined;
  extKeyUsage: DerTree | undefined;
  alternativeNames: DerTree | undefined;
  authorityKeyId: DerTree | undefined;
}

export const leafExtensions: Extensions = {
  basicConstraints: extension(OID.basicConstraints, true, derSequence()),
  keyUsage: extension(OID.keyUsage, true, keyUsage(0)),
  extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid(OID.serverAuth), derOid(OID.clientAuth))),
  alternativeNames: extension(OID.subjectAltName, false, derSequence(uri(goodUri))),
  authorityKeyId: undefined,
};

export const caExtensions = (pathLength: number | undefined): Extensions => ({
  basicConstraints: extension(OID.basicConstraints, true, derSequence(derBoolean(true), ...(pathLength === undefined ? [] : [derUnsigned(Uint8Array.of(pathLength))]))),
  keyUsage: extension(OID.keyUsage, true, keyUsage(5, 6)),
  extKeyUsage: undefined, alternativeNames: undefined, authorityKeyId: undefined,
});

export interface Entity {
  readonly keys: { privateKey: KeyObject; publicKey: KeyObject };
  readonly certificate: ParsedCertificate;
}

export interface Shape {
  readonly subject?: DerTree;
  readonly issuerName?: DerTree;
  readonly extensions?: Partial<Extensions>;
  readonly extra?: readonly DerTree[];
  readonly notBeforeMs?: number;
  readonly notAfterMs?: number;
  readonly serial?: DerTree;
  readonly version?: DerTree | undefined;
  readonly keys?: Entity['keys'];
  readonly spki?: Uint8Array;
  /** Signature algorithm as it stands inside and outside. */
  readonly algorithm?: DerTree;
  readonly outerAlgorithm?: DerTree;
  readonly hash?: string;
  readonly corruptSignature?: boolean;
}

export const p256 = (): Entity['keys'] => generateKeyPairSync('ec', { namedCurve: 'P-256' });
const ecdsaSha256 = derSequence(derOid(OID.ecdsaSha256));

/** DER of a certificate that is good unless `shape` says otherwise; `issuer` undefined signs with its own key. */
export function build(issuer: Entity | undefined, base: Extensions, shape: Shape = {}): { der: Uint8Array; keys: Entity['keys'] } {
  const keys = shape.keys ?? p256();
  const subject = shape.subject ?? name(base === leafExtensions ? 'leaf' : 'ca');
  const algorithm = shape.algorithm ?? ecdsaSha256;
  const extensions = Object.values({ ...base, ...shape.extensions }).filter((e): e is DerTree => e !== undefined).concat(shape.extra ?? []);
  const body = encodeDer(derSequence(
    ...('version' in shape ? (shape.version === undefined ? [] : [shape.version]) : [{ tag: contextTag(0, true), content: [derUnsigned(Uint8Array.of(2))] }]),
    shape.serial ?? derUnsigned(Uint8Array.of(0x41, ...Buffer.from(Math.random().toString(16).slice(2, 10)))),
    algorithm,
    shape.issuerName ?? (issuer === undefined ? subject : { der: issuer.certificate.subjectDer }),
    derSequence(derTime(shape.notBeforeMs ?? NOW_MS - 60_000), derTime(shape.notAfterMs ?? NOW_MS + HOUR_MS)),
    subject,
    { der: shape.spki ?? keys.publicKey.export({ format: 'der', type: 'spki' }) },
    ...(extensions.length === 0 ? [] : [{ tag: contextTag(3, true), content: [derSequence(...extensions)] }]),
  ));
  const signature = Uint8Array.from(sign(shape.hash ?? 'sha256', body, (issuer?.keys ?? keys).privateKey));
  if (shape.corruptSignature) signature[signature.length - 1] = (signature[signature.length - 1] ?? 0) ^ 1;
  return { der: encodeDer(derSequence({ der: body }, shape.outerAlgorithm ?? algorithm, derBitString(signature))), keys };
}

export function entity(issuer: Entity | undefined, base: Extensions, shape: Shape = {}): Entity {
  const { der, keys } = build(issuer, base, shape);
  return { keys, certificate: parseCertificate(der) };
}

/** A root and an intermediate that verify, with ten years and one year to live. */
export function hierarchy(): { root: Entity; intermediate: Entity; bundle: TrustBundle } {
  const root = entity(undefined, caExtensions(1), { subject: name('root'), notAfterMs: NOW_MS + 87_600 * HOUR_MS });
  const intermediate = entity(root, caExtensions(0), { subject: name('intermediate'), notAfterMs: NOW_MS + 8_760 * HOUR_MS });
  return { root, intermediate, bundle: new TrustBundle(trustDomain, 1, [root.certificate], []) };
}
