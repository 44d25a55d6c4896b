/**
 * The streams of drivers: `Calls.Attach`. The mTLS identity must be the principal of the session credential it brings: a
 * credential alone opens nothing. A stream with a resume token takes the place of an open one of the same principal and job.
 */
import type { AppendDurably } from '../base/audit-record.ts';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { FrameWriter, OP } from '../base/frame.ts';
import type { JobId } from '../base/ids.ts';
import type { Clock } from '../base/time.ts';
import type { Calls } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { MovableStream, MovableStreams, RESUME_METADATA, type BatchStream, type CallContext, type Implementation } from '../rpc/rpc.ts';
import { CHANNEL_KIND, type Channel, type TenantState } from './core/state.ts';
import type { VerifiedCredential } from './peer-links.ts';
import type { Raylet } from './raylet.ts';

export const SESSION_METADATA = 'bulkhead-session';

export interface DriverChannelOptions {
  readonly raylet: Raylet;
  readonly verify: (credential: string) => Promise<VerifiedCredential>;
  readonly audit: AppendDurably;
  readonly clock: Clock;
  /** The last stream here of a session has ended; `lost`: its connection died, nobody said goodbye. */
  readonly onStreamEnded: (jobId: JobId, sessionId: string, how: 'closed' | 'lost') => void;
}

/** Open streams by session: a driver has one, but nothing keeps a client from opening more. */
class SessionStreams {
  readonly #open = new Map<string, number>();
  readonly #ended: DriverChannelOptions['onStreamEnded'];

  constructor(ended: DriverChannelOptions['onStreamEnded']) {
    this.#ended = ended;
  }

  /** Returns what to call at the stream's end; only the first call counts. */
  add({ jobId, sessionId }: VerifiedCredential): (how: 'closed' | 'lost') => void {
    const key = `${jobId} ${sessionId}`;
    this.#open.set(key, (this.#open.get(key) ?? 0) + 1);
    let over = false;
    return (how) => {
      if (over) return;
      over = true;
      const left = (this.#open.get(key) ?? 1) - 1;
      if (left > 0) return void this.#open.set(key, left);
      this.#open.delete(key);
      if (sessionId !== '') this.#ended(jobId, sessionId, how);
    };
  }
}

export function callsService(options: DriverChannelOptions): Implementation<typeof Calls> {
  const streams = new MovableStreams();
  const sessions = new SessionStreams(options.onStreamEnded);
  return {
    attach(call: CallContext, stream: BatchStream) {
      let gone = false;
      stream.onEnd = () => {
        gone = true;
      };
      // Nothing is read before the credential is verified.
      stream.pause();
      const token = call.metadata(RESUME_METADATA);
      const opened = token === undefined ? open(options, sessions, call) : resumed(options, streams, call, token);
      opened.then(
        (take) => {
          if (!gone) take(stream, streams);
        },
        (error: unknown) => stream.end(toSafeError(error)),
      ).catch((error: unknown) => stream.end(toSafeError(error)));
    },
  };
}

const RESUMED = frame(OP.RESUMED);

function frame(op: number): Uint8Array {
  const out = new FrameWriter(64);
  out.begin(op).end();
  return out.take();
}

/** What becomes of a stream whose caller may have it. */
type Take = (stream: BatchStream, streams: MovableStreams) => void;

async function verifiedSession({ raylet, verify }: DriverChannelOptions, call: CallContext): Promise<{ verified: VerifiedCredential; credential: string; tenant: TenantState }> {
  const credential = call.metadata(SESSION_METADATA);
  if (credential === undefined) throw new BulkheadError('UNAUTHENTICATED', `the stream has no session credential in the metadata '${SESSION_METADATA}': open a session at the head first`);
  const verified = await verify(credential);
  if (verified.principal.spiffeId !== call.principal.spiffeId) throw new BulkheadError('UNAUTHENTICATED', 'the session credential is of another identity than the connection');
  const tenant = raylet.core.state.tenants.get(verified.tenantNumber);
  if (tenant === undefined || tenant.name !== verified.principal.tenant || !tenant.active) throw new BulkheadError('UNAVAILABLE', 'this node does not know the tenant yet; try again');
  return { verified, credential, tenant };
}

/** Whoever takes a stream over must be the same principal, under a credential for the same job. */
const ownerOf = (verified: VerifiedCredential): string => `${verified.principal.spiffeId} ${verified.jobId}`;

async function open(options: DriverChannelOptions, sessions: SessionStreams, call: CallContext): Promise<Take> {
  const { raylet } = options;
  const { verified, credential, tenant } = await verifiedSession(options, call);
  return (first, streams) => {
    const job = raylet.ensureJob(verified.jobId, tenant, verified.principal, verified.jobPrincipal, credential, verified.expiresMs, verified.issuedMs, verified.project);
    const stream = new MovableStream(first);
    const secret = MovableStreams.newSecret();
    let id = '';
    let ended: ((how: 'closed' | 'lost') => void) | undefined;
    const channel: Channel = raylet.openChannel(CHANNEL_KIND.DRIVER, job, verified.principal, 0, {
      write: (batch, tail, written) => stream.write(batch, tail, written), pause: () => stream.pause(), resume: () => stream.resume(),
      close: (error) => {
        streams.delete(id);
        stream.end(error);
        ended?.('closed');
      },
    }, { resume: secret });
    ended = sessions.add(verified);
    stream.onData = (batch) => raylet.clientBatch(channel, batch);
    stream.onLarge = (head, length) => raylet.parts.place(head, length, 0, OP.PUT_CHUNK, (batch, release) => raylet.clientBatch(channel, batch, release));
    stream.onDrain = () => raylet.drained(channel);
    stream.onEnd = (error) => raylet.whenRead(channel, () => {
      ended(error === undefined ? 'closed' : 'lost');
      raylet.closeChannel(channel, undefined);
    });
    id = Buffer.from(channel.session.prefix).toString('hex');
    if (stream.open) streams.add(id, secret, ownerOf(verified), stream);
    stream.resume();
  };
}

async function resumed(options: DriverChannelOptions, streams: MovableStreams, call: CallContext, token: string): Promise<Take> {
  const { raylet, audit, clock } = options;
  const record = (event: string, detail: string): Promise<void> => {
    const { tenant, spiffeId } = call.principal;
    const known = [...raylet.core.state.tenants.values()].some(({ name }) => name === tenant);
    return audit(known ? (tenant ?? '') : '', { type: 'lifecycle', timeMs: clock.nowMs(), event, principal: spiffeId, resourceKind: 'session', resource: MovableStreams.idIn(token), index: -1, detail });
  };
  try {
    const { verified } = await verifiedSession(options, call);
    const owner = ownerOf(verified);
    streams.find(token, owner);
    await record('session.moved', 'to a new connection');
    // Again: while the record was written the channel may have ended.
    return (stream) => streams.find(token, owner).offer(stream, RESUMED.slice());
  } catch (thrown) {
    const error = toSafeError(thrown);
    await record('session.move-refused', error.safeMessage);
    throw error;
  }
}
