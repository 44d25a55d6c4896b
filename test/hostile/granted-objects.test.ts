/** A large object that its owner granted to another tenant: sent from its owner's files, copied for a worker, counted, and gone with it. */
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { MAX_COPY_BYTES } from '../../src/base/limits.ts';
import { ObjectFiles } from '../../src/objects/object-files.ts';
import type { Effect } from '../../src/raylet/core/effects.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { OBJECT_STATUS } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const [ACME, GLOBEX] = [1, 2];
const SIZE = 500_000;
const send = (client: SimClient): number => client.node.core.clientBatch(client.channel, client.out.take(), client.world.nowMs);

/** acme has put `size` octets as a file and granted them; `effects` keeps what the node does from then on. */
function granted(size = SIZE): { world: World; acme: SimClient; globex: SimClient; ref: Uint8Array; effects: Effect[] } {
  const world = new World({ nodes: 1, cpus: 1, seed: 60 });
  const [acme, globex] = [world.client(0, ACME), world.client(0, GLOBEX)];
  const { state } = acme.node.core;
  Object.assign(state.config, { decisions: { version: 1, decide: () => ({ allow: true, rule: 'grant', policyVersion: 1 }) } });
  const seq = acme.nextSeq++;
  for (let at = 0; at < size; at += 2 ** 20) acme.out.begin(OP.PUT_CHUNK).u32(0).u32(seq).u64(size).u64(at).raw(new Uint8Array(Math.min(2 ** 20, size - at))).end();
  send(acme);
  world.drain(acme.node);
  const effects: Effect[] = [];
  const push = (e: Effect): number => effects.push(e);
  // Each step's effects begin a new array: all of them are seen.
  let out: Effect[] = [];
  const watch = (list: Effect[]): Effect[] => new Proxy(list, { get: (of, key) => (key === 'push' ? (e: Effect) => (push(e), of.push(e)) : Reflect.get(of, key)) });
  Object.defineProperty(state, 'out', { get: () => out, set: (list: Effect[]) => (out = watch(list)) });
  state.out = [];
  return { world, acme, globex, ref: makeId(acme.prefix, seq), effects };
}

const of = <T extends Effect['type']>(effects: Effect[], type: T): (Effect & { type: T })[] => effects.filter((e): e is Effect & { type: T } => e.type === type);

it('a driver of the other tenant gets it from its owner’s files', () => {
  const { world, globex, ref, effects } = granted();
  globex.get([ref]);
  globex.flush();
  world.run(1_000);
  const [stream] = of(effects, 'stream-file');
  expect([stream?.owner.name, stream?.channel === globex.channel, stream?.size]).toEqual(['acme', true, SIZE]);
  expect([...globex.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
  expect(globex.channel.job.tenant.objectBytes).toBe(0);
});

it('workers of the other tenant get one copy, which counts as theirs and goes with the object', () => {
  const { world, acme, globex, ref, effects } = granted();
  globex.define(1, CALL_KIND.TASK, {});
  const own = globex.channel.job.tenant;
  globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN, [ref]), globex.call(OP.SUBMIT, 1, DO.RETURN, [ref, ref])]);
  globex.flush();
  world.run(10_000);
  expect([...globex.calls.values()].flatMap((c) => c.answers)).toEqual(['value', 'value']);
  const copies = of(effects, 'copy-file');
  expect(copies.map((e) => [e.from.name, e.to.name, e.size])).toEqual([['acme', 'globex', SIZE]]);
  const attached = of(effects, 'attach');
  expect([attached.length, ...new Set(attached.map((e) => e.fileName))]).toEqual([3, copies[0]?.copyName]);
  // The two results are an octet each.
  expect(own.objectBytes).toBe(SIZE + 2);
  acme.release([ref]);
  acme.flush();
  world.run(1_000);
  expect(of(effects, 'delete-file').map((e) => [e.tenant.name, e.fileName === copies[0]?.copyName])).toEqual([['acme', false], ['globex', true]]);
  expect([own.objectBytes, acme.channel.job.tenant.objectBytes]).toEqual([2, 0]);
});

it.each([['its reader’s quota', SIZE, SIZE - 1, 'QUOTA_EXCEEDED'], ['what is copied at once', MAX_COPY_BYTES + 1, Number.POSITIVE_INFINITY, 'RESOURCE_EXHAUSTED']])('one beyond %s fails the calls that need it, and no worker and no other call', (_name, size, quota, code) => {
  const { world, globex, ref, effects } = granted(size);
  const { tenant } = globex.channel.job;
  Object.assign(tenant, { quota: { ...tenant.quota, objectBytes: quota } });
  globex.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  globex.define(2, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
  globex.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
  const actor = globex.call(OP.CREATE_ACTOR, 2, DO.RETURN);
  const failing = [globex.call(OP.SUBMIT, 1, DO.RETURN, [ref]), globex.call(OP.CALL_ACTOR, 3, DO.RETURN, [ref], actor), globex.call(OP.CREATE_ACTOR, 2, DO.RETURN, [ref])];
  const good = [globex.call(OP.SUBMIT, 1, DO.RETURN), globex.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor)];
  globex.get([...failing, ...good]);
  globex.flush();
  world.run(10_000);
  expect([...globex.calls.values()].flatMap((c) => c.answers)).toEqual(['failed', 'failed', 'failed', 'value', 'value']);
  expect(globex.failed).toEqual([code, code, code]);
  expect([of(effects, 'copy-file'), of(effects, 'attach'), globex.channel.inFlight]).toEqual([[], [], 0]);
});

