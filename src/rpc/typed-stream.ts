/** Typed messages of protobuf-es over a raw stream, the same on both sides: bounded read-ahead, `for await`, back-pressure. */
import { create, fromBinary, toBinary, type DescMessage, type Message } from '@bufbuild/protobuf';
import { BulkheadError } from '../base/errors.ts';
import type { MessageStream, RawStream } from './streams.ts';

/** Messages that wait to be taken; beyond this many the stream pauses. */
const READ_AHEAD = 16;

export class TypedStream implements MessageStream<Message, Message> {
  readonly #stream: RawStream;
  readonly #output: DescMessage;
  readonly #queue: Message[] = [];
  #ended = false;
  #error: BulkheadError | undefined;
  #wake: (() => void) | undefined;
  #drained: (() => void)[] = [];
  #blocked = false;

  constructor(stream: RawStream, input: DescMessage, output: DescMessage) {
    this.#stream = stream;
    this.#output = output;
    stream.onRaw = (bytes) => {
      this.#queue.push(parseMessage(input, bytes));
      if (this.#queue.length >= READ_AHEAD) stream.pause();
      this.#wake?.();
    };
    stream.onDrain = () => this.#release();
    stream.onEnd = (error) => {
      this.#ended = true;
      this.#error = error;
      this.#wake?.();
      this.#release();
    };
  }

  #release(): void {
    this.#blocked = false;
    for (const resolve of this.#drained.splice(0)) resolve();
  }

  write(message: Message): boolean {
    this.#blocked = !this.#stream.writeRaw(encodeMessage(this.#output, message));
    return !this.#blocked;
  }

  drained(): Promise<void> {
    return this.#blocked && this.#error === undefined ? new Promise((resolve) => this.#drained.push(resolve)) : Promise.resolve();
  }

  end(error?: BulkheadError): void {
    this.#stream.end(error);
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Message> {
    for (;;) {
      const message = this.#queue.shift();
      if (message !== undefined) {
        if (this.#queue.length < READ_AHEAD / 2) this.#stream.resume();
        yield message;
      } else if (this.#ended) {
        if (this.#error !== undefined) throw this.#error;
        return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    }
  }
}

export function parseMessage(schema: DescMessage, bytes: Uint8Array): Message {
  try {
    return fromBinary(schema, bytes, { readUnknownFields: false });
  } catch (error) {
    throw new BulkheadError('INVALID_ARGUMENT', `the message is not a valid ${schema.typeName}`, { cause: error });
  }
}

export function encodeMessage(schema: DescMessage, message: object): Buffer {
  const bytes = toBinary(schema, create(schema, message as never), { writeUnknownFields: false });
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
