/** src/rpc over real sockets: what a caller gets, what a handler sees, and that the audit record comes first. */
import { afterEach, describe, expect, it } from 'vitest';
import type { AuditRecord, DecisionRecord } from '../../src/base/audit-record.ts';
import { BulkheadError, ERROR_CODES } from '../../src/base/errors.ts';
import { MAX_STREAM_BUFFER_BYTES } from '../../src/base/limits.ts';
import { Jobs, NodeSync, NodeAttestation, Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Calls, Inspection, Peers } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createAttestationServer, createChannel, createServer, DENIED_TEXT, type CallContext, type Implementation, type OwnIdentity, type RpcServer, type ServerOptions } from '../../src/rpc/rpc.ts';
import { errorOf, statusOf } from '../../src/rpc/status.ts';
import { CALLS_ROW, JOB_ROWS, PEERS_ROW, node, openFixture, row, until, user, type Fixture, type TestIdentity } from './rpc-fixture.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const OPTIONS: ServerOptions = { knowsTenant: (tenant) => tenant === 'acme' || tenant === 'globex' };
const noJobs: Implementation<typeof Jobs> = { list: async () => ({}), get: async () => ({}), stop: async () => ({}), deleteSubmission: async () => ({}) };

interface Setup {
  fixture: Fixture;
  server: RpcServer;
  serverIdentity: TestIdentity;
  address: string;
  channel(identity: OwnIdentity): ReturnType<typeof createChannel>;
  ana: TestIdentity;
}

async function setUp(add: (server: RpcServer, fixture: Fixture) => void, rows = [...JOB_ROWS, CALLS_ROW, PEERS_ROW], options = OPTIONS): Promise<Setup> {
  const fixture = await openFixture();
  const serverIdentity = await fixture.issue(node('n1'));
  const server = createServer(fixture.security(serverIdentity, rows), options);
  add(server, fixture);
  const bound = await server.listen('127.0.0.1:0');
  closers.push(() => server.close());
  const address = `127.0.0.1:${bound.port}`;
  return {
    fixture, server, serverIdentity, address, ana: await fixture.issue(user('acme', 'ana')),
    channel(identity) {
      const channel = createChannel({ identity, peers: fixture.peers, address, expectedSpiffeId: serverIdentity.spiffeId });
      closers.push(() => channel.close());
      return channel;
    },
  };
}

const decisions = (fixture: Fixture): { log: string; record: DecisionRecord }[] => fixture.records.filter((r): r is { log: string; record: DecisionRecord } => r.record.type === 'decision');

async function refusal(promise: Promise<unknown>): Promise<BulkheadError> {
  try {
    await promise;
  } catch (error) {
    expect(error).toBeInstanceOf(BulkheadError);
    return error as BulkheadError;
  }
  throw new Error('was not refused');
}

