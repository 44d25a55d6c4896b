/**
 * The one listener that a peer without an SVID may speak to: server-authenticated TLS, rate limits, and no service but
 * NodeAttestation. The handler decides by the join token; its decision is on disk before its answer leaves.
 * Must never: serve anything else, or say why an attestation was refused.
 */
import type { DescService } from '@bufbuild/protobuf';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { MethodRow, ServerSecurity } from './ports.ts';
import { rowOf } from './admission.ts';
import { DEFAULT_LIMITS, handlerOf, refusalRecorder, ServerCore, type AnyHandler, type RpcServer, type ServerOptions } from './server.ts';
import { methodName, type BaseCall, type Implementation } from './service-types.ts';
import { NO_LOG, systemClock } from './tls.ts';
import { TokenBucket } from './token-bucket.ts';

const SERVICE = 'bulkhead.v1.NodeAttestation';
/** Joining is rare: a few tries a second from one address, some tens in all. */
const PER_ADDRESS = { perSecond: 2, burst: 10 };
const IN_ALL = { perSecond: 20, burst: 50 };
const MAX_ADDRESSES = 1_024;
/** A join token and a CSR. */
const MAX_REQUEST_BYTES = 64 * 2 ** 10;

export type AttestationServer = Omit<RpcServer, 'add'> & { add<S extends DescService>(service: S, implementation: Implementation<S, BaseCall>): void };

export function createAttestationServer(security: Pick<ServerSecurity, 'identity' | 'decisions' | 'audit' | 'methods'>, options: Omit<ServerOptions, 'knowsTenant'>): AttestationServer {
  const clock = options.clock ?? systemClock;
  const log = options.log ?? NO_LOG;
  const core = new ServerCore({
    identity: security.identity, peers: undefined, clock, log,
    limits: { ...DEFAULT_LIMITS, messageBytes: MAX_REQUEST_BYTES, connections: 256, streamsPerConnection: 4, requestReadTimeoutMs: 5_000, ...options.limits },
    refused: refusalRecorder((record) => security.audit('', record), clock, log),
  });
  const inAll = new TokenBucket(IN_ALL.perSecond, IN_ALL.burst);
  const perAddress = new Map<string, TokenBucket>();

  const limit = (address: string): void => {
    let bucket = perAddress.get(address);
    if (bucket === undefined) {
      const oldest = perAddress.keys().next().value;
      if (perAddress.size >= MAX_ADDRESSES && oldest !== undefined) perAddress.delete(oldest);
      perAddress.set(address, (bucket = new TokenBucket(PER_ADDRESS.perSecond, PER_ADDRESS.burst)));
    }
    const nowMs = clock.monotonicMs();
    // The address first: one that floods must not use up what all share.
    if (!bucket.take(nowMs) || !inAll.take(nowMs)) throw new BulkheadError('RESOURCE_EXHAUSTED', 'too many attestations; try again in a few seconds');
  };

  const recorded = (row: MethodRow, handler: AnyHandler): AnyHandler => async (call: BaseCall, request: never): Promise<unknown> => {
    let answer: unknown;
    let failure: BulkheadError | undefined;
    try {
      answer = await handler(call, request);
    } catch (error) {
      failure = toSafeError(error);
      log.warn({ error, remote: call.remote }, 'an attestation was refused');
    }
    await security.audit('', {
      type: 'decision', timeMs: clock.nowMs(), principal: '', action: row.action, resourceKind: row.resource, resource: call.remote, index: -1, count: 1,
      allow: failure === undefined, rule: 'attestation', policyVersion: security.decisions.version, detail: failure === undefined ? row.method : `${row.method}: ${failure.code}`,
    }).catch((error: unknown) => {
      throw new BulkheadError('UNAVAILABLE', 'the audit log cannot be written, so the attestation was refused; tell the operator of the head', { cause: error });
    });
    if (failure === undefined) return answer;
    // Malformed requests may be told apart; tokens may not.
    throw failure.code === 'INVALID_ARGUMENT' || failure.code === 'UNAVAILABLE' ? failure : new BulkheadError('UNAUTHENTICATED', 'the attestation was refused; ask the administrator for a new join token', { cause: failure });
  };

  return {
    add(service, implementation) {
      if (service.typeName !== SERVICE) throw new BulkheadError('INTERNAL', `${service.typeName} cannot be served to callers without an identity`);
      for (const descriptor of service.methods) {
        const name = methodName(descriptor);
        const row = rowOf(security, name);
        if (descriptor.methodKind !== 'unary') throw new BulkheadError('INTERNAL', `${name} is not unary`);
        core.add(descriptor, recorded(row, handlerOf(implementation, descriptor)), async (call, connection) => {
          limit(connection.address);
          return call;
        });
      }
    },
    listen: (address) => core.listen(address),
    close: () => core.close(),
    get connectionCount() {
      return core.connectionCount;
    },
  };
}
