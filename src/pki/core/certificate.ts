/**
 * Takes an X.509 certificate apart, strictly, by our own DER reader: `X509Certificate.ca` and `.keyUsage` of Node mislead.
 * Says what a certificate *states*; whether that is acceptable is in acceptable.ts, whether it is signed is the shell's.
 * Must never: return a value for something it did not understand.
 */
import { BulkheadError } from '../../base/errors.ts';
import { hex } from '../../base/ids.ts';
import {
  TAG, bytesEqual, contextTag, expectTag, readAscii, readBitStringBytes, readBoolean, readChildren, readDer, readInteger, readNamedBits, readOid, readSequence,
  readSmallInteger, readTime, refuseDer, type DerElement,
} from './der.ts';

/** Far above ours (about 600 bytes); a larger one is made to hurt. */
export const MAX_CERTIFICATE_BYTES = 8 * 2 ** 10;

export const OID = {
  ecPublicKey: '1.2.840.10045.2.1', p256: '1.2.840.10045.3.1.7', p384: '1.3.132.0.34', ecdsaSha256: '1.2.840.10045.4.3.2', ecdsaSha384: '1.2.840.10045.4.3.3',
  subjectKeyId: '2.5.29.14', keyUsage: '2.5.29.15', subjectAltName: '2.5.29.17', basicConstraints: '2.5.29.19', authorityKeyId: '2.5.29.35', extKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1', clientAuth: '1.3.6.1.5.5.7.3.2', organizationName: '2.5.4.10', commonName: '2.5.4.3',
} as const;

/** Bits of KeyUsage (RFC 5280 §4.2.1.3). */
export const KEY_USAGE = { digitalSignature: 0, keyCertSign: 5, cRLSign: 6 } as const;

export type AlternativeName = { readonly kind: 'uri'; readonly value: string } | { readonly kind: 'other'; readonly tag: number };

export interface Extension {
  readonly critical: boolean;
  readonly value: Uint8Array;
}

export interface ParsedCertificate {
  readonly der: Uint8Array;
  readonly tbsDer: Uint8Array;
  readonly signature: Uint8Array;
  readonly signatureAlgorithm: 'ecdsa-sha256' | 'ecdsa-sha384';
  /** Lower-case hex of the serial's DER content, 2 digits a byte; the key of revocation. */
  readonly serial: string;
  readonly issuerDer: Uint8Array;
  readonly subjectDer: Uint8Array;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly curve: 'P-256' | 'P-384';
  readonly spkiDer: Uint8Array;
  readonly basicConstraints: { readonly critical: boolean; readonly ca: boolean; readonly pathLength: number | undefined } | undefined;
  readonly keyUsage: { readonly critical: boolean; readonly bits: readonly number[] } | undefined;
  readonly extKeyUsage: readonly string[] | undefined;
  readonly alternativeNames: readonly AlternativeName[] | undefined;
  readonly subjectKeyId: Uint8Array | undefined;
  readonly authorityKeyId: Uint8Array | undefined;
  /** Extensions that nobody here interprets. */
  readonly unknown: readonly { readonly oid: string; readonly critical: boolean }[];
}

/** The refusal of a peer's certificate or credential; the reason is about the peer's own bytes, so it may travel. */
export function refuseCertificate(why: string): never {
  throw new BulkheadError('UNAUTHENTICATED', `certificate refused: ${why}`);
}

/** Curve of a SubjectPublicKeyInfo that holds an uncompressed point of P-256 or P-384; anything else is refused. */
export function curveOfSpki(spkiDer: Uint8Array): 'P-256' | 'P-384' {
  return curveOf(readDer(spkiDer));
}

