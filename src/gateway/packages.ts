/**
 * Uploaded archives, until jobs have taken them: in memory only, each its uploader's own, so that nobody's name for an archive can bring somebody else's code. Must never: hold more than
 * its limits, or hand a package to another principal.
 */
import { BulkheadError } from '../base/errors.ts';
import { checkZip } from './core/zip-directory.ts';

/** Code of a job is at most 16 MiB with everything. */
export const MAX_PACKAGE_BYTES = 12 * 2 ** 20;
const MAX_BYTES_PER_PRINCIPAL = 64 * 2 ** 20;
const MAX_BYTES = 512 * 2 ** 20;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.zip$/;

export function packageName(protocol: string, name: string): string {
  if (protocol !== 'gcs') throw new BulkheadError('INVALID_ARGUMENT', 'packages are kept under gcs://, as Ray’s clients upload directories');
  if (!NAME.test(name) || name.includes('..')) throw new BulkheadError('INVALID_ARGUMENT', 'a package is a .zip archive whose name is letters, digits, _ . -');
  return name;
}

export class Packages {
  /** Oldest use first. */
  readonly #held = new Map<string, { readonly owner: string; readonly bytes: Uint8Array }>();
  #total = 0;

  get(owner: string, name: string): Uint8Array | undefined {
    const key = `${owner} ${name}`;
    const found = this.#held.get(key);
    if (found === undefined) return undefined;
    this.#held.delete(key);
    this.#held.set(key, found);
    return found.bytes;
  }

  /** Throws INVALID_ARGUMENT for what is no plain archive. */
  put(owner: string, name: string, bytes: Uint8Array): void {
    checkZip(bytes);
    const key = `${owner} ${name}`;
    this.#drop(key);
    this.#held.set(key, { owner, bytes });
    this.#total += bytes.length;
    let own = 0;
    for (const held of this.#held.values()) if (held.owner === owner) own += held.bytes.length;
    for (const [other, held] of this.#held) {
      if (own <= MAX_BYTES_PER_PRINCIPAL) break;
      if (held.owner !== owner || other === key) continue;
      own -= held.bytes.length;
      this.#drop(other);
    }
    // Whoever has the most pays, so that one tenant's uploads do not push out another's.
    while (this.#total > MAX_BYTES) this.#drop(this.#oldestOfLargest());
  }

  #drop(key: string): void {
    const found = this.#held.get(key);
    if (found === undefined) return;
    this.#held.delete(key);
    this.#total -= found.bytes.length;
  }

  #oldestOfLargest(): string {
    const sums = new Map<string, number>();
    for (const { owner, bytes } of this.#held.values()) sums.set(owner, (sums.get(owner) ?? 0) + bytes.length);
    const [largest] = [...sums].reduce((a, b) => (b[1] > a[1] ? b : a));
    for (const [key, { owner }] of this.#held) if (owner === largest) return key;
    throw new BulkheadError('INTERNAL', 'bytes of packages that are not there');
  }
}