it('a copy that failed is not kept as if it were there', () => {
  const { world, globex, ref, effects } = granted();
  globex.define(1, CALL_KIND.TASK, {});
  globex.call(OP.SUBMIT, 1, DO.RETURN, [ref]);
  globex.flush();
  world.run(10_000);
  const [copy] = of(effects, 'copy-file');
  globex.node.core.copyFailed(globex.channel.job.tenant, copy?.copyName ?? '');
  expect(globex.channel.job.tenant.objectBytes).toBe(1);
  globex.call(OP.SUBMIT, 1, DO.RETURN, [ref]);
  globex.flush();
  world.run(10_000);
  expect(of(effects, 'copy-file')).toHaveLength(2);
});

it.each([['inline', 40], ['in a file', SIZE]])('a pickle %s stays with its tenant: gets and calls of others are DENIED, its owner is told once, and its own read it', (_name, size) => {
  const { world, acme, globex, effects } = granted();
  const value = new Uint8Array(size);
  value.set([0xda, 0x42, 0x4b, 0x50, 0x59, 0x5b]);
  const seq = acme.nextSeq++;
  if (size < 1_000) acme.out.begin(OP.PUT).u32(0).u32(seq).refs([]).raw(value).end();
  else acme.out.begin(OP.PUT_CHUNK).u32(0).u32(seq).u64(size).u64(0).raw(value).end();
  send(acme);
  world.drain(acme.node);
  const ref = makeId(acme.prefix, seq);
  for (const client of [globex, acme]) {
    client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN, [ref]), client.call(OP.SUBMIT, 1, DO.RETURN, [ref])]);
    client.flush();
  }
  if (size < 1_000) globex.get([ref]);
  globex.flush();
  world.run(10_000);
  expect([new Set(globex.failed), [...acme.calls.values()].flatMap((c) => c.answers)]).toEqual([new Set(['DENIED']), ['value', 'value']]);
  expect(globex.reasons.every((reason) => reason.includes('carries code (a pickle)'))).toBe(true);
  expect(of(effects, 'copy-file')).toEqual([]);
  const told = acme.node.logs.get(ACME)?.records.filter((r) => r.type === 'lifecycle' && r.event === 'object.code-refused') ?? [];
  expect(told).toHaveLength(1);
});

it('a worker is told which arguments another tenant made, however they come', () => {
  const { world, acme, globex, ref } = granted();
  const small = acme.nextSeq++;
  acme.out.begin(OP.PUT).u32(0).u32(small).refs([]).raw(Uint8Array.of(1)).end();
  send(acme);
  globex.define(1, CALL_KIND.TASK, {});
  const own = globex.call(OP.SUBMIT, 1, DO.RETURN);
  globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN, [makeId(acme.prefix, small), ref, own])]);
  globex.flush();
  world.run(10_000);
  expect(world.ran.map(({ forms }) => forms)).toEqual([[], [2, 3, 0]]);
});

it('an exception stays with its tenant: others are told message and stack without it', () => {
  const { world, acme, globex } = granted();
  acme.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  const failed = acme.call(OP.SUBMIT, 1, DO.RETURN);
  acme.flush();
  world.run(10_000);
  const entry = acme.channel.session.objects.get(acme.nextSeq - 1);
  if (entry === undefined) throw new Error('it is not there');
  const stack = 'Traceback\n#bulkhead:cause:gASV';
  Object.assign(entry, { status: OBJECT_STATUS.FAILED, failure: { code: 'TASK_FAILED', message: 'm', stack }, value: undefined });
  globex.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  globex.get([failed, globex.call(OP.SUBMIT, 1, DO.RETURN, [failed])]);
  acme.get([failed]);
  for (const client of [globex, acme]) client.flush();
  world.run(10_000);
  expect([globex.stacks, acme.stacks]).toEqual([['Traceback', 'Traceback'], [stack]]);
});

