/**
 * The Merkle tree of RFC 6962 §2.1: frontier for appending, roots, inclusion and consistency proofs and their checks.
 * Must never: know what a leaf means, or hash by itself (the hash function is passed in, so that this file needs no host).
 */
import { BulkheadError, invariant } from '../../base/errors.ts';

export const HASH_BYTES = 32;
/** Leaves under one hash of the next tile level (C2SP tlog-tiles). */
export const TILE_WIDTH = 256;
const TILE_LEVELS = 8;
/** A tree of 2^53 leaves is as large as a number counts. */
const MAX_LEVELS = 53;

export interface Hasher {
  /** SHA-256 of `bytes[from, to)`, written to `out` at `at`. */
  into(bytes: Uint8Array, from: number, to: number, out: Uint8Array, at: number): void;
}

/** Hash of a leaf: H(0x00 ‖ entry). */
export function leafHash(hasher: Hasher, entry: Uint8Array): Uint8Array {
  const input = new Uint8Array(entry.length + 1);
  input.set(entry, 1);
  const out = new Uint8Array(HASH_BYTES);
  hasher.into(input, 0, input.length, out, 0);
  return out;
}

/** Hash of an inner node: H(0x01 ‖ left ‖ right). */
export function nodeHash(hasher: Hasher, left: Uint8Array, right: Uint8Array): Uint8Array {
  const input = new Uint8Array(1 + 2 * HASH_BYTES);
  input[0] = 1;
  input.set(left, 1);
  input.set(right, 1 + HASH_BYTES);
  const out = new Uint8Array(HASH_BYTES);
  hasher.into(input, 0, input.length, out, 0);
  return out;
}

/** Root of the tree over these perfect subtrees, given from the highest (leftmost) to the lowest. */
export function foldRight(hasher: Hasher, subtrees: readonly Uint8Array[]): Uint8Array {
  const last = subtrees.at(-1);
  if (last === undefined) {
    const empty = new Uint8Array(HASH_BYTES);
    hasher.into(empty, 0, 0, empty, 0);
    return empty;
  }
  let root = last;
  for (let i = subtrees.length - 2; i >= 0; i--) root = nodeHash(hasher, subtrees[i] as Uint8Array, root);
  return root;
}

/** The right edge of a growing tree: one hash per set bit of its size. Appending allocates nothing. */
export class Frontier {
  readonly #hasher: Hasher;
  /** Root of the perfect subtree of 2^level leaves, where bit `level` of the size is set. */
  readonly #nodes = new Uint8Array(MAX_LEVELS * HASH_BYTES);
  /** 0x01 ‖ left ‖ right; the hash just computed stands in `right`, ready to be merged. */
  readonly #pair = new Uint8Array(1 + 2 * HASH_BYTES);
  #size = 0;
  /** Root of the last full group of 256 leaves: the level-1 tile hash, valid right after an append that made `size` a multiple of 256. */
  readonly bundleRoot = new Uint8Array(HASH_BYTES);

  constructor(hasher: Hasher) {
    this.#hasher = hasher;
    this.#pair[0] = 1;
  }

  get size(): number {
    return this.#size;
  }

  /** Appends the leaf whose hash input, the leading 0x00 included, is `bytes[from, to)`. */
  appendInput(bytes: Uint8Array, from: number, to: number): void {
    this.#hasher.into(bytes, from, to, this.#pair, 1 + HASH_BYTES);
    this.#merge(0);
  }

  /** Appends a leaf by its hash. */
  appendLeafHash(hash: Uint8Array): void {
    this.#pair.set(hash, 1 + HASH_BYTES);
    this.#merge(0);
  }

