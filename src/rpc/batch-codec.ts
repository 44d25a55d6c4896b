/**
 * `Batch { bytes frames = 1; }` by hand: the hot path's only message. Reading copies nothing; writing puts a few octets before the frames. Shapes that our
 * own writers never make (unknown fields, the field twice) go to protobuf-es.
 */
import { fromBinary } from '@bufbuild/protobuf';
import { BulkheadError } from '../base/errors.ts';
import { BatchSchema } from './generated/bulkhead/v1/raylet_pb.js';

/** Field 1, length-delimited. */
const TAG = 0x0a;
const NOTHING = new Uint8Array(0);

/** Octets before the frames of a batch; an empty one is an empty message. */
export function batchHeadBytes(batchBytes: number): number {
  if (batchBytes === 0) return 0;
  let n = 2;
  for (let rest = batchBytes >>> 7; rest > 0; rest >>>= 7) n++;
  return n;
}

export function writeBatchHead(into: Uint8Array, start: number, batchBytes: number): void {
  if (batchBytes === 0) return;
  let at = start;
  into[at++] = TAG;
  let rest = batchBytes;
  for (; rest > 0x7f; rest >>>= 7) into[at++] = (rest & 0x7f) | 0x80;
  into[at] = rest;
}

/** Where the frames begin in a message of `length` octets that starts with `head`, as our writers make it; undefined for any other shape. */
export function framesStart(head: Uint8Array, length: number): number | undefined {
  if (head[0] !== TAG) return undefined;
  let batchBytes = 0;
  for (let at = 1, shift = 0; shift < 35; shift += 7, at++) {
    const octet = head[at];
    if (octet === undefined) return undefined;
    batchBytes += (octet & 0x7f) * 2 ** shift;
    if (octet < 0x80) return at + 1 + batchBytes === length ? at + 1 : undefined;
  }
  return undefined;
}

/** The frames inside an encoded Batch, as a view. Throws INVALID_ARGUMENT. */
export function decodeBatch(message: Uint8Array): Uint8Array {
  if (message.length === 0) return NOTHING;
  const start = framesStart(message, message.length);
  if (start !== undefined) return message.subarray(start);
  try {
    return fromBinary(BatchSchema, message, { readUnknownFields: false }).frames;
  } catch (error) {
    throw new BulkheadError('INVALID_ARGUMENT', 'the message is not a valid bulkhead.v1.Batch', { cause: error });
  }
}