describe('unary calls', () => {
  it('give the handler the verified principal, metadata and deadline', async () => {
    let seen: CallContext | undefined;
    const { channel, ana, fixture } = await setUp((s) => s.add(Jobs, { ...noJobs, list: async (call, request) => ((seen = call), { jobs: [{ jobId: 'job-1', tenant: request.tenant, startedMs: 5n }] }) }));
    const before = Date.now();
    const answer = await client(Jobs, channel(ana)).list({ tenant: 'acme' }, { timeoutMs: 5_000, metadata: { 'x-note': 'hello' } });
    expect(answer.jobs.map((j) => [j.jobId, j.tenant, j.startedMs])).toEqual([['job-1', 'acme', 5n]]);
    expect(seen?.principal).toMatchObject({ spiffeId: ana.spiffeId, kind: 'user', tenant: 'acme', name: 'ana' });
    expect(seen?.metadata('x-note')).toBe('hello');
    expect(seen?.metadata('x-other')).toBeUndefined();
    expect(seen?.deadlineMs).toBeGreaterThan(before);
    expect(seen?.method).toBe('bulkhead.v1.Jobs/List');
    expect(decisions(fixture)).toMatchObject([{ log: 'acme', record: { allow: true, action: 'job.list', resourceKind: 'job', principal: ana.spiffeId, detail: 'bulkhead.v1.Jobs/List', policyVersion: 7 } }]);
  });

  it('wait for the audit record before the handler runs', async () => {
    let ran = false;
    let release = (): void => undefined;
    const fixture = await openFixture();
    const identity = await fixture.issue(node('n1'));
    const gate = new Promise<void>((resolve) => (release = resolve));
    const written: AuditRecord[] = [];
    const server = createServer({ ...fixture.security(identity, JOB_ROWS), audit: async (_log, record) => (written.push(record), gate) }, OPTIONS);
    server.add(Jobs, { ...noJobs, list: async () => ((ran = true), {}) });
    const { port } = await server.listen('127.0.0.1:0');
    const channel = createChannel({ identity: await fixture.issue(user('acme', 'ana')), peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: identity.spiffeId });
    closers.push(() => server.close(), () => channel.close());
    const call = client(Jobs, channel).list({ tenant: 'acme' });
    await until(() => written.length === 1, 'the record is being written');
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(ran).toBe(false);
    release();
    await call;
    expect(ran).toBe(true);
  });

  it('are refused without an audit log, and the handler does not run', async () => {
    let ran = false;
    const fixture = await openFixture();
    const identity = await fixture.issue(node('n1'));
    const server = createServer({ ...fixture.security(identity, JOB_ROWS), audit: async () => Promise.reject(new Error('disk full: /secret/path')) }, OPTIONS);
    server.add(Jobs, { ...noJobs, list: async () => ((ran = true), {}) });
    const { port } = await server.listen('127.0.0.1:0');
    const channel = createChannel({ identity: await fixture.issue(user('acme', 'ana')), peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: identity.spiffeId });
    closers.push(() => server.close(), () => channel.close());
    const error = await refusal(client(Jobs, channel).list({ tenant: 'acme' }));
    expect(error.code).toBe('UNAVAILABLE');
    expect(error.message).toContain('audit');
    expect(error.message).not.toContain('secret');
    expect(ran).toBe(false);
  });

  it('abort the handler when the caller leaves, and end at the deadline', async () => {
    let signal: AbortSignal | undefined;
    const { channel, ana } = await setUp((s) => s.add(Jobs, { ...noJobs, list: (call) => new Promise((_resolve, reject) => ((signal = call.signal), call.signal.addEventListener('abort', () => reject(call.signal.reason as Error)))) }));
    const jobs = client(Jobs, channel(ana));
    const abort = new AbortController();
    const call = jobs.list({ tenant: 'acme' }, { signal: abort.signal });
    await until(() => signal !== undefined, 'the handler runs');
    abort.abort();
    expect((await refusal(call)).code).toBe('CANCELLED');
    await until(() => signal?.aborted === true, 'the signal is aborted');
    expect((await refusal(jobs.list({ tenant: 'acme' }, { timeoutMs: 50 }))).code).toBe('TIMEOUT');
  });
});

describe('denials', () => {
  it('read like not-found and are told to both tenants, or to the cluster where the tenant does not exist', async () => {
    let ran = 0;
    const { channel, ana, fixture } = await setUp((s) => s.add(Jobs, { ...noJobs, list: async () => (ran++, {}), get: async () => Promise.reject(new BulkheadError('DENIED', 'job of globex exists but is secret')) }));
    fixture.decide = (request) => request.resource.attributes.tenant === 'acme';
    const jobs = client(Jobs, channel(ana));
    const denied = await refusal(jobs.list({ tenant: 'globex' }));
    const unknown = await refusal(jobs.list({ tenant: 'nobody' }));
    const notFound = await refusal(jobs.get({ jobId: 'job-1' }));
    expect([denied, unknown, notFound].map((e) => [e.code, e.safeMessage])).toEqual(Array.from({ length: 3 }, () => ['DENIED', DENIED_TEXT]));
    expect(ran).toBe(0);
    const told = decisions(fixture).filter((d) => !d.record.allow).map((d) => d.log);
    expect(told.sort()).toEqual(['', 'acme', 'acme', 'globex']);
  });

  it('come from the row for a kind of caller that it does not name', async () => {
    const { channel, fixture } = await setUp((s) => s.add(Jobs, noJobs));
    const other = await fixture.issue(node('n2'));
    expect((await refusal(client(Jobs, channel(other)).stop({ jobId: 'job-1' }))).code).toBe('DENIED');
    expect(decisions(fixture)).toMatchObject([{ log: '', record: { allow: false, rule: 'callers', action: 'job.stop', resource: 'job-1' } }]);
  });

  it('come from any answer of the decision point that is not exactly true', async () => {
    const { channel, ana, fixture } = await setUp((s) => s.add(Jobs, noJobs));
    fixture.decide = () => 'yes' as unknown as boolean;
    expect((await refusal(client(Jobs, channel(ana)).list({ tenant: 'acme' }))).code).toBe('DENIED');
  });
});

