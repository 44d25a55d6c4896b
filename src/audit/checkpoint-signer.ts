/**
 * Keys that sign checkpoints: Ed25519 (the log's own signature) and ML-DSA-44 (a C2SP cosignature beside it, for readers
 * who do not trust elliptic curves for as long as audits are kept). Must never: print or return a private key.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, sign, verify, type KeyObject } from 'node:crypto';
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import {
  cosignedMessage, formatCheckpoint, formatNote, formatVerifierKey, parseCheckpoint, parseNote, parseVerifierKey, SIGNATURE_TYPE, splitTimestamped, timestamped, type Checkpoint, type VerifierKey,
} from './core/note.ts';
import { sha256 } from './node-hash.ts';

export interface CheckpointSigner {
  readonly name: string;
  /** 8 hex digits, as C2SP computes it. */
  readonly keyId: string;
  /** C2SP verifier key: what an auditor needs. */
  readonly publicKeyLine: string;
  sign(bytes: Uint8Array): Uint8Array;
}

/** DER of an Ed25519 or ML-DSA-44 public key up to the raw key: fixed, so raw keys are cut out and put back without an ASN.1 parser. */
const SPKI_PREFIX = {
  [SIGNATURE_TYPE.ED25519]: Buffer.from('302a300506032b6570032100', 'hex'),
  [SIGNATURE_TYPE.ML_DSA_44_COSIGNATURE]: Buffer.from('30820532300b06096086480165030403110382052100', 'hex'),
} as const;

function signerOf(name: string, type: keyof typeof SPKI_PREFIX, key: KeyObject): CheckpointSigner {
  const spki = createPublicKey(key).export({ format: 'der', type: 'spki' });
  const prefix = SPKI_PREFIX[type];
  if (!spki.subarray(0, prefix.length).equals(prefix)) throw new BulkheadError('INVALID_ARGUMENT', 'the audit key has an unexpected encoding');
  const line = formatVerifierKey(sha256, name, type, spki.subarray(prefix.length));
  return { name, keyId: parseVerifierKey(sha256, line).keyId, publicKeyLine: line, sign: (bytes) => sign(null, bytes, key) };
}

/** Throws INVALID_ARGUMENT for another kind of key. */
export function ed25519Signer(name: string, privateKey: KeyObject): CheckpointSigner {
  if (privateKey.type !== 'private' || privateKey.asymmetricKeyType !== 'ed25519') throw new BulkheadError('INVALID_ARGUMENT', 'checkpoints are signed by an Ed25519 private key');
  return signerOf(name, SIGNATURE_TYPE.ED25519, privateKey);
}

export function mlDsa44Signer(name: string, privateKey: KeyObject): CheckpointSigner {
  if (privateKey.type !== 'private' || (privateKey.asymmetricKeyType as string) !== 'ml-dsa-44') throw new BulkheadError('INVALID_ARGUMENT', 'checkpoints are cosigned by an ML-DSA-44 private key');
  return signerOf(name, SIGNATURE_TYPE.ML_DSA_44_COSIGNATURE, privateKey);
}

/** The node's audit keys, kept in `dir` (0700) as 0600 files with their public lines beside them. */
export function loadOrCreateSigner(dir: string, name: string): CheckpointSigner {
  return ed25519Signer(name, loadOrCreateKey(dir, 'audit-ed25519', () => generateKeyPairSync('ed25519').privateKey, (key) => ed25519Signer(name, key).publicKeyLine));
}

export function loadOrCreateCosigner(dir: string, name: string): CheckpointSigner {
  const generate = (): KeyObject => (generateKeyPairSync as unknown as (type: string) => { privateKey: KeyObject })('ml-dsa-44').privateKey;
  return mlDsa44Signer(name, loadOrCreateKey(dir, 'audit-ml-dsa-44', generate, (key) => mlDsa44Signer(name, key).publicKeyLine));
}

function loadOrCreateKey(dir: string, file: string, generate: () => KeyObject, publicLine: (key: KeyObject) => string): KeyObject {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const path = join(dir, `${file}.pem`);
  let pem: Buffer;
  try {
    if ((statSync(path).mode & 0o077) !== 0) throw new BulkheadError('INTERNAL', `the audit key file ${file}.pem is readable by others: chmod 600 it, or remove it to make a new key`);
    pem = readFileSync(path);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    const key = generate();
    writeDurably(dir, `${file}.vkey`, `${publicLine(key)}\n`);
    writeDurably(dir, `${file}.pem`, key.export({ format: 'pem', type: 'pkcs8' }) as string);
    return key;
  }
  try {
    return createPrivateKey(pem);
  } catch {
    // The parser's message may quote the file.
    throw new BulkheadError('INTERNAL', `the audit key file ${file}.pem is not a private key in PEM: restore it from a backup`);
  }
}

/** Writes a 0600 file so that after a crash there is the old one or the new one. */
export function writeDurably(dir: string, file: string, text: string): void {
  const temporary = join(dir, `.${file}.new`);
  const fd = openSync(temporary, 'w', 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, join(dir, file));
  syncDirectory(dir);
}

export function syncDirectory(dir: string): void {
  const fd = openSync(dir, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** A signed checkpoint. The cosigner, when given, states that it is the latest tree at `nowMs`. */
export function signCheckpoint(c: Checkpoint, signer: CheckpointSigner, cosigner: CheckpointSigner | undefined, nowMs: number): string {
  const text = formatCheckpoint(c);
  const signatures = [{ name: signer.name, keyId: signer.keyId, signature: signer.sign(Buffer.from(text)) }];
  if (cosigner !== undefined) {
    const timeSeconds = Math.floor(nowMs / 1000);
    signatures.push({ name: cosigner.name, keyId: cosigner.keyId, signature: timestamped(timeSeconds, cosigner.sign(cosignedMessage(cosigner.name, timeSeconds, c))) });
  }
  return formatNote({ text, signatures });
}

function verifySignature(key: VerifierKey, c: Checkpoint, text: string, signature: Uint8Array): boolean {
  const prefix = SPKI_PREFIX[key.type as keyof typeof SPKI_PREFIX];
  const publicKey = createPublicKey({ key: Buffer.concat([prefix, key.publicKey]), format: 'der', type: 'spki' });
  if (key.type === SIGNATURE_TYPE.ED25519) return verify(null, Buffer.from(text), publicKey, signature);
  const cosignature = splitTimestamped(signature);
  return verify(null, cosignedMessage(key.name, cosignature.timeSeconds, c), publicKey, cosignature.signature);
}

/**
 * The checkpoint of a signed note, when at least one Ed25519 key of `keys` signed it and no signature of a known key is wrong.
 * Throws INVALID_ARGUMENT otherwise. Signatures of unknown keys are passed over, as C2SP wants (witnesses, rotation).
 */
export function openCheckpoint(note: string, keys: readonly string[]): Checkpoint {
  const { text, signatures } = parseNote(note);
  const c = parseCheckpoint(text);
  const known = keys.map((line) => parseVerifierKey(sha256, line));
  let signed = false;
  for (const s of signatures) {
    const key = known.find((k) => k.name === s.name && k.keyId === s.keyId);
    if (key === undefined) continue;
    if (!verifySignature(key, c, text, s.signature)) throw new BulkheadError('INVALID_ARGUMENT', `the checkpoint's signature by ${key.name} is wrong`);
    if (key.type === SIGNATURE_TYPE.ED25519) signed = true;
  }
  if (!signed) throw new BulkheadError('INVALID_ARGUMENT', 'the checkpoint is not signed by a known key of the log');
  return c;
}
