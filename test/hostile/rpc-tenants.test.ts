/**
 * Another tenant's values in every field of every RPC that can hold a name or an id, generated from the protobuf descriptors: the answer
 * must be a refusal, or hold nothing of that tenant, and be the same as for a value that nobody has. A new field of that kind without
 * values here fails the test.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import type { DescField, DescMessage, DescMethod } from '@bufbuild/protobuf';
import { afterAll, beforeAll, expect, it, describe } from 'vitest';
import { objectIdFromText } from '../../src/base/ids.ts';
import { createCsr } from '../../src/pki/pki.ts';
import { file_bulkhead_v1_head, Identities, Jobs, Sessions, Tenants, Tokens } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, file_bulkhead_v1_raylet, Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { RpcChannel } from '../../src/rpc/rpc.ts';
import type { Cluster } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until, type Caller } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
type Values = { readonly theirs: readonly unknown[]; readonly nobodys: readonly unknown[] };

const ACTOR_NAME = 'the-secret-actor';
const LABEL = 'secretlabel';

let cluster: TestCluster;
let acme: Cluster;
let globex: Caller;
/** Texts that must never be in an answer to globex. */
let marks: string[];
let values: Record<string, Values>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1 });
  acme = await cluster.connect('acme-ana');
  const work = await acme.module<Work>(new URL('../support/work.ts', import.meta.url));
  const actor = await work.Counter.options({ name: ACTOR_NAME }).create(0);
  await acme.get(actor.add(1));
  const object = await acme.put('a secret value');
  await acme.get(object);
  const task = work.sleep.options({ name: 'the-secret-task', label: LABEL })(600_000);
  await acme.get(work.say('a secret line'));
  await (await cluster.as('acme-ana')).to(Tenants).setProjectQuota({ tenant: 'acme', project: 'secretproject', quota: { tasks: '1000' } });
  globex = await cluster.as('globex-ana');
  const td = cluster.trustDomain;
  await cluster.enrol({ tenant: 'acme', name: 'amy', roles: ['developer'] });
  const own = await cluster.connect('globex-ana');
  await own.get(own.task(() => 1)());
  await until('acme sees its own, so that the values are real', async () => (await (await cluster.as('acme-ana')).on('raylet-1', Inspection).list({ kind: 'actors', tenant: 'acme' })).entities.length > 0);
  const { sessionId } = await (await cluster.as('acme-ana')).to(Sessions).open({ jobName: '', jobId: acme.jobId });
  await (await cluster.as('acme-ana')).to(Sessions).open({ jobName: '', submission: { id: 'secret-submission', details: '{}' } });
  const { serial } = await (await cluster.as('acme-ana')).to(Identities).whoAmI({});
  const { info } = await (await cluster.as('acme-ana')).to(Tokens).create({ name: 'secret' });
  const never = (id: string): string => `${id.slice(0, 20)}${'5'.repeat(id.length - 20)}`;
  const ids = [actor.id, object.id, task.id, acme.jobId];
  values = {
    tenant: { theirs: ['acme'], nobodys: ['nowhere'] },
    name: { theirs: [ACTOR_NAME, 'amy', 'acme'], nobodys: ['nobody-1', 'nobody-2', 'nobody-3'] },
    job_name: { theirs: [acme.jobId], nobodys: [never(acme.jobId)] },
    job_id: { theirs: [acme.jobId], nobodys: [`job-${'5'.repeat(24)}`] },
    id: { theirs: [...ids, ACTOR_NAME, 'the-secret-task'], nobodys: [...ids.map(never), 'nobody', 'nobody'] },
    actor_id: { theirs: [objectIdFromText(actor.id)], nobodys: [objectIdFromText(never(actor.id))] },
    node_id: { theirs: [cluster.node('raylet-1').nodeId], nobodys: ['node-nowhere'] },
    spiffe_id: { theirs: [`spiffe://${td}/tenant/acme/user/ana`, `spiffe://${td}/tenant/acme/job/${acme.jobId}`], nobodys: [`spiffe://${td}/tenant/nowhere/user/ana`, `spiffe://${td}/tenant/nowhere/job/${acme.jobId}`] },
    serial: { theirs: [serial], nobodys: [randomBytes(serial.length / 2).toString('hex')] },
    session_id: { theirs: [sessionId], nobodys: [randomBytes(sessionId.length / 2).toString('hex')] },
    project: { theirs: ['secretproject'], nobodys: ['nobodysproject'] },
    namespace: { theirs: ['acme'], nobodys: ['nowhere'] },
    token_id: { theirs: [info?.tokenId], nobodys: [randomBytes(8).toString('hex')] },
    submission_id: { theirs: ['secret-submission'], nobodys: ['nobodys-submission'] },
    file_name: { theirs: ['acme.yaml'], nobodys: ['nowhere.yaml'] },
  };
  marks = ['acme', ...ids, ...ids.map((id) => id.slice(4)), ACTOR_NAME, 'secret', LABEL, serial, sessionId];
});
afterAll(() => cluster?.stop());

