/**
 * Hostile frames on a live channel of a driver: what is malformed ends that channel and nothing else; what is another tenant's is refused
 * in the same words as what nobody has. Every op of proto/frames.md is in a table here, so that a new one cannot be forgotten.
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FrameWriter, NO_ITEM, OP } from '../../src/base/frame.ts';
import { objectIdFromText } from '../../src/base/ids.ts';
import { DEFAULT_STREAM_ITEMS, MAX_CODE_BYTES, MAX_FRAME_BYTES, MAX_INLINE_BYTES, MAX_OBJECT_BYTES, MAX_REFS_PER_CALL, MAX_TEMPLATES_PER_CHANNEL } from '../../src/base/limits.ts';
import { runDirectory } from '../../src/cli/leftovers.ts';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { ActorHandle, Cluster, ObjectRef, RemoteModule } from '../../src/sdk/sdk.ts';
import { TestCluster, until, type Caller } from '../support/cluster.ts';
import { batch, failureIn, RawDriver, splitFrames, type Frame } from '../support/raw-driver.ts';

type Work = typeof import('../support/work.ts');
type Body = (w: FrameWriter) => unknown;

const SOURCE = Buffer.from('var __bulkhead_exports = { one: () => 1, same: (x) => x, deep: { __proto__: null } };');
const DIGEST = createHash('sha256').update(SOURCE).digest();
/** CBOR of `[]`, `[null]` and `1`. */
const [NO_ARGS, ONE_NULL, ONE] = [Buffer.from([0x80]), Buffer.from([0x81, 0xf6]), Buffer.from([0x01])];
const QUOTA = 32 * 2 ** 20;

let cluster: TestCluster;
let globex: Caller;
let neighbour: Cluster;
let work: RemoteModule<Work>;
let object: ObjectRef<string>;
let large: ObjectRef<Uint8Array>;
let actor: ActorHandle<import('../support/work.ts').Counter>;
let task: ObjectRef<number>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, quota: { objects: String(QUOTA) } });
  globex = await cluster.as('globex-ana');
  neighbour = await cluster.connect('acme-ana');
  work = await neighbour.module<Work>(new URL('../support/work.ts', import.meta.url));
  object = await neighbour.put('a secret of acme');
  large = await neighbour.put(new Uint8Array(200_000));
  actor = await work.Counter.options({ name: 'acmes' }).create(0);
  expect(await neighbour.get(actor.add(1))).toBe(1);
  task = work.sleep(600_000);
  await neighbour.wait([large], { count: 1, timeoutMs: 10_000 });
});
afterAll(() => cluster?.stop());

/** Another tenant's channel works, its things are what they were. */
async function undisturbed(): Promise<void> {
  expect(await neighbour.get(work.add(2, 3))).toBe(5);
  expect(await neighbour.get(object)).toBe('a secret of acme');
  expect((await neighbour.get(large)).length).toBe(200_000);
  expect(await neighbour.get(actor.add(0))).toBe(1);
  expect((await neighbour.wait([task], { count: 1, timeoutMs: 0 })).pending.length).toBe(1);
}

const code = (total = SOURCE.length, offset = 0, part: Uint8Array = SOURCE, digest: Uint8Array = DIGEST): Body => (w) => w.begin(OP.CODE).raw(digest).u32(total).u32(offset).raw(part);
const define = (template: number, options = '{}', name = 'one', kind = 0, method = '', digest: Uint8Array = DIGEST): Body => (w) => w.begin(OP.DEFINE).u32(template).u8(kind).raw(digest).str(name).str(method).text(options);
const submit = (seq: number, template: number, args: Uint8Array = NO_ARGS): Body => (w) => w.begin(OP.SUBMIT).u32(0).u32(seq).u32(template).u16(0).u32(0).raw(args);
const put = (seq: number, value: Uint8Array = ONE): Body => (w) => w.begin(OP.PUT).u32(0).u32(seq).u32(0).raw(value);
const chunk = (seq: number, total: number, offset: number, part: Uint8Array): Body => (w) => w.begin(OP.PUT_CHUNK).u32(0).u32(seq).u64(total).u64(offset).raw(part);
/** What may come in parts. */
const LARGE = MAX_INLINE_BYTES + 1;
const more = (seq: number, skip: number, first: number, count: number): Body => (w) => w.begin(OP.MORE).u32(0).u32(seq).u32(skip).u32(NO_ITEM).u32(0).u32(first).u32(count);
const get = (request: number, ...ids: Uint8Array[]): Body => (w) => w.begin(OP.GET).u32(0).u32(request).refs(ids);
const raw = (...octets: (number | Uint8Array)[]): Buffer => Buffer.concat(octets.map((o) => (typeof o === 'number' ? Buffer.from([o]) : Buffer.from(o))));
const le = (n: number, bytes = 4): Buffer => {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt(n));
  return b.subarray(0, bytes);
};
/** A frame with any length field. */
const frame = (length: number, op: number, body: Uint8Array = Buffer.alloc(0)): Buffer => raw(le(length), op, body);