  /** Appends the root of 256 leaves at once; the size must be a multiple of 256. */
  appendBundleRoot(hash: Uint8Array): void {
    invariant(this.#size % TILE_WIDTH === 0, 'a bundle starts at a multiple of 256');
    this.#pair.set(hash, 1 + HASH_BYTES);
    this.bundleRoot.set(hash);
    this.#merge(TILE_LEVELS);
  }

  #merge(fromLevel: number): void {
    const pair = this.#pair;
    const nodes = this.#nodes;
    let level = fromLevel;
    let n = fromLevel === 0 ? this.#size : this.#size / TILE_WIDTH;
    while ((n & 1) === 1) {
      const at = level * HASH_BYTES;
      for (let i = 0; i < HASH_BYTES; i++) pair[1 + i] = nodes[at + i] as number;
      this.#hasher.into(pair, 0, pair.length, pair, 1 + HASH_BYTES);
      level++;
      n = (n - 1) / 2;
      if (level === TILE_LEVELS && fromLevel === 0) for (let i = 0; i < HASH_BYTES; i++) this.bundleRoot[i] = pair[33 + i] as number;
    }
    const at = level * HASH_BYTES;
    for (let i = 0; i < HASH_BYTES; i++) nodes[at + i] = pair[33 + i] as number;
    this.#size += fromLevel === 0 ? 1 : TILE_WIDTH;
  }

