/** The Merkle tree against RFC 6962 §2.1 written down naively (slices and recursion), known roots, and the examples of C2SP tlog-tiles. */
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  consistencyProof, equalBytes, Frontier, inclusionProof, leafHash, rangeHash, verifyConsistency, verifyInclusion, type NodeAt,
} from '../../src/audit/core/merkle.ts';
import { hex } from '../../src/base/ids.ts';
import { hashesAtLevel, splitBundle, tilePath, tileWidth } from '../../src/audit/core/tiles.ts';
import { sha256 } from '../../src/audit/node-hash.ts';

const H = (...parts: Uint8Array[]): Buffer => createHash('sha256').update(Buffer.concat(parts)).digest();
const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);

/** RFC 6962 §2.1. */
function MTH(D: readonly Uint8Array[]): Buffer {
  if (D.length === 0) return H();
  if (D.length === 1) return H(LEAF, D[0] as Uint8Array);
  const k = 2 ** Math.ceil(Math.log2(D.length) - 1);
  return H(NODE, MTH(D.slice(0, k)), MTH(D.slice(k)));
}

/** RFC 6962 §2.1.1. */
function PATH(m: number, D: readonly Uint8Array[]): Buffer[] {
  if (D.length <= 1) return [];
  const k = 2 ** Math.ceil(Math.log2(D.length) - 1);
  return m < k ? [...PATH(m, D.slice(0, k)), MTH(D.slice(k))] : [...PATH(m - k, D.slice(k)), MTH(D.slice(0, k))];
}

/** RFC 6962 §2.1.2. */
function SUBPROOF(m: number, D: readonly Uint8Array[], whole: boolean): Buffer[] {
  if (m === D.length) return whole ? [] : [MTH(D)];
  const k = 2 ** Math.ceil(Math.log2(D.length) - 1);
  return m <= k ? [...SUBPROOF(m, D.slice(0, k), whole), MTH(D.slice(k))] : [...SUBPROOF(m - k, D.slice(k), false), MTH(D.slice(0, k))];
}

const leaves = fc.array(fc.uint8Array({ maxLength: 12 }), { minLength: 1, maxLength: 70 });
const hexes = (list: readonly Uint8Array[]): string[] => list.map((h) => Buffer.from(h).toString('hex'));
const nodesOf = (D: readonly Uint8Array[]): NodeAt => (level, index) => MTH(D.slice(index * 2 ** level, (index + 1) * 2 ** level));

function grown(D: readonly Uint8Array[]): Frontier {
  const frontier = new Frontier(sha256);
  for (const d of D) frontier.appendLeafHash(leafHash(sha256, d));
  return frontier;
}

