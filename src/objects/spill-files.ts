/**
 * Objects that do not fit in memory, as files on disk: encrypted under the tenant's key, verified piece by piece when they come back. Files of an
 * earlier process are of no use to anybody (their owner died with it) and go at the start. Must never: write a plain octet to disk, give out a piece
 * that was not verified, or use a key and nonce twice.
 *
 *   <dir>/<tenant>/<name>   header | piece 0 | piece 1 | …      0600, directories 0700
 *   header   "BHSP" | version 1 (1) | length of the wrapped key (2, BE) | wrapped data key | salt (32)
 *   piece    AES-256-GCM of up to SPILL_CHUNK_BYTES of the value, then its tag (16)
 *
 * The data key is the head's to make (`NodeSync.DataKey`), one per tenant and raylet process; here it is in memory only, and in files as the key manager
 * wrapped it. Each file has a key of its own, HKDF-SHA-256 of the data key over the file's salt, so the nonce of piece n is just n: 11 octets
 * big-endian, then 1 for the last piece and 0 for others. The additional data of every piece binds it to the header, the tenant, the object's id, the
 * write of it (version) and its size: a file that is moved, renamed, cut, or an older one of the same object does not open.
 */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import { mkdirSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import { parseTenantName } from '../base/ids.ts';
import { AUDIT_DISK_RESERVE_BYTES, AUDIT_DISK_RESERVE_SHARE, SPILL_CHUNK_BYTES } from '../base/limits.ts';

/** A tenant's data key as the head made it. */
export interface DataKey {
  readonly key: Uint8Array;
  /** The same, as the key manager wrapped it. */
  readonly wrapped: Uint8Array;
}

/** Which value a file holds. */
export interface SpilledObject {
  readonly tenant: string;
  readonly fileName: string;
  /** Of the object. */
  readonly id: Uint8Array;
  /** Which write of it: a file of an earlier one does not open. */
  readonly version: number;
  readonly size: number;
}

/** The plain value, piece by piece. */
export interface PlainSource {
  read(into: Uint8Array, at: number, length: number, offset: number): number;
}

export interface SpillFilesOptions {
  readonly dir: string;
  readonly dataKey: (tenant: string) => Promise<DataKey>;
  /** Octets of the disk that are not for objects; the audit logs' own reserve twice over when left out. */
  readonly reserveBytes?: number;
}

const MAGIC = Buffer.from('BHSP');
const VERSION = 1;
const SALT_BYTES = 32;
const TAG_BYTES = 16;
const MAX_WRAPPED_BYTES = 4_096;
const FILE_NAME = /^sp-[0-9a-f]{40}-\d{1,10}$/;
const INFO = 'bulkhead spill v1';

export class SpillFiles {
  readonly #options: SpillFilesOptions;
  readonly #keys = new Map<string, Promise<DataKey>>();
  /** One after the other for each tenant, so that no tenant's flood delays another's. */
  readonly #tails = new Map<string, Promise<void>>();
  #closed = false;

  constructor(options: SpillFilesOptions) {
    this.#options = options;
    mkdirSync(options.dir, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(options.dir)) rmSync(join(options.dir, name), { recursive: true, force: true });
  }

  #path({ tenant, fileName }: Pick<SpilledObject, 'tenant' | 'fileName'>): string {
    if (!FILE_NAME.test(fileName)) throw new BulkheadError('INTERNAL', 'a spill file has a name that the raylet did not make');
    return join(this.#options.dir, parseTenantName(tenant), fileName);
  }

  #inTurn<T>(tenant: string, act: () => Promise<T>): Promise<T> {
    const done = (this.#tails.get(tenant) ?? Promise.resolve()).then(() => {
      if (this.#closed) throw new BulkheadError('UNAVAILABLE', 'the raylet is stopping');
      return act();
    });
    const tail = done.then(() => undefined, () => undefined);
    this.#tails.set(tenant, tail);
    void tail.then(() => {
      if (this.#tails.get(tenant) === tail) this.#tails.delete(tenant);
    });
    return done;
  }

  async #keyOf(tenant: string): Promise<DataKey> {
    let key = this.#keys.get(tenant);
    if (key === undefined) {
      this.#keys.set(tenant, (key = this.#options.dataKey(tenant)));
      key.catch(() => {
        if (this.#keys.get(tenant) === key) this.#keys.delete(tenant);
      });
    }
    return await key;
  }

  /**
   * Writes the encrypted copy of a value. Throws RESOURCE_EXHAUSTED when the disk is full, OBJECT_LOST when the value is shorter than it was,
   * what the head said when there is no key. Nothing is left of a file that was not finished.
   */
  write(object: SpilledObject, source: PlainSource): Promise<void> {
    return this.#inTurn(object.tenant, async () => {
      const { key, wrapped } = await this.#keyOf(object.tenant);
      const path = this.#path(object);
      this.#checkRoom(object.size);
      mkdirSync(join(this.#options.dir, parseTenantName(object.tenant)), { recursive: true, mode: 0o700 });
      const salt = randomBytes(SALT_BYTES);
      const header = Buffer.concat([MAGIC, Buffer.of(VERSION, wrapped.length >> 8, wrapped.length & 0xff), wrapped, salt]);
      const fileKey = deriveKey(key, salt);
      const bound = boundTo(header, object);
      let file: FileHandle | undefined;
      try {
        file = await open(path, 'wx', 0o600);
        await file.writev([header]);
        const plain = Buffer.allocUnsafe(Math.min(SPILL_CHUNK_BYTES, object.size));
        for (let offset = 0, piece = 0; offset < object.size; piece++) {
          const length = Math.min(SPILL_CHUNK_BYTES, object.size - offset);
          if (source.read(plain, 0, length, offset) !== length) throw new BulkheadError('OBJECT_LOST', 'an object file is shorter than it was');
          const cipher = createCipheriv('aes-256-gcm', fileKey, nonce(piece, offset + length === object.size));
          cipher.setAAD(bound);
          await file.writev([cipher.update(plain.subarray(0, length)), cipher.final(), cipher.getAuthTag()]);
          offset += length;
        }
        await file.close();
      } catch (error) {
        await file?.close().catch(() => undefined);
        rmSync(path, { force: true });
        if (error instanceof BulkheadError) throw error;
        throw new BulkheadError('RESOURCE_EXHAUSTED', 'the disk of the node takes no more objects', { cause: error });
      } finally {
        fileKey.fill(0);
      }
    });
  }

  /** Gives the value's pieces in order, each verified before. Throws OBJECT_LOST when the file is not what was written for this object; anything else may pass. */
  read(object: SpilledObject, sink: (offset: number, bytes: Uint8Array, last: boolean) => void): Promise<void> {
    return this.#inTurn(object.tenant, async () => {
      const { key, wrapped } = await this.#keyOf(object.tenant);
      const lost = (cause?: unknown): BulkheadError => new BulkheadError('OBJECT_LOST', 'the encrypted copy on disk is not what was written: damaged, or exchanged', { cause });
      let file: FileHandle;
      try {
        file = await open(this.#path(object), 'r');
      } catch (error) {
        throw (error as NodeJS.ErrnoException).code === 'ENOENT' ? lost(error) : error;
      }
      let fileKey: Buffer | undefined;
      try {
        const header = await readExactly(file, MAGIC.length + 3 + wrapped.length + SALT_BYTES);
        // Of another process, tenant or key: the same answer.
        if (header === undefined || wrapped.length > MAX_WRAPPED_BYTES || !header.subarray(0, -SALT_BYTES).equals(Buffer.concat([MAGIC, Buffer.of(VERSION, wrapped.length >> 8, wrapped.length & 0xff), wrapped]))) throw lost();
        fileKey = deriveKey(key, header.subarray(-SALT_BYTES));
        const bound = boundTo(header, object);
        for (let offset = 0, piece = 0; offset < object.size; piece++) {
          const length = Math.min(SPILL_CHUNK_BYTES, object.size - offset);
          const sealed = await readExactly(file, length + TAG_BYTES);
          if (sealed === undefined) throw lost();
          const last = offset + length === object.size;
          const decipher = createDecipheriv('aes-256-gcm', fileKey, nonce(piece, last), { authTagLength: TAG_BYTES });
          decipher.setAAD(bound);
          decipher.setAuthTag(sealed.subarray(length));
          const plain = decipher.update(sealed.subarray(0, length));
          try {
            decipher.final();
          } catch (error) {
            throw lost(error);
          }
          sink(offset, plain, last);
          offset += length;
        }
      } finally {
        fileKey?.fill(0);
        await file.close().catch(() => undefined);
      }
    });
  }

  /** The object is gone, or another copy took its place. */
  delete(tenant: string, fileName: string): void {
    rmSync(this.#path({ tenant, fileName }), { force: true });
  }

  /** All of a tenant that is gone, its key first: what a disk keeps of deleted files stays closed. */
  forget(tenant: string): void {
    void this.#keys.get(tenant)?.then(({ key }) => key.fill(0), () => undefined);
    this.#keys.delete(tenant);
    rmSync(join(this.#options.dir, parseTenantName(tenant)), { recursive: true, force: true });
  }

  close(): void {
    this.#closed = true;
    for (const tenant of [...this.#keys.keys()]) this.forget(tenant);
    rmSync(this.#options.dir, { recursive: true, force: true });
  }

  /** The audit logs are on the same disk, and without them no call is carried out. */
  #checkRoom(size: number): void {
    const { bavail, blocks, bsize } = statfsSync(this.#options.dir);
    const reserve = this.#options.reserveBytes ?? 2 * Math.min(AUDIT_DISK_RESERVE_BYTES, blocks * bsize * AUDIT_DISK_RESERVE_SHARE);
    if (bavail * bsize - size < reserve) throw new BulkheadError('RESOURCE_EXHAUSTED', 'the disk of the node has no room left for objects');
  }
}

function deriveKey(key: Uint8Array, salt: Uint8Array): Buffer {
  return Buffer.from(hkdfSync('sha256', key, salt, INFO, 32));
}

function nonce(piece: number, last: boolean): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32BE(piece, 7);
  bytes[11] = last ? 1 : 0;
  return bytes;
}

/** Every field has a fixed length or its length before it, so that no two objects give the same octets. */
function boundTo(header: Buffer, { tenant, id, version, size }: SpilledObject): Buffer {
  const name = Buffer.from(tenant, 'utf8');
  const fixed = Buffer.alloc(18);
  fixed.writeUInt16BE(header.length, 0);
  fixed.writeUInt16BE(name.length, 2);
  fixed.writeUInt16BE(id.length, 4);
  fixed.writeUInt32BE(version, 6);
  fixed.writeBigUInt64BE(BigInt(size), 10);
  return Buffer.concat([fixed, header, name, id]);
}

async function readExactly(file: FileHandle, length: number): Promise<Buffer | undefined> {
  const bytes = Buffer.allocUnsafe(length);
  for (let at = 0; at < length; ) {
    const { bytesRead } = await file.read(bytes, at, length - at, null);
    if (bytesRead === 0) return undefined;
    at += bytesRead;
  }
  return bytes;
}