  /** Perfect subtrees from the largest to the smallest; with `size` they are the whole state. */
  hashes(): Uint8Array[] {
    const out: Uint8Array[] = [];
    for (let level = MAX_LEVELS - 1; level >= 0; level--) {
      if (Math.floor(this.#size / 2 ** level) % 2 === 1) out.push(this.#nodes.slice(level * HASH_BYTES, (level + 1) * HASH_BYTES));
    }
    return out;
  }

  root(): Uint8Array {
    return foldRight(this.#hasher, this.hashes());
  }

  /** The state that `hashes()` of a tree of `size` leaves gave. Throws INVALID_ARGUMENT when their number does not fit the size. */
  static restore(hasher: Hasher, size: number, hashes: readonly Uint8Array[]): Frontier {
    const frontier = new Frontier(hasher);
    frontier.#size = size;
    let used = 0;
    for (let level = MAX_LEVELS - 1; level >= 0; level--) {
      if (Math.floor(size / 2 ** level) % 2 !== 1) continue;
      const hash = hashes[used++];
      if (hash === undefined || hash.length !== HASH_BYTES) throw new BulkheadError('INVALID_ARGUMENT', 'a frontier does not fit its tree size');
      frontier.#nodes.set(hash, level * HASH_BYTES);
    }
    if (used !== hashes.length || !Number.isSafeInteger(size) || size < 0) throw new BulkheadError('INVALID_ARGUMENT', 'a frontier does not fit its tree size');
    return frontier;
  }
}

// --- proofs (RFC 9162 §2.1.3 and §2.1.4, the same trees as RFC 6962) ---------------------------------------------------

/** Root of the perfect subtree of leaves [index·2^level, (index+1)·2^level). */
export type NodeAt = (level: number, index: number) => Uint8Array;

/** Largest power of two smaller than n, for n ≥ 2. */
function splitPoint(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

/** Merkle hash of leaves [from, to) of a tree in which this range is a subtree or the right edge of one. */
export function rangeHash(hasher: Hasher, nodeAt: NodeAt, from: number, to: number): Uint8Array {
  const n = to - from;
  const level = Math.log2(n);
  if (Number.isInteger(level) && from % n === 0) return nodeAt(level, from / n);
  const k = splitPoint(n);
  return nodeHash(hasher, rangeHash(hasher, nodeAt, from, from + k), rangeHash(hasher, nodeAt, from + k, to));
}

/** Audit path of leaf `index` in the tree of `size` leaves, from the leaf upwards. */
export function inclusionProof(hasher: Hasher, nodeAt: NodeAt, index: number, size: number): Uint8Array[] {
  if (!(index >= 0 && index < size)) throw new BulkheadError('INVALID_ARGUMENT', `leaf ${index} is not in a tree of ${size} leaves`);
  const path: Uint8Array[] = [];
  let from = 0;
  let to = size;
  while (to - from > 1) {
    const middle = from + splitPoint(to - from);
    if (index < middle) {
      path.push(rangeHash(hasher, nodeAt, middle, to));
      to = middle;
    } else {
      path.push(rangeHash(hasher, nodeAt, from, middle));
      from = middle;
    }
  }
  return path.reverse();
}

/** Whether `proof` shows that the leaf with this hash stands at `index` of the tree of `size` leaves with this root. */
export function verifyInclusion(hasher: Hasher, index: number, size: number, leaf: Uint8Array, proof: readonly Uint8Array[], root: Uint8Array): boolean {
  if (!Number.isSafeInteger(index) || !Number.isSafeInteger(size) || index < 0 || index >= size) return false;
  let fn = index;
  let sn = size - 1;
  let r = leaf;
  for (const p of proof) {
    if (sn === 0 || p.length !== HASH_BYTES) return false;
    if (fn % 2 === 1 || fn === sn) {
      r = nodeHash(hasher, p, r);
      while (fn % 2 === 0 && fn !== 0) {
        fn = Math.floor(fn / 2);
        sn = Math.floor(sn / 2);
      }
    } else r = nodeHash(hasher, r, p);
    fn = Math.floor(fn / 2);
    sn = Math.floor(sn / 2);
  }
  return sn === 0 && equalBytes(r, root);
}

/** Proof that the tree of `newSize` leaves extends the tree of `oldSize` leaves. */
export function consistencyProof(hasher: Hasher, nodeAt: NodeAt, oldSize: number, newSize: number): Uint8Array[] {
  if (!(oldSize >= 0 && oldSize <= newSize)) throw new BulkheadError('INVALID_ARGUMENT', `a tree of ${newSize} leaves does not extend one of ${oldSize}`);
  if (oldSize === 0 || oldSize === newSize) return [];
  const proof: Uint8Array[] = [];
  let from = 0;
  let to = newSize;
  let whole = true;
  // Descend to the old tree's last leaf's subtree; `whole` while [from, oldSize) is known to the verifier as the old root itself.
  while (to !== oldSize) {
    const middle = from + splitPoint(to - from);
    if (oldSize <= middle) {
      proof.push(rangeHash(hasher, nodeAt, middle, to));
      to = middle;
    } else {
      proof.push(rangeHash(hasher, nodeAt, from, middle));
      from = middle;
      whole = false;
    }
  }
  if (!whole) proof.push(rangeHash(hasher, nodeAt, from, to));
  return proof.reverse();
}

export function verifyConsistency(
  hasher: Hasher, oldSize: number, newSize: number, oldRoot: Uint8Array, newRoot: Uint8Array, proof: readonly Uint8Array[],
): boolean {
  if (!Number.isSafeInteger(oldSize) || !Number.isSafeInteger(newSize) || oldSize < 0 || oldSize > newSize) return false;
  if (oldSize === newSize) return proof.length === 0 && equalBytes(oldRoot, newRoot);
  if (oldSize === 0) return proof.length === 0 && equalBytes(oldRoot, foldRight(hasher, []));
  const path = Number.isInteger(Math.log2(oldSize)) ? [oldRoot, ...proof] : proof;
  const first = path[0];
  if (first === undefined) return false;
  let fn = oldSize - 1;
  let sn = newSize - 1;
  while (fn % 2 === 1) {
    fn = Math.floor(fn / 2);
    sn = Math.floor(sn / 2);
  }
  let fr = first;
  let sr = first;
  for (const c of path.slice(1)) {
    if (sn === 0 || c.length !== HASH_BYTES) return false;
    if (fn % 2 === 1 || fn === sn) {
      fr = nodeHash(hasher, c, fr);
      sr = nodeHash(hasher, c, sr);
      while (fn % 2 === 0 && fn !== 0) {
        fn = Math.floor(fn / 2);
        sn = Math.floor(sn / 2);
      }
    } else sr = nodeHash(hasher, sr, c);
    fn = Math.floor(fn / 2);
    sn = Math.floor(sn / 2);
  }
  return sn === 0 && equalBytes(fr, oldRoot) && equalBytes(sr, newRoot);
}

/** Public values only: this comparison is not constant-time. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