/** Names of fields that hold somebody's name or id. */
const TELLING = /(^|_)(tenant|id|ids|name|serial|namespace|principal|owner|job|node|actor|object|user|digest|path|file|project)$/;

interface Case {
  readonly method: DescMethod;
  readonly path: string;
  readonly field: DescField;
}

function fieldsOf(message: DescMessage, seen: readonly DescMessage[] = []): DescField[] {
  return message.fields.flatMap((field) => {
    if (field.fieldKind === 'message' && !seen.includes(field.message)) return fieldsOf(field.message, [...seen, message]);
    return (field.fieldKind === 'scalar' || (field.fieldKind === 'list' && field.listKind === 'scalar')) && TELLING.test(field.name) ? [field] : [];
  });
}

const services = [...file_bulkhead_v1_head.services, ...file_bulkhead_v1_raylet.services];
const methods = services.flatMap((service) => service.methods).filter((m) => m.parent.name !== 'NodeAttestation');
const unary = methods.filter((m) => m.methodKind === 'unary' || m.methodKind === 'server_streaming');
const cases: Case[] = unary.flatMap((method) => fieldsOf(method.input).map((field) => ({ method, field, path: `${method.parent.name}.${method.name} ${field.name}` })));

/** A request that globex may make, as far as there is one. `kind` is tried with every value that means something. */
function ownRequest(method: DescMethod): Record<string, unknown> {
  const request: Record<string, unknown> = {};
  for (const field of method.input.fields) {
    if (field.name === 'tenant') request[field.localName] = 'globex';
    else if (field.name === 'csr') request[field.localName] = createCsr(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey);
    else if (field.name === 'last') request[field.localName] = 1_000;
    else if (field.name === 'outcome') request[field.localName] = 'stopped';
    else if (field.name === 'content') request[field.localName] = new TextEncoder().encode('version: 1\ntenant: globex\nroles: {}\n');
  }
  return request;
}

function kindsOf(method: DescMethod): (string | undefined)[] {
  if (!method.input.fields.some((f) => f.name === 'kind')) return [undefined];
  if (method.name === 'Issue') return ['user', 'service'];
  return method.name === 'ReadLog' ? ['job', 'task', 'actor'] : ['tasks', 'actors', 'objects', 'workers'];
}

/** Code and text of the refusal, or the answer itself. Ends streams that would follow. */
async function call(channel: RpcChannel, method: DescMethod, request: object): Promise<string> {
  const show = (value: unknown): string => JSON.stringify(value, (key, v: unknown) => (typeof v === 'bigint' ? String(v) : v instanceof Uint8Array ? Buffer.from(v).toString('latin1') : key === '$typeName' ? undefined : v)) ?? '';
  try {
    if (method.methodKind === 'unary') return `answer ${show(await channel.unary(method, request, { timeoutMs: 10_000 }))}`;
    const answers: unknown[] = [];
    for await (const answer of channel.serverStream(method, request, { timeoutMs: 10_000 })) answers.push(answer);
    return `answers ${show(answers)}`;
  } catch (thrown) {
    const { code, message } = thrown as { code?: string; message: string };
    return `${code} ${message}`;
  }
}

const channelFor = (caller: Caller, method: DescMethod): RpcChannel => (method.parent.file === file_bulkhead_v1_head ? caller.head.channel : caller.channel('raylet-1'));