describe('rows', () => {
  const refusesStart = async (rows: typeof JOB_ROWS, add: (server: RpcServer) => void): Promise<string> => {
    const fixture = await openFixture();
    const server = createServer(fixture.security(await fixture.issue(node('n1')), rows), OPTIONS);
    closers.push(() => server.close());
    expect(() => add(server)).toThrow(BulkheadError);
    try {
      add(server);
    } catch (error) {
      return (error as BulkheadError).message;
    }
    return '';
  };
  const patched = (part: Partial<(typeof JOB_ROWS)[number]>): typeof JOB_ROWS => JOB_ROWS.map((r, i) => (i === 0 ? { ...r, ...part } : r));

  it('are needed by every method, and fit its request', async () => {
    const addJobs = (server: RpcServer): void => server.add(Jobs, noJobs);
    expect(await refusesStart(JOB_ROWS.slice(1), addJobs)).toContain('no row');
    expect(await refusesStart(patched({ tenant: { field: 'tennant' } }), addJobs)).toContain("'tennant' does not exist");
    expect(await refusesStart(patched({ name: { field: 'constructor' } }), addJobs)).toContain("'constructor' does not exist");
    expect(await refusesStart(patched({ callers: [] }), addJobs)).toContain('nobody');
    expect(await refusesStart(patched({ cases: { field: 'kind', targets: new Map() } }), addJobs)).toContain("'kind' does not exist");
    expect(await refusesStart([row('bulkhead.v1.Tenants/Create', { name: { field: 'quota' } })], (s) => s.add(Tenants, { create: async () => ({}), list: async () => ({}), show: async () => ({}), setProjectQuota: async () => ({}), setQuota: async () => ({}), delete: async () => ({}) }))).toContain('not a single scalar');
    expect(await refusesStart([{ ...CALLS_ROW, tenant: { field: 'frames' } }], (s) => s.add(Calls, { attach: () => undefined }))).toContain('stream');
    expect(await refusesStart(JOB_ROWS, (s) => s.add(Jobs, { list: noJobs.list, get: noJobs.get } as Implementation<typeof Jobs>))).toContain('no handler');
    expect(await refusesStart(JOB_ROWS, (s) => s.add(Jobs, Object.create(noJobs) as Implementation<typeof Jobs>))).toContain('no handler');
  });

  it('and every part of the security are needed to build a server', async () => {
    const fixture = await openFixture();
    const security = fixture.security(await fixture.issue(node('n1')), JOB_ROWS);
    for (const part of ['identity', 'peers', 'decisions', 'audit', 'methods'] as const) expect(() => createServer({ ...security, [part]: undefined as never }, OPTIONS)).toThrow(part);
  });

  it('choose the action by a request field, and refuse other values', async () => {
    const rows = ['List', 'Get', 'Summarize', 'Doctor', 'Timeline', 'ReadLog'].map((name) => row(`bulkhead.v1.Inspection/${name}`));
    rows[0] = { ...row('bulkhead.v1.Inspection/List'), cases: { field: 'kind', targets: new Map([['tasks', { action: 'task.list', resource: 'task' }], ['actors', { action: 'actor.list', resource: 'actor' }]]) } };
    const { channel, ana, fixture } = await setUp((s) => s.add(Inspection, { list: async () => ({}), get: async () => ({}), summarize: async () => ({}), doctor: async () => ({}), timeline: async function* () {}, readLog: async function* () {} }), rows);
    const inspection = client(Inspection, channel(ana));
    await inspection.list({ kind: 'actors' });
    expect(decisions(fixture)).toMatchObject([{ record: { action: 'actor.list', resourceKind: 'actor' } }]);
    for (const kind of ['', 'toString', '__proto__', 'Actors']) expect((await refusal(inspection.list({ kind }))).code).toBe('INVALID_ARGUMENT');
    expect((await refusal(client(Jobs, channel(ana)).list({ tenant: 'acme' }))).message).toContain('versions');
  });
});

