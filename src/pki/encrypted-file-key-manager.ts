/**
 * The embedded default: all keys in one file, AES-256-GCM under a key derived from a 32-byte master key file beside it (0600).
 * Protects backups and copies of `keys.enc` that do not hold the master key, and detects tampering; against someone who reads the whole
 * directory as our user nothing in software helps (use OpenBao then). Must never: start with an unreadable file as if it were a new one.
 *
 * Destroying a tenant's key also changes the master key and overwrites the old one, so that old copies of `keys.enc` stay
 * closed. Order on every change: new master on disk, then `keys.enc` by rename, then the old master goes; a crash leaves one pair that fits.
 *
 * keys.enc: "BHK1" | master id (8) | salt (16) | nonce (12) | ciphertext of JSON | tag (16); everything before the ciphertext is AAD.
 */
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from 'node:crypto';
import { open, readdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import type { TenantName } from '../base/ids.ts';
import type { KeyManager } from './key-manager.ts';
import { MemoryKeyManager, type KeyState } from './memory-key-manager.ts';
import { openPrivateDirectory, readPrivateFile, syncDirectory, writeFileAtomic } from './private-file.ts';

const MAGIC = Buffer.from('BHK1');
const MASTER_BYTES = 32;
const HEADER_BYTES = 4 + 8 + 16 + 12;
const TAG_BYTES = 16;

const StateSchema = z.strictObject({
  signing: z.record(z.string(), z.base64()),
  tenants: z.record(z.string(), z.array(z.strictObject({ id: z.base64(), key: z.base64() })).min(1)),
});

interface Master {
  readonly id: string;
  readonly key: Buffer;
}

export class EncryptedFileKeyManager implements KeyManager {
  readonly #dir: string;
  #memory: MemoryKeyManager;
  #master: Master;
  /** What `keys.enc` held after our last write: another writer is a second head on the same directory. */
  #written: string;
  /** Changes happen one after the other. */
  #tail: Promise<unknown> = Promise.resolve();

  private constructor(dir: string, memory: MemoryKeyManager, master: Master, written: string) {
    this.#dir = dir;
    this.#memory = memory;
    this.#master = master;
    this.#written = written;
  }

  /** Opens `dir` or makes it (0700). Throws INVALID_ARGUMENT for loose permissions and tampering, with what to do. */
  static async open(dir: string): Promise<EncryptedFileKeyManager> {
    await openPrivateDirectory(dir);
    const path = join(dir, 'keys.enc');
    const sealed = await readPrivateFile(path);
    if (sealed === undefined) {
      const left = (await readdir(dir)).filter((name) => name.startsWith('master-'));
      // A crash between the first master key and the first keys.enc leaves such a file too; it protects nothing and may go, but a person must say so.
      if (left.length > 0) throw new BulkheadError('INVALID_ARGUMENT', `${path} is missing though ${left[0]} is there; restore it from a backup, or remove ${dir} to start a new cluster`);
      const master = await freshMaster(dir);
      const memory = new MemoryKeyManager();
      return new EncryptedFileKeyManager(dir, memory, master, await save(dir, memory.state(), master));
    }
    const master = await readMaster(dir, sealed, path);
    const manager = new EncryptedFileKeyManager(dir, new MemoryKeyManager(unseal(sealed, master, path)), master, digest(sealed));
    await removeOtherMasters(dir, master);
    return manager;
  }

  generateKey(id: string): Promise<Uint8Array> {
    return this.#change((memory) => memory.generateKey(id));
  }

  publicKey(id: string): Promise<Uint8Array | undefined> {
    return this.#memory.publicKey(id);
  }

  sign(id: string, bytes: Uint8Array, format: 'asn1' | 'jws'): Promise<Uint8Array> {
    return this.#memory.sign(id, bytes, format);
  }

  deleteKey(id: string): Promise<void> {
    return this.#change((memory) => memory.deleteKey(id));
  }

  createTenantKey(tenant: TenantName): Promise<void> {
    return this.#memory.hasTenantKey(tenant) ? this.#tail.then(() => undefined) : this.#change((memory) => memory.createTenantKey(tenant));
  }

  rotateTenantKey(tenant: TenantName): Promise<void> {
    return this.#change((memory) => memory.rotateTenantKey(tenant));
  }

  wrap(tenant: TenantName, bytes: Uint8Array, aad: Uint8Array): Promise<Uint8Array> {
    return this.#memory.wrap(tenant, bytes, aad);
  }

  unwrap(tenant: TenantName, wrapped: Uint8Array, aad: Uint8Array): Promise<Uint8Array> {
    return this.#memory.unwrap(tenant, wrapped, aad);
  }

  destroyTenantKey(tenant: TenantName): Promise<void> {
    return this.#memory.hasTenantKey(tenant) ? this.#change((memory) => memory.destroyTenantKey(tenant), tenant) : this.#tail.then(() => undefined);
  }

  /** Works on a copy and puts it in force once it is on disk: a key that a crash could lose signs and wraps nothing. */
  #change<T>(change: (memory: MemoryKeyManager) => Promise<T>, destroyed?: TenantName): Promise<T> {
    const done = this.#tail.then(async () => {
      const onDisk = await readPrivateFile(join(this.#dir, 'keys.enc'));
      if (onDisk === undefined || digest(onDisk) !== this.#written) throw new BulkheadError('UNAVAILABLE', `${join(this.#dir, 'keys.enc')} was changed by someone else; one head per data directory: stop the other one`);
      const copy = new MemoryKeyManager(this.#memory.state());
      const result = await change(copy);
      const before = { memory: this.#memory, master: this.#master };
      const master = destroyed === undefined ? before.master : await freshMaster(this.#dir);
      this.#written = await save(this.#dir, copy.state(), master);
      this.#memory = copy;
      this.#master = master;
      if (destroyed !== undefined) {
        await removeOtherMasters(this.#dir, master);
        await before.memory.destroyTenantKey(destroyed);
        before.master.key.fill(0);
      }
      return result;
    });
    this.#tail = done.catch(() => undefined);
    return done;
  }
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function kek(master: Master, salt: Uint8Array): Buffer {
  return Buffer.from(hkdfSync('sha256', master.key, salt, 'bulkhead key file v1', 32));
}

async function save(dir: string, state: KeyState, master: Master): Promise<string> {
  const header = Buffer.concat([MAGIC, Buffer.from(master.id, 'hex'), randomBytes(16), randomBytes(12)]);
  const cipher = createCipheriv('aes-256-gcm', kek(master, header.subarray(12, 28)), header.subarray(28));
  cipher.setAAD(header);
  const sealed = Buffer.concat([header, cipher.update(JSON.stringify(state), 'utf8'), cipher.final(), cipher.getAuthTag()]);
  await writeFileAtomic(join(dir, 'keys.enc'), sealed, 0o600);
  return digest(sealed);
}

function unseal(sealed: Buffer, master: Master, path: string): KeyState {
  const header = sealed.subarray(0, HEADER_BYTES);
  const decipher = createDecipheriv('aes-256-gcm', kek(master, header.subarray(12, 28)), header.subarray(28), { authTagLength: TAG_BYTES });
  decipher.setAAD(header);
  decipher.setAuthTag(sealed.subarray(-TAG_BYTES));
  try {
    const text = Buffer.concat([decipher.update(sealed.subarray(HEADER_BYTES, -TAG_BYTES)), decipher.final()]).toString('utf8');
    return StateSchema.parse(JSON.parse(text));
  } catch {
    throw new BulkheadError('INVALID_ARGUMENT', `${path} was altered or belongs to another master key; restore the whole directory from a backup`);
  }
}

async function freshMaster(dir: string): Promise<Master> {
  const master = { id: randomBytes(8).toString('hex'), key: randomBytes(MASTER_BYTES) };
  await writeFileAtomic(join(dir, `master-${master.id}.key`), master.key, 0o600);
  return master;
}

async function readMaster(dir: string, sealed: Buffer, path: string): Promise<Master> {
  if (sealed.length < HEADER_BYTES + TAG_BYTES || !sealed.subarray(0, 4).equals(MAGIC)) throw new BulkheadError('INVALID_ARGUMENT', `${path} is not a key file of this version; restore it from a backup`);
  const id = sealed.subarray(4, 12).toString('hex');
  const key = await readPrivateFile(join(dir, `master-${id}.key`));
  if (key === undefined) throw new BulkheadError('INVALID_ARGUMENT', `the master key master-${id}.key of ${path} is missing; restore it from where you keep it`);
  if (key.length !== MASTER_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `master-${id}.key beside ${path} is not ${MASTER_BYTES} bytes; restore it from where you keep it`);
  return { id, key };
}

/** Overwrites before unlinking: on a file system that writes in place the bytes are gone; on others this is the best there is. */
async function removeOtherMasters(dir: string, current: Master): Promise<void> {
  for (const name of await readdir(dir)) {
    if (!/^master-[0-9a-f]{16}\.key$/.test(name) || name === `master-${current.id}.key`) continue;
    const file = await open(join(dir, name), 'r+');
    try {
      await file.write(Buffer.alloc(MASTER_BYTES), 0, MASTER_BYTES, 0);
      await file.sync();
    } finally {
      await file.close();
    }
    await unlink(join(dir, name));
  }
  await syncDirectory(dir);
}
