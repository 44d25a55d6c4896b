/** The hand-made Batch codec and framing against protobuf-es and grpc-js: on the wire they must not differ. */
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import * as grpc from '@grpc/grpc-js';
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { controlFrame, CONTROL } from '../../src/rpc/batch-frames.ts';
import { BatchPipe, MessageReader, PATIENT_BEATS, SILENT_BEATS } from '../../src/rpc/batch-pipe.ts';
import { batchHeadBytes, decodeBatch, framesStart, writeBatchHead } from '../../src/rpc/batch-codec.ts';
import { BatchSchema, Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createChannel, createServer } from '../../src/rpc/rpc.ts';
import { TokenBucket } from '../../src/rpc/token-bucket.ts';
import { CALLS_ROW, node, openFixture, user } from './rpc-fixture.ts';

const bytes = (from: Uint8Array): number[] => [...from];

function encode(frames: Uint8Array): Buffer {
  const head = batchHeadBytes(frames.length);
  const into = Buffer.alloc(3 + head + frames.length, 0xee);
  writeBatchHead(into, 3, frames.length);
  into.set(frames, 3 + head);
  expect(into.subarray(0, 3)).toEqual(Buffer.alloc(3, 0xee));
  return into.subarray(3);
}

describe('the batch codec', () => {
  it('writes and reads what protobuf-es does', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 40_000 }), (frames) => {
      const encoded = encode(frames);
      expect(encoded.equals(toBinary(BatchSchema, create(BatchSchema, { frames })))).toBe(true);
      expect(Buffer.from(decodeBatch(encoded)).equals(frames)).toBe(true);
    }), { numRuns: 100 });
    for (const size of [127, 128, 16_383, 16_384, 2_097_151, 2_097_152]) expect(fromBinary(BatchSchema, encode(new Uint8Array(size))).frames).toHaveLength(size);
  });

  it('agrees with protobuf-es on arbitrary octets: both refuse, or both read the same', () => {
    const near = fc.tuple(fc.constantFrom(0x0a, 0x08, 0x12, 0x0b, 0x00), fc.uint8Array({ maxLength: 24 })).map(([tag, rest]) => Uint8Array.of(tag, ...rest));
    fc.assert(fc.property(fc.oneof(near, fc.uint8Array({ maxLength: 32 })), (octets) => {
      let expected: number[] | undefined;
      try {
        expected = bytes(fromBinary(BatchSchema, octets).frames);
      } catch {
        expected = undefined;
      }
      let got: number[] | undefined;
      try {
        got = bytes(decodeBatch(octets));
      } catch (error) {
        expect(error).toBeInstanceOf(BulkheadError);
        expect((error as BulkheadError).code).toBe('INVALID_ARGUMENT');
      }
      expect(got).toEqual(expected);
    }), { numRuns: 2_000 });
  });

  it('skips a field of a later version and takes the last of several', () => {
    expect(bytes(decodeBatch(Uint8Array.of(0x10, 0x01, 0x0a, 0x01, 0x07)))).toEqual([7]);
    expect(bytes(decodeBatch(Uint8Array.of(0x0a, 0x01, 0x05, 0x0a, 0x02, 0x08, 0x09)))).toEqual([8, 9]);
  });
});

describe('the message reader', () => {
  it('finds the same messages however the octets are cut', () => {
    fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 30 }), (messages, cuts) => {
      const whole = Buffer.concat(messages.map((m) => Buffer.concat([Buffer.from([0, 0, 0, 0, m.length]), m])));
      const reader = new MessageReader({ limit: 40 });
      const got: number[][] = [];
      for (let at = 0, i = 0; at < whole.length; i++) {
        const n = cuts[i % cuts.length] ?? 1;
        reader.push(whole.subarray(at, at + n), (m) => void got.push(bytes(m)));
        at += n;
      }
      expect(got).toEqual(messages.map(bytes));
      expect(reader.idle).toBe(true);
    }), { numRuns: 300 });
  });

  it('puts the rest of a large message where it is told to, and stops where its reader pauses, however the octets are cut', () => {
    const large = Buffer.alloc(100_000, 1);
    fc.assert(fc.property(fc.array(fc.constantFrom(3, 70, 70_000), { minLength: 1, maxLength: 6 }), fc.array(fc.integer({ min: 1, max: 40_000 }), { minLength: 1, maxLength: 20 }), fc.boolean(), (lengths, cuts, pausing) => {
      const messages = lengths.map((length, i) => Buffer.from(Array.from(large.subarray(0, length), (_, at) => (at * 7 + i) & 0xff)));
      const whole = Buffer.concat(messages.map((m) => {
        const prefix = Buffer.alloc(5);
        prefix.writeUInt32BE(m.length, 1);
        return Buffer.concat([prefix, m]);
      }));
      const got: Buffer[] = [];
      let placed: Buffer | undefined;
      let places = 0;
      const reader = new MessageReader({ limit: 200_000, place: (head, length) => {
        const into = Buffer.alloc(length - 16);
        const start = Buffer.from(head.subarray(0, 16));
        places += 1;
        return { skip: 16, into, done: () => void (placed = Buffer.concat([start, into])) };
      } });
      let rest: Buffer = whole;
      for (let i = 0; rest.length > 0; i++) {
        const chunk = rest.subarray(0, cuts[i % cuts.length]);
        const taken = reader.push(chunk, (m) => {
          got.push(Buffer.from(m));
          return !pausing;
        }, () => {
          got.push(placed as Buffer);
          return !pausing;
        });
        expect(pausing || taken === chunk.length).toBe(true);
        rest = rest.subarray(taken);
      }
      expect(got.map((m) => m.toString('hex'))).toEqual(messages.map((m) => m.toString('hex')));
      expect([places, reader.idle]).toEqual([lengths.filter((length) => length === 70_000).length, true]);
    }), { numRuns: 60 });
  });

  it('knows where frames begin in a message of which it has the first octets only', () => {
    for (const size of [1, 127, 128, 70_000, 2_097_152]) {
      const encoded = encode(new Uint8Array(size));
      expect(framesStart(encoded.subarray(0, 8), encoded.length)).toBe(batchHeadBytes(size));
      expect(framesStart(encoded.subarray(0, 8), encoded.length + 1)).toBeUndefined();
    }
    expect(framesStart(Uint8Array.of(0x0a, 0xff), 70_000)).toBeUndefined();
    expect(framesStart(Uint8Array.of(0x12, 0x01, 0x01), 3)).toBeUndefined();
  });

  it('refuses what is compressed or too long, before it allocates', () => {
    expect(() => new MessageReader({ limit: 10 }).push(Buffer.from([1, 0, 0, 0, 1, 7]), () => undefined)).toThrow(/compressed/);
    expect(() => new MessageReader({ limit: 10 }).push(Buffer.from([0, 0xff, 0xff, 0xff, 0xff]), () => undefined)).toThrow(/limit/);
  });
});