describe('error codes', () => {
  it('survive the way to the caller, every one of them', async () => {
    let code: (typeof ERROR_CODES)[number] = 'INTERNAL';
    const { channel, ana } = await setUp((s) => s.add(Jobs, { ...noJobs, list: async () => Promise.reject(new BulkheadError(code, `text of ${code} \ud800 ü`)) }));
    const jobs = client(Jobs, channel(ana));
    for (code of ERROR_CODES) {
      const error = await refusal(jobs.list({ tenant: 'acme' }));
      expect(error.code).toBe(code);
      expect(error.safeMessage).toBe(code === 'DENIED' ? DENIED_TEXT : `text of ${code} \ufffd ü`);
      expect(errorOf(statusOf(new BulkheadError(code, 'x')))?.code).toBe(code);
    }
  });

  it('hide what a foreign error says', async () => {
    const logged: unknown[] = [];
    const { channel, ana } = await setUp((s) => s.add(Jobs, { ...noJobs, list: async () => Promise.reject(new Error('password=hunter2')) }), [...JOB_ROWS], { ...OPTIONS, log: { warn: (facts) => void logged.push(facts) } });
    const error = await refusal(client(Jobs, channel(ana)).list({ tenant: 'acme' }));
    expect(error.code).toBe('INTERNAL');
    expect(error.message).not.toContain('hunter2');
    expect(logged).toHaveLength(1);
  });
});

describe('server streams', () => {
  const rows = ['List', 'Get', 'Summarize', 'Doctor', 'Timeline', 'ReadLog'].map((name) => row(`bulkhead.v1.Inspection/${name}`));
  const inspection = (readLog: Implementation<typeof Inspection>['readLog']): Implementation<typeof Inspection> => ({ list: async () => ({}), get: async () => ({}), summarize: async () => ({}), doctor: async () => ({}), timeline: async function* () {}, readLog });

  it('deliver in order, wait for a slow reader, and stop the handler when the reader leaves', async () => {
    let made = 0;
    let ended = false;
    const { channel, ana } = await setUp((s) => s.add(Inspection, inspection(async function* (_call, request) {
      try {
        for (; made < 100_000; made++) yield { source: request.id, text: new Uint8Array(100_000) };
      } finally {
        ended = true;
      }
    })), rows);
    let got = 0;
    for await (const chunk of client(Inspection, channel(ana)).readLog({ id: 'task-1' })) {
      expect(chunk.source).toBe('task-1');
      if (++got === 3) {
        await new Promise((resolve) => setTimeout(resolve, 200));
        // Windows and buffers on the way hold some megabytes, not ten gigabytes.
        expect(made).toBeLessThan(500);
        break;
      }
    }
    await until(() => ended, 'the handler stopped');
  });

  it('end with the handler\'s error after what was sent', async () => {
    const { channel, ana } = await setUp((s) => s.add(Inspection, inspection(async function* () {
      yield { source: 'a' };
      throw new BulkheadError('OBJECT_LOST', 'gone');
    })), rows);
    const seen: string[] = [];
    const reading = (async () => {
      for await (const chunk of client(Inspection, channel(ana)).readLog({})) seen.push(chunk.source);
    })();
    expect((await refusal(reading)).code).toBe('OBJECT_LOST');
    expect(seen).toEqual(['a']);
  });
});

