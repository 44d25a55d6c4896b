/** Peers with bad certificates, all of them properly signed unless the signature is the point. Each must be refused, for its own reason. */
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { TAG, ascii, contextTag, derBitString, derBoolean, derOid, derSequence, derUnsigned, type DerTree } from '../../src/pki/core/der.ts';
import { OID, parseCertificate } from '../../src/pki/core/certificate.ts';
import { MAX_SVID_TTL_MS } from '../../src/pki/core/acceptable.ts';
import { encodeDer } from '../../src/pki/forge-der.ts';
import { toPem } from '../../src/pki/pem.ts';
import { PeerVerifier, verifyChain } from '../../src/pki/peer-verifier.ts';
import { Revocations } from '../../src/pki/revocations.ts';
import { TrustBundle } from '../../src/pki/trust-bundle.ts';
import {
  HOUR_MS, NOW_MS, build, caExtensions, dns, entity, extension, goodUri, hierarchy, keyUsage, leafExtensions, name, p256, trustDomain, uri, type Extensions, type Shape,
} from './certificate-builder.ts';

const { root, intermediate, bundle } = hierarchy();
const chainOf = (leafDer: Uint8Array): Uint8Array[] => [leafDer, intermediate.certificate.der];
const names = (...list: DerTree[]): DerTree => extension(OID.subjectAltName, false, derSequence(...list));

function refusal(chain: readonly Uint8Array[], nowMs = NOW_MS, trusted = bundle): string {
  try {
    const { id } = verifyChain(chain, trusted, nowMs);
    return `ACCEPTED as ${id}`;
  } catch (error) {
    if (!(error instanceof BulkheadError) || error.code !== 'UNAUTHENTICATED') throw error;
    return error.safeMessage;
  }
}

test('the good certificate, which every bad one differs from in one thing, is accepted', () => {
  expect(verifyChain(chainOf(build(intermediate, leafExtensions).der), bundle, NOW_MS)).toMatchObject({ id: goodUri, notAfterMs: NOW_MS + HOUR_MS });
  const p384 = build(intermediate, leafExtensions, { keys: generateKeyPairSync('ec', { namedCurve: 'P-384' }) });
  expect(verifyChain(chainOf(p384.der), bundle, NOW_MS).id).toBe(goodUri);
});

