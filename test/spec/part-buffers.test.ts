/** Buffers for parts of large values: nobody gets one that somebody may still read, and nothing but such parts is placed in them. */
import { expect, it } from 'vitest';
import { FrameWriter, OP } from '../../src/base/frame.ts';
import { CHUNK_BYTES } from '../../src/base/limits.ts';
import { PartBuffers } from '../../src/raylet/part-buffers.ts';

function batch(op: number, octets: number): Uint8Array {
  const out = new FrameWriter(64);
  out.begin(op).u32(1).u32(2).u64(octets).u64(0).raw(new Uint8Array(octets)).end();
  return out.take();
}

it('uses a buffer again when what was in it is read, not before', () => {
  const parts = new PartBuffers();
  const message = batch(OP.PUT_CHUNK, CHUNK_BYTES);
  const releases: (() => void)[] = [];
  const place = (): ArrayBufferLike | undefined => {
    const sink = parts.place(message.subarray(0, 64), message.length, 0, OP.PUT_CHUNK, (given, release) => {
      expect([given.length, given.buffer]).toEqual([message.length, sink?.into.buffer]);
      releases.push(release);
    });
    expect([sink?.skip, sink?.into.length]).toEqual([0, message.length]);
    sink?.done();
    return sink?.into.buffer;
  };
  const first = place();
  const second = place();
  expect(second).not.toBe(first);
  releases[0]?.();
  expect(place()).toBe(first);
  expect([first, second]).not.toContain(place());
  // A stream that dies in the middle of a part gives its buffer to nobody.
  releases[1]?.();
  expect(parts.place(message.subarray(0, 64), message.length, 0, OP.PUT_CHUNK, () => undefined)?.into.buffer).toBe(second);
  expect([first, second]).not.toContain(place());
});

it('takes one frame of that op that fills the batch, no longer than a part is, and nothing else', () => {
  const parts = new PartBuffers();
  const placed = (message: Uint8Array, start = 0, head = 64): boolean => parts.place(message.subarray(0, head), message.length, start, OP.PUT_CHUNK, () => undefined) !== undefined;
  const good = batch(OP.PUT_CHUNK, CHUNK_BYTES);
  expect(placed(good)).toBe(true);
  expect(placed(batch(OP.VALUE_CHUNK, CHUNK_BYTES))).toBe(false);
  expect(placed(batch(OP.PUT_CHUNK, CHUNK_BYTES + 1_000))).toBe(false);
  expect(placed(Buffer.concat([good, batch(OP.PUT_CHUNK, 10)]))).toBe(false);
  expect(placed(good.subarray(0, good.length - 1))).toBe(false);
  expect(placed(good, 0, 4)).toBe(false);
  expect(placed(Buffer.concat([new Uint8Array(8), good]), 8)).toBe(true);
  expect(placed(Buffer.concat([new Uint8Array(8), good]), 8, 12)).toBe(false);
});
