/** Records as leaves: what goes in comes out, from any fresh start, in few bytes; what is no record is refused. Notes and keys as C2SP spells them. */
import { createPublicKey, verify } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hex } from '../../src/base/ids.ts';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { fromBase64, formatNote, formatCheckpoint, parseCheckpoint, parseNote, parseVerifierKey, toBase64 } from '../../src/audit/core/note.ts';
import { leafBound, RecordDecoder, RecordEncoder, RESTART_INTERVAL } from '../../src/audit/core/record-codec.ts';
import { sha256 } from '../../src/audit/node-hash.ts';

const text = fc.oneof(
  fc.constantFrom('', 'task.submit', 'object.get', '__proto__', 'constructor', '\u2028\u2029', '\ud800', '\udc00\ud800', 'a\u0000b\u0007\u001b[31m', '😀 ü', 'x'.repeat(600)),
  fc.string({ unit: 'binary', maxLength: 20 }), fc.string({ maxLength: 40 }),
);
const time = fc.oneof(fc.integer({ min: 0, max: 2 ** 47 }), fc.integer({ min: 1.7e12, max: 1.7e12 + 1000 }));
const decision: fc.Arbitrary<AuditRecord> = fc.record({
  type: fc.constant('decision'), timeMs: time, principal: text, action: text, resourceKind: text, resource: text, index: fc.integer({ min: -1, max: 2 ** 40 }), count: fc.integer({ min: 1, max: 2 ** 31 }),
  allow: fc.boolean(), rule: text, policyVersion: fc.nat(), detail: text,
} as const);
const lifecycle: fc.Arbitrary<AuditRecord> = fc.record({
  type: fc.constant('lifecycle'), timeMs: time, event: text, principal: text, resourceKind: text, resource: text, index: fc.integer({ min: -1, max: 2 ** 40 }), detail: text,
} as const);

function encodeAll(records: readonly AuditRecord[], firstSeq = 0, encoder = new RecordEncoder()): Uint8Array[] {
  return records.map((r, i) => {
    const bytes = new Uint8Array(leafBound(r));
    return bytes.slice(0, encoder.encode(r, firstSeq + i, bytes, 0));
  });
}

function decodeAll(leaves: readonly Uint8Array[], firstSeq = 0): AuditRecord[] {
  const decoder = new RecordDecoder();
  return leaves.map((leaf, i) => decoder.decode(leaf, 0, leaf.length, firstSeq + i));
}

const plain: AuditRecord = {
  type: 'decision', timeMs: 1.7e12, principal: 'spiffe://cluster.example/tenant/acme/user/ana', action: 'task.submit', resourceKind: 'task', resource: '0123456789abcdef0123456789abcdef01234567', index: 0, count: 1,
  allow: true, rule: 'acme/analyst/permit/0', policyVersion: 3, detail: `sha256:${'ab'.repeat(32)} delayByCarrier`,
};