describe('the tree', () => {
  it('has the known roots of the Certificate Transparency test tree', () => {
    const D = ['', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f'].map((h) => Buffer.from(h, 'hex'));
    const roots = [
      'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d', 'fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125',
      'aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77', 'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7', '4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4',
      '76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef', 'ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c', '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328',
    ];
    for (const [n, root] of roots.entries()) {
      expect(hex(grown(D.slice(0, n)).root())).toBe(root);
      expect(MTH(D.slice(0, n)).toString('hex')).toBe(root);
    }
  });

  it('grows to the roots of the naive definition, and a restored frontier grows on alike', () => {
    fc.assert(fc.property(leaves, fc.nat(70), (D, cut) => {
      const at = Math.min(cut, D.length);
      const first = grown(D.slice(0, at));
      const restored = Frontier.restore(sha256, at, first.hashes());
      for (const d of D.slice(at)) restored.appendInput(Buffer.concat([LEAF, d]), 0, d.length + 1);
      expect(hex(restored.root())).toBe(MTH(D).toString('hex'));
      expect(restored.size).toBe(D.length);
    }), { numRuns: 100 });
  });

  it('hands out the root of each 256 leaves, from which the tree can be built again', () => {
    const D = Array.from({ length: 256 * 5 + 3 }, (_, i) => Buffer.from(`leaf ${i}`));
    const byLeaves = new Frontier(sha256);
    const byBundles = new Frontier(sha256);
    for (const [i, d] of D.entries()) {
      byLeaves.appendLeafHash(leafHash(sha256, d));
      if (byLeaves.size % 256 !== 0) continue;
      expect(hex(byLeaves.bundleRoot)).toBe(MTH(D.slice(i - 255, i + 1)).toString('hex'));
      byBundles.appendBundleRoot(byLeaves.bundleRoot);
    }
    for (const d of D.slice(256 * 5)) byBundles.appendLeafHash(leafHash(sha256, d));
    expect(hex(byBundles.root())).toBe(MTH(D).toString('hex'));
    expect(hex(byLeaves.root())).toBe(MTH(D).toString('hex'));
  });

  it('refuses a frontier that does not fit its size', () => {
    const hash = new Uint8Array(32);
    expect(() => Frontier.restore(sha256, 3, [hash])).toThrow(/does not fit/);
    expect(() => Frontier.restore(sha256, 2, [hash, hash])).toThrow(/does not fit/);
    expect(() => Frontier.restore(sha256, 1, [new Uint8Array(31)])).toThrow(/does not fit/);
    expect(() => Frontier.restore(sha256, -1, [])).toThrow(/does not fit/);
  });
});

describe('proofs', () => {
  it('inclusion: the path of the naive definition, accepted; any other index, leaf, size or hash refused', () => {
    fc.assert(fc.property(leaves, fc.nat(), fc.nat(), (D, pick, flip) => {
      const m = pick % D.length;
      const proof = inclusionProof(sha256, nodesOf(D), m, D.length);
      expect(hexes(proof)).toEqual(hexes(PATH(m, D)));
      const leaf = leafHash(sha256, D[m] as Uint8Array);
      const root = MTH(D);
      expect(verifyInclusion(sha256, m, D.length, leaf, proof, root)).toBe(true);
      expect(verifyInclusion(sha256, D.length, D.length, leaf, proof, root)).toBe(false);
      expect(verifyInclusion(sha256, m, D.length, leafHash(sha256, Buffer.from('another leaf')), proof, root)).toBe(false);
      expect(verifyInclusion(sha256, m, D.length, leaf, [...proof, root], root)).toBe(false);
      expect(verifyInclusion(sha256, m, 2 * D.length + 1, leaf, proof, root)).toBe(false);
      const bent = proof.map((h) => Uint8Array.from(h));
      const hash = bent[flip % Math.max(1, bent.length)];
      if (hash === undefined) return;
      hash[flip % 32] = (hash[flip % 32] as number) ^ 1;
      expect(verifyInclusion(sha256, m, D.length, leaf, bent, root)).toBe(false);
      expect(verifyInclusion(sha256, m, D.length, leaf, proof.slice(1), root)).toBe(false);
    }), { numRuns: 100 });
  });

  it('consistency: the proof of the naive definition, accepted; a tree that changed the past refused', () => {
    fc.assert(fc.property(leaves, fc.nat(), fc.nat(), (D, pick, change) => {
      const m = 1 + (pick % D.length);
      const proof = consistencyProof(sha256, nodesOf(D), m, D.length);
      expect(hexes(proof)).toEqual(hexes(SUBPROOF(m, D, true)));
      const oldRoot = MTH(D.slice(0, m));
      expect(verifyConsistency(sha256, m, D.length, oldRoot, MTH(D), proof)).toBe(true);
      const other = D.slice();
      other[change % m] = Buffer.from('rewritten history');
      expect(verifyConsistency(sha256, m, D.length, MTH(other.slice(0, m)), MTH(D), proof)).toBe(false);
      expect(verifyConsistency(sha256, m, D.length, oldRoot, MTH(other), proof)).toBe(false);
      if (proof.length > 0) expect(verifyConsistency(sha256, m, D.length, oldRoot, MTH(D), proof.slice(1))).toBe(false);
      expect(verifyConsistency(sha256, m, D.length, oldRoot, MTH(D), [...proof, oldRoot])).toBe(false);
      expect(verifyConsistency(sha256, D.length + 1, D.length, oldRoot, MTH(D), proof)).toBe(false);
    }), { numRuns: 100 });
  });

  it('range hashes are the naive ones', () => {
    const D = Array.from({ length: 37 }, (_, i) => Uint8Array.of(i));
    expect(hex(rangeHash(sha256, nodesOf(D), 32, 37))).toBe(MTH(D.slice(32)).toString('hex'));
    expect(equalBytes(rangeHash(sha256, nodesOf(D), 0, 37), MTH(D))).toBe(true);
  });
});

describe('tiles', () => {
  it('are named and sized as C2SP tlog-tiles says', () => {
    expect(tilePath(0, 1_234_067, 256)).toBe('tile/0/x001/x234/067');
    expect(tilePath('entries', 273, 112)).toBe('tile/entries/273.p/112');
    expect(tilePath(2, 0, 1)).toBe('tile/2/000.p/1');
    // The specification's example of 70,000 leaves.
    expect([0, 1, 2, 3].map((level) => hashesAtLevel(level, 70_000))).toEqual([70_000, 273, 1, 0]);
    expect([tileWidth(272, 70_000), tileWidth(273, 70_000), tileWidth(0, 273), tileWidth(1, 273), tileWidth(0, 1), tileWidth(274, 70_000)]).toEqual([256, 112, 256, 17, 1, 0]);
  });

  it('bundles of the wrong shape are refused', () => {
    const bundle = Uint8Array.of(0, 1, 7, 0, 2, 8, 9);
    const bounds: number[][] = [];
    splitBundle(bundle, 2, (from, to) => bounds.push([from, to]));
    expect(bounds).toEqual([[2, 3], [5, 7]]);
    for (const [bytes, width] of [[bundle, 1], [bundle, 3], [bundle.subarray(0, 6), 2], [Uint8Array.of(0), 1], [Uint8Array.of(255, 255, 1), 1]] as const) {
      expect(() => splitBundle(bytes, width, () => undefined)).toThrow(/bundle/);
    }
  });
});
