/**
 * Large objects as files on tmpfs, one directory per tenant: written once, sealed, read by many. Workers get them by hard link
 * (src/sandbox), so nothing is copied for a read. Must never: follow a name from a client; give one tenant's file to another.
 */
import { createHash, type Hash } from 'node:crypto';
import { closeSync, fstatSync, ftruncateSync, mkdirSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import { parseTenantName } from '../base/ids.ts';

/** Names are made by the raylet from session prefixes and indexes; anything else is our own defect. */
const FILE_NAME = /^[a-z]{2,8}-[0-9a-f]{40}-\d{1,10}$/;

const MAX_OPEN_FILES = 64;
const COPY_CHUNK_BYTES = 2 ** 20;
/** Enough to see what kind of value begins. */
const START_BYTES = 16;

export class ObjectFiles {
  readonly #dir: string;
  readonly #open = new Map<string, number>();
  /** Of files that come from other nodes, until they are compared: read once, as they are written. */
  readonly #hashes = new Map<string, Hash>();

  /** `dir` must be on the same tmpfs as the worker pool's run directory. */
  constructor(dir: string) {
    this.#dir = dir;
    mkdirSync(dir, { recursive: true, mode: 0o711 });
  }

  path(tenant: string, fileName: string): string {
    if (!FILE_NAME.test(fileName)) throw new BulkheadError('INTERNAL', 'an object file has a name that the raylet did not make');
    return join(this.#dir, parseTenantName(tenant), fileName);
  }

  prepare(tenant: string): void {
    mkdirSync(join(this.#dir, parseTenantName(tenant)), { recursive: true, mode: 0o711 });
  }

  /** Parts come in order; the last one seals. A full tmpfs throws RESOURCE_EXHAUSTED. */
  writePart(tenant: string, fileName: string, offset: number, bytes: Uint8Array, last: boolean): void {
    const path = this.path(tenant, fileName);
    let fd = this.#open.get(path);
    if (fd === undefined) {
      this.prepare(tenant);
      // 0644: a worker's user reads it through its own hard link; the directories above are closed to it.
      fd = openSync(path, offset === 0 ? 'wx' : 'r+', 0o644);
      this.#open.set(path, fd);
      // One that waits for its next part is opened again then: descriptors are few, and shared by all tenants.
      const oldest = this.#open.entries().next().value;
      if (this.#open.size > MAX_OPEN_FILES && oldest !== undefined) {
        this.#open.delete(oldest[0]);
        closeSync(oldest[1]);
      }
    }
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, offset + at);
    } catch (error) {
      this.delete(tenant, fileName);
      throw new BulkheadError('RESOURCE_EXHAUSTED', 'the node has no memory left for objects: release refs and try again', { cause: error });
    }
    if (fileName.startsWith('in-')) {
      if (offset === 0) this.#hashes.set(path, createHash('sha256'));
      this.#hashes.get(path)?.update(bytes);
    }
    if (!last) return;
    closeSync(fd);
    this.#open.delete(path);
  }

  /** Whether a file that came from another node, whole, has this SHA-256. Can be asked once. */
  check(tenant: string, fileName: string, digest: Uint8Array): boolean {
    const path = this.path(tenant, fileName);
    const hash = this.#hashes.get(path);
    this.#hashes.delete(path);
    return hash !== undefined && hash.digest().equals(digest);
  }

  /** Where a sealed file of a worker is to be moved. */
  destination(tenant: string, fileName: string): string {
    this.prepare(tenant);
    return this.path(tenant, fileName);
  }

  delete(tenant: string, fileName: string): void {
    const path = this.path(tenant, fileName);
    const fd = this.#open.get(path);
    if (fd !== undefined) closeSync(fd);
    this.#open.delete(path);
    this.#hashes.delete(path);
    rmSync(path, { force: true });
  }

  /** All of a tenant that is gone. */
  forget(tenant: string): void {
    const dir = join(this.#dir, parseTenantName(tenant));
    for (const [path, fd] of this.#open) {
      if (dirname(path) !== dir) continue;
      closeSync(fd);
      this.#open.delete(path);
    }
    for (const path of this.#hashes.keys()) if (dirname(path) === dir) this.#hashes.delete(path);
    rmSync(dir, { recursive: true, force: true });
  }

  /** How a sealed file begins. */
  start(tenant: string, fileName: string): Uint8Array {
    const reader = this.reader(tenant, fileName);
    try {
      const start = new Uint8Array(START_BYTES);
      return start.subarray(0, reader.read(start, 0, START_BYTES, 0));
    } finally {
      reader.close();
    }
  }

  /** Opens for a transfer; the descriptor outlives a deletion, so that a reader is never cut off halfway. */
  reader(tenant: string, fileName: string): ObjectReader {
    return new ObjectReader(openSync(this.path(tenant, fileName), 'r'));
  }

  /**
   * Copies exactly `size` octets for another tenant. The owner's worker may have kept the file open: one that it made longer costs no more,
   * and one that it made shorter ends in zeros, since a missing file would be its reader's harm. `accept` is asked about the SHA-256 and the start of
   * what was copied; what it does not accept becomes zeros, which are no value.
   */
  copy(fromTenant: string, fileName: string, toTenant: string, copyName: string, size: number, accept: (digest: Uint8Array, start: Uint8Array) => boolean): void {
    this.prepare(toTenant);
    const path = this.path(toTenant, copyName);
    const fd = openSync(path, 'wx', 0o644);
    try {
      const reader = this.reader(fromTenant, fileName);
      try {
        const chunk = new Uint8Array(Math.min(size, COPY_CHUNK_BYTES));
        const hash = createHash('sha256');
        let start = new Uint8Array(0);
        for (let offset = 0; offset < size; ) {
          let n = reader.read(chunk, 0, Math.min(chunk.length, size - offset), offset);
          if (n === 0) n = chunk.fill(0, 0, Math.min(chunk.length, size - offset)).length;
          n = Math.min(n, size - offset);
          if (offset === 0) start = chunk.slice(0, Math.min(n, START_BYTES));
          hash.update(chunk.subarray(0, n));
          for (let at = 0; at < n; ) at += writeSync(fd, chunk, at, n - at, offset + at);
          offset += n;
        }
        if (!accept(hash.digest(), start)) ftruncateSync(fd, 0);
      } finally {
        reader.close();
      }
      ftruncateSync(fd, size);
    } catch (error) {
      rmSync(path, { force: true });
      throw error;
    } finally {
      closeSync(fd);
    }
  }

  close(): void {
    for (const fd of this.#open.values()) closeSync(fd);
    this.#open.clear();
    this.#hashes.clear();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

export class ObjectReader {
  readonly #fd: number;
  readonly size: number;
  #closed = false;

  constructor(fd: number) {
    this.#fd = fd;
    this.size = fstatSync(fd).size;
  }

  /** Fills `into` from `at` on; returns how many octets. */
  read(into: Uint8Array, at: number, length: number, offset: number): number {
    return readSync(this.#fd, into, at, length, offset);
  }

  close(): void {
    if (!this.#closed) closeSync(this.#fd);
    this.#closed = true;
  }
}
