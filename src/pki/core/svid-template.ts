/**
 * What our certificates contain, as data: the DER tree of the part to be signed. Everything in it is decided here or given by
 * the authority; a requester contributes a public key and nothing else. Must never: copy a field from a CSR.
 */
import { ascii, constantDer, contextTag, derBitString, derBoolean, derOid, derSequence, derTime, derUnsigned, TAG, type DerTree } from './der.ts';
import { OID } from './certificate.ts';
import type { SpiffeId, TrustDomain } from '../../base/ids.ts';

export interface CertificateFields {
  /** 16 random bytes; made positive and non-zero here. */
  readonly serial: Uint8Array;
  /** DER of the issuer's subject; undefined for a self-signed root. */
  readonly issuerDer: Uint8Array | undefined;
  readonly issuerKeyId: Uint8Array;
  readonly subjectKeyId: Uint8Array;
  readonly spkiDer: Uint8Array;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

const ECDSA_SHA256 = constantDer(derSequence(derOid(OID.ecdsaSha256)));
const VERSION_3 = constantDer({ tag: contextTag(0, true), content: [derUnsigned(Uint8Array.of(2))] });
const SUBJECT_KEY_ID = constantDer(derOid(OID.subjectKeyId));
const AUTHORITY_KEY_ID = constantDer(derOid(OID.authorityKeyId));
const ALTERNATIVE_NAME = constantDer(derOid(OID.subjectAltName));

function distinguishedName(attributes: readonly (readonly [oid: string, value: string])[]): DerTree {
  return derSequence(...attributes.map(([oid, value]): DerTree => ({ tag: TAG.set, content: [derSequence(derOid(oid), { tag: TAG.utf8String, content: ascii(value) })] })));
}

function extension(oid: DerTree, critical: boolean, value: DerTree): DerTree {
  return derSequence(oid, ...(critical ? [derBoolean(true)] : []), { tag: TAG.octetString, content: [value] });
}

/** Serial as it will stand in the certificate: the top bit cleared (positive), the next one set (never zero, always 16 bytes). */
export function serialBytes(random: Uint8Array): Uint8Array {
  const serial = random.slice(0, 16);
  serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40;
  return serial;
}

function body(fields: CertificateFields, subject: DerTree, extensions: DerTree[]): DerTree {
  return derSequence(
    VERSION_3,
    derUnsigned(serialBytes(fields.serial)),
    ECDSA_SHA256,
    fields.issuerDer === undefined ? subject : { der: fields.issuerDer },
    derSequence(derTime(fields.notBeforeMs), derTime(fields.notAfterMs)),
    subject,
    { der: fields.spkiDer },
    { tag: contextTag(3, true), content: [derSequence(
      ...extensions,
      extension(SUBJECT_KEY_ID, false, { tag: TAG.octetString, content: fields.subjectKeyId }),
      extension(AUTHORITY_KEY_ID, false, derSequence({ tag: contextTag(0, false), content: fields.issuerKeyId })),
    )] },
  );
}

const uriName = (uri: string): DerTree => derSequence({ tag: contextTag(6, false), content: ascii(uri) });

const SVID_SUBJECT = constantDer(distinguishedName([[OID.organizationName, 'Bulkhead']]));
const SVID_EXTENSIONS = [
  extension(derOid(OID.basicConstraints), true, derSequence()),
  extension(derOid(OID.keyUsage), true, derBitString(Uint8Array.of(0x80), 7)),
  extension(derOid(OID.extKeyUsage), false, derSequence(derOid(OID.serverAuth), derOid(OID.clientAuth))),
].map(constantDer);

/** The body of an X.509-SVID: one URI SAN, digitalSignature, server and client authentication, no CA, no name that could be read as a host. */
export function svidBody(fields: CertificateFields, id: SpiffeId): DerTree {
  return body(fields, SVID_SUBJECT, [...SVID_EXTENSIONS, extension(ALTERNATIVE_NAME, false, uriName(id))]);
}

const SERVER_EXTENSIONS = [
  extension(derOid(OID.basicConstraints), true, derSequence()),
  extension(derOid(OID.keyUsage), true, derBitString(Uint8Array.of(0x80), 7)),
  extension(derOid(OID.extKeyUsage), false, derSequence(derOid(OID.serverAuth))),
].map(constantDer);

/** The body of a certificate by which clients that know no SPIFFE IDs verify a server: names of DNS and no URI, so that it is nobody's identity here. */
export function serverBody(fields: CertificateFields, dnsNames: readonly string[]): DerTree {
  return body(fields, SVID_SUBJECT, [...SERVER_EXTENSIONS, extension(ALTERNATIVE_NAME, false, derSequence(...dnsNames.map((name): DerTree => ({ tag: contextTag(2, false), content: ascii(name) }))))]);
}

/** The body of a root (path length 1: it signs intermediates) or an intermediate (path length 0: it signs leaves). `name` tells generations apart. */
export function authorityBody(fields: CertificateFields, trustDomain: TrustDomain, name: string, pathLength: 0 | 1): DerTree {
  return body(fields, distinguishedName([[OID.organizationName, 'Bulkhead'], [OID.commonName, name]]), [
    extension(derOid(OID.basicConstraints), true, derSequence(derBoolean(true), derUnsigned(Uint8Array.of(pathLength)))),
    extension(derOid(OID.keyUsage), true, derBitString(Uint8Array.of(0x06), 1)),
    extension(ALTERNATIVE_NAME, false, uriName(`spiffe://${trustDomain}`)),
  ]);
}

/** The whole certificate from its encoded body and an ASN.1 ECDSA signature over it. */
export function signedCertificate(bodyDer: Uint8Array, signature: Uint8Array): DerTree {
  return derSequence({ der: bodyDer }, ECDSA_SHA256, derBitString(signature));
}

/** Body of a PKCS#10 request (RFC 2986): an empty name, the key, no attributes. */
export function requestBody(spkiDer: Uint8Array): DerTree {
  return derSequence(derUnsigned(Uint8Array.of(0)), derSequence(), { der: spkiDer }, { tag: contextTag(0, true), content: [] });
}

export const signedRequest = signedCertificate;
