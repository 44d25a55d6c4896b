/**
 * Keys in this process's memory: for tests, and the engine of the encrypted-file key manager, which saves `state()` on every change.
 * Must never: write a key to a log or an error.
 */
import { createCipheriv, createDecipheriv, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto';
import { BulkheadError, invariant } from '../base/errors.ts';
import type { TenantName } from '../base/ids.ts';
import { checkKeyId, type KeyManager } from './key-manager.ts';

/** JSON-able; bytes are base64. */
export interface KeyState {
  readonly signing: Readonly<Record<string, string>>;
  /** Newest last; the last one wraps. */
  readonly tenants: Readonly<Record<string, readonly { readonly id: string; readonly key: string }[]>>;
}

interface SigningKey {
  readonly privateKey: KeyObject;
  readonly spkiDer: Uint8Array;
}

interface TenantKey {
  /** Random, so that bytes wrapped under a destroyed key never meet a new one of the same number. */
  readonly id: Buffer;
  readonly key: Buffer;
}

const WRAPPED_VERSION = 1;
const KEY_ID_BYTES = 16;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const HEADER_BYTES = 1 + KEY_ID_BYTES + NONCE_BYTES;
const MAX_WRAPPED_PLAINTEXT_BYTES = 4_096;

export class MemoryKeyManager implements KeyManager {
  readonly #signing = new Map<string, SigningKey>();
  readonly #tenants = new Map<string, TenantKey[]>();

  constructor(state?: KeyState) {
    for (const [id, pkcs8] of Object.entries(state?.signing ?? {})) this.#signing.set(id, signingKey(createPrivateKey({ key: Buffer.from(pkcs8, 'base64'), format: 'der', type: 'pkcs8' })));
    for (const [tenant, keys] of Object.entries(state?.tenants ?? {})) this.#tenants.set(tenant, keys.map((k) => ({ id: Buffer.from(k.id, 'base64'), key: Buffer.from(k.key, 'base64') })));
  }

  /** Secret: only for the encrypted-file key manager. */
  state(): KeyState {
    return {
      signing: Object.fromEntries([...this.#signing].map(([id, { privateKey }]) => [id, privateKey.export({ format: 'der', type: 'pkcs8' }).toString('base64')])),
      tenants: Object.fromEntries([...this.#tenants].map(([tenant, keys]) => [tenant, keys.map(({ id, key }) => ({ id: id.toString('base64'), key: key.toString('base64') }))])),
    };
  }

  async generateKey(id: string): Promise<Uint8Array> {
    checkKeyId(id);
    if (this.#signing.has(id)) throw new BulkheadError('INVALID_ARGUMENT', `key ${id} exists already; a new key needs a new id`);
    const key = signingKey(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey);
    this.#signing.set(id, key);
    return key.spkiDer;
  }

  async publicKey(id: string): Promise<Uint8Array | undefined> {
    return this.#signing.get(id)?.spkiDer;
  }

  async sign(id: string, bytes: Uint8Array, format: 'asn1' | 'jws'): Promise<Uint8Array> {
    const key = this.#signing.get(id);
    if (key === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'there is no such signing key');
    return sign('sha256', bytes, { key: key.privateKey, dsaEncoding: format === 'jws' ? 'ieee-p1363' : 'der' });
  }

  async deleteKey(id: string): Promise<void> {
    this.#signing.delete(id);
  }

  async createTenantKey(tenant: TenantName): Promise<void> {
    if (!this.#tenants.has(tenant)) this.#tenants.set(tenant, [freshTenantKey()]);
  }

  async rotateTenantKey(tenant: TenantName): Promise<void> {
    this.#tenantKeys(tenant).push(freshTenantKey());
  }

  async wrap(tenant: TenantName, bytes: Uint8Array, aad: Uint8Array): Promise<Uint8Array> {
    if (bytes.length > MAX_WRAPPED_PLAINTEXT_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `only keys of at most ${MAX_WRAPPED_PLAINTEXT_BYTES} bytes are wrapped; encrypt data under a wrapped key`);
    const current = this.#tenantKeys(tenant).at(-1);
    invariant(current !== undefined, 'a tenant has at least one key');
    const header = Buffer.concat([Buffer.of(WRAPPED_VERSION), current.id, randomBytes(NONCE_BYTES)]);
    const cipher = createCipheriv('aes-256-gcm', current.key, header.subarray(1 + KEY_ID_BYTES));
    cipher.setAAD(boundTo(tenant, header, aad));
    return Buffer.concat([header, cipher.update(bytes), cipher.final(), cipher.getAuthTag()]);
  }

  async unwrap(tenant: TenantName, wrapped: Uint8Array, aad: Uint8Array): Promise<Uint8Array> {
    const input = Buffer.from(wrapped);
    const header = input.subarray(0, HEADER_BYTES);
    const used = this.#tenants.get(tenant)?.find(({ id }) => id.equals(header.subarray(1, 1 + KEY_ID_BYTES)));
    if (used !== undefined && header[0] === WRAPPED_VERSION && input.length >= HEADER_BYTES + TAG_BYTES) {
      const decipher = createDecipheriv('aes-256-gcm', used.key, header.subarray(1 + KEY_ID_BYTES), { authTagLength: TAG_BYTES });
      decipher.setAAD(boundTo(tenant, header, aad));
      decipher.setAuthTag(input.subarray(-TAG_BYTES));
      try {
        return Buffer.concat([decipher.update(input.subarray(HEADER_BYTES, -TAG_BYTES)), decipher.final()]);
      } catch {
        // Falls through: one answer for every kind of bad input.
      }
    }
    throw new BulkheadError('INVALID_ARGUMENT', 'the wrapped key cannot be opened: altered, wrapped for something else, or its key is destroyed');
  }

  async destroyTenantKey(tenant: TenantName): Promise<void> {
    for (const { key } of this.#tenants.get(tenant) ?? []) key.fill(0);
    this.#tenants.delete(tenant);
  }

  hasTenantKey(tenant: TenantName): boolean {
    return this.#tenants.has(tenant);
  }

  #tenantKeys(tenant: TenantName): TenantKey[] {
    const keys = this.#tenants.get(tenant);
    if (keys === undefined) throw new BulkheadError('UNAVAILABLE', 'the tenant has no key: it was never made, or it is destroyed');
    return keys;
  }
}

function signingKey(privateKey: KeyObject): SigningKey {
  return { privateKey, spkiDer: Uint8Array.from(createPublicKey(privateKey).export({ format: 'der', type: 'spki' })) };
}

function freshTenantKey(): TenantKey {
  return { id: randomBytes(KEY_ID_BYTES), key: randomBytes(32) };
}

/** Length-prefixed, so that no two (tenant, aad) pairs give the same bytes. */
function boundTo(tenant: string, header: Buffer, aad: Uint8Array): Buffer {
  const name = Buffer.from(tenant, 'utf8');
  return Buffer.concat([header, Buffer.of(name.length >> 8, name.length & 0xff), name, aad]);
}