describe('typed streams', () => {
  const rows = ['Sync', 'RegisterActorName', 'LookupActorName', 'ReleaseActorName', 'DataKey'].map((name) => row(`bulkhead.v1.NodeSync/${name}`, { callers: ['node'], tenant: 'none', action: 'node.sync', resource: 'node' }));
  const names = { registerActorName: async () => ({}), lookupActorName: async () => ({}), releaseActorName: async () => ({}), dataKey: async () => ({}) };

  it('carry messages both ways until each side has ended', async () => {
    const reports: number[] = [];
    const { channel, fixture } = await setUp((s) => s.add(NodeSync, {
      ...names,
      sync: async (call, stream) => {
        stream.write({ stoppedJobs: [call.principal.name] });
        for await (const report of stream) {
          reports.push(report.queuedTasks);
          if (!stream.write({ stoppedJobs: [`${report.queuedTasks}`] })) await stream.drained();
        }
      },
    }), rows);
    const stream = client(NodeSync, channel(await fixture.issue(node('n2')))).sync();
    for (let i = 1; i <= 100; i++) if (!stream.write({ queuedTasks: i })) await stream.drained();
    stream.end();
    const updates: string[] = [];
    for await (const update of stream) updates.push(...update.stoppedJobs);
    expect(reports).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
    expect(updates).toEqual(['n2', ...reports.map(String)]);
  });

  it('end with an error when the server closes', async () => {
    const { channel, fixture, server } = await setUp((s) => s.add(NodeSync, { ...names, sync: (_call, stream) => void stream.write({ stoppedJobs: ['x'] }) }), rows);
    const stream = client(NodeSync, channel(await fixture.issue(node('n2')))).sync();
    const read = (async () => {
      for await (const update of stream) if (update.stoppedJobs[0] === 'x') void server.close();
    })();
    expect((await refusal(read)).code).toBe('UNAVAILABLE');
  });
});

describe('batch streams', () => {
  const echo: Implementation<typeof Calls> = {
    attach: (_call, stream) => {
      stream.onData = (batch) => {
        if (!stream.write(batch)) stream.pause();
      };
      stream.onDrain = () => stream.resume();
      stream.onEnd = (error) => {
        if (error === undefined) stream.end();
      };
    },
  };

  it('return what was sent, of every size and in order', async () => {
    const { channel, ana } = await setUp((s) => s.add(Calls, echo));
    const stream = client(Calls, channel(ana)).attach();
    const sizes = [1, 0, 127, 128, 129, 16_383, 16_384, 65_536, 2_097_151, 2_097_152, 4_194_304, 0, 3];
    const got: Uint8Array[] = [];
    const ended = new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve));
    stream.onData = (batch) => {
      got.push(batch.slice());
      if (got.length === sizes.length) stream.end();
    };
    sizes.forEach((size, i) => stream.write(new Uint8Array(size).fill(i + 1)));
    expect(await ended).toBeUndefined();
    expect(got.map((b) => b.length)).toEqual(sizes);
    got.forEach((batch, i) => expect(batch.every((octet) => octet === i + 1)).toBe(true));
  });

  it('ask a fast writer to wait, and refuse it in the end', async () => {
    let resume: (() => void) | undefined;
    let received = 0;
    const { channel, ana } = await setUp((s) => s.add(Calls, {
      attach: (_call, stream) => {
        stream.pause();
        resume = () => stream.resume();
        stream.onData = (batch) => void (received += batch.length);
        stream.onEnd = () => stream.end();
      },
    }));
    const stream = client(Calls, channel(ana)).attach();
    let drained = 0;
    stream.onDrain = () => void drained++;
    const chunk = new Uint8Array(2 ** 20);
    let sent = 0;
    let waited = false;
    expect(() => {
      for (; sent < 200; sent++) waited = !stream.write(chunk) || waited;
    }).toThrow(/wait for onDrain/);
    expect(waited).toBe(true);
    expect(sent).toBeLessThanOrEqual(MAX_STREAM_BUFFER_BYTES / chunk.length);
    expect(received).toBe(0);
    await until(() => resume !== undefined, 'the stream is open');
    expect(drained).toBe(0);
    const ended = new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve));
    resume?.();
    stream.end();
    expect(await ended).toBeUndefined();
    expect(received).toBe(sent * chunk.length);
    expect(drained).toBeGreaterThan(0);
  });

  it('tell the server when the caller goes, and the caller why the server ended', async () => {
    let serverEnd: BulkheadError | undefined;
    const { channel, ana, fixture } = await setUp((s) => {
      s.add(Calls, { attach: (_call, stream) => void (stream.onEnd = (error) => void (serverEnd = error)) });
      s.add(Peers, { exchange: (_call, stream) => stream.end(new BulkheadError('QUOTA_EXCEEDED', 'enough')) });
    });
    const stream = client(Calls, channel(ana)).attach();
    let clientEnd: BulkheadError | undefined;
    stream.onEnd = (error) => void (clientEnd = error);
    stream.write(Uint8Array.of(1));
    await until(() => fixture.records.length === 1, 'the stream is open');
    await new Promise((resolve) => setTimeout(resolve, 30));
    stream.end(new BulkheadError('CANCELLED', 'no more'));
    await until(() => serverEnd !== undefined && clientEnd !== undefined, 'both sides ended');
    expect([serverEnd?.code, clientEnd?.code, clientEnd?.message]).toEqual(['CANCELLED', 'CANCELLED', 'no more']);

    const refused = client(Peers, channel(await fixture.issue(node('n2')))).exchange();
    const error = await new Promise<BulkheadError | undefined>((resolve) => (refused.onEnd = resolve));
    expect([error?.code, error?.message]).toEqual(['QUOTA_EXCEEDED', 'enough']);
    const denied = client(Peers, channel(ana)).exchange();
    expect((await new Promise<BulkheadError | undefined>((resolve) => (denied.onEnd = resolve)))?.code).toBe('DENIED');
  });

  it('end well when the server ends first, and leave no connection', async () => {
    const { channel, ana, server } = await setUp((s) => s.add(Calls, {
      attach: (_call, stream) => {
        stream.write(Uint8Array.of(7));
        stream.end();
      },
    }));
    const stream = client(Calls, channel(ana)).attach();
    const got: number[] = [];
    stream.onData = (batch) => void got.push(...batch);
    expect(await new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve))).toBeUndefined();
    expect(got).toEqual([7]);
    expect(stream.write(Uint8Array.of(1))).toBe(false);
    await until(() => server.connectionCount === 0, 'the connection is gone', 1_500);
  });

  it('end with the error that a handler throws about a batch', async () => {
    const { channel, ana } = await setUp((s) => s.add(Calls, {
      attach: (_call, stream) => {
        stream.onData = () => {
          throw new BulkheadError('INVALID_ARGUMENT', 'frame is truncated');
        };
      },
    }));
    const stream = client(Calls, channel(ana)).attach();
    stream.write(Uint8Array.of(1));
    const error = await new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve));
    expect([error?.code, error?.message]).toEqual(['INVALID_ARGUMENT', 'frame is truncated']);
  });
});