const leafCases: readonly [what: string, why: RegExp, shape: Shape | { extensions: Partial<Extensions> }][] = [
  ['two URI names', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), uri('spiffe://cluster.test/system/admin')) } }],
  ['the same URI name twice', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), uri(goodUri)) } }],
  ['a second alternative-name extension', /appears twice/, { extra: [names(uri('spiffe://cluster.test/system/admin'))] }],
  ['a DNS name beside the URI', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), dns('gateway.test')) } }],
  ['a DNS name before the URI', /2 alternative names/, { extensions: { alternativeNames: names(dns('gateway.test'), uri(goodUri)) } }],
  ['an IP address beside the URI', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), { tag: contextTag(7, false), content: Uint8Array.of(127, 0, 0, 1) }) } }],
  ['an e-mail address beside the URI', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), { tag: contextTag(1, false), content: ascii('ana@acme.test') }) } }],
  ['an other-name beside the URI', /2 alternative names/, { extensions: { alternativeNames: names(uri(goodUri), { tag: contextTag(0, true), content: [derOid('1.3.6.1.4.1.311.20.2.3'), { tag: contextTag(0, true), content: [{ tag: TAG.utf8String, content: ascii('root') }] }] }) } }],
  ['only a DNS name', /exactly one URI/, { extensions: { alternativeNames: names(dns('gateway.test')) } }],
  ['no alternative name, the ID in the common name', /no URI/, { subject: name(goodUri), extensions: { alternativeNames: undefined } }],
  ['an empty list of names', /empty subject alternative/, { extensions: { alternativeNames: names() } }],
  ['a URI with a zero byte', /printable ASCII/, { extensions: { alternativeNames: names(uri(`${goodUri}\0.evil`)) } }],
  ['a URI with a line feed', /printable ASCII/, { extensions: { alternativeNames: names(uri(`${goodUri}\n`)) } }],
  ['a URI with a byte beyond ASCII', /printable ASCII/, { extensions: { alternativeNames: names(uri('spiffe://cluster.test/tenant/acme/user/\u00e4')) } }],
  ['a constructed URI name', /exactly one URI/, { extensions: { alternativeNames: names({ tag: contextTag(6, true), content: [{ tag: 0x16, content: ascii(goodUri) }] }) } }],
  ...[
    'spiffe://cluster.test', 'spiffe://cluster.test/', 'spiffe://cluster.test/tenant/acme/user/ana/', 'spiffe://cluster.test//tenant/acme/user/ana', 'spiffe://cluster.test/tenant/acme/../globex/user/ana',
    'spiffe://cluster.test/tenant/acme/user/..', 'spiffe://cluster.test/tenant/acme/./user/ana', 'spiffe://cluster.test/tenant/acme/user/%61na', 'spiffe://cluster.test:443/tenant/acme/user/ana', 'spiffe://x@cluster.test/tenant/acme/user/ana',
    'spiffe://cluster.test/tenant/acme/user/ana?admin', 'spiffe://cluster.test/tenant/acme/user/ana#x', 'SPIFFE://cluster.test/tenant/acme/user/ana', 'spiffe://Cluster.test/tenant/acme/user/ana', 'https://cluster.test/tenant/acme/user/ana',
    'spiffe:cluster.test/tenant/acme/user/ana', 'spiffe:///tenant/acme/user/ana', 'spiffe://cluster.test/system', 'spiffe://cluster.test/root/admin', 'spiffe://cluster.test/tenant/acme/admin/ana', 'spiffe://cluster.test/tenant/ACME/user/ana', ' spiffe://cluster.test/system/admin',
    `spiffe://cluster.test/tenant/acme/user/${'a'.repeat(3000)}`,
  ].map((id): [string, RegExp, Shape] => [`the ID ${id.slice(0, 70)}`, /not valid|is not a DER|larger/, { extensions: { alternativeNames: names(uri(id)) } }]),
  ['another trust domain', /trust domain is 'other.test'/, { extensions: { alternativeNames: names(uri('spiffe://other.test/tenant/acme/user/ana')) } }],
  ['a trust domain that begins like ours', /trust domain/, { extensions: { alternativeNames: names(uri('spiffe://cluster.test.evil/tenant/acme/user/ana')) } }],
  ['CA true', /leaf is a CA/, { extensions: { basicConstraints: extension(OID.basicConstraints, true, derSequence(derBoolean(true))) } }],
  ['CA true, not critical', /leaf is a CA/, { extensions: { basicConstraints: extension(OID.basicConstraints, false, derSequence(derBoolean(true))) } }],
  ['CA with a boolean of 1', /DER boolean/, { extensions: { basicConstraints: extension(OID.basicConstraints, true, derSequence({ tag: TAG.boolean, content: Uint8Array.of(1) })) } }],
  ['CA FALSE written out', /written out/, { extensions: { basicConstraints: extension(OID.basicConstraints, true, derSequence(derBoolean(false))) } }],
  ['a path length without CA', /path length without CA/, { extensions: { basicConstraints: extension(OID.basicConstraints, true, derSequence(derUnsigned(Uint8Array.of(0)))) } }],
  ['no key usage', /no critical key usage/, { extensions: { keyUsage: undefined } }],
  ['a key usage that is not critical', /no critical key usage/, { extensions: { keyUsage: extension(OID.keyUsage, false, keyUsage(0)) } }],
  ['a key usage without digitalSignature', /lacks the key usage digitalSignature/, { extensions: { keyUsage: extension(OID.keyUsage, true, keyUsage(2)) } }],
  ['a key usage without bits', /list of bits|padding/, { extensions: { keyUsage: extension(OID.keyUsage, true, { tag: TAG.bitString, content: Uint8Array.of(0) }) } }],
  ['keyCertSign', /may sign certificates/, { extensions: { keyUsage: extension(OID.keyUsage, true, keyUsage(0, 5)) } }],
  ['cRLSign', /may sign certificates or revocation/, { extensions: { keyUsage: extension(OID.keyUsage, true, keyUsage(0, 6)) } }],
  ['a key usage with set padding bits', /padding/, { extensions: { keyUsage: extension(OID.keyUsage, true, derBitString(Uint8Array.of(0x84), 7)) } }],
  ['a key usage with more bits than bytes', /list of bits/, { extensions: { keyUsage: extension(OID.keyUsage, true, derBitString(Uint8Array.of(0x80), 8)) } }],
  ['no extended key usage', /exactly server and client/, { extensions: { extKeyUsage: undefined } }],
  ['client authentication only', /exactly server and client/, { extensions: { extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid(OID.clientAuth))) } }],
  ['any purpose', /exactly server and client/, { extensions: { extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid('2.5.29.37.0'))) } }],
  ['code signing as well', /exactly server and client/, { extensions: { extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid(OID.serverAuth), derOid(OID.clientAuth), derOid('1.3.6.1.5.5.7.3.3'))) } }],
  ['client authentication twice', /exactly server and client/, { extensions: { extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid(OID.clientAuth), derOid(OID.clientAuth))) } }],
  ['an unknown critical extension', /critical extension 1.3.6.1.4.1.99999/, { extra: [extension('1.3.6.1.4.1.99999', true, derSequence())] }],
  ['name constraints', /constraint 2.5.29.30/, { extra: [extension('2.5.29.30', false, derSequence())] }],
  ['critical name constraints', /constraint 2.5.29.30/, { extra: [extension('2.5.29.30', true, derSequence())] }],
  ['critical policy constraints', /constraint 2.5.29.36/, { extra: [extension('2.5.29.36', true, derSequence())] }],
  ['an extension twice', /appears twice/, { extra: [extension(OID.keyUsage, true, keyUsage(0))] }],
  ['bytes after an extension value', /bytes after the end/, { extensions: { keyUsage: extension(OID.keyUsage, true, Uint8Array.of(...encodeDer(keyUsage(0)), 0)) } }],
  ['an end in the past', /expired/, { notAfterMs: NOW_MS - 1_000 }],
  ['a beginning in the future', /not valid before/, { notBeforeMs: NOW_MS + 60_000 }],
  ['an end before its beginning', /ends before it begins|expired/, { notBeforeMs: NOW_MS - 1_000, notAfterMs: NOW_MS - 2_000 }],
  ['a life longer than any SVID', /lives longer/, { notAfterMs: NOW_MS + MAX_SVID_TTL_MS + HOUR_MS }],
];

