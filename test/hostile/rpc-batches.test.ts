/**
 * Connections of ALPN `bulkhead-batch/1` whose peer has an SVID and does not keep to the protocol, on both sides: each ends with a typed status or a closed socket,
 * no handler runs that was not admitted, and nothing is kept of what came.
 */
import * as tls from 'node:tls';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { BulkheadError } from '../../src/base/errors.ts';
import { MAX_BATCH_BYTES, MAX_METADATA_BYTES } from '../../src/base/limits.ts';
import { batchHeadBytes, writeBatchHead } from '../../src/rpc/batch-codec.ts';
import { BATCH_PROTOCOL, CONTROL, controlFrame, encodeOpening } from '../../src/rpc/batch-frames.ts';
import { Jobs } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createAttestationServer, createChannel, createServer, type RpcServer } from '../../src/rpc/rpc.ts';
import { CALLS_ROW, JOB_ROWS, clock, node, openFixture, row, until, user, type Fixture, type TestIdentity } from '../contract/rpc-fixture.ts';

const ATTACH = 'bulkhead.v1.Calls/Attach';
let fixture: Fixture;
let server: RpcServer;
let port: number;
let serverIdentity: TestIdentity;
let ana: TestIdentity;
let handled = 0;
const got: number[][] = [];
const ends: (string | undefined)[] = [];

beforeAll(async () => {
  fixture = await openFixture();
  serverIdentity = await fixture.issue(node('n1'));
  ana = await fixture.issue(user('acme', 'ana'));
  server = createServer(fixture.security(serverIdentity, [...JOB_ROWS, CALLS_ROW]), { knowsTenant: () => true, limits: { requestReadTimeoutMs: 300 } });
  server.add(Jobs, { list: async () => (handled++, {}), get: async () => (handled++, {}), stop: async () => (handled++, {}), deleteSubmission: async () => (handled++, {}) });
  server.add(Calls, {
    attach: (_call, stream) => {
      handled++;
      stream.onData = (batch) => {
        got.push([...batch.subarray(0, 4)]);
        stream.write(batch.slice(0, 4));
      };
      stream.onEnd = (error) => {
        ends.push(error?.code);
        if (error === undefined) stream.end();
      };
    },
  });
  ({ port } = await server.listen('127.0.0.1:0'));
});
afterAll(() => server.close());
beforeEach(() => {
  handled = 0;
  got.length = ends.length = 0;
  fixture.decide = () => true;
});

function dial(as: TestIdentity, to = port, protocol = BATCH_PROTOCOL): Promise<tls.TLSSocket> {
  const { privateKeyPem, certificateChainPem, trustBundlePem } = as.current();
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ port: to, host: '127.0.0.1', key: privateKeyPem, cert: certificateChainPem, ca: trustBundlePem, ALPNProtocols: [protocol], checkServerIdentity: () => undefined });
    socket.once('secureConnect', () => resolve(socket));
    socket.once('error', reject);
  });
}

const batch = (...octets: number[]): Buffer => {
  const head = batchHeadBytes(octets.length);
  const message = Buffer.alloc(5 + head + octets.length);
  message.writeUInt32BE(head + octets.length, 1);
  writeBatchHead(message, 5, octets.length);
  message.set(octets, 5 + head);
  return message;
};

interface Said {
  /** Kinds of frames, in order. */
  readonly kinds: number[];
  readonly status: { readonly code?: string; readonly message?: string };
}

/** Sends the parts, and reads until the server closes. */
async function exchange(parts: readonly Buffer[], as = ana, to = port): Promise<Said> {
  const socket = await dial(as, to);
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.on('error', () => undefined);
  const closed = new Promise((resolve) => socket.once('close', resolve));
  for (const part of parts) socket.write(part);
  await closed;
  const all = Buffer.concat(chunks);
  const kinds: number[] = [];
  let status: Said['status'] = {};
  for (let at = 0; at + 5 <= all.length; ) {
    const length = all.readUInt32BE(at + 1);
    kinds.push(all[at] as number);
    if (all[at] === CONTROL.END && length > 0) status = JSON.parse(all.subarray(at + 5, at + 5 + length).toString()) as Said['status'];
    at += 5 + length;
  }
  return { kinds, status };
}

const OPEN = encodeOpening(ATTACH, { 'x-a': '1' });
const opening = (json: string): Buffer => controlFrame(CONTROL.OPEN, json);
const flagged = (flag: number): Buffer => Buffer.from([flag, 0, 0, 0, 0]);

describe('a client that keeps to the protocol', () => {
  it('is admitted, on record, answered and ended well', async () => {
    const before = fixture.records.length;
    const said = await exchange([OPEN, batch(1, 2), batch(), batch(3), flagged(CONTROL.END)]);
    expect(said).toEqual({ kinds: [CONTROL.OPEN, 0, 0, 0, CONTROL.END], status: {} });
    expect(got).toEqual([[1, 2], [], [3]]);
    expect(fixture.records.slice(before)).toMatchObject([{ log: 'acme', record: { type: 'decision', allow: true, detail: ATTACH, principal: ana.spiffeId } }]);
  });

  it('may say that it lives', async () => {
    expect((await exchange([OPEN, batch(1), flagged(CONTROL.BEAT), batch(2), flagged(CONTROL.END)])).status).toEqual({});
    expect(got).toEqual([[1], [2]]);
  });
});