describe('identities', () => {
  const held: Implementation<typeof Calls> = {
    attach: (_call, stream) => {
      stream.onData = (batch) => void stream.write(batch);
      stream.onEnd = (error) => {
        if (error === undefined) stream.end();
      };
    },
  };
  const open = async (setup: Setup, identity: OwnIdentity): Promise<{ ping: () => Promise<void>; ended: Promise<BulkheadError | undefined> }> => {
    const stream = client(Calls, setup.channel(identity)).attach();
    let answers = 0;
    stream.onData = () => void answers++;
    const ended = new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve));
    const ping = async (): Promise<void> => {
      const before = answers;
      stream.write(Uint8Array.of(1));
      await until(() => answers > before, 'an answer on the stream');
    };
    await ping();
    return { ping, ended };
  };

  it('are renewed on both sides without dropping a stream; new connections use the new ones', async () => {
    const setup = await setUp((s) => { s.add(Calls, held); s.add(Jobs, noJobs); });
    const stream = await open(setup, setup.ana);
    const first = setup.channel(setup.ana);
    await client(Jobs, first).list({ tenant: 'acme' });
    const serialBefore = first.server?.serial;
    setup.serverIdentity.replace(await setup.fixture.material(setup.serverIdentity.spiffeId));
    setup.ana.replace(await setup.fixture.material(setup.ana.spiffeId));
    await stream.ping();
    await client(Jobs, first).list({ tenant: 'acme' });
    const second = setup.channel(setup.ana);
    await client(Jobs, second).list({ tenant: 'acme' });
    expect(second.server?.serial).not.toBe(serialBefore);
    // The renewed identity was shown anew, on a connection that replaced the old one.
    expect(first.server?.serial).toBe(second.server?.serial);
    expect(second.server?.principal.spiffeId).toBe(setup.serverIdentity.spiffeId);
  });

  it('of a client, once renewed, leave calls under way alone and are shown to the server with the next call', async () => {
    let release = (): void => undefined;
    const seen: string[] = [];
    const setup = await setUp((s) => {
      s.add(Calls, held);
      s.add(Jobs, { ...noJobs, list: async (call) => (seen.push(call.peer.serial), {}), get: (call) => new Promise((resolve) => ((release = () => resolve({ jobId: 'late' })), seen.push(call.peer.serial))) });
    });
    const channel = setup.channel(setup.ana);
    const jobs = client(Jobs, channel);
    const late = jobs.get({ jobId: 'job-1' });
    const stream = client(Calls, channel).attach();
    let stale = 0;
    stream.onStale = () => void stale++;
    await until(() => seen.length === 1, 'the call is under way');
    setup.ana.replace(await setup.fixture.material(setup.ana.spiffeId));
    await jobs.list({ tenant: 'acme' });
    release();
    expect((await late).jobId).toBe('late');
    expect(new Set(seen).size).toBe(2);
    expect(stale).toBe(1);
    stream.end();
    await until(() => setup.server.connectionCount === 1, 'the old connections are let go');
  });

  it('of a server that nears its end make the channel connect anew', async () => {
    const setup = await setUp((s) => s.add(Jobs, noJobs));
    setup.serverIdentity.replace(await setup.fixture.material(setup.serverIdentity.spiffeId, 3_000));
    const channel = setup.channel(setup.ana);
    await client(Jobs, channel).list({ tenant: 'acme' });
    const before = channel.server?.serial;
    setup.serverIdentity.replace(await setup.fixture.material(setup.serverIdentity.spiffeId));
    let after = before;
    await until(() => {
      void client(Jobs, channel).list({ tenant: 'acme' }).then(() => (after = channel.server?.serial), () => undefined);
      return after !== before;
    }, 'a connection to the renewed server');
  });

  it('cut the connection at once when revoked, on the server and on the client', async () => {
    const setup = await setUp((s) => { s.add(Calls, held); s.add(Jobs, noJobs); });
    const bob = await setup.fixture.issue(user('acme', 'bob'));
    const mine = await open(setup, setup.ana);
    const other = await open(setup, bob);
    const revokedMs = performance.now();
    setup.fixture.revocations.apply({ serials: [], identities: [{ spiffeId: setup.ana.spiffeId, revokedBeforeMs: Date.now() + 60_000 }] }, 1);
    expect((await mine.ended)?.code).toBe('UNAVAILABLE');
    expect(performance.now() - revokedMs).toBeLessThan(1_000);
    await other.ping();
    expect((await refusal(client(Jobs, setup.channel(setup.ana)).list({ tenant: 'acme' }))).code).toBe('UNAVAILABLE');
    expect(setup.fixture.records.some(({ record }) => record.type === 'lifecycle' && record.event === 'peer.refused' && record.detail.includes(setup.ana.spiffeId))).toBe(true);
    // The server itself is revoked: its clients leave.
    setup.fixture.revocations.apply({ serials: [], identities: [{ spiffeId: setup.serverIdentity.spiffeId, revokedBeforeMs: Date.now() + 60_000 }] }, 2);
    expect((await other.ended)?.code).toBe('UNAVAILABLE');
    expect((await refusal(client(Jobs, setup.channel(bob)).list({ tenant: 'acme' }))).message).toContain('revoked');
  });

  it('end the connection when they end', async () => {
    const setup = await setUp((s) => s.add(Calls, held));
    const brief = await setup.fixture.issue(user('acme', 'brief'), 2_500);
    const stream = await open(setup, brief);
    expect((await stream.ended)?.code).toBe('UNAVAILABLE');
    const again = client(Calls, setup.channel(brief)).attach();
    expect((await new Promise<BulkheadError | undefined>((resolve) => (again.onEnd = resolve)))?.message).toContain('own identity ended');
  });

  it('of a server must be the expected one', async () => {
    const setup = await setUp((s) => { s.add(Jobs, noJobs); s.add(Calls, held); });
    const wrong = createChannel({ identity: setup.ana, peers: setup.fixture.peers, address: setup.address, expectedSpiffeId: 'spiffe://cluster.test/system/head' });
    const byKind = createChannel({ identity: setup.ana, peers: setup.fixture.peers, address: setup.address, expectedSpiffeId: (principal) => principal.kind === 'node' });
    closers.push(() => wrong.close(), () => byKind.close());
    const error = await refusal(client(Jobs, wrong).list({ tenant: 'acme' }));
    expect(error.code).toBe('UNAUTHENTICATED');
    expect(error.message).toContain("is 'spiffe://cluster.test/node/n1', not 'spiffe://cluster.test/system/head'");
    const stream = client(Calls, wrong).attach();
    expect((await new Promise<BulkheadError | undefined>((resolve) => (stream.onEnd = resolve)))?.code).toBe('UNAUTHENTICATED');
    await client(Jobs, byKind).list({ tenant: 'acme' });
    expect(decisions(setup.fixture)).toHaveLength(1);
  });

  it('let a channel reconnect to a server that was started again', async () => {
    const setup = await setUp((s) => s.add(Jobs, noJobs));
    const jobs = client(Jobs, setup.channel(setup.ana));
    await jobs.list({ tenant: 'acme' });
    await setup.server.close();
    expect((await refusal(jobs.list({ tenant: 'acme' }, { timeoutMs: 2_000 }))).code).toBe('UNAVAILABLE');
    const again = createServer(setup.fixture.security(setup.serverIdentity, JOB_ROWS), OPTIONS);
    again.add(Jobs, { ...noJobs, list: async () => ({ jobs: [{ jobId: 'job-2' }] }) });
    await again.listen(setup.address);
    closers.push(() => again.close());
    let answer: string | undefined;
    await until(() => {
      void jobs.list({ tenant: 'acme' }, { timeoutMs: 1_000 }).then((list) => (answer = list.jobs[0]?.jobId), () => undefined);
      return answer === 'job-2';
    }, 'the channel has reconnected');
  });

  it('are let go by closed servers and channels', async () => {
    const setup = await setUp((s) => s.add(Jobs, noJobs));
    const channel = setup.channel(setup.ana);
    await client(Jobs, channel).list({ tenant: 'acme' });
    expect(setup.server.connectionCount).toBe(1);
    channel.close();
    await until(() => setup.server.connectionCount === 0, 'the connection ended');
    await setup.server.close();
    expect([setup.ana.listenerCount, setup.serverIdentity.listenerCount]).toEqual([0, 0]);
    expect((await refusal(client(Jobs, channel).list({ tenant: 'acme' }))).message).toContain('closed');
    expect((await refusal(client(Jobs, setup.channel(setup.ana)).list({ tenant: 'acme' }, { timeoutMs: 2_000 }))).code).toBe('UNAVAILABLE');
  });
});