const structuralCases: readonly [what: string, why: RegExp, shape: Shape][] = [
  ['version 1', /version has tag/, { version: undefined }],
  ['version 2', /version 3/, { version: { tag: contextTag(0, true), content: [derUnsigned(Uint8Array.of(1))] } }],
  ['version 4', /version 3/, { version: { tag: contextTag(0, true), content: [derUnsigned(Uint8Array.of(3))] } }],
  ['serial zero', /serial number/, { serial: { tag: TAG.integer, content: Uint8Array.of(0) } }],
  ['a negative serial', /serial number/, { serial: { tag: TAG.integer, content: Uint8Array.of(0xff) } }],
  ['a serial of 21 bytes', /serial number/, { serial: { tag: TAG.integer, content: new Uint8Array(21).fill(1) } }],
  ['a padded serial', /padded/, { serial: { der: Uint8Array.of(TAG.integer, 2, 0, 1) } }],
  ['an empty serial', /empty/, { serial: { tag: TAG.integer, content: new Uint8Array(0) } }],
  ['SHA-1', /signature algorithm/, { algorithm: derSequence(derOid('1.2.840.10045.4.1')), hash: 'sha1' }],
  ['an RSA algorithm', /signature algorithm/, { algorithm: derSequence(derOid('1.2.840.113549.1.1.11'), { tag: TAG.null, content: new Uint8Array(0) }) }],
  ['Ed25519 as algorithm', /signature algorithm/, { algorithm: derSequence(derOid('1.3.101.112')) }],
  ['parameters of the algorithm', /signature algorithm/, { algorithm: derSequence(derOid(OID.ecdsaSha256), { tag: TAG.null, content: new Uint8Array(0) }) }],
  ['another algorithm outside than inside', /differ/, { outerAlgorithm: derSequence(derOid(OID.ecdsaSha384)) }],
  ['an algorithm that was not used', /no chain of signatures/, { algorithm: derSequence(derOid(OID.ecdsaSha384)) }],
  ['an altered signature', /no chain of signatures/, { corruptSignature: true }],
  ['an RSA key', /not an EC key/, { spki: generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ format: 'der', type: 'spki' }) }],
  ['an Ed25519 key', /not an EC key/, { spki: generateKeyPairSync('ed25519').publicKey.export({ format: 'der', type: 'spki' }) }],
  ['a P-521 key', /neither P-256 nor P-384/, { spki: generateKeyPairSync('ec', { namedCurve: 'P-521' }).publicKey.export({ format: 'der', type: 'spki' }) }],
  ['a secp256k1 key', /neither P-256 nor P-384/, { spki: generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey.export({ format: 'der', type: 'spki' }) }],
  ['a compressed point', /uncompressed point/, { spki: compressed() }],
  ['curve parameters written out', /curve has tag/, { spki: explicitCurve() }],
  ['an empty part of a name', /empty part/, { subject: derSequence({ tag: TAG.set, content: [] }) }],
  ['no extension at all', /extensions is missing/, { extensions: { basicConstraints: undefined, keyUsage: undefined, extKeyUsage: undefined, alternativeNames: undefined } }],
  ['an oversized certificate', /larger than/, { extra: [extension('1.3.6.1.4.1.99999', false, { tag: TAG.octetString, content: new Uint8Array(9_000) })] }],
];

