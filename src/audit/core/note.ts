/**
 * C2SP signed notes, checkpoints and verifier keys as text and bytes. Signing and verifying is the shell's.
 * Must never: accept a second spelling of the same note: what is parsed is what was signed, byte for byte.
 */
import { BulkheadError, invariant } from '../../base/errors.ts';
import { hex, quote } from '../../base/ids.ts';
import { HASH_BYTES, type Hasher } from './merkle.ts';
import { writeUtf8 } from '../../base/frame.ts';

/** C2SP signed-note signature types. */
export const SIGNATURE_TYPE = { ED25519: 0x01, ML_DSA_44_COSIGNATURE: 0x06 } as const;
/** Notes with more signatures are refused; C2SP asks for at least 16. */
const MAX_SIGNATURES = 16;
const MAX_NOTE_CHARS = 128 * 1024;

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

export function toBase64(bytes: Uint8Array): string {
  let text = '';
  for (let i = 0; i < bytes.length; i += 3) {
    const word = ((bytes[i] as number) << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    text += ALPHABET.charAt(word >> 18) + ALPHABET.charAt((word >> 12) & 63);
    text += i + 1 < bytes.length ? ALPHABET.charAt((word >> 6) & 63) : '=';
    text += i + 2 < bytes.length ? ALPHABET.charAt(word & 63) : '=';
  }
  return text;
}

/** Strict: only the one canonical spelling. Throws INVALID_ARGUMENT. */
export function fromBase64(text: string): Uint8Array {
  const refuse = (): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `${quote(text)} is not canonical base64`);
  };
  if (text.length % 4 !== 0) return refuse();
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  const out = new Uint8Array((text.length / 4) * 3 - padding);
  let word = 0;
  let at = 0;
  for (let i = 0; i < text.length - padding; i++) {
    const digit = ALPHABET.indexOf(text.charAt(i));
    if (digit < 0) return refuse();
    word = ((word << 6) | digit) & 0xff_ffff;
    if (i % 4 === 1) out[at++] = (word >> 4) & 0xff;
    else if (i % 4 === 2) out[at++] = (word >> 2) & 0xff;
    else if (i % 4 === 3) out[at++] = word & 0xff;
  }
  return toBase64(out) === text ? out : refuse();
}

export function utf8(text: string): Uint8Array {
  const out = new Uint8Array(text.length * 3);
  return out.subarray(0, writeUtf8(text, out, 0));
}

function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Name of a key or a log: no spaces, no plus, printable ASCII, so that it cannot forge a line. */
export function checkKeyName(name: string): string {
  if (!/^[!-*,-~]{1,255}$/.test(name)) throw new BulkheadError('INVALID_ARGUMENT', `key name ${quote(name)} is not valid: 1 to 255 printable ASCII characters without space and plus`);
  return name;
}

export interface VerifierKey {
  readonly name: string;
  /** 8 hex digits. */
  readonly keyId: string;
  readonly type: number;
  readonly publicKey: Uint8Array;
}

export function keyIdOf(hasher: Hasher, name: string, type: number, publicKey: Uint8Array): string {
  const input = concat(utf8(`${name}\n`), Uint8Array.of(type), publicKey);
  const digest = new Uint8Array(HASH_BYTES);
  hasher.into(input, 0, input.length, digest, 0);
  return hex(digest.subarray(0, 4));
}

/** `<name>+<key id>+<base64(type ‖ public key)>`. */
export function formatVerifierKey(hasher: Hasher, name: string, type: number, publicKey: Uint8Array): string {
  return `${checkKeyName(name)}+${keyIdOf(hasher, name, type, publicKey)}+${toBase64(concat(Uint8Array.of(type), publicKey))}`;
}

/** Throws INVALID_ARGUMENT unless the line is a verifier key of a known type whose key id fits. */
export function parseVerifierKey(hasher: Hasher, line: string): VerifierKey {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `verifier key ${quote(line)} is not valid: ${why}`);
  };
  // Base64 may hold '+' itself: only the first two separate.
  const match = /^([^+]+)\+([0-9a-f]{8})\+(.+)$/s.exec(line.length > 8192 ? '' : line);
  if (match === null) return refuse("it must be '<name>+<8 hex digits>+<base64>'");
  const name = checkKeyName(match[1] as string);
  const material = fromBase64(match[3] as string);
  const type = material[0] ?? 0;
  const publicKey = material.subarray(1);
  const bytes = type === SIGNATURE_TYPE.ED25519 ? 32 : type === SIGNATURE_TYPE.ML_DSA_44_COSIGNATURE ? 1312 : -1;
  if (publicKey.length !== bytes) return refuse('only Ed25519 (type 1) and ML-DSA-44 (type 6) keys of their exact length are known');
  if (keyIdOf(hasher, name, type, publicKey) !== match[2]) return refuse('its key id does not fit the name and key');
  return { name, keyId: match[2] as string, type, publicKey };
}

