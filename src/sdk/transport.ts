/**
 * How batches of frames travel between a driver and its raylet. Real: gRPC over mTLS (src/sdk/grpc-transport.ts). Tests: in memory.
 * Identity, authentication and reconnection are the transport's; the SDK above it sees one channel that opens once and closes once.
 */

import type { FrameSink } from '../base/frame.ts';
import type { TimelineCall } from '../rpc/generated/bulkhead/v1/raylet_pb.js';

export interface TransportHandlers {
  /** One batch from the raylet; the first frame of the first is WELCOME. Must not be called after `closed`. */
  batch(batch: Uint8Array): void;
  /** A large batch of `length` octets has begun to arrive, with `head`: where its rest goes, so that it is copied once; undefined: `batch` gets it when it is whole. */
  large?(head: Uint8Array, length: number): FrameSink | undefined;
  /** The channel is gone, for good. Without an error: because `close()` was called. */
  closed(error?: Error): void;
}

export interface Connection {
  /** Sends one batch; `tail` continues it. A promise asks the caller to wait before it sends more bulk data; calls need not wait. */
  send(batch: Uint8Array<ArrayBuffer>, tail?: Uint8Array): void | Promise<void>;
  /** The raylet did not take the credential that was renewed last, and goes on with the one before. */
  credentialRefused?(error: Error): void;
  close(): Promise<void>;
  /** When the job's calls waited and ran, by the nodes that keep it; what had ended before `fromMs` is left out. For tracing. */
  timeline?(jobId: string, tenant: string, fromMs: number): AsyncIterable<{ readonly nodeId: string; readonly calls: readonly TimelineCall[] }>;
}

export interface Transport {
  /** Throws BulkheadError UNAVAILABLE or UNAUTHENTICATED. */
  open(handlers: TransportHandlers): Promise<Connection>;
}

/** What `connect` was asked for; where the profile is and what it says is the transport's business. */
export interface ConnectTarget {
  readonly profile: string | undefined;
  readonly address: string | undefined;
  readonly job: string | undefined;
  readonly project: string | undefined;
}