describe('the record codec', () => {
  it('gives back exactly what went in, hostile strings included', () => {
    fc.assert(fc.property(fc.array(fc.oneof(decision, lifecycle), { maxLength: 60 }), (records) => {
      expect(decodeAll(encodeAll(records))).toEqual(records);
    }), { numRuns: 200 });
  });

  it('carries a string of 60,000 characters, control characters and lone surrogates alike', () => {
    for (const unit of ['x', '\u0001', '\ud800']) {
      const record: AuditRecord = { ...plain, detail: unit.repeat(unit === '\ud800' ? 30_000 : 60_000) };
      expect(decodeAll(encodeAll([record, plain, record]))).toEqual([record, plain, record]);
    }
  });

  it('refuses, and forgets, a record that cannot be a leaf', () => {
    const encoder = new RecordEncoder();
    const first = encodeAll([plain], 0, encoder);
    for (const bad of [{ detail: '\u2028'.repeat(30_000) }, { detail: 'x'.repeat(70_000) }, { timeMs: 1.5 }, { timeMs: -1 }, { timeMs: Number.NaN }, { index: -2 }, { index: 0.5 }, { count: 0 }, { count: Number.POSITIVE_INFINITY }, { policyVersion: -1 }]) {
      expect(() => leafBound({ ...plain, ...bad } as AuditRecord)).toThrow(/audit record/);
    }
    const second = encodeAll([{ ...plain, index: 1 }], 1, encoder);
    expect(decodeAll([...first, ...second])).toEqual([plain, { ...plain, index: 1 }]);
  });

  it('starts afresh at every multiple of the interval and for every encoder, so that reading can begin there', () => {
    const records = Array.from({ length: RESTART_INTERVAL + 5 }, (_, i): AuditRecord => ({ ...plain, index: i, detail: `d${i % 7}` }));
    const leaves = encodeAll(records);
    expect(decodeAll(leaves.slice(RESTART_INTERVAL), RESTART_INTERVAL)).toEqual(records.slice(RESTART_INTERVAL));
    expect(() => decodeAll(leaves.slice(1), 1)).toThrow(/continues a record/);
    expect(() => decodeAll([leaves[1] as Uint8Array], RESTART_INTERVAL)).toThrow(/continues a record/);
    const later = encodeAll(records.slice(0, 3), 100);
    expect(decodeAll([...leaves.slice(0, 100), ...later])).toEqual([...records.slice(0, 100), ...records.slice(0, 3)]);
  });

  it('needs few bytes for calls that alternate between sessions, actions and tasks', () => {
    const records = Array.from({ length: 4000 }, (_, i): AuditRecord => ({
      ...plain, timeMs: 1.7e12 + (i >> 3), principal: `spiffe://cluster.example/tenant/acme/user/u${i % 5}`, action: i % 2 === 0 ? 'task.submit' : 'object.get', resourceKind: i % 2 === 0 ? 'task' : 'object',
      resource: `0123456789abcdef0123456789abcdef0123456${i % 5}`, index: i >> 1, detail: i % 2 === 0 ? `sha256:${'ab'.repeat(32)} f${i % 9}` : '',
    }));
    const bytes = encodeAll(records).reduce((n, l) => n + l.length, 0);
    expect(bytes / records.length).toBeLessThan(20);
  });

  it('keeps a bounded dictionary when every string is new', () => {
    const records = Array.from({ length: RESTART_INTERVAL - 1 }, (_, i): AuditRecord => ({ ...plain, resource: `${i}`.padStart(500, 'r'), detail: `${i}`.padStart(500, 'd') }));
    expect(decodeAll(encodeAll(records))).toEqual(records);
  });

  it('refuses or decodes any bytes, and never breaks otherwise', () => {
    fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 4 }), fc.integer({ min: 0, max: 3 }), (leaves, seq) => {
      try {
        for (const r of decodeAll([encodeAll([plain])[0] as Uint8Array, ...leaves], seq === 0 ? 0 : 1)) expect(typeof r.timeMs).toBe('number');
      } catch (error) {
        expect((error as { code?: string }).code).toBe('INVALID_ARGUMENT');
      }
    }), { numRuns: 500 });
  });

  it('refuses every truncation and every added byte of a leaf', () => {
    const [leaf] = encodeAll([plain]);
    for (let n = 0; n < (leaf as Uint8Array).length; n++) expect(() => decodeAll([(leaf as Uint8Array).slice(0, n)])).toThrow(/not a record/);
    expect(() => decodeAll([Buffer.concat([leaf as Uint8Array, Buffer.of(0)])])).toThrow(/left over/);
  });
});

describe('notes', () => {
  // The example of C2SP signed-note.
  const vkey = 'example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k';
  const note = 'This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n';

  it('the example of the specification parses, verifies, and is written back byte for byte', () => {
    const key = parseVerifierKey(sha256, vkey);
    const parsed = parseNote(note);
    expect(formatNote(parsed)).toBe(note);
    const [signature] = parsed.signatures;
    expect(signature?.keyId).toBe(key.keyId);
    const publicKey = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), key.publicKey]), format: 'der', type: 'spki' });
    expect(verify(null, Buffer.from(parsed.text), publicKey, signature?.signature as Uint8Array)).toBe(true);
  });

  it('malformed notes, keys and checkpoints are refused', () => {
    for (const bad of ['', 'text', note.slice(0, -1), note.replace('— ', '- '), note.replace('\n\n', '\n'), `\u0007${note}`, note.replace('example.com/foo ', 'example.com/ foo '), note.replace('=\n', '\n'), `${note}\n`, note + '— a AAAA\n'.repeat(20)]) {
      expect(() => parseNote(bad)).toThrow(/not valid|base64/);
    }
    for (const bad of ['', 'a+b', vkey.replace('530d903a', '530d903b'), vkey.replace('+Ae', '+Be'), `${vkey}A`, vkey.replace('example.com/foo', 'example.com/ foo'), vkey.replace('foo', 'fo0')]) {
      expect(() => parseVerifierKey(sha256, bad)).toThrow(/not valid|base64/);
    }
    const checkpoint = formatCheckpoint({ origin: 'a/b', treeSize: 12, rootHash: new Uint8Array(32) });
    expect(parseCheckpoint(checkpoint).treeSize).toBe(12);
    for (const bad of ['', checkpoint.slice(0, -1), checkpoint.replace('12', '012'), checkpoint.replace('12', '-1'), checkpoint.replace('12', '1e3'), `${checkpoint}extension\n`, checkpoint.replace('a/b', 'a b'), checkpoint.replace('=', 'A'), checkpoint.replace('12', '9999999999999999')]) {
      expect(() => parseCheckpoint(bad)).toThrow(/checkpoint|base64|name/);
    }
  });

  it('base64 has one spelling', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 50 }), (bytes) => {
      expect(toBase64(bytes)).toBe(Buffer.from(bytes).toString('base64'));
      expect(hex(fromBase64(toBase64(bytes)))).toBe(Buffer.from(bytes).toString('hex'));
    }));
    for (const bad of ['A', 'AA', 'AB==', 'AAF=', 'AA=A', '====', 'A===', 'AAA-', ' AAA']) expect(() => fromBase64(bad)).toThrow(/base64/);
  });
});