/** What differs from call to call without telling anything: keys, times, what globex itself made or asked for. */
function comparable(answer: string, value: unknown): string {
  const text = value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : String(value);
  return answer.replaceAll(text, '<value>').replaceAll(JSON.stringify(text).slice(1, -1), '<value>')
    .replace(/-----BEGIN[^"]*/g, '<pem>').replace(/job-[0-9a-f]{24}/g, '<job>').replace(/eyJ[\w.-]+/g, '<jwt>').replace(/\b\d{10,}\b/g, '<time>').replace(/"version":\d+/g, '"version":<n>').replace(/"sessionId":"[0-9a-f]+"/g, '"sessionId":"<session>"')
    .replace(/bht_[A-Za-z0-9_-]{43}/g, '<token>').replace(/"tokenId":"[0-9a-f]+"/g, '"tokenId":"<token>"');
}

it('there are fields to try in every service that has requests', () => {
  expect(cases.length).toBeGreaterThan(35);
  const without = [...new Set(cases.map((c) => c.field.name))].filter((name) => values[name] === undefined);
  expect(without, 'fields that need values in this test').toEqual([]);
});

describe('globex’s own administrator', () => {
  it.each(cases.map((c) => [c.path, c] as const))('%s', async (_path, { method, field }) => {
    const { theirs, nobodys } = values[field.name] as Values;
    const channel = channelFor(globex, method);
    for (const kind of kindsOf(method)) {
      for (const [i, value] of theirs.entries()) {
        const base = ownRequest(method);
        if (kind !== undefined) base['kind'] = kind;
        const real = await call(channel, method, { ...base, [field.localName]: value });
        const none = await call(channel, method, { ...base, [field.localName]: nobodys[i] });
        const shown = comparable(real, value);
        // Tailing globex's own log shows what globex asked about.
        if (method.parent.typeName !== Audit.typeName || field.name === 'tenant') for (const mark of marks.filter((m) => m !== value)) expect(shown, `${String(kind)} ${String(value)}`).not.toContain(mark);
        if (method.name === 'Tail' || method.name === 'Export' || method.name === 'Stats') expect(shown.split(' ')[0]).toBe(comparable(none, nobodys[i]).split(' ')[0]);
        else expect(shown, `${String(kind)} ${String(value)}`).toBe(comparable(none, nobodys[i]));
      }
    }
  });

  it('with all of it at once', async () => {
    for (const method of unary) {
      for (const kind of kindsOf(method)) {
        const base = ownRequest(method);
        if (kind !== undefined) base['kind'] = kind;
        const fill = (which: 'theirs' | 'nobodys'): Record<string, unknown> => ({ ...base, ...Object.fromEntries(fieldsOf(method.input).map((f) => [f.localName, values[f.name]?.[which][0]])) });
        const channel = channelFor(globex, method);
        const real = await call(channel, method, fill('theirs'));
        // What globex asked with may come back; what it did not ask with may not.
        if (fieldsOf(method.input).length > 0 && method.parent.name !== 'Sessions') for (const mark of ['secret value', 'secret line', LABEL, 'the-secret-task']) expect(real, method.name).not.toContain(mark);
        if (fieldsOf(method.input).some((f) => f.name === 'tenant')) expect(real.split(' ').slice(1).join(' '), `${method.parent.name}.${method.name} ${String(kind)}`).toBe((await call(channel, method, fill('nobodys'))).split(' ').slice(1).join(' '));
      }
    }
  });

  it('without any name at all it gets nothing of another tenant either', async () => {
    // Tokens have the names that globex itself gave them above.
    for (const method of unary.filter((m) => m.parent.typeName !== Audit.typeName && !(m.parent.typeName === Tokens.typeName && m.name === 'List'))) {
      for (const kind of kindsOf(method)) {
        const real = await call(channelFor(globex, method), method, kind === undefined ? {} : { kind });
        for (const mark of marks) expect(real, `${method.parent.name}.${method.name} ${String(kind)}`).not.toContain(mark);
      }
    }
  });
});

it('streams are for those they are for', async () => {
  for (const method of methods.filter((m) => m.methodKind === 'bidi_streaming')) {
    const channel = channelFor(globex, method);
    const batches = method.parent.name === 'Calls' || method.parent.name === 'Peers';
    const error = batches
      ? await new Promise<{ code?: string } | undefined>((resolve) => {
          const stream = channel.batchStream(method);
          stream.onEnd = resolve;
          stream.write(Buffer.from([1, 0, 0, 0, 0]));
        })
      : await failure((async () => {
          const stream = channel.bidi(method);
          for await (const _ of stream) throw new Error('it answered');
        })());
    expect(['DENIED', 'UNAUTHENTICATED'], method.name).toContain(error?.code);
  }
});

it('acme’s own things are as they were, and nothing broke inside', async () => {
  const ana = await cluster.as('acme-ana');
  expect((await ana.to(Jobs).get({ jobId: acme.jobId })).status).toBe('RUNNING');
  const actor = await acme.actor<import('../support/work.ts').Counter>(ACTOR_NAME);
  expect(await acme.get(actor.add(1))).toBe(2);
  expect((await ana.to(Identities).whoAmI({})).tenant).toBe('acme');
  expect(cluster.faults()).toEqual([]);
});
