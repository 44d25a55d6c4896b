/** How a service descriptor of protobuf-es becomes a TypeScript interface: for handlers on one side, for callers on the other. */
import type { DescMethod, DescMethodBiDiStreaming, DescMethodServerStreaming, DescMethodUnary, DescService, MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import type { Decision } from '../base/decision.ts';
import type { Principal } from '../base/principal.ts';
import type { VerifiedPeer } from './ports.ts';
import type { BatchStream, MessageStream } from './streams.ts';

export interface BaseCall {
  /** `bulkhead.v1.Service/Method`. */
  readonly method: string;
  /** Address and port of the peer. */
  readonly remote: string;
  /** First value of a text metadata entry. */
  metadata(name: string): string | undefined;
  /** Aborted when the caller cancels, its deadline passes, its connection ends or the server stops. */
  readonly signal: AbortSignal;
  /** Wall clock, ms; undefined when the caller set none. */
  readonly deadlineMs: number | undefined;
}

/** A call that was authenticated, allowed and recorded. */
export interface CallContext extends BaseCall {
  readonly principal: Principal;
  readonly peer: VerifiedPeer;
  readonly decision: Decision;
}

type IsBatch<Shape> = Shape extends { $typeName: 'bulkhead.v1.Batch' } ? true : false;

export type Handler<M extends DescMethod, Call> =
  M extends DescMethodUnary<infer I, infer O> ? (call: Call, request: MessageShape<I>) => Promise<MessageInitShape<O>>
  : M extends DescMethodServerStreaming<infer I, infer O> ? (call: Call, request: MessageShape<I>) => AsyncIterable<MessageInitShape<O>>
  : M extends DescMethodBiDiStreaming<infer I, infer O>
    ? IsBatch<MessageShape<I>> extends true ? (call: Call, stream: BatchStream) => void
      /** A returned promise ends the stream when it settles. */
      : (call: Call, stream: MessageStream<MessageShape<I>, MessageInitShape<O>>) => void | Promise<void>
  : never;

export type Implementation<S extends DescService, Call = CallContext> = { readonly [K in keyof S['method']]: Handler<S['method'][K], Call> };

export interface CallOptions {
  /** From now; without it a call waits until the connection ends. */
  readonly timeoutMs?: number;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
  /** Streams of typed messages: as `BatchStream.onStale`. */
  readonly onStale?: () => void;
}

export type ClientMethod<M extends DescMethod> =
  M extends DescMethodUnary<infer I, infer O> ? (request: MessageInitShape<I>, options?: CallOptions) => Promise<MessageShape<O>>
  : M extends DescMethodServerStreaming<infer I, infer O> ? (request: MessageInitShape<I>, options?: CallOptions) => AsyncIterable<MessageShape<O>>
  : M extends DescMethodBiDiStreaming<infer I, infer O>
    ? IsBatch<MessageShape<I>> extends true ? (options?: CallOptions) => BatchStream
      : (options?: CallOptions) => MessageStream<MessageShape<O>, MessageInitShape<I>>
  : never;

export type Client<S extends DescService> = { readonly [K in keyof S['method']]: ClientMethod<S['method'][K]> };

/** Whether the hand-made batch codec carries this method. */
export function isBatchMethod(method: DescMethod): boolean {
  return method.methodKind === 'bidi_streaming' && method.input.typeName === 'bulkhead.v1.Batch' && method.output.typeName === 'bulkhead.v1.Batch';
}

export const methodName = (method: DescMethod): string => `${method.parent.typeName}/${method.name}`;