function curveOf(element: DerElement): 'P-256' | 'P-384' {
  const [algorithm, key, ...rest] = readSequence(element, 'public key');
  const [kind, curve, ...more] = readSequence(algorithm, 'public key algorithm');
  if (rest.length > 0 || more.length > 0) refuseDer('public key has more parts than two');
  if (readOid(kind, 'public key algorithm') !== OID.ecPublicKey) refuseCertificate('its key is not an EC key');
  const curveOid = readOid(curve, 'curve');
  const name = curveOid === OID.p256 ? 'P-256' : curveOid === OID.p384 ? 'P-384' : refuseCertificate('its curve is neither P-256 nor P-384');
  const point = readBitStringBytes(key, 'public key');
  if (point[0] !== 4 || point.length !== (name === 'P-256' ? 65 : 97)) refuseCertificate('its public key is not an uncompressed point of its curve');
  return name;
}

function readSignatureAlgorithm(element: DerElement | undefined): ParsedCertificate['signatureAlgorithm'] {
  const [oid, ...parameters] = readSequence(element, 'signature algorithm');
  const name = readOid(oid, 'signature algorithm');
  if (parameters.length > 0 || (name !== OID.ecdsaSha256 && name !== OID.ecdsaSha384)) return refuseCertificate('its signature algorithm is not ECDSA with SHA-256 or SHA-384');
  return name === OID.ecdsaSha256 ? 'ecdsa-sha256' : 'ecdsa-sha384';
}

function readExtensions(element: DerElement): Map<string, Extension> {
  const [list, ...rest] = readChildren(element);
  if (rest.length > 0) refuseDer('more than one list of extensions');
  const extensions = new Map<string, Extension>();
  for (const item of readSequence(list, 'extensions')) {
    const parts = readSequence(item, 'extension');
    const oid = readOid(parts[0], 'extension id');
    const critical = parts.length === 3 && parts[1] !== undefined ? readBoolean(parts[1], 'criticality') : false;
    if (parts.length === 3 && !critical) refuseDer('criticality FALSE is written out');
    if (parts.length !== 2 && parts.length !== 3) refuseDer('extension has a wrong number of parts');
    if (extensions.has(oid)) refuseCertificate(`extension ${oid} appears twice`);
    extensions.set(oid, { critical, value: expectTag(parts[parts.length - 1], TAG.octetString, 'extension value').content });
  }
  if (extensions.size === 0) refuseDer('empty list of extensions');
  return extensions;
}

function readBasicConstraints({ critical, value }: Extension): NonNullable<ParsedCertificate['basicConstraints']> {
  const parts = readSequence(readDer(value), 'basic constraints');
  const ca = parts[0]?.tag === TAG.boolean ? readBoolean(parts[0], 'CA flag') : false;
  if (parts[0]?.tag === TAG.boolean && !ca) refuseDer('CA FALSE is written out');
  const rest = ca ? parts.slice(1) : parts;
  if (rest.length > 1 || (rest.length === 1 && !ca)) refuseDer('basic constraints have a path length without CA, or more parts than two');
  return { critical, ca, pathLength: rest.length === 1 ? readSmallInteger(rest[0], 'path length') : undefined };
}

function readAlternativeNames({ value }: Extension): AlternativeName[] {
  const names = readSequence(readDer(value), 'subject alternative name').map((name): AlternativeName =>
    name.tag === contextTag(6, false) ? { kind: 'uri', value: readAscii(name.content, 'URI') } : { kind: 'other', tag: name.tag });
  if (names.length === 0) refuseDer('empty subject alternative name');
  return names;
}

function readAuthorityKeyId({ value }: Extension): Uint8Array {
  const [keyId, ...rest] = readSequence(readDer(value), 'authority key id');
  const { content } = expectTag(keyId, contextTag(0, false), 'authority key id');
  if (rest.length > 0 || content.length === 0) refuseDer('authority key id names more than a key');
  return content;
}

