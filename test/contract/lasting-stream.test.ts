/** Streams that move, over real connections whose SVIDs end: the stream is there when every SVID that it began under is gone. */
import { afterEach, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { Peers } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { createChannel, createServer, LastingStream, MovableStream, MovableStreams, RESUME_METADATA, type RpcChannel } from '../../src/rpc/rpc.ts';
import { node, openFixture, PEERS_ROW, until, type Fixture, type TestIdentity } from './rpc-fixture.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const ID = 'ab'.repeat(20);
const ACCEPTED = 1;

interface Ends {
  readonly client: LastingStream;
  readonly channel: RpcChannel;
  readonly received: number[];
  readonly connections: Set<string>;
  readonly ended: { client: { error: BulkheadError | undefined } | undefined; server: { error: BulkheadError | undefined } | undefined };
}

/** An echo; what it receives counts up. */
async function echo(fixture: Fixture, own: TestIdentity, serverIdentity: TestIdentity): Promise<Ends> {
  const streams = new MovableStreams();
  const secret = MovableStreams.newSecret();
  const connections = new Set<string>();
  const ended: Ends['ended'] = { client: undefined, server: undefined };
  const server = createServer(fixture.security(serverIdentity, [PEERS_ROW]), { knowsTenant: () => true });
  server.add(Peers, {
    exchange(call, stream) {
      const token = call.metadata(RESUME_METADATA);
      if (token === undefined) {
        const moving = new MovableStream(stream);
        moving.onData = (batch) => void moving.write(batch);
        moving.onEnd = (error) => {
          ended.server = { error };
          if (error === undefined) moving.end();
        };
        streams.add(ID, secret, call.principal.spiffeId, moving);
        moving.write(Buffer.from(`${ID}:${secret}`));
      } else streams.find(token, call.principal.spiffeId).offer(stream, Uint8Array.of(ACCEPTED));
      connections.add(call.remote);
    },
  });
  closers.push(() => server.close());
  const { port } = await server.listen('127.0.0.1:0');
  const channel = createChannel({ identity: own, peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: serverIdentity.spiffeId });
  closers.push(() => channel.close());
  const received: number[] = [];
  const client = new LastingStream({
    open: (token) => channel.batchStream(Peers.method.exchange, token === undefined ? {} : { metadata: { [RESUME_METADATA]: token } }),
    token: (first) => Buffer.from(first).toString(), accepted: (first) => first.length === 1 && first[0] === ACCEPTED,
  });
  let first = true;
  client.onData = (batch) => {
    if (!first) received.push(Buffer.from(batch).readUInt32LE(0));
    first = false;
  };
  client.onEnd = (error) => {
    ended.client = { error };
  };
  await until(() => !first, 'the token');
  return { client, channel, received, connections, ended };
}

function batch(n: number, length: number): Uint8Array {
  const bytes = Buffer.alloc(Math.max(4, length));
  bytes.writeUInt32LE(n, 0);
  return bytes;
}

describe('a stream', () => {
  it('outlives the SVIDs of both sides', async () => {
    const fixture = await openFixture();
    const own = await fixture.issue(node('n1'), 3_000);
    const serverIdentity = await fixture.issue(node('n2'), 4_000);
    const firstEndMs = Date.now() + 4_000;
    const ends = await echo(fixture, own, serverIdentity);
    let sent = 0;
    const send = async (): Promise<void> => {
      ends.client.write(batch(sent++, 100));
      await until(() => ends.received.length === sent || ends.ended.client !== undefined, `echo ${sent}`);
      expect(ends.ended.client).toBeUndefined();
    };
    await send();
    own.replace(await fixture.material(own.spiffeId));
    serverIdentity.replace(await fixture.material(serverIdentity.spiffeId));
    await until(() => ends.connections.size >= 2, 'it moves for the own SVID');
    await send();
    while (Date.now() < firstEndMs + 200) {
      await send();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await send();
    expect(ends.received).toEqual(Array.from({ length: sent }, (_, i) => i));
    ends.client.end();
    await until(() => ends.ended.client !== undefined, 'the end');
    expect(ends.ended).toEqual({ client: { error: undefined }, server: { error: undefined } });
  });

  it('moves for the server’s SVID alone, before that ends', async () => {
    const fixture = await openFixture();
    const serverIdentity = await fixture.issue(node('n2'), 3_000);
    const ends = await echo(fixture, await fixture.issue(node('n1')), serverIdentity);
    serverIdentity.replace(await fixture.material(serverIdentity.spiffeId));
    await until(() => ends.connections.size === 2, 'it moves', 10_000);
    ends.client.write(batch(0, 4));
    await until(() => ends.received.length === 1 || ends.ended.client !== undefined, 'an echo');
    expect(ends.ended.client).toBeUndefined();
  });

  it('carries full buffers both ways through moves, in order', async () => {
    const fixture = await openFixture();
    const own = await fixture.issue(node('n1'));
    const ends = await echo(fixture, own, await fixture.issue(node('n2')));
    let drain: (() => void) | undefined;
    ends.client.onDrain = () => drain?.();
    const total = 240;
    for (let n = 0; n < total; n++) {
      // As much as the stream takes, while the other side answers without heeding that its writes are held up.
      if (!ends.client.write(batch(n, n % 3 === 0 ? 700_000 : 50))) await new Promise<void>((resolve) => (drain = resolve));
      if (n % 40 === 20) own.replace(await fixture.material(own.spiffeId));
    }
    ends.client.end();
    await until(() => ends.ended.client !== undefined, 'the end', 20_000);
    expect(ends.ended.client).toEqual({ error: undefined });
    expect(ends.received).toEqual(Array.from({ length: total }, (_, i) => i));
    expect(ends.connections.size).toBeGreaterThan(2);
  });

  it('goes with its channel, and with the revocation of who speaks', async () => {
    const fixture = await openFixture();
    const own = await fixture.issue(node('n1'));
    const ends = await echo(fixture, own, await fixture.issue(node('n2')));
    fixture.revocations.apply({ serials: [], identities: [{ spiffeId: own.spiffeId, revokedBeforeMs: Date.now() + 60_000 }] }, 1);
    await until(() => ends.ended.client !== undefined && ends.ended.server !== undefined, 'both sides end');
    expect(ends.ended.client?.error).toBeInstanceOf(BulkheadError);
    expect(ends.ended.server?.error).toBeInstanceOf(BulkheadError);
    const other = await echo(fixture, await fixture.issue(node('n3')), await fixture.issue(node('n4')));
    other.channel.close();
    await until(() => other.ended.client !== undefined, 'it ends');
    expect(other.ended.client?.error?.code).toBe('CANCELLED');
  });
});
