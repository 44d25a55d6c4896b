/** Signatures of certificates and requests by node:crypto, over exactly the bytes that our parser read. Must never: decide anything but "signed by". */
import { createHash, createPublicKey, sign, verify, type KeyObject } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';
import { OID, curveOfSpki, type ParsedCertificate } from './core/certificate.ts';
import { TAG, bytesEqual, contextTag, derOid, derSequence, expectTag, readBitStringBytes, readChildren, readDer, readSequence, readSmallInteger, refuseDer } from './core/der.ts';
import { requestBody, signedRequest } from './core/svid-template.ts';
import { encodeDer } from './forge-der.ts';

declare const proven: unique symbol;
/** SubjectPublicKeyInfo (DER, P-256) whose private key the requester has shown to hold. Made only by `publicKeyFromCsr`. */
export type ProvenPublicKey = Uint8Array & { readonly [proven]: true };

export function publicKeyFromSpki(spkiDer: Uint8Array): KeyObject {
  try {
    return createPublicKey({ key: Buffer.from(spkiDer), format: 'der', type: 'spki' });
  } catch (error) {
    throw new BulkheadError('UNAUTHENTICATED', 'the public key is not a point of its curve', { cause: error });
  }
}

/**
 * Good signatures, by the digests of the certificate and of the key. All open connections are verified again when a revocation comes in,
 * and that must take less than a second with thousands of them: the signatures are the expensive part, and they do not change. Only good
 * ones are kept, so that nobody without an authority's key can push them out.
 */
const goodSignatures = new Set<string>();
const MAX_GOOD_SIGNATURES = 8_192;

export function isSignedBy(certificate: ParsedCertificate, issuer: ParsedCertificate): boolean {
  const pair = createHash('sha256').update(certificate.der).digest('base64') + createHash('sha256').update(issuer.spkiDer).digest('base64');
  if (goodSignatures.has(pair)) return true;
  const hash = certificate.signatureAlgorithm === 'ecdsa-sha256' ? 'sha256' : 'sha384';
  if (!verify(hash, certificate.tbsDer, { key: publicKeyFromSpki(issuer.spkiDer), dsaEncoding: 'der' }, certificate.signature)) return false;
  if (goodSignatures.size >= MAX_GOOD_SIGNATURES) for (const oldest of goodSignatures) {
    goodSignatures.delete(oldest);
    break;
  }
  goodSignatures.add(pair);
  return true;
}

const ECDSA_SHA256 = encodeDer(derSequence(derOid(OID.ecdsaSha256)));
const MAX_CSR_BYTES = 4_096;

/** PKCS#10 request (DER) for an EC P-256 private key: an empty name and no attributes, since the authority would ignore them. */
export function createCsr(privateKey: KeyObject): Uint8Array<ArrayBuffer> {
  const spkiDer = createPublicKey(privateKey).export({ format: 'der', type: 'spki' });
  const body = encodeDer(requestBody(spkiDer));
  return encodeDer(signedRequest(body, sign('sha256', body, { key: privateKey, dsaEncoding: 'der' })));
}

/** The one thing taken from a request: its public key, once its self-signature holds. Names and attributes are not even looked at. */
export function publicKeyFromCsr(der: Uint8Array): ProvenPublicKey {
  if (der.length > MAX_CSR_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `the certificate request is larger than ${MAX_CSR_BYTES} bytes`);
  const [body, algorithm, signature, ...beyond] = readSequence(readDer(der), 'certificate request');
  const [version, name, spki, attributes, ...more] = readSequence(body, 'certificate request body');
  if (beyond.length > 0 || more.length > 0 || body === undefined || spki === undefined) return refuseDer('certificate request has a wrong number of parts');
  if (readSmallInteger(version, 'version') !== 0) refuseDer('certificate request is not version 1');
  expectTag(name, TAG.sequence, 'name');
  readChildren(expectTag(attributes, contextTag(0, true), 'attributes'));
  if (algorithm === undefined || !bytesEqual(algorithm.raw, ECDSA_SHA256) || curveOfSpki(spki.raw) !== 'P-256') throw new BulkheadError('INVALID_ARGUMENT', 'the certificate request must have an EC P-256 key and an ECDSA signature with SHA-256');
  if (!verify('sha256', body.raw, { key: publicKeyFromSpki(spki.raw), dsaEncoding: 'der' }, readBitStringBytes(signature, 'signature'))) {
    throw new BulkheadError('INVALID_ARGUMENT', 'the certificate request is not signed by its own key');
  }
  return Uint8Array.from(spki.raw) as ProvenPublicKey;
}
