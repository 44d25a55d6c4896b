/** What a tenant sees of its own work on a real cluster of two nodes: lists with reasons, logs of single calls as they come, the timeline. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { NODE, TestCluster, until } from '../support/cluster.ts';
import { runInProcess, type CommandResult } from './cli-in-process.ts';
import type { Cluster } from '../../src/sdk/sdk.ts';

const TEST_TIMEOUT_MS = 60_000;
const CLI = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
let cluster: TestCluster;
let driver: Cluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 1, quota: { cpus: '2' } });
  driver = await cluster.connect('acme-dev');
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

async function run(line: string, profile = 'acme-dev'): Promise<CommandResult> {
  vi.stubEnv('BULKHEAD_PROFILE', cluster.profile(profile));
  try {
    return await runInProcess(line.split(' '));
  } finally {
    vi.unstubAllEnvs();
  }
}

/** In a process of its own: several at once. */
function apart(line: string): Promise<CommandResult> {
  const env = { PATH: process.env['PATH'] ?? '', HOME: cluster.directory, BULKHEAD_PROFILE: cluster.profile('acme-dev') };
  return new Promise((resolve) => {
    const child = execFile(NODE, [CLI, ...line.split(' ')], { env, timeout: 30_000 }, (_, out, err) => resolve({ code: child.exitCode, out, err }));
  });
}

async function json<T>(line: string, profile?: string): Promise<T> {
  const { code, out, err } = await run(`${line} --json`, profile);
  expect(code, `${line}\n${out}${err}`).toBe(0);
  return JSON.parse(out) as T;
}

interface Shown {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly nodeId: string;
  readonly facts: Readonly<Record<string, string>>;
}