describe('the attestation listener', () => {
  const ATTEST = row('bulkhead.v1.NodeAttestation/Attest', { action: 'node.join', resource: 'node', callers: [], tenant: 'none' });

  it('serves callers without an identity, records the outcome and hides the reason', async () => {
    const fixture = await openFixture();
    const identity = await fixture.issue(node('head'));
    const server = createAttestationServer(fixture.security(identity, [ATTEST]), {});
    server.add(NodeAttestation, {
      attest: async (call, request) => {
        expect(call).not.toHaveProperty('principal');
        if (request.joinToken !== 'good') throw new BulkheadError('DENIED', 'this token was used yesterday');
        return { nodeId: 'n9', nodeNumber: 9 };
      },
    });
    expect(() => server.add(Jobs, noJobs as never)).toThrow(/without an identity/);
    const { port } = await server.listen('127.0.0.1:0');
    const channel = createChannel({ identity: { trustBundlePem: fixture.authority.trustBundlePem() }, peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: identity.spiffeId });
    closers.push(() => server.close(), () => channel.close());
    const attestation = client(NodeAttestation, channel);
    expect(await attestation.attest({ joinToken: 'good' })).toMatchObject({ nodeId: 'n9', nodeNumber: 9 });
    const error = await refusal(attestation.attest({ joinToken: 'bad' }));
    expect(error.code).toBe('UNAUTHENTICATED');
    expect(error.message).not.toContain('yesterday');
    expect(decisions(fixture).map(({ log, record }) => [log, record.principal, record.action, record.allow])).toEqual([['', '', 'node.join', true], ['', '', 'node.join', false]]);
    expect((await refusal(client(Jobs, channel).list({}))).message).toContain('versions');
    const codes = await Promise.all(Array.from({ length: 30 }, async () => (await refusal(attestation.attest({ joinToken: 'guess' }))).code));
    expect(codes).toContain('RESOURCE_EXHAUSTED');
    expect(decisions(fixture).length).toBeLessThan(20);
  });
});