/** Sends a batch on a channel of its own and tells how it ended; the neighbour must not notice. */
async function endedBy(octets: Uint8Array, before?: Uint8Array): Promise<{ code: string; message: string }> {
  using driver = await RawDriver.open(globex);
  if (before !== undefined) driver.send(before);
  driver.send(octets);
  const ended = await Promise.race([driver.ended, driver.alive().then((alive) => (alive ? undefined : driver.ended))]);
  if (ended === undefined) throw new Error('the channel is still open');
  return { code: ended.error?.code ?? 'none', message: ended.error?.message ?? '' };
}

describe('malformed batches end their channel', () => {
  const empty = Buffer.alloc(0);
  const cases: readonly [what: string, octets: () => Uint8Array, before?: () => Uint8Array][] = [
    ['a header that is cut off', () => raw(1, 2, 3)],
    ['a frame without an op', () => raw(le(0))],
    ['a frame of no length', () => frame(0, OP.CONTEXT)],
    ['a frame longer than its batch', () => frame(100, OP.CONTEXT, Buffer.alloc(8))],
    ['a frame of 4 GiB', () => frame(0xffff_ffff, OP.CONTEXT, Buffer.alloc(8))],
    ['a frame over the limit', () => frame(MAX_FRAME_BYTES + 1, OP.PUT, Buffer.alloc(MAX_FRAME_BYTES))],
    ['a good frame, then half of one', () => raw(batch(put(1)), 9, 0)],
    ['a context call with octets left over', () => frame(1 + 8 + 1, OP.CONTEXT, Buffer.alloc(9))],
    ['a context call that is too short', () => frame(1 + 7, OP.CONTEXT, Buffer.alloc(7))],
    ['a get of more refs than there are octets', () => frame(1 + 12, OP.GET, raw(le(0), le(1), le(5)))],
    ['a get of 2^32 - 1 refs', () => frame(1 + 12, OP.GET, raw(le(0), le(1), le(0xffff_ffff)))],
    ['a get of one ref over the limit', () => frame(1 + 12 + 24 * (MAX_REFS_PER_CALL + 1), OP.GET, raw(le(0), le(1), le(MAX_REFS_PER_CALL + 1), Buffer.alloc(24 * (MAX_REFS_PER_CALL + 1))))],
    ['a wait of 2^32 - 1 refs', () => frame(1 + 20, OP.WAIT, raw(le(0), le(1), le(1), le(0), le(0xffff_ffff)))],
    ['a release of 2^32 - 1 refs', () => frame(1 + 4, OP.RELEASE, le(0xffff_ffff))],
    ['half an id to cancel', () => frame(1 + 8 + 12, OP.CANCEL, Buffer.alloc(20))],
    ['a call with 65,535 refs among its arguments', () => frame(1 + 12 + 2, OP.SUBMIT, raw(le(0), le(1), le(1), le(65_535, 2))), () => batch(code(), define(1))],
    ['a call with 2^32 - 1 contained refs', () => frame(1 + 12 + 2 + 4, OP.SUBMIT, raw(le(0), le(1), le(1), le(0, 2), le(0xffff_ffff))), () => batch(code(), define(1))],
    ['an index used twice', () => batch(put(1), put(1))],
    ['an index of a result used again', () => batch(submit(1, 1), put(1)), () => batch(code(), define(1))],
    ['an index among several results used again', () => batch(submit(5, 1), put(7)), () => batch(code(), define(1, '{"returns":3}'))],
    ['a template defined twice', () => batch(define(1), define(1)), () => batch(code())],
    ['a refused template defined again', () => batch(define(1, '{"nonsense":1}'), define(1)), () => batch(code())],
    ['a name that is not UTF-8', () => frame(1 + 4 + 1 + 32 + 2 + 2 + 2 + 4, OP.DEFINE, raw(le(1), 0, DIGEST, le(2, 2), 0xc0, 0x80, le(0, 2), le(0)))],
    ['a name with a surrogate', () => frame(1 + 8 + 2 + 3, OP.LOOKUP_ACTOR, raw(le(0), le(1), le(3, 2), 0xed, 0xa0, 0x80))],
    ['a name longer than its frame', () => frame(1 + 8 + 2, OP.LOOKUP_ACTOR, raw(le(0), le(1), le(0xffff, 2)))],
    ['options longer than the limit', () => frame(1 + 4 + 1 + 32 + 2 + 2 + 4, OP.DEFINE, raw(le(1), 0, DIGEST, le(0, 2), le(0, 2), le(0x7fff_ffff)))],
    ['a placement group longer than the limit', () => frame(1 + 12, OP.CREATE_GROUP, raw(le(0), le(1), le(0x7fff_ffff)))],
    ['half an id of a placement group', () => frame(1 + 8 + 12, OP.REMOVE_GROUP, Buffer.alloc(20))],
    ['a credential longer than the limit', () => frame(1 + 4, OP.CREDENTIAL, le(0x7fff_ffff))],
    ['a credential that is none', () => batch((w) => w.begin(OP.CREDENTIAL).text('e30.e30.e30'))],
    ['an object size beyond 2^53', () => frame(1 + 8 + 16, OP.PUT_CHUNK, raw(le(0), le(1), Buffer.alloc(8, 0xff), le(0, 8)))],
    ['an object of no size', () => batch(chunk(1, 0, 0, empty))],
    ['an object over the limit', () => batch(chunk(1, MAX_OBJECT_BYTES + 1, 0, ONE))],
    ['a part beyond the end', () => batch(chunk(1, LARGE, 0, Buffer.alloc(LARGE + 1)))],
    ['a gap between parts', () => batch(chunk(1, LARGE, 0, Buffer.alloc(2)), chunk(1, LARGE, 3, Buffer.alloc(2)))],
    ['a part sent twice', () => batch(chunk(1, LARGE, 0, Buffer.alloc(2)), chunk(1, LARGE, 1, Buffer.alloc(2)))],
    ['a size that changes between parts', () => batch(chunk(1, LARGE, 0, Buffer.alloc(2)), chunk(1, LARGE + 1, 2, Buffer.alloc(2)))],
    ['an object begun twice', () => batch(chunk(1, LARGE, 0, Buffer.alloc(2)), chunk(1, LARGE, 0, Buffer.alloc(2)))],
    ['a gap in code', () => batch(code(100, 0, Buffer.alloc(10)), code(100, 20, Buffer.alloc(10)))],
    ['code longer than announced', () => batch(code(10, 0, Buffer.alloc(11)))],
    ['code under two digests', () => batch(code(100, 0, Buffer.alloc(10)), code(100, 10, Buffer.alloc(10), Buffer.alloc(32)))],
    ['a grant beyond a stream’s window', () => batch(submit(1, 1), more(1, 0, 10, DEFAULT_STREAM_ITEMS + 1)), () => batch(code(), define(1, '{"returns":"streaming"}'))],
    ['a grant of indexes that do not exist', () => batch(submit(1, 1), more(1, 0, 0xffff_ffff, 64)), () => batch(code(), define(1, '{"returns":"streaming"}'))],
    ['a grant that begins a stream twice', () => batch(submit(1, 1), more(1, 0, 10, 1), more(1, 5, 11, 1)), () => batch(code(), define(1, '{"returns":"streaming"}'))],
    ['a flood of templates', () => batch(...Array.from({ length: MAX_TEMPLATES_PER_CHANNEL + 1 }, (_, i) => define(i + 1))), () => batch(code())],
  ];
  it.each(cases)('%s', async (_what, octets, before) => {
    const { code: said, message } = await endedBy(octets(), before?.());
    expect(['INVALID_ARGUMENT', 'RESOURCE_EXHAUSTED', 'UNAUTHENTICATED']).toContain(said);
    expect(message.length).toBeGreaterThan(5);
  });

  it('the neighbour has not noticed', undisturbed);
});