describe('a client that does not', () => {
  it.each<[string, Buffer[]]>([
    ['a batch before the opening', [batch(1)]],
    ['an end before the opening', [flagged(CONTROL.END)]],
    ['a beat before the opening', [flagged(CONTROL.BEAT)]],
    ['an opening that is no JSON', [opening('{')]],
    ['an opening that is a list', [opening('[]')]],
    ['an opening that is null', [opening('null')]],
    ['an opening without a method', [opening('{"metadata":{}}')]],
    ['an opening without metadata', [opening(`{"method":"${ATTACH}"}`)]],
    ['metadata that is a list', [opening(`{"method":"${ATTACH}","metadata":["a"]}`)]],
    ['metadata that holds a number', [opening(`{"method":"${ATTACH}","metadata":{"a":1}}`)]],
    ['metadata with a name of its own making', [opening(`{"method":"${ATTACH}","metadata":{"__proto__":"x"}}`)]],
    ['metadata with a line break', [opening(`{"method":"${ATTACH}","metadata":{"a":"b\\r\\nc: d"}}`)]],
    ['an opening with more than it may have', [opening(`{"method":"${ATTACH}","metadata":{},"principal":"spiffe://cluster.test/system/head"}`)]],
    ['a method with a path in it', [opening('{"method":"../Calls/Attach","metadata":{}}')]],
    ['65 entries', [opening(JSON.stringify({ method: ATTACH, metadata: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`a${i}`, 'x'])) }))]],
    ['a method that nobody serves', [opening('{"method":"bulkhead.v1.Calls/Other","metadata":{}}')]],
    ['a method that is no stream of batches', [opening('{"method":"bulkhead.v1.Jobs/List","metadata":{}}')]],
    ['a compressed first message', [flagged(1)]],
    ['octets that are no frame', [Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')]],
  ])('%s: refused with INVALID_ARGUMENT, and no handler runs', async (_what, parts) => {
    const said = await exchange(parts);
    expect(said.kinds).toEqual([CONTROL.END]);
    expect(said.status.code).toBe('INVALID_ARGUMENT');
    expect(handled).toBe(0);
  });

  it.each<[string, Buffer[]]>([
    ['two openings', [OPEN, OPEN]],
    ['a control frame of an unknown kind', [OPEN, flagged(0x9f)]],
    ['a compressed message', [OPEN, flagged(1)]],
    ['an end with a status of its own', [OPEN, controlFrame(CONTROL.END, '{"code":"OK"}')]],
    ['a beat with a body', [OPEN, controlFrame(CONTROL.BEAT, 'x')]],
    ['a batch that is no protobuf', [OPEN, Buffer.from([0, 0, 0, 0, 2, 0x0a, 0xff])]],
  ])('%s: the stream ends with INVALID_ARGUMENT', async (_what, parts) => {
    const said = await exchange(parts);
    expect(said.status.code).toBe('INVALID_ARGUMENT');
    await until(() => handled === 0 || ends.length > 0, 'the handler hears of it');
    expect(got).toEqual([]);
  });

  it('more metadata or a larger batch than allowed is refused by its length alone', async () => {
    const huge = Buffer.alloc(5);
    huge[0] = CONTROL.OPEN;
    huge.writeUInt32BE(MAX_METADATA_BYTES + 1, 1);
    expect((await exchange([huge])).status.code).toBe('RESOURCE_EXHAUSTED');
    const large = Buffer.alloc(5);
    large.writeUInt32BE(MAX_BATCH_BYTES + 17, 1);
    expect((await exchange([OPEN, large])).status.code).toBe('RESOURCE_EXHAUSTED');
    expect(got).toEqual([]);
  });

  it('silence, half an opening, and a drip of it end in time', async () => {
    expect((await exchange([])).status.code).toBe('TIMEOUT');
    expect((await exchange([OPEN.subarray(0, 9)])).status.code).toBe('TIMEOUT');
    expect(handled).toBe(0);
  });

  it('a batch after the end is nobody\'s', async () => {
    const said = await exchange([OPEN, batch(1), flagged(CONTROL.END), batch(2)]);
    expect(said.kinds.at(-1)).toBe(CONTROL.END);
    expect(got).toEqual([[1]]);
  });

  it('whoever is denied learns no more than that, and it is on record', async () => {
    fixture.decide = () => false;
    const said = await exchange([OPEN, batch(1)]);
    expect(said.kinds).toEqual([CONTROL.END]);
    expect(said.status).toMatchObject({ code: 'DENIED', message: expect.stringMatching(/not found, or not permitted/) });
    expect(handled).toBe(0);
    expect(fixture.records.at(-1)).toMatchObject({ record: { type: 'decision', allow: false, principal: ana.spiffeId } });
  });

  it('nothing that came before the admission is given out before it, and all of it after', async () => {
    const octets = Array.from({ length: 300 }, (_, i) => batch(i & 0xff));
    const said = await exchange([Buffer.concat([OPEN, ...octets, flagged(CONTROL.END)])]);
    expect(said.kinds.filter((kind) => kind === 0)).toHaveLength(300);
    expect(got.map(([octet]) => octet)).toEqual(octets.map((_, i) => i & 0xff));
  });

  it('a connection that breaks off inside a batch is a loss, not an end', async () => {
    const socket = await dial(ana);
    socket.on('error', () => undefined);
    socket.write(Buffer.concat([OPEN, batch(1), batch(2, 3, 4).subarray(0, 7)]));
    await until(() => got.length === 1, 'the first batch arrives');
    socket.end();
    await until(() => ends.length === 1, 'the handler hears of it');
    expect(ends).toEqual(['CANCELLED']);
    await until(() => server.connectionCount === 0, 'the connection is gone');
  });

  it('a revoked peer is cut in the middle of a stream', async () => {
    const bob = await fixture.issue(user('acme', 'bob'));
    const socket = await dial(bob);
    socket.on('error', () => undefined);
    socket.resume();
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.write(Buffer.concat([OPEN, batch(1)]));
    await until(() => got.length === 1, 'the first batch arrives');
    fixture.revocations.apply({ serials: [], identities: [{ spiffeId: bob.spiffeId, revokedBeforeMs: Date.now() + 60_000 }] }, 1);
    await closed;
    await until(() => ends.length === 1, 'the handler hears of it');
  });
});

