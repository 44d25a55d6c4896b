/** A driver that writes frames by hand: what a hostile client can send, and what it hears. Payloads stay octets. */
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { SESSION_PREFIX_BYTES } from '../../src/base/ids.ts';
import type { BulkheadError } from '../../src/base/errors.ts';
import { Sessions } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { BatchStream } from '../../src/rpc/rpc.ts';
import type { Caller } from './cluster.ts';

export interface Frame {
  readonly op: number;
  readonly body: Buffer;
}

export interface Ended {
  readonly error: BulkheadError | undefined;
}

/** Frames of one batch. */
export function batch(...frames: readonly ((w: FrameWriter) => unknown)[]): Uint8Array<ArrayBuffer> {
  const writer = new FrameWriter();
  for (const frame of frames) {
    frame(writer);
    writer.end();
  }
  return writer.take();
}

export function splitFrames(octets: Uint8Array): Frame[] {
  const frames: Frame[] = [];
  const reader = new FrameReader().reset(octets);
  while (reader.next()) {
    frames.push({ op: reader.op, body: Buffer.from(reader.rest()) });
    reader.finish();
  }
  return frames;
}

export const u32 = (body: Buffer, at = 0): number => body.readUInt32LE(at);

/** str, text and text of VALUE_FAILED and FAILED, whose header is `skip` octets long. */
export function failureIn(body: Buffer, skip: number): { code: string; message: string } {
  const codeLength = body.readUInt16LE(skip);
  const code = body.toString('utf8', skip + 2, skip + 2 + codeLength);
  const at = skip + 2 + codeLength;
  return { code, message: body.toString('utf8', at + 4, at + 4 + body.readUInt32LE(at)) };
}

export class RawDriver implements Disposable {
  readonly stream: BatchStream;
  readonly frames: Frame[] = [];
  readonly ended: Promise<Ended>;
  end: Ended | undefined;
  readonly #taken = new Set<Frame>();
  #wake: (() => void)[] = [];

  private constructor(stream: BatchStream) {
    this.stream = stream;
    const { promise, resolve } = Promise.withResolvers<Ended>();
    this.ended = promise;
    stream.onData = (octets) => {
      this.frames.push(...splitFrames(octets));
      for (const wake of this.#wake.splice(0)) wake();
    };
    stream.onEnd = (error) => {
      this.end = { error };
      resolve(this.end);
      for (const wake of this.#wake.splice(0)) wake();
    };
  }

  static async session(caller: Caller): Promise<{ jobId: string; credential: string }> {
    const { jobId, credential } = await caller.to(Sessions).open({ jobName: 'raw', jobId: '' });
    return { jobId, credential };
  }

  /** Attaches under a credential; resolves with the first frame or the end. */
  static async attach(caller: Caller, raylet: string, credential: string): Promise<RawDriver> {
    const driver = new RawDriver(caller.on(raylet, Calls).attach({ metadata: { 'bulkhead-session': credential } }));
    await driver.next((f) => f.op === OP.WELCOME);
    return driver;
  }

  static async open(caller: Caller, raylet = 'raylet-1'): Promise<RawDriver> {
    return RawDriver.attach(caller, raylet, (await RawDriver.session(caller)).credential);
  }

  get prefix(): Buffer {
    const welcome = this.frames.find((f) => f.op === OP.WELCOME);
    if (welcome === undefined) throw new Error(`there was no welcome: ${this.end?.error?.message ?? ''}`);
    return welcome.body.subarray(0, SESSION_PREFIX_BYTES);
  }

  id(index: number): Buffer {
    const octets = Buffer.alloc(4);
    octets.writeUInt32LE(index);
    return Buffer.concat([this.prefix, octets]);
  }

  send(octets: Uint8Array): void {
    this.stream.write(octets as Uint8Array<ArrayBuffer>);
  }

  /** Sends much, waiting where the stream says so. */
  async sendAll(batches: Iterable<Uint8Array>): Promise<void> {
    for (const octets of batches) {
      if (this.stream.write(octets as Uint8Array<ArrayBuffer>) || this.end !== undefined) continue;
      await new Promise<void>((resolve) => {
        this.stream.onDrain = resolve;
        void this.ended.then(() => resolve());
      });
    }
  }

  /** A frame that fits and was not taken before, in whatever order they come, or undefined when the stream ended or it took too long. */
  async next(fits: (frame: Frame) => boolean, timeoutMs = 10_000): Promise<Frame | undefined> {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const found = this.frames.find((f) => !this.#taken.has(f) && fits(f));
      if (found !== undefined) {
        this.#taken.add(found);
        return found;
      }
      if (this.end !== undefined) return undefined;
      const left = until - performance.now();
      if (left <= 0) return undefined;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  /** The answer to a request number: VALUE, VALUE_FAILED, READY, ACTOR, DONE or FAILED. */
  answer(request: number, timeoutMs?: number): Promise<Frame | undefined> {
    return this.next((f) => f.op >= OP.VALUE && f.op <= OP.FAILED && u32(f.body) === request, timeoutMs);
  }

  /** Whether the channel still works: a CONTEXT call is answered. */
  async alive(): Promise<boolean> {
    const request = 0x7000_0000 + this.frames.length;
    this.send(batch((w) => w.begin(OP.CONTEXT).u32(0).u32(request)));
    return (await this.answer(request)) !== undefined;
  }

  [Symbol.dispose](): void {
    this.stream.end();
  }
}