/** What a driver may send; every other op ends the channel. */
const CLIENT_OPS: readonly number[] = [OP.DEFINE, OP.CODE, OP.SUBMIT, OP.CREATE_ACTOR, OP.CALL_ACTOR, OP.PUT, OP.PUT_CHUNK, OP.GET, OP.WAIT, OP.RELEASE, OP.CANCEL, OP.KILL, OP.LOOKUP_ACTOR, OP.CONTEXT, OP.CREDENTIAL, OP.MORE, OP.SUBMIT_ONCE, OP.IDLE_LIMIT, OP.CREATE_GROUP, OP.REMOVE_GROUP, OP.LOOKUP_GROUP, OP.LIST_NODES, OP.DESCRIBE_GROUP];

describe('ops', () => {
  it('of proto/frames.md are all known here', () => {
    const text = readFileSync(fileURLToPath(new URL('../../proto/frames.md', import.meta.url)), 'utf8');
    const section = text.slice(text.indexOf('## Client to raylet'), text.indexOf('## Guest to raylet'));
    const documented = [...section.matchAll(/^\| 0x([0-9a-f]{2}) \| ([A-Z_]+)/gm)].map((m) => Number.parseInt(m[1] ?? '', 16));
    expect(documented.filter((op) => ![OP.PUT_STAGED, OP.RESOLVE, OP.PREPARE_BUNDLES, OP.COMMIT_BUNDLES, OP.RELEASE_BUNDLES, OP.WATCH_GROUP, OP.BORROW, OP.GIVE_BACK, OP.COPY, OP.COPIED, OP.SHARED, OP.ROOTS, OP.TAKE_BUNDLES, OP.RECALL].includes(op as never)).sort((a, b) => a - b)).toEqual([...CLIENT_OPS].sort((a, b) => a - b));
  });

  it('that are not a driver’s end the channel: those of workers, raylets and hosts, and those that nobody knows', async () => {
    const others = Array.from({ length: 256 }, (_, op) => op).filter((op) => !CLIENT_OPS.includes(op));
    const session = await RawDriver.session(globex);
    for (const op of others) {
      using driver = await RawDriver.attach(globex, 'raylet-1', session.credential);
      driver.send(frame(1 + 16, op, Buffer.alloc(16)));
      expect([(await driver.ended).error?.code, op]).toEqual(['INVALID_ARGUMENT', op]);
    }
    await undisturbed();
  });

  it('in well-formed frames of workers and raylets do too', async () => {
    const id = objectIdFromText(object.id);
    const forged: Body[] = [
      (w) => w.begin(OP.RESULT).u32(1).u8(1).u8(0).u32(0).bytes(ONE),
      (w) => w.begin(OP.FAILURE).u32(1).str('TASK_FAILED').text('forged').text(''),
      (w) => w.begin(OP.LOG).u32(1).u8(1).raw(Buffer.from('forged')),
      (w) => w.begin(OP.EXIT).u32(1),
      (w) => w.begin(OP.ACTOR_STATE).u32(1).u8(2).str('ACTOR_DIED').text('forged').text(''),
      (w) => w.begin(OP.PUT_STAGED).u32(0).u32(1).u32(1).u64(8).u32(0),
      (w) => w.begin(OP.RESOLVE).u32(0).u32(1).refs([id]),
      (w) => w.begin(OP.COPY).u32(0).u32(1).raw(id).raw(Buffer.alloc(16)),
      (w) => w.begin(OP.COPIED).u32(1).u8(0),
      (w) => w.begin(OP.SHARED).raw(Buffer.alloc(16)).u8(1),
      (w) => w.begin(OP.TAKE_BUNDLES).u32(1).raw(id).raw(id),
      (w) => w.begin(OP.WELCOME).raw(Buffer.alloc(20)).text('{}'),
      (w) => w.begin(OP.EXEC).u32(1).u8(0).u32(1).u32(0).u16(0).raw(NO_ARGS),
    ];
    for (const body of forged) expect((await endedBy(batch(body))).code).toBe('INVALID_ARGUMENT');
  });
});