function compressed(): Uint8Array {
  const spki = p256().publicKey.export({ format: 'der', type: 'spki' });
  return encodeDer(derSequence(derSequence(derOid(OID.ecPublicKey), derOid(OID.p256)), derBitString(Uint8Array.of(2 + ((spki[90] ?? 0) & 1), ...spki.subarray(27, 59)))));
}

function explicitCurve(): Uint8Array {
  return generateKeyPairSync('ec', { namedCurve: 'P-256', paramEncoding: 'explicit' }).publicKey.export({ format: 'der', type: 'spki' });
}

describe('a leaf with', () => {
  test.each([...leafCases, ...structuralCases])('%s', (_what, why, shape) => {
    expect(refusal(chainOf(build(intermediate, leafExtensions, shape).der))).toMatch(why);
  });
});

describe('a chain', () => {
  const good = build(intermediate, leafExtensions).der;
  const withIntermediate = (base: Extensions, shape: Shape = {}, issuer = root): Uint8Array[] => {
    const made = entity(issuer, base, { subject: name('intermediate'), notAfterMs: NOW_MS + 9 * HOUR_MS, ...shape });
    return [build(made, leafExtensions).der, made.certificate.der];
  };

  test('whose intermediate is missing', () => expect(refusal([good])).toMatch(/no chain/));
  test('that is empty', () => expect(refusal([])).toMatch(/showed none/));
  test('that is of empty bytes', () => expect(refusal([new Uint8Array(0)])).toMatch(/truncated/));
  test('under another root of the same names', () => {
    const other = hierarchy();
    expect(refusal([build(other.intermediate, leafExtensions).der, other.intermediate.certificate.der])).toMatch(/no chain/);
    expect(refusal([build(other.intermediate, leafExtensions).der, intermediate.certificate.der, other.intermediate.certificate.der, other.root.certificate.der])).toMatch(/no chain/);
  });
  test('that is one self-signed leaf', () => expect(refusal([build(undefined, leafExtensions).der])).toMatch(/no chain/));
  test('whose leaf has another SVID as its issuer', () => {
    const svid = entity(intermediate, leafExtensions);
    expect(refusal([build(svid, leafExtensions).der, svid.certificate.der, intermediate.certificate.der])).toMatch(/not a CA|allows/);
  });
  test('whose first certificate is the intermediate', () => expect(refusal([intermediate.certificate.der])).toMatch(/leaf is a CA/));
  test('whose first certificate is the root', () => expect(refusal([root.certificate.der])).toMatch(/leaf is a CA/));
  test('with a path length 0 above another intermediate', () => {
    const deeper = entity(intermediate, caExtensions(0), { subject: name('deeper') });
    expect(refusal([build(deeper, leafExtensions).der, deeper.certificate.der, intermediate.certificate.der])).toMatch(/allows 0 intermediates/);
  });
  test('with a path length of the root that is exceeded', () => {
    const upper = entity(root, caExtensions(undefined), { subject: name('upper') });
    const lower = entity(upper, caExtensions(undefined), { subject: name('lower') });
    expect(refusal([build(lower, leafExtensions).der, lower.certificate.der, upper.certificate.der])).toMatch(/allows 1 intermediates/);
  });
  test('longer than allowed', () => {
    const free = entity(undefined, caExtensions(undefined), { subject: name('free'), notAfterMs: NOW_MS + 9 * HOUR_MS });
    const chain = [free];
    for (let i = 0; i < 3; i++) chain.unshift(entity(chain[0], caExtensions(undefined), { subject: name(`i${i}`) }));
    const trusted = new TrustBundle(trustDomain, 1, [free.certificate], []);
    expect(refusal([build(chain[0], leafExtensions).der, ...chain.slice(0, 3).map((c) => c.certificate.der)], NOW_MS, trusted)).toMatch(/no chain/);
    expect(refusal([build(chain[1], leafExtensions).der, ...chain.slice(1, 3).map((c) => c.certificate.der)], NOW_MS, trusted)).toBe(`ACCEPTED as ${goodUri}`);
  });
  test('with an intermediate that is no CA', () => expect(refusal(withIntermediate({ ...caExtensions(0), basicConstraints: extension(OID.basicConstraints, true, derSequence()) }))).toMatch(/not a CA/));
  test('with an intermediate without basic constraints', () => expect(refusal(withIntermediate({ ...caExtensions(0), basicConstraints: undefined }))).toMatch(/not a CA/));
  test('with an intermediate whose CA flag is not critical', () => expect(refusal(withIntermediate({ ...caExtensions(0), basicConstraints: extension(OID.basicConstraints, false, derSequence(derBoolean(true))) }))).toMatch(/not a CA/));
  test('with an intermediate that may not sign', () => expect(refusal(withIntermediate({ ...caExtensions(0), keyUsage: extension(OID.keyUsage, true, keyUsage(0)) }))).toMatch(/may not sign/));
  test('with an expired intermediate', () => expect(refusal(withIntermediate(caExtensions(0), { notAfterMs: NOW_MS - 1 }))).toMatch(/intermediate 1 expired/));
  test('with an intermediate of the future', () => expect(refusal(withIntermediate(caExtensions(0), { notBeforeMs: NOW_MS + HOUR_MS }))).toMatch(/intermediate 1 is not valid before/));
  test('with an intermediate of another trust domain', () => expect(refusal(withIntermediate({ ...caExtensions(0), alternativeNames: names(uri('spiffe://other.test')) }))).toMatch(/something else than its trust domain/));
  test('with an intermediate that has an identity of its own', () => expect(refusal(withIntermediate({ ...caExtensions(0), alternativeNames: names(uri(goodUri)) }))).toMatch(/something else than its trust domain/));
  test('with an unknown critical extension in the intermediate', () => expect(refusal(withIntermediate(caExtensions(0), { extra: [extension('1.3.6.1.4.1.99999', true, derSequence())] }))).toMatch(/intermediate 1 has the critical extension/));
  test('with an intermediate that is itself constrained: names, purposes', () => {
    expect(refusal(withIntermediate(caExtensions(0), { extra: [extension('2.5.29.30', false, derSequence())] }))).toMatch(/intermediate 1 has the constraint/);
    expect(refusal(withIntermediate({ ...caExtensions(0), extKeyUsage: extension(OID.extKeyUsage, false, derSequence(derOid(OID.serverAuth))) }))).toMatch(/intermediate 1 is not for server and client/);
  });
  test('whose good signatures are remembered is refused all the same once it is expired, revoked or no longer rooted', () => {
    expect(refusal(chainOf(good))).toBe(`ACCEPTED as ${goodUri}`);
    expect(refusal(chainOf(good), NOW_MS + 2 * HOUR_MS)).toMatch(/expired/);
    expect(refusal(chainOf(good), NOW_MS, hierarchy().bundle)).toMatch(/no chain/);
  });
  test('whose leaf names another key of its issuer', () => {
    const wrong = extension(OID.authorityKeyId, false, derSequence({ tag: contextTag(0, false), content: new Uint8Array(20).fill(9) }));
    expect(refusal(chainOf(build(intermediate, leafExtensions, { extensions: { authorityKeyId: wrong } }).der))).toMatch(/no chain/);
  });
  test('whose leaf names another issuer', () => expect(refusal(chainOf(build(intermediate, leafExtensions, { issuerName: name('someone') }).der))).toMatch(/no chain/));
  test('under an expired root', () => {
    const short = entity(undefined, caExtensions(1), { subject: name('short root'), notAfterMs: NOW_MS + HOUR_MS });
    const trusted = new TrustBundle(trustDomain, 1, [short.certificate], []);
    expect(refusal(withIntermediate(caExtensions(0), {}, short), NOW_MS, trusted)).toBe(`ACCEPTED as ${goodUri}`);
    const under = entity(short, caExtensions(0), { subject: name('intermediate'), notAfterMs: NOW_MS + 9 * HOUR_MS });
    expect(refusal([build(under, leafExtensions, { notAfterMs: NOW_MS + 3 * HOUR_MS }).der, under.certificate.der], NOW_MS + 2 * HOUR_MS, trusted)).toMatch(/the root expired/);
  });
  test('with more intermediates than allowed', () => expect(refusal([good, ...Array.from({ length: 5 }, () => intermediate.certificate.der)])).toMatch(/more than 4/));
  test('with look-alike intermediates costs a bounded number of checks and still finds the true one', () => {
    const fakes = Array.from({ length: 3 }, () => entity(undefined, caExtensions(0), { subject: name('intermediate'), issuerName: { der: root.certificate.subjectDer } }).certificate.der);
    expect(refusal([good, ...fakes, intermediate.certificate.der])).toBe(`ACCEPTED as ${goodUri}`);
  });
  test('ends when the first of its certificates ends', () => {
    const [leaf, short] = withIntermediate(caExtensions(0), { notAfterMs: NOW_MS + 60_000 });
    expect(verifyChain([leaf as Uint8Array, short as Uint8Array], bundle, NOW_MS).notAfterMs).toBe(NOW_MS + 60_000);
  });
  test('is valid to its last second and not beyond', () => {
    expect(refusal(chainOf(good), NOW_MS + HOUR_MS)).toBe(`ACCEPTED as ${goodUri}`);
    expect(refusal(chainOf(good), NOW_MS + HOUR_MS + 1)).toMatch(/expired/);
  });
});