describe('where batches are not spoken', () => {
  it('the listener for peers without an identity does not know the protocol', async () => {
    const attestation = createAttestationServer(fixture.security(serverIdentity, [row('bulkhead.v1.NodeAttestation/Attest', { callers: [], tenant: 'none' })]), { clock });
    const open = await attestation.listen('127.0.0.1:0');
    await expect(dial(ana, open.port)).rejects.toThrow(/alert/);
    await attestation.close();
  });

  it('and nobody without an SVID gets as far as the opening', async () => {
    const socket = tls.connect({ port, host: '127.0.0.1', ca: ana.current().trustBundlePem, ALPNProtocols: [BATCH_PROTOCOL], checkServerIdentity: () => undefined });
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.on('error', () => undefined);
    socket.write(OPEN);
    await new Promise((resolve) => socket.once('close', resolve));
    expect(chunks).toEqual([]);
    expect(handled).toBe(0);
  });
});

describe('a server that does not keep to the protocol', () => {
  /** A peer with the server's own SVID that says what it likes: at once, or when it was asked. */
  async function against(says: Buffer, when: 'first' | 'asked'): Promise<{ error: BulkheadError | undefined; batches: number }> {
    const { privateKeyPem, certificateChainPem, trustBundlePem } = serverIdentity.current();
    const foreign = tls.createServer({ key: privateKeyPem, cert: certificateChainPem, ca: trustBundlePem, requestCert: true, ALPNProtocols: [BATCH_PROTOCOL] }, (socket) => {
      socket.on('error', () => undefined);
      if (when === 'first') socket.write(says);
      else socket.once('data', () => socket.write(says));
    });
    await new Promise<void>((resolve) => foreign.listen(0, '127.0.0.1', resolve));
    const channel = createChannel({ identity: ana, peers: fixture.peers, address: `127.0.0.1:${(foreign.address() as { port: number }).port}`, expectedSpiffeId: serverIdentity.spiffeId });
    const stream = client(Calls, channel).attach({ timeoutMs: 4_000 });
    let batches = 0;
    stream.onData = () => void batches++;
    const error = await new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve));
    channel.close();
    foreign.close();
    return { error, batches };
  }

  it.each<[string, Buffer, string]>([
    ['a compressed message', flagged(1), 'INVALID_ARGUMENT'],
    ['an unknown control frame', flagged(0x9f), 'INVALID_ARGUMENT'],
    ['a second opening', Buffer.concat([flagged(CONTROL.OPEN), flagged(CONTROL.OPEN)]), 'INVALID_ARGUMENT'],
    ['an opening with a body', controlFrame(CONTROL.OPEN, 'x'), 'INVALID_ARGUMENT'],
    ['a status that is no JSON', controlFrame(CONTROL.END, 'OK'), 'INTERNAL'],
    ['a status with a code that is none of ours', controlFrame(CONTROL.END, '{"code":"FINE","message":"x"}'), 'INTERNAL'],
    ['a batch that is too large', Buffer.from([0, 0xff, 0xff, 0xff, 0xff]), 'RESOURCE_EXHAUSTED'],
  ])('%s ends the stream with %s', async (_what, says, code) => {
    expect(await against(says, 'asked')).toMatchObject({ error: { code }, batches: 0 });
  });

  it('what a server says before it was asked is not taken', async () => {
    const { error, batches } = await against(batch(1, 2, 3), 'first');
    // Either the connection is refused for it, or it came late enough to be an answer to a stream that then goes on to its time limit.
    expect(['UNAUTHENTICATED', 'TIMEOUT']).toContain(error?.code);
    expect(batches === 0 || error?.code === 'TIMEOUT').toBe(true);
  });
});