describe('lists', () => {
  it('say why a task waits, what an object is held by, and nothing of another tenant', { timeout: TEST_TIMEOUT_MS }, async () => {
    const slow = driver.task(async () => {
      for (;;) await new Promise((resolve) => setTimeout(resolve, 50));
    }, { name: 'slow' });
    const first = slow();
    const after = driver.task((x: unknown) => x, { name: 'after' })(first);
    const wide = driver.task(() => 1, { name: 'wide', cpus: 4 })();
    const tasks = async (): Promise<Map<string, Shown>> => new Map((await json<{ tasks: Shown[] }>('list tasks')).tasks.map((t) => [t.name, t]));
    await until('the first task runs', async () => (await tasks()).get('slow')?.state === 'RUNNING');
    const shown = await tasks();
    expect(shown.get('wide')).toMatchObject({ state: 'PENDING_NODE_ASSIGNMENT', reason: 'needs 4 cpus, tenant quota 2: it can never start' });
    expect(shown.get('after')).toMatchObject({ state: 'PENDING_ARGS_AVAIL', reason: expect.stringMatching(/^waits for argument obj-\w+ \(of slow, running on node /) });
    const { objects } = await json<{ objects: Shown[] }>('list objects');
    const held = objects.find((o) => o.id === shown.get('slow')?.id)?.facts['held'] ?? '';
    expect(held).toMatch(/^result of slow to come; a ref of its owner; argument of after obj-/);
    expect((await run('list objects')).out).toMatch(/HELD/);
    expect(await json('get object ' + (shown.get('slow')?.id ?? ''))).toMatchObject({ facts: { held } });
    for (const kind of ['tasks', 'objects', 'actors', 'workers']) expect((await json<Record<string, unknown[]>>(`list ${kind}`, 'globex-dev'))[kind]).toEqual([]);
    for (const kind of ['tasks', 'workers', 'jobs', 'nodes', 'objects', 'actors']) expect((await run(`summary ${kind}`)).code).toBe(0);
    for (const ref of [wide, first]) await driver.cancel(ref, { force: true });
    await expect(driver.get(after)).rejects.toThrow();
  });
});

describe('logs', () => {
  it('of one call are followed until it ends, wherever it runs; those of an actor call too', { timeout: TEST_TIMEOUT_MS }, async () => {
    const chatty = driver.task(async (name: string) => {
      for (let i = 0; i < 8; i++) {
        console.log(`${name} ${i}`);
        await new Promise((resolve) => setTimeout(resolve, 250));
      }
    }, { name: 'chatty' });
    // One cpu on each node: one of the two runs on the other.
    const refs = [chatty('a'), chatty('b')];
    const ids = async (): Promise<Shown[]> => (await json<{ tasks: Shown[] }>('list tasks')).tasks.filter((t) => t.name === 'chatty');
    await until('both run', async () => (await ids()).filter((t) => t.state.startsWith('RUNNING')).length === 2);
    const both = await ids();
    expect(new Set(both.map((t) => t.facts['node'])).size).toBe(2);
    const followed = await Promise.all(both.map(({ id }) => apart(`logs task ${id} --follow`)));
    const texts = followed.map(({ code, out }) => ({ code, lines: out.trim().split('\n') })).sort((x, y) => (x.lines[0] ?? '').localeCompare(y.lines[0] ?? ''));
    expect(texts).toEqual(['a', 'b'].map((name) => ({ code: 0, lines: Array.from({ length: 8 }, (_, i) => `${name} ${i}`) })));
    await driver.get(refs);
    // Afterwards the same, without following, in the other spelling.
    const again = await Promise.all(both.map(({ id }) => apart(`logs --task ${id}`)));
    expect(again.map(({ out }) => out).sort()).toEqual(followed.map(({ out }) => out).sort());
    for (const { id } of both) expect((await run(`logs task ${id} --tenant acme`, 'globex-dev')).code).toBe(3);
    expect((await run('logs --task a --actor b')).code).toBe(2);
  });

  it('of an actor have those of all its calls; of a call only its own', { timeout: TEST_TIMEOUT_MS }, async () => {
    const work = await driver.module<typeof import('../support/work.ts')>(join(import.meta.dirname, '..', 'support', 'work.ts'));
    const counter = await work.Talker.options({ cpus: 0 }).create();
    await driver.get([counter.say('one'), counter.say('two')]);
    const { actors } = await json<{ actors: Shown[] }>('list actors');
    const actor = actors.find((a) => a.facts['class'] === 'Talker');
    expect((await run(`logs actor ${actor?.id}`)).out).toBe('one\ntwo\n');
    // One that lives on the other node is one actor, with its worker, and what it printed is found there.
    const two = await Promise.all([0, 1].map(() => work.Talker.options({ cpus: 1 }).create()));
    await driver.get(two.map((t, i) => t.say(`from ${i}`)));
    const all = (await json<{ actors: Shown[] }>('list actors')).actors.filter((a) => a.facts['class'] === 'Talker');
    expect(all.length).toBe(3);
    expect(new Set(all.map((a) => a.facts['node'])).size).toBe(2);
    for (const { facts } of all) expect(facts['worker']).toMatch(/^worker-/);
    expect(await json('summary actors')).toMatchObject({ rows: [{ name: 'Talker', state: 'ALIVE', count: 3 }] });
    const texts = await Promise.all(all.map(async ({ id }) => (await apart(`logs --actor ${id}`)).out));
    expect(texts.sort()).toEqual(['from 0\n', 'from 1\n', 'one\ntwo\n']);
    for (const t of two) await driver.kill(t);
    const { tasks } = await json<{ tasks: Shown[] }>('list tasks');
    const says = tasks.filter((t) => t.facts['type'] === 'ACTOR_TASK' && t.name.endsWith('say'));
    expect(says.length).toBe(4);
    expect((await Promise.all(says.map(async ({ id }) => (await apart(`logs task ${id}`)).out))).sort()).toEqual(['from 0\n', 'from 1\n', 'one\n', 'two\n']);
  });
});

describe('the timeline', () => {
  it('opens as a Chrome trace: every call of the tenant, by node and isolate, and none of another tenant', { timeout: TEST_TIMEOUT_MS }, async () => {
    const other = await cluster.connect('globex-dev');
    await other.get(other.task(() => 1, { name: 'hidden' })());
    const nap = driver.task((ms: number) => new Promise((resolve) => setTimeout(() => resolve(ms), ms)), { name: 'nap' });
    await driver.get(Array.from({ length: 6 }, () => nap(60)));
    await sleep(50);
    const file = join(cluster.directory, 'trace.json');
    const summary = await json<{ calls: number; ended: number }>(`timeline -o ${file}`);
    expect(summary.calls).toBeGreaterThanOrEqual(6);
    const text = readFileSync(file, 'utf8');
    expect(text).not.toContain('hidden');
    expect(text).not.toContain('globex');
    const trace = JSON.parse(text) as { traceEvents: { name: string; ph: string; pid: number; tid: number; ts?: number; dur?: number; id?: string; args?: Record<string, unknown> }[] };
    const naps = trace.traceEvents.filter((e) => e.name === 'nap' && e.ph === 'X');
    expect(naps.length).toBe(6);
    for (const e of naps) expect(e.dur).toBeGreaterThanOrEqual(50_000);
    // By the format: metadata names what is used, a span that begins ends, and times are numbers.
    const named = new Set(trace.traceEvents.filter((e) => e.ph === 'M' && e.name === 'thread_name').map((e) => `${e.pid} ${e.tid}`));
    for (const e of trace.traceEvents.filter((t) => t.ph === 'X')) expect(named.has(`${e.pid} ${e.tid}`)).toBe(true);
    const ids = (ph: string): string[] => trace.traceEvents.filter((e) => e.ph === ph).map((e) => `${e.pid} ${e.id}`).sort();
    expect(ids('b')).toEqual(ids('e'));
    expect(new Set(ids('b')).size).toBe(ids('b').length);
    expect((await run(`timeline -o ${file} --tenant acme`, 'globex-dev')).code).toBe(3);
    expect(cluster.faults()).toEqual([]);
  });
});