describe('a bundle refuses', () => {
  test.each<[string, () => Uint8Array]>([
    ['a root that is no CA', () => build(undefined, leafExtensions).der],
    ['a root that is not self-signed', () => intermediate.certificate.der],
    ['a root with a wrong signature', () => build(undefined, caExtensions(1), { corruptSignature: true }).der],
    ['a root of another trust domain', () => build(undefined, { ...caExtensions(1), alternativeNames: names(uri('spiffe://other.test')) }).der],
  ])('%s', (_what, make) => {
    expect(() => new TrustBundle(trustDomain, 1, [parseCertificate(make())], [])).toThrow(BulkheadError);
  });
});

describe('bytes', () => {
  const good = build(intermediate, leafExtensions).der;

  test('no change of a byte makes a certificate that is accepted with another meaning', () => {
    fc.assert(fc.property(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const altered = Uint8Array.from(good);
      altered[at] = (altered[at] ?? 0) ^ flip;
      expect(refusal(chainOf(altered))).not.toMatch(/ACCEPTED/);
    }), { numRuns: 400 });
    // Each byte once, too: lengths and tags are few among many.
    for (let at = 0; at < good.length; at++) {
      const altered = Uint8Array.from(good);
      altered[at] = (altered[at] ?? 0) ^ 0x01;
      expect(refusal(chainOf(altered)), `byte ${at}`).not.toMatch(/ACCEPTED/);
    }
  });

  test('no cut, insertion or appended byte is accepted', () => {
    fc.assert(fc.property(fc.nat(good.length - 1), fc.uint8Array({ minLength: 0, maxLength: 8 }), fc.nat(8), (at, inserted, removed) => {
      fc.pre(inserted.length > 0 || removed > 0);
      const altered = Uint8Array.of(...good.subarray(0, at), ...inserted, ...good.subarray(at + removed));
      fc.pre(Buffer.compare(altered, good) !== 0);
      expect(refusal(chainOf(altered))).not.toMatch(/ACCEPTED/);
    }), { numRuns: 300 });
    expect(refusal(chainOf(Uint8Array.of(...good, 0)))).toMatch(/bytes after the end/);
  });

  test('random bytes are refused with a typed error and never crash the verifier', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      expect(refusal([bytes, bytes])).not.toMatch(/ACCEPTED/);
      expect(refusal(chainOf(encodeDer({ tag: TAG.sequence, content: bytes })))).not.toMatch(/ACCEPTED/);
    }), { numRuns: 300 });
  });

  test('BER spellings of the same certificate are refused: long lengths, indefinite lengths, deep nesting', () => {
    const body = good.subarray(4);
    expect(refusal(chainOf(Uint8Array.of(0x30, 0x83, 0, good[2] as number, good[3] as number, ...body)))).toMatch(/shortest form/);
    expect(refusal(chainOf(Uint8Array.of(0x30, 0x80, ...body, 0, 0)))).toMatch(/indefinite/);
    let nested: Uint8Array = Uint8Array.of(0x30, 0);
    for (let i = 0; i < 200; i++) nested = encodeDer({ tag: TAG.sequence, content: nested });
    expect(refusal(chainOf(nested))).not.toMatch(/ACCEPTED/);
  });

  test('what our reader says about good certificates is what OpenSSL says', () => {
    fc.assert(fc.property(fc.integer({ min: Date.UTC(1970, 0), max: Date.UTC(2110, 0) }), fc.integer({ min: 1, max: 1e9 }), fc.uint8Array({ minLength: 1, maxLength: 19 }), (fromMs, lifeMs, serial) => {
      fc.pre(serial.some((b) => b !== 0));
      const { der } = build(intermediate, leafExtensions, { notBeforeMs: fromMs, notAfterMs: fromMs + lifeMs, serial: derUnsigned(serial) });
      const ours = parseCertificate(der);
      const theirs = new X509Certificate(der);
      expect(new Date(theirs.validFrom).getTime()).toBe(ours.notBeforeMs);
      expect(new Date(theirs.validTo).getTime()).toBe(ours.notAfterMs);
      expect(BigInt(`0x${theirs.serialNumber}`)).toBe(BigInt(`0x${ours.serial}`));
      expect(theirs.subjectAltName).toBe(`URI:${goodUri}`);
      expect(theirs.verify(intermediate.keys.publicKey)).toBe(true);
    }), { numRuns: 60 });
  });
});

