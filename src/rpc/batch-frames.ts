/**
 * What goes over a connection of ALPN `bulkhead-batch/1` (proto/frames.md): gRPC's length-prefixed messages without HTTP/2, one stream to a connection. The
 * first octet of the prefix is 0 for a `Batch` and, as gRPC-Web does for its trailers, has its high bit set for what is none: a control frame.
 * Both sides' first frame is the opening: the client's says what it calls, the server's empty one that it is admitted. END from a client means that it sends no more;
 * from a server it is the status of the call, and the last thing sent. BEAT says only that its sender lives; it is not answered, since whoever does not read
 * for a while could not. What is read here comes from a peer that TLS has named and nobody admitted yet.
 */
import { BulkheadError, isErrorCode } from '../base/errors.ts';
import { MAX_METADATA_BYTES, MAX_STATUS_TEXT_CHARS } from '../base/limits.ts';
import { asSeenByPeer } from './status.ts';

export const BATCH_PROTOCOL = 'bulkhead-batch/1';
/** gRPC's prefix of a message: flags and a big-endian length. */
export const PREFIX_BYTES = 5;
export const CONTROL = { OPEN: 0x80, END: 0x81, BEAT: 0x82 } as const;

const MAX_ENTRIES = 64;
const METHOD = /^[A-Za-z][A-Za-z0-9_.]{0,127}\/[A-Za-z][A-Za-z0-9_]{0,127}$/;
const ENTRY_NAME = /^[a-z][a-z0-9-]{0,63}$/;
/** Printable ASCII, as in HTTP/2 metadata. */
const ENTRY_VALUE = /^[\x20-\x7e]*$/;

export interface Opening {
  /** `package.Service/Method`. */
  readonly method: string;
  readonly metadata: ReadonlyMap<string, string>;
}

export function controlFrame(kind: number, body = ''): Buffer {
  const octets = Buffer.from(body);
  const frame = Buffer.allocUnsafe(PREFIX_BYTES + octets.length);
  frame[0] = kind;
  frame.writeUInt32BE(octets.length, 1);
  octets.copy(frame, PREFIX_BYTES);
  return frame;
}

/** Throws INVALID_ARGUMENT for metadata that cannot be sent. */
export function encodeOpening(method: string, metadata: Readonly<Record<string, string>>): Buffer {
  const frame = controlFrame(CONTROL.OPEN, JSON.stringify({ method, metadata }));
  parseOpening(frame.subarray(PREFIX_BYTES));
  return frame;
}

/** Throws INVALID_ARGUMENT. */
export function parseOpening(body: Buffer): Opening {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the metadata of the call cannot be taken: ${why}`);
  };
  if (body.length > MAX_METADATA_BYTES) refuse(`it has more than ${MAX_METADATA_BYTES} bytes`);
  let opening: unknown;
  try {
    opening = JSON.parse(body.toString('utf8'));
  } catch {
    refuse('it is not JSON');
  }
  const { method, metadata, ...rest } = (typeof opening === 'object' && opening !== null ? opening : {}) as { method?: unknown; metadata?: unknown };
  if (typeof method !== 'string' || !METHOD.test(method) || typeof metadata !== 'object' || metadata === null || Array.isArray(metadata) || Object.keys(rest).length > 0) return refuse('it names no method, or more than that');
  const entries = Object.entries(metadata as Record<string, unknown>);
  if (entries.length > MAX_ENTRIES) refuse(`it has more than ${MAX_ENTRIES} entries`);
  const known = new Map<string, string>();
  for (const [name, value] of entries) {
    if (!ENTRY_NAME.test(name) || typeof value !== 'string' || !ENTRY_VALUE.test(value)) return refuse('a name or value has characters that it may not have');
    known.set(name, value);
  }
  return { method, metadata: known };
}

/** The status of a call; without an error: OK. */
export function encodeEnding(thrown?: unknown): Buffer {
  if (thrown === undefined) return controlFrame(CONTROL.END);
  const { code, safeMessage } = asSeenByPeer(thrown);
  return controlFrame(CONTROL.END, JSON.stringify({ code, message: safeMessage.slice(0, MAX_STATUS_TEXT_CHARS) }));
}

export function parseEnding(body: Buffer): BulkheadError | undefined {
  if (body.length === 0) return undefined;
  let ending: unknown;
  try {
    ending = JSON.parse(body.toString('utf8'));
  } catch {
    // Falls through to what an unreadable status means.
  }
  const { code, message } = (typeof ending === 'object' && ending !== null ? ending : {}) as { code?: unknown; message?: unknown };
  if (typeof code !== 'string' || !isErrorCode(code)) return new BulkheadError('INTERNAL', 'the peer ended the stream with a status that cannot be read');
  return new BulkheadError(code, typeof message === 'string' && message !== '' ? message.slice(0, MAX_STATUS_TEXT_CHARS) : code);
}
