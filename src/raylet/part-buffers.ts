/**
 * Buffers for parts of large values, those that come and those that go, used again and again: a new one for each made V8 collect garbage all through a transfer. Each
 * is written over before its next use. Must never: give out a buffer that somebody may still read.
 */
import type { FrameSink } from '../base/frame.ts';
import { CHUNK_BYTES } from '../base/limits.ts';

/** A part, with what is before it. */
const BUFFER_BYTES = CHUNK_BYTES + 256;
const KEPT_BUFFERS = 8;

export class PartBuffers {
  readonly #kept: Buffer[] = [];

  /** At least CHUNK_BYTES, with anything in them. */
  take(): Buffer {
    return this.#kept.pop() ?? Buffer.allocUnsafeSlow(BUFFER_BYTES);
  }

  /** Nothing of it is read or kept any more. */
  giveBack(buffer: Buffer): void {
    if (this.#kept.length < KEPT_BUFFERS) this.#kept.push(buffer);
  }

  /**
   * For `BatchStream.onLarge`: a batch of `length` octets whose frames, from `start` on, are one of this op. `deliver` gets it whole, and calls
   * `release` when nothing of it is read or kept any more. Undefined for any other batch.
   */
  place(head: Uint8Array, length: number, start: number, op: number, deliver: (batch: Uint8Array, release: () => void) => void): FrameSink | undefined {
    if (length > BUFFER_BYTES || head.length < start + 5 || head[start + 4] !== op) return undefined;
    if (new DataView(head.buffer, head.byteOffset, head.length).getUint32(start, true) !== length - start - 4) return undefined;
    const buffer = this.take();
    const into = buffer.subarray(0, length);
    return { skip: 0, into, done: () => deliver(into, () => this.giveBack(buffer)) };
  }
}
