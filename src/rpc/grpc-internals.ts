/**
 * The one file that reaches behind grpc-js's types: its server has no option for HTTP/2 receive windows, header limits and frame
 * floods. What is missing stops the start, so that an upgrade of the library cannot silently drop a limit.
 */
import type { ServerOptions as Http2Options, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import { EventEmitter } from 'node:events';
import { Duplex } from 'node:stream';
import * as grpc from '@grpc/grpc-js';
import { BulkheadError } from '../base/errors.ts';

const changed = (what: string): never => {
  throw new BulkheadError('INTERNAL', `@grpc/grpc-js has no ${what} any more; adapt src/rpc/grpc-internals.ts to its new version`);
};

/**
 * An injector takes connections that are accepted and verified already. The "insecure" of its credentials means that grpc-js adds
 * no TLS of its own to them.
 */
export function createInjector(server: grpc.Server, limits: { windowBytes: number; streams: number; metadataBytes: number }): grpc.ConnectionInjector {
  const options: unknown = Reflect.get(server, 'commonServerOptions');
  if (typeof options !== 'object' || options === null) return changed('commonServerOptions');
  const hardened: Http2Options = {
    settings: { maxConcurrentStreams: limits.streams, initialWindowSize: limits.windowBytes, maxHeaderListSize: limits.metadataBytes },
    maxHeaderListPairs: 64,
    maxSessionInvalidFrames: 16,
    maxSessionRejectedStreams: 16,
    maxSettings: 16,
    maxOutstandingPings: 4,
  };
  Object.assign(options, hardened);
  const injector = server.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  const servers: unknown = Reflect.get(server, 'http2Servers');
  const http2Server: unknown = servers instanceof Map ? [...servers.keys()][0] : undefined;
  if (!(http2Server instanceof EventEmitter)) return changed('http2Servers');
  http2Server.on('session', (session: ServerHttp2Session) => session.once('connect', () => session.setLocalWindowSize(limits.windowBytes)));
  return injector;
}

/**
 * Whether what looks like the caller's orderly end of its messages is none: when a connection dies or the caller resets a stream, HTTP/2 ends
 * it for reading too, and grpc-js tells that as a half-close before it tells the loss.
 */
export function cutStream(call: grpc.ServerInterceptingCallInterface): () => boolean {
  const stream: unknown = Reflect.get(call, 'stream');
  if (!(stream instanceof EventEmitter) || !('closed' in stream)) return changed('stream of a server call');
  let cut = false;
  // Before grpc-js, which may hand the half-close on within its own listener; when it is handed on, a good stream may be closed as well.
  stream.prependOnceListener('end', () => {
    cut = stream.closed === true;
  });
  return () => cut;
}

/**
 * The HTTP/2 stream under a call whose messages go past grpc-js from here on: what it would have read comes to whoever listens next, nothing is lost, since
 * grpc-js reads nothing before it is asked to. Ending the call stays its business.
 */
export function takeStream(call: grpc.ServerInterceptingCallInterface): ServerHttp2Stream {
  const stream: unknown = Reflect.get(call, 'stream');
  if (!(stream instanceof Duplex) || !('respond' in stream) || stream.listenerCount('data') !== 1 || !stream.isPaused()) return changed('paused stream of a server call');
  stream.removeAllListeners('data');
  return stream as ServerHttp2Stream;
}
