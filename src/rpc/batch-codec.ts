/**
 * `Batch { bytes frames = 1; }` by hand: the hot path's only message. Reading copies nothing; writing copies once, straight into
 * the buffer that grpc-js frames. Shapes that our own writers never make (unknown fields, the field twice) go to protobuf-es.
 */
import { fromBinary } from '@bufbuild/protobuf';
import { BulkheadError } from '../base/errors.ts';
import { BatchSchema } from './generated/bulkhead/v1/raylet_pb.js';

/** Field 1, length-delimited. */
const TAG = 0x0a;
const NOTHING = new Uint8Array(0);

/**
 * A batch that is encoded when grpc-js copies it behind its five-byte prefix. grpc-js asks a serialised message for `length`,
 * `byteLength` and `copy` only; the contract test of the batch stream fails if that changes.
 */
export class EncodedBatch {
  readonly length: number;
  readonly byteLength: number;
  readonly #frames: Uint8Array;
  readonly #tail: Uint8Array | undefined;

  /** `tail` continues `frames`. */
  constructor(frames: Uint8Array, tail?: Uint8Array) {
    const octets = frames.length + (tail?.length ?? 0);
    let lengthBytes = 1;
    for (let rest = octets >>> 7; rest > 0; rest >>>= 7) lengthBytes++;
    this.length = octets === 0 ? 0 : 1 + lengthBytes + octets;
    this.byteLength = this.length;
    this.#frames = frames;
    this.#tail = tail;
  }

  copy(into: Uint8Array, start: number): number {
    if (this.length === 0) return 0;
    const at = this.copyHead(into, start);
    if (this.#tail !== undefined) into.set(this.#tail, at);
    return this.length;
  }

  /** All but the tail, which the caller sends from where it is. Returns where the tail would begin. */
  copyHead(into: Uint8Array, start: number): number {
    let at = start;
    into[at++] = TAG;
    let rest = this.#frames.length + (this.#tail?.length ?? 0);
    for (; rest > 0x7f; rest >>>= 7) into[at++] = (rest & 0x7f) | 0x80;
    into[at++] = rest;
    into.set(this.#frames, at);
    return at + this.#frames.length;
  }
}

/** The frames inside an encoded Batch, as a view. Throws INVALID_ARGUMENT. */
export function decodeBatch(message: Uint8Array): Uint8Array {
  if (message.length === 0) return NOTHING;
  if (message[0] === TAG) {
    let length = 0;
    for (let at = 1, shift = 0; shift < 35; shift += 7, at++) {
      const octet = message[at];
      if (octet === undefined) break;
      length += (octet & 0x7f) * 2 ** shift;
      if (octet < 0x80) {
        if (at + 1 + length === message.length) return message.subarray(at + 1);
        break;
      }
    }
  }
  try {
    return fromBinary(BatchSchema, message, { readUnknownFields: false }).frames;
  } catch (error) {
    throw new BulkheadError('INVALID_ARGUMENT', 'the message is not a valid bulkhead.v1.Batch', { cause: error });
  }
}