describe('the differential with openssl', () => {
  test('whatever shape of leaf and intermediate we accept, openssl accepts too', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'bulkhead-x509-'));
    let accepted = 0;
    try {
      const curve = fc.constantFrom('P-256', 'P-384');
      const usages = fc.oneof({ weight: 4, arbitrary: fc.subarray([1, 2, 4]).map((bits) => [0, ...bits]) }, { weight: 1, arbitrary: fc.subarray([0, 1, 2, 5, 6]) });
      fc.assert(fc.property(curve, curve, usages, fc.boolean(), fc.boolean(), fc.constantFrom(undefined, 0, 1), fc.constantFrom(-1, 1, 2, 3), fc.boolean(), (leafCurve, caCurve, bits, critical, swap, pathLength, hours, constraints) => {
        const ca = entity(root, caExtensions(pathLength), { subject: name('other'), keys: generateKeyPairSync('ec', { namedCurve: caCurve }), notAfterMs: NOW_MS + 9 * HOUR_MS });
        const purposes = [derOid(OID.serverAuth), derOid(OID.clientAuth)];
        const { der } = build(ca, leafExtensions, {
          keys: generateKeyPairSync('ec', { namedCurve: leafCurve }), notAfterMs: NOW_MS + hours * HOUR_MS,
          extensions: {
            keyUsage: bits.length === 0 ? undefined : extension(OID.keyUsage, critical, keyUsage(...bits)), extKeyUsage: extension(OID.extKeyUsage, critical, derSequence(...(swap ? purposes.toReversed() : purposes))),
            alternativeNames: extension(OID.subjectAltName, critical, derSequence(uri(goodUri))), ...(constraints ? {} : { basicConstraints: undefined }),
          },
          extra: [extension('1.3.6.1.4.1.99999', false, derSequence())],
        });
        if (!refusal([der, ca.certificate.der]).startsWith('ACCEPTED')) return;
        accepted++;
        writeFileSync(join(dir, 'root.pem'), toPem('CERTIFICATE', root.certificate.der));
        writeFileSync(join(dir, 'ca.pem'), toPem('CERTIFICATE', ca.certificate.der));
        writeFileSync(join(dir, 'leaf.pem'), toPem('CERTIFICATE', der));
        for (const purpose of ['sslserver', 'sslclient']) {
          execFileSync('openssl', ['verify', '-attime', String(NOW_MS / 1000), '-purpose', purpose, '-CAfile', 'root.pem', '-untrusted', 'ca.pem', 'leaf.pem'], { cwd: dir, stdio: 'pipe' });
        }
      }), { numRuns: 100, seed: 7 });
    } finally {
      await rm(dir, { recursive: true });
    }
    expect(accepted).toBeGreaterThan(5);
  });
});