/** Throws UNAUTHENTICATED (or INVALID_ARGUMENT for broken DER) with the first thing that is wrong. */
export function parseCertificate(der: Uint8Array): ParsedCertificate {
  if (der.length > MAX_CERTIFICATE_BYTES) refuseCertificate(`it is larger than ${MAX_CERTIFICATE_BYTES} bytes`);
  const [tbs, outerAlgorithm, signature, ...beyond] = readSequence(readDer(der), 'certificate');
  if (beyond.length > 0 || tbs === undefined || outerAlgorithm === undefined) return refuseDer('certificate does not have three parts');
  const fields = readSequence(tbs, 'certificate body');
  const [version, serial, innerAlgorithm, issuer, validity, subject, spki, extensionsElement, ...more] = fields;
  const [versionNumber, ...versionRest] = readChildren(expectTag(version, contextTag(0, true), 'version'));
  if (versionRest.length > 0 || readSmallInteger(versionNumber, 'version') !== 2) refuseCertificate('it is not an X.509 version 3 certificate');
  const serialBytes = readInteger(serial, 'serial number');
  if (serialBytes.length > 20 || (serialBytes[0] ?? 0x80) >= 0x80 || serialBytes.every((b) => b === 0)) refuseCertificate('its serial number is not positive or longer than 20 bytes');
  if (innerAlgorithm === undefined || !bytesEqual(innerAlgorithm.raw, outerAlgorithm.raw)) refuseCertificate('its two signature algorithms differ');
  const signatureAlgorithm = readSignatureAlgorithm(outerAlgorithm);
  const [notBefore, notAfter, ...times] = readSequence(validity, 'validity');
  if (times.length > 0) refuseDer('validity has more than two times');
  if (spki === undefined || more.length > 0) return refuseDer('certificate body has a wrong number of parts');
  const extensions = readExtensions(expectTag(extensionsElement, contextTag(3, true), 'extensions'));
  const take = (oid: string): Extension | undefined => {
    const extension = extensions.get(oid);
    extensions.delete(oid);
    return extension;
  };
  const basicConstraints = take(OID.basicConstraints);
  const keyUsage = take(OID.keyUsage);
  const extKeyUsage = take(OID.extKeyUsage);
  const alternativeName = take(OID.subjectAltName);
  const subjectKeyId = take(OID.subjectKeyId);
  const authorityKeyId = take(OID.authorityKeyId);
  return {
    der, tbsDer: tbs.raw, signature: readBitStringBytes(signature, 'signature'), signatureAlgorithm, serial: hex(serialBytes),
    issuerDer: readName(issuer, 'issuer'), subjectDer: readName(subject, 'subject'),
    notBeforeMs: readTime(notBefore, 'not before'), notAfterMs: readTime(notAfter, 'not after'),
    curve: curveOf(spki), spkiDer: spki.raw,
    basicConstraints: basicConstraints && readBasicConstraints(basicConstraints),
    keyUsage: keyUsage && { critical: keyUsage.critical, bits: readNamedBits(readDer(keyUsage.value), 'key usage') },
    extKeyUsage: extKeyUsage && readSequence(readDer(extKeyUsage.value), 'extended key usage').map((oid) => readOid(oid, 'extended key usage')),
    alternativeNames: alternativeName && readAlternativeNames(alternativeName),
    subjectKeyId: subjectKeyId && expectTag(readDer(subjectKeyId.value), TAG.octetString, 'subject key id').content,
    authorityKeyId: authorityKeyId && readAuthorityKeyId(authorityKeyId),
    unknown: [...extensions].map(([oid, { critical }]) => ({ oid, critical })),
  };
}

/** A distinguished name must be well formed (and may be empty); it is compared as bytes and never interpreted. */
function readName(element: DerElement | undefined, what: string): Uint8Array {
  for (const relative of readSequence(element, what)) {
    const attributes = readChildren(expectTag(relative, TAG.set, what));
    if (attributes.length === 0) refuseDer(`${what} has an empty part`);
    for (const attribute of attributes) {
      const [type, value, ...rest] = readSequence(attribute, what);
      readOid(type, what);
      if (value === undefined || rest.length > 0) refuseDer(`${what} has a malformed attribute`);
    }
  }
  return (element as DerElement).raw;
}