describe('calls that are wrong by themselves fail alone', () => {
  async function answers(...bodies: Body[]): Promise<{ driver: RawDriver; frames: Frame[] }> {
    const driver = await RawDriver.open(globex);
    driver.send(batch(...bodies));
    expect(await driver.alive()).toBe(true);
    return { driver, frames: driver.frames };
  }
  const rejections = (frames: readonly Frame[]): { code: string; message: string }[] => frames.filter((f) => f.op === OP.REJECTED).map((f) => failureIn(f.body, 4));

  it('code that does not have its digest, and functions of it', async () => {
    const { driver, frames } = await answers(code(SOURCE.length, 0, SOURCE, Buffer.alloc(32, 7)), define(1, '{}', 'one', 0, '', Buffer.alloc(32, 7)));
    expect(rejections(frames).map((r) => r.code)).toEqual(['INVALID_ARGUMENT', 'INVALID_ARGUMENT']);
    expect(rejections(frames)[0]?.message).toContain('digest');
    driver.send(batch(submit(1, 1), get(1, driver.id(1))));
    expect(failureIn((await driver.answer(1))?.body ?? Buffer.alloc(0), 8).code).toBe('INVALID_ARGUMENT');
    driver[Symbol.dispose]();
  });

  it('code that is larger than code may be, and parts of it that nobody waits for', async () => {
    const { driver, frames } = await answers(code(MAX_CODE_BYTES + 1), code(MAX_CODE_BYTES + 1, 10), code(0));
    expect(rejections(frames).every((r) => r.code === 'INVALID_ARGUMENT')).toBe(true);
    driver[Symbol.dispose]();
  });

  it.each([
    ['not JSON', '{'], ['no object', '[]'], ['null', 'null'], ['an unknown option', '{"cpu":1}'], ['__proto__', '{"__proto__":{"cpus":0}}'], ['constructor', '{"constructor":1}'], ['a negative number', '{"cpus":-1}'], ['infinity', '{"cpus":1e999}'],
    ['a text for a number', '{"cpus":"1"}'], ['too many returns', '{"returns":65}'], ['an id for a name', '{"name":"../../etc/passwd\\u0000"}'], ['another kind of jail', '{"isolation":"none"}'], ['a tenant', '{"tenant":"acme"}'],
    ['deep nesting', `{"resources":${'['.repeat(5_000)}${']'.repeat(5_000)}}`],
  ])('options that are %s', async (_what, options) => {
    const { driver, frames } = await answers(code(), define(1, options));
    expect(rejections(frames).map((r) => r.code)).toEqual(['INVALID_ARGUMENT']);
    driver[Symbol.dispose]();
  });

  it.each([['a kind that is none', 'one', 9], ['a path for a name', '../one', 0], ['a prototype’s name', '', 0], ['a name with a quote', "one';process.exit()//", 0]])('a function with %s', async (_what, name, kind) => {
    const { driver, frames } = await answers(code(), define(1, '{}', name, kind));
    expect(rejections(frames).map((r) => r.code)).toEqual(['INVALID_ARGUMENT']);
    driver[Symbol.dispose]();
  });

  it('exports that only the prototype chain has are not found', async () => {
    using driver = await RawDriver.open(globex);
    const names = ['__proto__', 'constructor', 'hasOwnProperty', 'toString'];
    driver.send(batch(code(), ...names.map((name, i) => define(i + 1, '{"maxRetries":0}', name)), ...names.map((_, i) => submit(i + 1, i + 1)), ...names.map((_, i) => get(i + 1, driver.id(i + 1)))));
    for (const [i, name] of names.entries()) expect([(await driver.answer(i + 1))?.op, name]).toEqual([OP.VALUE_FAILED, name]);
  });

  it('a function that was never defined', async () => {
    using driver = await RawDriver.open(globex);
    driver.send(batch(submit(1, 77), get(1, driver.id(1))));
    expect(failureIn((await driver.answer(1))?.body ?? Buffer.alloc(0), 8)).toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('arguments that are no CBOR hurt only that call', async () => {
    using driver = await RawDriver.open(globex);
    const wrong = [Buffer.alloc(0), Buffer.from([0xff]), Buffer.from([0x9f]), Buffer.from([0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Buffer.alloc(5_000, 0x81)];
    driver.send(batch(code(), define(1, '{"maxRetries":0}', 'same'), ...wrong.map((args, i) => submit(i + 1, 1, args)), submit(50, 1, Buffer.from([0x81, 0x05])), ...wrong.map((_, i) => get(i + 1, driver.id(i + 1))), get(50, driver.id(50))));
    for (const i of wrong.keys()) expect([(await driver.answer(i + 1))?.op, i]).toEqual([OP.VALUE_FAILED, i]);
    const good = await driver.answer(50);
    expect([good?.op, good?.body.at(-1)], good?.body.toString('latin1')).toEqual([OP.VALUE, 5]);
  });
});

describe('memory', () => {
  const objects = (tenant: string): number => {
    const dir = join(runDirectory(cluster.dataDir), 'raylet-1', 'objects', tenant);
    // One may go between the two looks.
    return readdirSync(dir).reduce((sum, name) => sum + (statSync(join(dir, name), { throwIfNoEntry: false })?.size ?? 0), 0);
  };

  it('uploads that never end stay within the quota, and go with their channel', async () => {
    const driver = await RawDriver.open(globex);
    const each = QUOTA / 4;
    const part = Buffer.alloc(2 ** 20);
    // One part of each by turns, so that all of them are begun before any is far.
    await driver.sendAll(Array.from({ length: 7 * 12 }, (_, n) => batch(chunk((n % 12) + 1, each, Math.floor(n / 12) * part.length, part))));
    expect(await driver.alive()).toBe(true);
    expect(objects('globex')).toBeLessThanOrEqual(QUOTA);
    driver.send(batch(...Array.from({ length: 12 }, (_, i) => get(i + 1, driver.id(i + 1)))));
    for (let i = 5; i <= 12; i++) expect(failureIn((await driver.answer(i))?.body ?? Buffer.alloc(0), 8).code, String(i)).toBe('QUOTA_EXCEEDED');
    driver[Symbol.dispose]();
    await until('the parts are gone', () => objects('globex') === 0);
    // What was set aside for them is free again.
    using next = await RawDriver.open(globex);
    next.send(batch(chunk(1, QUOTA, 0, part)));
    next.send(batch(get(1, next.id(1))));
    expect(await next.alive()).toBe(true);
    expect(next.frames.some((f) => f.op === OP.VALUE_FAILED)).toBe(false);
    next.stream.end();
    await undisturbed();
  });

  it('an upload that is released while it runs gives its room back', async () => {
    using driver = await RawDriver.open(globex);
    const part = Buffer.alloc(2 ** 20);
    for (let i = 1; i <= 8; i++) {
      driver.send(batch(chunk(i, QUOTA - 2 ** 20, 0, part), (w) => w.begin(OP.RELEASE).refs([driver.id(i)])));
      driver.send(batch(get(i, driver.id(i))));
      expect(failureIn((await driver.answer(i))?.body ?? Buffer.alloc(0), 8).code, String(i)).toBe('OBJECT_LOST');
    }
    await until('the parts are gone', () => objects('globex') === 0);
  });
});

describe('another tenant’s ids', () => {
  /** `theirs` exist; `nobodys` have the same tenant number and never existed. */
  function ids(): { theirs: Buffer[]; nobodys: Buffer[] } {
    const theirs = [object.id, large.id, actor.id, task.id].map((text) => Buffer.from(objectIdFromText(text)));
    return { theirs, nobodys: theirs.map((id) => Buffer.concat([id.subarray(0, 8), Buffer.alloc(12, 0x55), id.subarray(20)])) };
  }

  /** One per op with an id: what to send, and the request or ref whose answer tells what came of it. */
  const withIds: Readonly<Record<string, (driver: RawDriver, id: Uint8Array) => Body[]>> = {
    GET: (_d, id) => [get(1, id)],
    WAIT: (_d, id) => [(w) => w.begin(OP.WAIT).u32(0).u32(1).u32(1).u32(0).refs([id])],
    CANCEL: (_d, id) => [(w) => w.begin(OP.CANCEL).u32(0).u32(1).raw(id).u8(0)],
    'CANCEL by force': (_d, id) => [(w) => w.begin(OP.CANCEL).u32(0).u32(1).raw(id).u8(1)],
    KILL: (_d, id) => [(w) => w.begin(OP.KILL).u32(0).u32(1).raw(id).u8(0)],
    'KILL, to restart it': (_d, id) => [(w) => w.begin(OP.KILL).u32(0).u32(1).raw(id).u8(1)],
    REMOVE_GROUP: (_d, id) => [(w) => w.begin(OP.REMOVE_GROUP).u32(0).u32(1).raw(id)],
    'DEFINE, to run in it as a placement group': (d, id) => [define(3, JSON.stringify({ placementGroup: `obj-${Buffer.from(id).toString('hex')}` })), (w) => w.begin(OP.SUBMIT).u32(0).u32(9).u32(3).u16(0).u32(0).raw(NO_ARGS), get(1, d.id(9))],
    RELEASE: (d, id) => [(w) => w.begin(OP.RELEASE).refs([id, id, id]), put(9), get(1, d.id(9))],
    CALL_ACTOR: (d, id) => [define(3, '{}', '', 2, 'add'), (w) => w.begin(OP.CALL_ACTOR).u32(0).u32(9).u32(3).raw(id).u16(0).u32(0).raw(NO_ARGS), get(1, d.id(9))],
    'SUBMIT, as an argument': (d, id) => [(w) => w.begin(OP.SUBMIT).u32(0).u32(9).u32(2).u16(1).u16(0).raw(id).u32(0).raw(ONE_NULL), get(1, d.id(9))],
    'SUBMIT, inside an argument': (d, id) => [(w) => w.begin(OP.SUBMIT).u32(0).u32(9).u32(1).u16(0).refs([id]).raw(NO_ARGS), get(1, d.id(9))],
    'CREATE_ACTOR, as an argument': (d, id) => [define(3, '{}', 'one', 1), (w) => w.begin(OP.CREATE_ACTOR).u32(0).u32(9).u32(3).u16(1).u16(0).raw(id).u32(0).raw(ONE_NULL), get(1, d.id(9))],
    'PUT, inside the value': (d, id) => [(w) => w.begin(OP.PUT).u32(0).u32(9).refs([id]).raw(ONE), get(1, d.id(9))],
  };

  const holds = async (): Promise<string> => {
    const { entities } = await (await cluster.as('acme-ana')).on('raylet-1', Inspection).list({ kind: 'objects', tenant: 'acme' });
    // Only these four: what the checks between leave is collected whenever it is.
    return JSON.stringify(entities.filter((e) => [object.id, large.id, actor.id, task.id].includes(e.id)).map((e) => [e.id, e.state, e.facts['refs'], e.facts['pins']]).sort());
  };

  it.each(Object.keys(withIds))('%s', async (op) => {
    const before = await holds();
    const { theirs, nobodys } = ids();
    const ask = async (id: Uint8Array): Promise<string> => {
      using driver = await RawDriver.open(globex);
      driver.send(batch(code(), define(1), define(2, '{}', 'same')));
      driver.send(batch(...(withIds[op] as (d: RawDriver, i: Uint8Array) => Body[])(driver, id)));
      const answer = await driver.answer(1);
      expect(await driver.alive()).toBe(true);
      return `${answer?.op} ${answer?.body.toString('latin1')}`;
    };
    for (const [i, id] of theirs.entries()) {
      const real = await ask(id);
      expect(real).toBe(await ask(nobodys[i] as Buffer));
      expect(real).not.toContain('secret');
      if (!/inside|RELEASE/.test(op)) expect(real).toContain('DENIED');
    }
    await until('nothing of acme’s is held or let go', async () => (await holds()) === before);
    await undisturbed();
  });

  it('LOOKUP_ACTOR by name, with and without a namespace that names the tenant', async () => {
    using driver = await RawDriver.open(globex);
    const names = ['acmes', 'nobodys', 'acme/acmes', '/acmes', '../acme/acmes', 'acme/acme/acmes', '', 'a'.repeat(60_000)];
    driver.send(batch(...names.map((name, i): Body => (w) => w.begin(OP.LOOKUP_ACTOR).u32(0).u32(i + 1).str(name))));
    for (const [i, name] of names.entries()) {
      const answer = await driver.answer(i + 1);
      expect([answer?.op, name.slice(0, 20)]).toEqual([OP.FAILED, name.slice(0, 20)]);
      if (i < 4) expect(failureIn(answer?.body ?? Buffer.alloc(0), 4).code).toBe('DENIED');
    }
  });

  it('leave a record with their owner, who tried and was denied', async () => {
    const { Audit } = await import('../../src/rpc/generated/bulkhead/v1/raylet_pb.js');
    const seen = new Set<string>();
    for await (const { record } of (await cluster.as('acme-siem')).on('raylet-1', Audit).tail({ tenant: 'acme', last: 10_000 })) {
      const r = JSON.parse(record) as { type: string; action?: string; allow?: boolean; principal: string };
      if (!r.principal.endsWith('/tenant/globex/user/ana')) continue;
      expect([r.type, r.allow]).toEqual(['decision', false]);
      seen.add(r.action ?? '');
    }
    // The tenant of who tried has them too, each denied by the wall: a question that the policy cannot answer would be denied by error, which is nobody's rule.
    const own: { action: string; rule: string; resourceKind: string }[] = [];
    for await (const { record } of (await cluster.as('globex-siem')).on('raylet-1', Audit).tail({ tenant: 'globex', last: 10_000 })) {
      const r = JSON.parse(record) as { type: string; allow?: boolean; action: string; rule: string; resourceKind: string };
      if (r.type === 'decision' && r.allow === false) own.push(r);
    }
    expect(own.filter((r) => r.rule === 'error')).toEqual([]);
    expect([...new Set(own.filter((r) => r.action === 'task.cancel').map((r) => `${r.resourceKind} ${r.rule}`))]).toEqual(['task wall']);
    // The first of a while one by one, more of them summed up: a neighbour's tries do not fill this tenant's log.
    expect(seen.has('object.get')).toBe(true);
    expect([...seen].filter((action) => !['object.get', 'object.wait', 'task.cancel', 'actor.call', 'actor.kill', 'placement-group.remove', 'placement-group.use'].includes(action))).toEqual([]);
  });
});

describe('the session', () => {
  it('of another identity attaches nobody', async () => {
    const { credential } = await RawDriver.session(await cluster.as('acme-dev'));
    const driver = await RawDriver.attach(globex, 'raylet-1', credential);
    expect((await driver.ended).error?.code).toBe('UNAUTHENTICATED');
    const none = await RawDriver.attach(globex, 'raylet-1', 'e30.e30.e30');
    expect((await none.ended).error?.code).toBe('UNAUTHENTICATED');
  });

  it('of a job that was stopped attaches nobody, though its credential has not ended', async () => {
    const { Jobs } = await import('../../src/rpc/generated/bulkhead/v1/head_pb.js');
    const session = await RawDriver.session(globex);
    const driver = await RawDriver.attach(globex, 'raylet-1', session.credential);
    await globex.to(Jobs).stop({ jobId: session.jobId });
    await driver.ended;
    const again = await RawDriver.attach(globex, 'raylet-1', session.credential);
    const { error } = await Promise.race([again.ended, again.alive().then((alive) => ({ error: alive ? undefined : again.end?.error }))]);
    expect(['UNAUTHENTICATED', 'UNAVAILABLE', 'CANCELLED', 'DENIED']).toContain(error?.code);
  });

  it('cannot be renewed with another’s credential', async () => {
    // Its signature is checked beside the frames behind it, which may have their answers first.
    for (const caller of [await cluster.as('acme-dev'), globex]) {
      const other = await RawDriver.session(caller);
      using driver = await RawDriver.open(globex);
      driver.send(batch((w) => w.begin(OP.CREDENTIAL).text(other.credential)));
      expect((await driver.ended).error?.code).toBe('UNAUTHENTICATED');
    }
  });
});

it('300 seeded mutations of a good batch: only their own channels end', { timeout: 120_000 }, async () => {
  // mulberry32: the same mutations in every run.
  let state = 0x5eed;
  const random = (n: number): number => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
  const session = await RawDriver.session(globex);
  const pid = cluster.node('raylet-1').pid;
  let closed = 0;
  for (let round = 0; round < 300; round++) {
    using driver = await RawDriver.attach(globex, 'raylet-1', session.credential);
    const good = batch(
      code(), define(1, '{"maxRetries":0,"timeoutMs":500}'), define(2, '{"maxRetries":0,"timeoutMs":500}', 'same'), put(1), chunk(2, LARGE, 0, Buffer.alloc(4)), chunk(2, LARGE, 4, Buffer.alloc(4)), submit(3, 1),
      (w) => w.begin(OP.SUBMIT).u32(0).u32(4).u32(2).u16(1).u16(0).raw(driver.id(1)).refs([driver.id(2)]).raw(ONE_NULL), get(1, driver.id(3), driver.id(4)),
      (w) => w.begin(OP.WAIT).u32(0).u32(2).u32(2).u32(50).refs([driver.id(3), driver.id(4)]), (w) => w.begin(OP.RELEASE).refs([driver.id(1)]),
      (w) => w.begin(OP.CANCEL).u32(0).u32(3).raw(driver.id(3)).u8(1), (w) => w.begin(OP.KILL).u32(0).u32(4).raw(driver.id(1)), (w) => w.begin(OP.LOOKUP_ACTOR).u32(0).u32(5).str('name'), (w) => w.begin(OP.CONTEXT).u32(0).u32(6),
    );
    expect(splitFrames(good).length).toBe(15);
    const bad = Buffer.from(good);
    for (let i = 1 + random(4); i > 0; i--) {
      const at = random(bad.length);
      switch (random(4)) {
        case 0: bad[at] = random(256); break;
        case 1: bad[at] = (bad[at] ?? 0) ^ (1 << random(8)); break;
        case 2: bad.writeUInt32LE([0, 1, 0x7fff_ffff, 0xffff_ffff][random(4)] as number, Math.min(at, bad.length - 4)); break;
        default: bad.copyWithin(at, random(bad.length), Math.min(bad.length, at + random(64)));
      }
    }
    driver.send(random(8) === 0 ? bad.subarray(0, 1 + random(bad.length - 1)) : bad);
    const alive = await Promise.race([driver.ended.then(() => false), driver.alive()]);
    if (!alive) closed++;
    if (round % 50 === 49) await undisturbed();
  }
  expect(closed).toBeGreaterThan(75);
  expect(cluster.node('raylet-1').pid).toBe(pid);
  await undisturbed();
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