describe('revocation', () => {
  const leaf = parseCertificate(build(intermediate, leafExtensions).der);
  const source = { bundle: () => bundle, onChange: () => () => undefined };

  test('by serial and by identity, for peers that were verified before as well', () => {
    const revocations = new Revocations();
    const verifier = new PeerVerifier({ bundles: source, revocations, clock: { nowMs: () => NOW_MS } });
    const peer = verifier.verify(chainOf(leaf.der));
    let calls = 0;
    const stop = verifier.onChange(() => calls++);
    revocations.apply({ serials: [leaf.serial], identities: [] }, 1);
    expect([verifier.isRevoked(peer), calls]).toEqual([true, 1]);
    expect(() => verifier.verify(chainOf(leaf.der))).toThrow('revoked');
    revocations.apply({ serials: [], identities: [{ spiffeId: goodUri, revokedBeforeMs: NOW_MS }] }, 2);
    expect(() => verifier.verify(chainOf(leaf.der))).toThrow('revoked');
    revocations.apply({ serials: [], identities: [{ spiffeId: goodUri, revokedBeforeMs: NOW_MS - HOUR_MS }] }, 3);
    expect(verifier.isRevoked(verifier.verify(chainOf(leaf.der)))).toBe(false);
    stop();
    revocations.apply({ serials: [], identities: [] }, 4);
    expect(calls).toBe(3);
  });

  test('of an authority takes every SVID under it along', () => {
    const revocations = new Revocations();
    const verifier = new PeerVerifier({ bundles: source, revocations, clock: { nowMs: () => NOW_MS } });
    const other = entity(root, caExtensions(0), { subject: name('second'), notAfterMs: NOW_MS + 9 * HOUR_MS });
    revocations.apply({ serials: [intermediate.certificate.serial], identities: [] }, 1);
    expect(() => verifier.verify(chainOf(leaf.der))).toThrow('authority that issued it is revoked');
    expect(verifier.verify([build(other, leafExtensions).der, other.certificate.der]).principal.name).toBe('ana');
    revocations.apply({ serials: [root.certificate.serial], identities: [] }, 2);
    expect(() => verifier.verify([build(other, leafExtensions).der, other.certificate.der])).toThrow('authority that issued it is revoked');
  });

  test('an older or malformed list changes nothing', () => {
    const revocations = new Revocations();
    expect(revocations.apply({ serials: [leaf.serial], identities: [] }, 5)).toBe(true);
    expect(revocations.apply({ serials: [], identities: [] }, 5)).toBe(false);
    expect(revocations.apply({ serials: [], identities: [] }, 4)).toBe(false);
    for (const bad of [{ serials: ['ABC'], identities: [] }, { serials: ['zz'], identities: [] }, { serials: [], identities: [{ spiffeId: 'spiffe://cluster.test/x', revokedBeforeMs: 1 }] }, { serials: [], identities: [{ spiffeId: goodUri, revokedBeforeMs: Number.NaN }] }]) {
      expect(() => revocations.apply(bad, 6)).toThrow(BulkheadError);
    }
    expect([revocations.version, revocations.isRevoked(leaf.serial, goodUri as never, NOW_MS)]).toEqual([5, true]);
  });
});
