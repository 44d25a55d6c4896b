/**
 * Key, chain and bundle of one identity, checked to fit together. The key is behind getters, so that neither JSON nor a log line nor an
 * inspected error can show it by accident. Must never: put the key into an enumerable property.
 */
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';
import type { SpiffeId, TrustDomain } from '../base/ids.ts';
import { CLOCK_SKEW_MS } from '../base/limits.ts';
import { spiffeIdOfLeaf } from './core/acceptable.ts';
import { parseCertificate } from './core/certificate.ts';
import { bytesEqual } from './core/der.ts';
import { fromPem } from './pem.ts';
import { verifyChain } from './peer-verifier.ts';
import { TrustBundle } from './trust-bundle.ts';

export interface SvidParts {
  readonly trustDomain: TrustDomain;
  /** Unencrypted PKCS#8. */
  readonly keyPem: string;
  /** Leaf first. */
  readonly certificateChainPem: string;
  readonly trustBundlePem: string;
}

export class SvidMaterial {
  readonly spiffeId: SpiffeId;
  readonly trustDomain: TrustDomain;
  readonly certificateChainPem: string;
  readonly trustBundlePem: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly serial: string;
  readonly #privateKey: KeyObject;
  readonly #privateKeyPem: string;

  /** Use `svidMaterial`: this does not check the chain. */
  constructor(parts: SvidParts) {
    this.#privateKeyPem = parts.keyPem;
    this.#privateKey = readPrivateKey(parts.keyPem);
    const leaf = parseCertificate(fromPem('CERTIFICATE', parts.certificateChainPem, 'certificate chain', 4)[0] ?? new Uint8Array());
    this.spiffeId = spiffeIdOfLeaf(leaf, parts.trustDomain).id;
    if (!bytesEqual(leaf.spkiDer, createPublicKey(this.#privateKey).export({ format: 'der', type: 'spki' }))) throw new BulkheadError('INVALID_ARGUMENT', 'the certificate is for another key; issue the identity again');
    this.trustDomain = parts.trustDomain;
    this.certificateChainPem = parts.certificateChainPem;
    this.trustBundlePem = parts.trustBundlePem;
    this.notBeforeMs = leaf.notBeforeMs;
    this.notAfterMs = leaf.notAfterMs;
    this.serial = leaf.serial;
  }

  get privateKey(): KeyObject {
    return this.#privateKey;
  }

  /** PKCS#8, for TLS contexts. */
  get privateKeyPem(): string {
    return this.#privateKeyPem;
  }

  /** Whether the chain leads to a root of `bundle`, whatever the time. */
  leadsTo(bundle: TrustBundle): boolean {
    try {
      this.verifyAgainst(bundle, this.notBeforeMs + CLOCK_SKEW_MS);
      return true;
    } catch {
      return false;
    }
  }

  /** Throws UNAUTHENTICATED when a peer with this bundle would refuse the chain now. */
  verifyAgainst(bundle: TrustBundle, nowMs: number): void {
    verifyChain(fromPem('CERTIFICATE', this.certificateChainPem, 'certificate chain', 4), bundle, nowMs);
  }

  /** The same identity beside another bundle, which its chain need not lead to: a root may be retired before this identity is renewed. */
  withTrustBundle(trustBundlePem: string): SvidMaterial {
    return new SvidMaterial({ trustDomain: this.trustDomain, keyPem: this.#privateKeyPem, certificateChainPem: this.certificateChainPem, trustBundlePem });
  }
}

/**
 * Puts key, chain and bundle together and checks that they fit: the leaf is for the key and a SPIFFE ID of the trust domain, and its chain led to a
 * root of the bundle when it was issued. Not whether it is expired: an expired profile must be readable to be renewed.
 * Throws INVALID_ARGUMENT or UNAUTHENTICATED.
 */
export function svidMaterial(parts: SvidParts): SvidMaterial {
  const svid = new SvidMaterial(parts);
  svid.verifyAgainst(TrustBundle.fromPem(parts.trustDomain, parts.trustBundlePem), svid.notBeforeMs + CLOCK_SKEW_MS);
  return svid;
}

function readPrivateKey(pem: string): KeyObject {
  try {
    return createPrivateKey(pem);
  } catch {
    // Without the cause: parsers quote their input.
    throw new BulkheadError('INVALID_ARGUMENT', 'the private key is not an unencrypted PKCS#8 key in PEM');
  }
}