it('what left once for another tenant leaves unchanged or not at all, and its owner is told', () => {
  const { world, acme, globex, ref, effects } = granted();
  const { core } = acme.node;
  const entry = acme.channel.session.objects.get(1);
  if (entry === undefined) throw new Error('it is not there');
  const [first, second] = [new Uint8Array(32).fill(1), new Uint8Array(32).fill(2)];
  expect([core.mayCross(entry, first), core.mayCross(entry, first.slice()), core.mayCross(entry, second), core.mayCross(entry, second), core.mayCross(entry, first)]).toEqual([true, true, false, false, true]);
  const told = (): string[] => acme.node.logs.get(ACME)?.records.flatMap((r) => (r.type === 'lifecycle' && r.event === 'object.altered' ? [`${r.resource} ${r.index}`] : [])) ?? [];
  expect(told()).toEqual([`${acme.channel.session.prefixHex} 1`]);
  // From then on no worker of another tenant is given a copy; their calls are told why.
  globex.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN, [ref])]);
  globex.flush();
  world.run(10_000);
  expect([globex.failed, of(effects, 'copy-file'), globex.channel.job.tenant.objectBytes]).toEqual([['OBJECT_LOST'], [], 0]);
  // Its owner's own calls read what they wrote.
  acme.define(1, CALL_KIND.TASK, {});
  acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN, [ref])]);
  acme.flush();
  world.run(10_000);
  expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
});

const dir = mkdtempSync(join(tmpdir(), 'bulkhead-objects-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

it('a copy has the size that was sealed, whatever its owner’s worker does to a file that it kept open', () => {
  const files = new ObjectFiles(join(dir, 'objects'));
  const name = (kind: string, n: number): string => `${kind}-${'a'.repeat(40)}-${n}`;
  files.writePart('acme', name('put', 1), 0, Buffer.from('abcdef'), true);
  const path = files.path('acme', name('put', 1));
  [['abcdef', 'abcdef'], ['ABCDEFmore', 'ABCDEF'], ['abc', 'abc\0\0\0']].forEach(([now = '', copied], i) => {
    writeFileSync(path, now);
    files.copy('acme', name('put', 1), 'globex', name('copy', i), 6, () => true);
    expect(readFileSync(files.path('globex', name('copy', i)), 'latin1')).toBe(copied);
  });
  expect(() => files.copy('acme', name('put', 1), 'globex', name('copy', 0), 6, () => true)).toThrow('EEXIST');
  expect(() => files.copy('acme', name('put', 2), 'globex', name('copy', 9), 6, () => true)).toThrow('ENOENT');
  expect(statSync(files.path('globex', name('copy', 9)), { throwIfNoEntry: false })).toBe(undefined);
});

it('a copy that is not accepted is zeros, which are no value, and the digest is of exactly what was copied', () => {
  const files = new ObjectFiles(join(dir, 'digests'));
  const name = (kind: string, n: number): string => `${kind}-${'b'.repeat(40)}-${n}`;
  const large = Buffer.alloc(3 * 2 ** 20 + 17, 'x');
  files.writePart('acme', name('put', 1), 0, large, true);
  const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
  const copy = (n: number, size: number, accepted: boolean): { digest: string; octets: Buffer } => {
    let digest = '';
    files.copy('acme', name('put', 1), 'globex', name('copy', n), size, (d) => {
      digest = Buffer.from(d).toString('hex');
      return accepted;
    });
    return { digest, octets: readFileSync(files.path('globex', name('copy', n))) };
  };
  const whole = copy(1, large.length, true);
  expect([whole.digest, whole.octets.equals(large)]).toEqual([sha256(large), true]);
  const padded = copy(2, large.length + 5, true);
  expect([padded.digest, padded.octets.length]).toEqual([sha256(padded.octets), large.length + 5]);
  const refused = copy(3, large.length, false);
  expect([refused.octets.length, refused.octets.every((octet) => octet === 0)]).toEqual([large.length, true]);
});

it('what comes from another node has the digest that came with it, or is not taken', () => {
  const files = new ObjectFiles(join(dir, 'incoming'));
  const name = (n: number): string => `in-${'c'.repeat(40)}-${n}`;
  const digest = (text: string): Uint8Array => createHash('sha256').update(text).digest();
  const write = (n: number, ...parts: string[]): void => parts.reduce((at, part, i) => (files.writePart('acme', name(n), at, Buffer.from(part), i === parts.length - 1), at + part.length), 0) as unknown as void;
  write(1, 'ab', 'cd');
  expect(files.check('acme', name(1), digest('abcd'))).toBe(true);
  // Once: a later file of that name cannot be taken for it.
  expect(files.check('acme', name(1), digest('abcd'))).toBe(false);
  write(2, 'abce');
  expect(files.check('acme', name(2), digest('abcd'))).toBe(false);
  write(3, 'abcd');
  files.delete('acme', name(3));
  expect(files.check('acme', name(3), digest('abcd'))).toBe(false);
  expect(files.check('acme', name(4), digest(''))).toBe(false);
});
