/**
 * The streams of drivers: `Calls.Attach`. The mTLS identity must be the principal of the session credential it brings: a
 * credential alone opens nothing.
 */
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { Calls } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { BatchStream, CallContext, Implementation } from '../rpc/rpc.ts';
import { CHANNEL_KIND, type Channel } from './core/state.ts';
import type { VerifiedCredential } from './peer-links.ts';
import type { Raylet } from './raylet.ts';

export const SESSION_METADATA = 'bulkhead-session';

export function callsService(raylet: Raylet, verify: (credential: string) => Promise<VerifiedCredential>): Implementation<typeof Calls> {
  return {
    attach(call: CallContext, stream: BatchStream) {
      let channel: Channel | undefined;
      let early: Uint8Array[] | undefined = [];
      stream.onData = (batch) => {
        if (channel !== undefined) raylet.clientBatch(channel, batch);
        else early?.push(batch);
      };
      stream.onDrain = () => {
        if (channel !== undefined) raylet.drained(channel);
      };
      stream.onEnd = (error) => {
        early = undefined;
        if (channel !== undefined) raylet.closeChannel(channel, undefined);
        if (error === undefined) stream.end();
      };
      // Until the credential is verified nothing is read beyond what has arrived.
      stream.pause();
      void open(raylet, verify, call, stream).then(
        (opened) => {
          channel = opened;
          if (early === undefined) return raylet.closeChannel(opened, undefined);
          const batches = early;
          early = undefined;
          for (const batch of batches) raylet.clientBatch(opened, batch);
          stream.resume();
        },
        (error: unknown) => stream.end(toSafeError(error)),
      );
    },
  };
}

async function open(raylet: Raylet, verify: (credential: string) => Promise<VerifiedCredential>, call: CallContext, stream: BatchStream): Promise<Channel> {
  const credential = call.metadata(SESSION_METADATA);
  if (credential === undefined) throw new BulkheadError('UNAUTHENTICATED', `the stream has no session credential in the metadata '${SESSION_METADATA}': open a session at the head first`);
  const verified = await verify(credential);
  if (verified.principal.spiffeId !== call.principal.spiffeId) throw new BulkheadError('UNAUTHENTICATED', 'the session credential is of another identity than the connection');
  const tenant = raylet.core.state.tenants.get(verified.tenantNumber);
  if (tenant === undefined || tenant.name !== verified.principal.tenant || !tenant.active) throw new BulkheadError('UNAVAILABLE', 'this node does not know the tenant yet; try again');
  const job = raylet.ensureJob(verified.jobId, tenant, verified.principal, verified.jobPrincipal, credential, verified.expiresMs, verified.issuedMs);
  return raylet.openChannel(CHANNEL_KIND.DRIVER, job, verified.principal, 0, {
    write: (batch) => stream.write(batch), pause: () => stream.pause(), resume: () => stream.resume(),
    close: (error) => stream.end(error),
  });
}