export interface NoteSignature {
  readonly name: string;
  /** 8 hex digits. */
  readonly keyId: string;
  readonly signature: Uint8Array;
}

export interface SignedNote {
  /** The signed text, its last newline included. */
  readonly text: string;
  readonly signatures: readonly NoteSignature[];
}

export function formatNote(note: SignedNote): string {
  let out = `${note.text}\n`;
  for (const s of note.signatures) {
    const id = Uint8Array.from([0, 2, 4, 6], (i) => Number.parseInt(s.keyId.slice(i, i + 2), 16));
    out += `— ${s.name} ${toBase64(concat(id, s.signature))}\n`;
  }
  return out;
}

/** Throws INVALID_ARGUMENT. */
export function parseNote(note: string): SignedNote {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the signed note is not valid: ${why}`);
  };
  if (note.length > MAX_NOTE_CHARS) return refuse(`it is longer than ${MAX_NOTE_CHARS} characters`);
  if (!note.isWellFormed() || /[\u0000-\u0009\u000b-\u001f]/.test(note)) return refuse('it holds control characters or broken text');
  const end = note.lastIndexOf('\n\n');
  if (end < 0 || !note.endsWith('\n')) return refuse('no blank line separates text and signatures');
  const lines = note.slice(end + 2, -1).split('\n');
  if (lines.length > MAX_SIGNATURES) return refuse(`more than ${MAX_SIGNATURES} signatures`);
  const signatures = lines.map((line) => {
    const match = /^— ([^ +]{1,255}) ([A-Za-z0-9+/]+={0,2})$/.exec(line);
    if (match === null) return refuse(`${quote(line)} is not a signature line`);
    const bytes = fromBase64(match[2] as string);
    if (bytes.length < 5) return refuse('a signature is too short');
    return { name: match[1] as string, keyId: hex(bytes.subarray(0, 4)), signature: bytes.slice(4) };
  });
  return { text: note.slice(0, end + 1), signatures };
}

export interface Checkpoint {
  readonly origin: string;
  readonly treeSize: number;
  readonly rootHash: Uint8Array;
}

/** Text of a C2SP tlog-checkpoint, without extension lines. */
export function formatCheckpoint(c: Checkpoint): string {
  invariant(c.rootHash.length === HASH_BYTES, 'a root hash has 32 bytes');
  return `${checkKeyName(c.origin)}\n${c.treeSize}\n${toBase64(c.rootHash)}\n`;
}

/** Throws INVALID_ARGUMENT; extension lines are refused, as our logs never write them. */
export function parseCheckpoint(text: string): Checkpoint {
  const match = /^([^\n]+)\n(0|[1-9]\d{0,15})\n([A-Za-z0-9+/]{43}=)\n$/.exec(text);
  const treeSize = Number(match?.[2]);
  if (match === null || !Number.isSafeInteger(treeSize)) throw new BulkheadError('INVALID_ARGUMENT', 'the checkpoint is not three lines of origin, tree size and root hash');
  return { origin: checkKeyName(match[1] as string), treeSize, rootHash: fromBase64(match[3] as string) };
}

/** What an ML-DSA-44 cosigner signs (C2SP tlog-cosignature, `cosigned_message`), for a whole tree at `timeSeconds`. */
export function cosignedMessage(cosigner: string, timeSeconds: number, c: Checkpoint): Uint8Array {
  const name = utf8(cosigner);
  const origin = utf8(c.origin);
  return concat(utf8('subtree/v1\n\0'), Uint8Array.of(name.length), name, u64(timeSeconds), Uint8Array.of(origin.length), origin, u64(0), u64(c.treeSize), c.rootHash);
}

/** Big-endian. */
export function u64(value: number): Uint8Array {
  const out = new Uint8Array(8);
  const view = new DataView(out.buffer);
  view.setUint32(0, Math.floor(value / 0x1_0000_0000));
  view.setUint32(4, value % 0x1_0000_0000);
  return out;
}

/** Splits a `timestamped_signature` (u64 seconds ‖ signature). */
export function splitTimestamped(bytes: Uint8Array): { timeSeconds: number; signature: Uint8Array } {
  if (bytes.length < 9) throw new BulkheadError('INVALID_ARGUMENT', 'a cosignature is too short');
  const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
  return { timeSeconds: view.getUint32(0) * 0x1_0000_0000 + view.getUint32(4), signature: bytes.subarray(8) };
}

export function timestamped(timeSeconds: number, signature: Uint8Array): Uint8Array {
  return concat(u64(timeSeconds), signature);
}

