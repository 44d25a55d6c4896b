/** The two kinds of open streams, the same on both sides of a connection: batches of frames (hot path) and typed messages. */
import type { BulkheadError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';

/**
 * A stream of batches. Callbacks, no promise per batch. Set `onData`, `onDrain` and `onEnd` in the turn in which the stream is
 * handed over; reading begins after it.
 */
export interface BatchStream {
  /**
   * Sends one batch and takes the array over (do not write to it afterwards). `tail` continues it: a large payload that clients send from where it
   * lies. `written` is called when `tail` may be used again; never, when the stream is gone before. False: wait for `onDrain`. Far beyond that it throws
   * RESOURCE_EXHAUSTED.
   */
  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean;
  onDrain: (() => void) | undefined;
  /** A view into a received message: keep it or copy it, it is not reused. A thrown error ends the stream with that error. */
  onData: ((frames: Uint8Array) => void) | undefined;
  /** Asked with the first octets of a large batch of `length` octets before the rest of it is there: where to put it. Undefined: it comes through `onData` when it is whole. */
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  /**
   * Without an error: the peer will send no more; a server may still `write` and must `end`, for a client all is done. With one: the stream
   * is gone; a server hears that also after the peer's end, if it had not called `end` itself by then.
   */
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  /**
   * Clients only. The own identity was renewed, or the server's SVID nears its end: this stream goes on, and is cut when the older SVID ends. An
   * owner that lives longer opens another stream now and moves over.
   */
  onStale: (() => void) | undefined;
  /** Back-pressure: no `onData` until `resume`. */
  pause(): void;
  resume(): void;
  /** Ends the own side; on a server this is the answer's status. With an error the stream is gone at once. */
  end(error?: BulkheadError): void;
}

/** A stream of typed messages: iterate what comes, `write` what goes. */
export interface MessageStream<In, Out> extends AsyncIterable<In> {
  /** False: wait for `drained()` before more. */
  write(message: Out): boolean;
  /** Resolves when writing may go on, and also when the stream is gone. */
  drained(): Promise<void>;
  end(error?: BulkheadError): void;
}

/** What a stream of either side gives to the codec above it: whole messages as bytes. */
export interface RawStream {
  /** Takes the place of `onData`. */
  onRaw: ((message: Buffer) => void) | undefined;
  onDrain: (() => void) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  writeRaw(message: Buffer): boolean;
  pause(): void;
  resume(): void;
  end(error?: BulkheadError): void;
}
