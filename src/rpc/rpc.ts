/** The face of src/rpc: servers and channels over mTLS. What is not named here is inner. */
export { createServer, DEFAULT_LIMITS, type RpcLimits, type RpcServer, type ServerOptions } from './server.ts';
export { createAttestationServer, type AttestationServer } from './attestation-listener.ts';
export { createHttpsListener, type HttpsListener } from './https-listener.ts';
export { createMetricsListener, type MetricsListener } from './metrics-listener.ts';
export { client, createChannel, type RpcChannel } from './channel.ts';
export type { ChannelOptions } from './client-tls.ts';
export type { BaseCall, CallContext, CallOptions, Client, Implementation } from './service-types.ts';
export { LastingStream, MovableStream, MovableStreams, RESUME_METADATA } from './lasting-stream.ts';
export { live } from './process-life.ts';
export { processMetrics } from './process-metrics.ts';
export { noticesOf } from './owners-notices.ts';
export type { BatchStream, MessageStream } from './streams.ts';
export { asSeenByPeer, DENIED_TEXT } from './status.ts';
export type { RpcLog } from './tls.ts';
export type { MethodRow, OwnIdentity, PeerVerifier, ServerSecurity, VerifiedPeer } from './ports.ts';