describe('on the wire it is ordinary gRPC', () => {
  it('a client of grpc-js and protobuf-es speaks with our server', async () => {
    const fixture = await openFixture();
    const identity = await fixture.issue(node('n1'));
    const ana = (await fixture.issue(user('acme', 'ana'))).current();
    const server = createServer(fixture.security(identity, [CALLS_ROW]), { knowsTenant: () => true });
    server.add(Calls, {
      attach: (_call, stream) => {
        stream.onData = (batch) => void stream.write(Uint8Array.of(...batch, 9));
        stream.onEnd = () => stream.end();
      },
    });
    const { port } = await server.listen('127.0.0.1:0');
    const credentials = grpc.credentials.createSsl(Buffer.from(ana.trustBundlePem), Buffer.from(ana.privateKeyPem), Buffer.from(ana.certificateChainPem), { checkServerIdentity: () => undefined });
    const foreign = new grpc.Client(`127.0.0.1:${port}`, credentials);
    const stream = foreign.makeBidiStreamRequest('/bulkhead.v1.Calls/Attach', (frames: Uint8Array) => Buffer.from(toBinary(BatchSchema, create(BatchSchema, { frames }))), (message: Buffer) => fromBinary(BatchSchema, message).frames, new grpc.Metadata());
    stream.write(Uint8Array.of(1, 2));
    stream.write(new Uint8Array(0));
    stream.end();
    const got: number[][] = [];
    for await (const frames of stream) got.push(bytes(frames as Uint8Array));
    expect(got).toEqual([[1, 2, 9], [9]]);
    foreign.close();
    await server.close();
  });
});

describe('the token bucket', () => {
  it('gives its burst, then its rate', () => {
    const bucket = new TokenBucket(10, 3);
    expect([0, 0, 0, 0].map((at) => bucket.take(at))).toEqual([true, true, true, false]);
    expect([50, 100, 150, 200, 10_000, 10_000, 10_000, 10_000].map((at) => bucket.take(at))).toEqual([false, true, false, true, true, true, true, false]);
  });
});

describe('a peer that is silent', () => {
  afterEach(() => void vi.useRealTimers());

  function pipe(silentBeats: number): { end: BatchPipe; hear: () => void; lostAfter: (seconds: number) => boolean } {
    vi.useFakeTimers();
    const end = new BatchPipe();
    let lost = false;
    end.beat(() => void (lost = true), silentBeats);
    return {
      end, hear: () => end.receive(controlFrame(CONTROL.BEAT)),
      lostAfter: (seconds) => {
        vi.advanceTimersByTime(seconds * 1_000);
        return lost;
      },
    };
  }

  it('is lost after 10 to 12 seconds where nodes talk, and after 40 where a program may compute; before its first word it has that time too', () => {
    const node = pipe(SILENT_BEATS);
    expect(node.lostAfter(39)).toBe(false);
    node.hear();
    expect([node.lostAfter(10), node.lostAfter(2)]).toEqual([false, true]);
    const program = pipe(PATIENT_BEATS);
    program.hear();
    expect([program.lostAfter(39), program.lostAfter(3)]).toEqual([false, true]);
    expect(pipe(SILENT_BEATS).lostAfter(42)).toBe(true);
  });

  it('is not lost to one that does not read, or stood still itself; anything that comes counts', () => {
    const { end, hear, lostAfter } = pipe(SILENT_BEATS);
    hear();
    end.pause();
    expect(lostAfter(600)).toBe(false);
    end.resume();
    for (let i = 0; i < 20; i++) {
      expect(lostAfter(9)).toBe(false);
      hear();
    }
    expect([lostAfter(10), lostAfter(2)]).toEqual([false, true]);
  });
});
