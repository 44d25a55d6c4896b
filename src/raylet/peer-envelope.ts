/** The envelopes of `Peers.Exchange` (proto/frames.md): `u32 length | u32 channel | rest`, several to a message. */
import { BulkheadError } from '../base/errors.ts';
import { FrameReader, FrameWriter } from '../base/frame.ts';

export const PEER_OP = { OPEN_CHANNEL: 0xa0, CLOSE_CHANNEL: 0xa1, CHANNEL_REFUSED: 0xa2, STREAM: 0xa3, RESUMED: 0xa4 } as const;

export const ENVELOPE_BYTES = 8;

/** `tailBytes`: of what the caller sends right behind, as the rest of the batch. */
export function wrap(channel: number, batch: Uint8Array, tailBytes = 0): Uint8Array {
  const message = Buffer.allocUnsafe(ENVELOPE_BYTES + batch.length);
  message.writeUInt32LE(4 + batch.length + tailBytes, 0);
  message.writeUInt32LE(channel, 4);
  message.set(batch, ENVELOPE_BYTES);
  return message;
}

/** A control message of channel 0. */
export function control(op: number, write: (out: FrameWriter) => void): Uint8Array {
  const out = new FrameWriter(256).begin(op);
  write(out);
  out.end();
  return wrap(0, out.take());
}

export function unwrap(message: Uint8Array, onBatch: (channel: number, batch: Uint8Array) => void, onControl: (reader: FrameReader) => void): void {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  for (let at = 0; at < message.length; ) {
    if (at + ENVELOPE_BYTES > message.length) throw new BulkheadError('INVALID_ARGUMENT', 'a message ends inside an envelope');
    const length = view.getUint32(at, true);
    const channel = view.getUint32(at + 4, true);
    const end = at + 4 + length;
    if (length < 4 || end > message.length) throw new BulkheadError('INVALID_ARGUMENT', `an envelope of ${length} octets is out of bounds`);
    const batch = message.subarray(at + ENVELOPE_BYTES, end);
    if (channel !== 0) onBatch(channel, batch);
    else {
      const reader = new FrameReader().reset(batch);
      while (reader.next()) onControl(reader);
    }
    at = end;
  }
}
