/**
 * The seam behind which keys live: memory (tests), encrypted file (embedded default), OpenBao (production, later). One contract
 * suite runs against all: test/contract/key-manager.test.ts. Must never: hand out a private or a tenant key, or make a tenant key
 * that nobody asked for (a destroyed tenant's data must stay unreadable).
 *
 * Signing keys are EC P-256 and immutable under their id: rotation is a new id. Tenant keys are AES-256-GCM and versioned inside
 * the wrapped bytes, as in OpenBao's transit engine.
 */
import { BulkheadError } from '../base/errors.ts';
import type { TenantName } from '../base/ids.ts';

export interface KeyManager {
  /** A new EC P-256 key. Throws INVALID_ARGUMENT when the id is taken. Returns its SubjectPublicKeyInfo (DER). */
  generateKey(id: string): Promise<Uint8Array>;
  /** SubjectPublicKeyInfo (DER), or undefined when there is no such key. */
  publicKey(id: string): Promise<Uint8Array | undefined>;
  /** ECDSA with SHA-256 over `bytes`: `asn1` for certificates, `jws` (r || s) for JWTs. Throws INVALID_ARGUMENT for an unknown key. */
  sign(id: string, bytes: Uint8Array, format: 'asn1' | 'jws'): Promise<Uint8Array>;
  /** No-op when there is no such key. */
  deleteKey(id: string): Promise<void>;

  /** Makes the tenant's key-encryption key; no-op when there is one. After `destroyTenantKey` it makes an unrelated one. */
  createTenantKey(tenant: TenantName): Promise<void>;
  /** Later `wrap`s use a new key; earlier wrapped bytes stay readable. */
  rotateTenantKey(tenant: TenantName): Promise<void>;
  /** Encrypts a data key (at most 4 KiB) under the tenant's key, bound to tenant and `aad`. */
  wrap(tenant: TenantName, bytes: Uint8Array, aad: Uint8Array): Promise<Uint8Array>;
  /** Throws INVALID_ARGUMENT, the same for foreign, altered, misbound and destroyed-key input. */
  unwrap(tenant: TenantName, wrapped: Uint8Array, aad: Uint8Array): Promise<Uint8Array>;
  /** Crypto-shredding: everything ever wrapped for the tenant is unreadable once this returns. No-op when there is no key. */
  destroyTenantKey(tenant: TenantName): Promise<void>;
}

/** Key ids end up in file and URL paths of key managers. */
export function checkKeyId(id: string): void {
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(id)) throw new BulkheadError('INVALID_ARGUMENT', 'key id is not valid: lower-case letters, digits and hyphens, 1 to 63 characters');
}
