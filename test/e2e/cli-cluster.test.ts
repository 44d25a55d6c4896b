/** The command line against a real cluster, as typed: one cluster for the whole file, in a HOME of its own, and nothing left at the end. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { runInProcess, type CommandResult } from './cli-in-process.ts';

const CLI = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
const NODE = fileURLToPath(new URL('../../node_modules/node/bin/node', import.meta.url));
const COMMAND_TIMEOUT_MS = 60_000;
const TEST_TIMEOUT_MS = 90_000;

let home: string;
let data: string;

function start(args: readonly string[], profile?: string): ChildProcess {
  const env = { PATH: process.env['PATH'] ?? '', HOME: home, ...(profile === undefined ? {} : { BULKHEAD_PROFILE: join(home, profile) }) };
  return spawn(NODE, [CLI, ...args], { cwd: home, env, stdio: ['ignore', 'pipe', 'pipe'], timeout: COMMAND_TIMEOUT_MS, killSignal: 'SIGKILL' });
}

async function finished(child: ChildProcess): Promise<CommandResult> {
  const texts = { out: '', err: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (texts.out += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (texts.err += text));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, ...texts };
}

/** As typed; commands that start, stop or run other processes do so in a process of their own. */
async function run(line: string, profile?: string): Promise<CommandResult> {
  if (/^(?:up|down|run) /.test(`${line} `)) return finished(start(line.split(' '), profile));
  vi.stubEnv('HOME', home);
  vi.stubEnv('BULKHEAD_PROFILE', profile === undefined ? '' : join(home, profile));
  try {
    return await runInProcess(line.split(' '));
  } finally {
    vi.unstubAllEnvs();
  }
}

async function ok(line: string, profile?: string): Promise<string> {
  const { code, out, err } = await run(line, profile);
  expect(code, `bulkhead ${line}\n${out}${err}`).toBe(0);
  return out;
}

const json = async <T = Record<string, unknown>>(line: string, profile?: string): Promise<T> => JSON.parse(await ok(`${line} --json`, profile)) as T;
const lines = (text: string): string[] => text.split('\n').filter((l) => l !== '');

interface ProcessEntry {
  readonly pid: number;
  readonly startTicks: string;
}
const record = () => JSON.parse(readFileSync(join(data, 'processes.json'), 'utf8')) as { supervisor?: ProcessEntry; head: ProcessEntry; trustDomain: string; raylets: { name: string; process: ProcessEntry; nodeId: string }[] };
const pids = (): number[] => [record().head.pid, ...record().raylets.map((r) => r.process.pid)];
const short = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 12);
const runDirectory = (): string => `/dev/shm/bulkhead-${process.getuid?.() ?? 0}-${short(data)}`;

/** Control groups of this cluster, wherever they are mounted. */
function groups(trustDomain: string): string[] {
  const found: string[] = [];
  const walk = (dir: string, depth: number): void => {
    if (depth > 4) return;
    let entries: string[] = [];
    try {
      entries = readdirSync(dir, { withFileTypes: true }).filter((e) => e.isDirectory()).map((e) => e.name);
    } catch {
      return;
    }
    for (const name of entries) {
      if (name === short(trustDomain)) found.push(join(dir, name));
      walk(join(dir, name), depth + 1);
    }
  };
  walk('/sys/fs/cgroup', 0);
  return found;
}

const gone = (pid: number): boolean => !existsSync(`/proc/${pid}`) || /^\d+ \(.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), 'bulkhead-cli-'));
  data = join(home, '.bulkhead', 'cluster');
  const up = await json<{ raylets: unknown[]; ready: boolean }>('up --detach --raylets 2 --cpus 1 --memory 512MiB --object-memory 96MiB --spill 1GiB --resources tape=1');
  expect(up).toMatchObject({ ready: true, dataDir: data, address: expect.stringMatching(/^127\.0\.0\.1:\d+$/) });
  expect(up.raylets).toHaveLength(2);
}, TEST_TIMEOUT_MS);

afterAll(async () => {
  await run('down --purge').catch(() => undefined);
  rmSync(home, { recursive: true, force: true });
}, TEST_TIMEOUT_MS);

describe('a detached cluster', () => {
  test('its files are private, its processes have sessions of their own and no secret shows', async () => {
    expect(statSync(data).mode & 0o777).toBe(0o700);
    expect(statSync(join(data, 'processes.json')).mode & 0o777).toBe(0o600);
    for (const log of ['head.log', 'raylet-1.log', 'raylet-2.log']) expect(statSync(join(data, 'logs', log)).mode & 0o777).toBe(0o600);
    const link = join(home, '.bulkhead', 'default');
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
    expect(readlinkSync(link)).toBe(join(data, 'head', 'admin'));
    expect(record().supervisor).toBeUndefined();
    for (const pid of pids()) {
      const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ');
      // Session id.
      expect(Number(fields[3])).toBe(pid);
      expect(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(1, -1)).toEqual([expect.stringMatching(/src\/(gcs|raylet)\/main\.ts$/)]);
      expect(readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').filter((e) => e !== '').map((e) => e.split('=')[0]).sort()).toEqual(['HOME', 'PATH']);
    }
  });

  test('status, nodes', async () => {
    const status = await json<{ nodes: { nodeId: string; state: string; total: { cpuUnits: number; memoryBytes: number; custom: Record<string, number> } }[] }>('status');
    expect(status.nodes).toHaveLength(2);
    for (const node of status.nodes) expect(node).toMatchObject({ state: 'alive', total: { cpuUnits: 10_000, memoryBytes: 512 * 2 ** 20, custom: { tape: 10_000 } } });
    expect(status.nodes.map((n) => n.nodeId)).toEqual(record().raylets.map((r) => r.nodeId).sort());
    expect(await ok('list nodes')).toMatch(/NODE +STATE[^]*tape=1/);
    const [first] = status.nodes;
    expect(await json(`get node ${first?.nodeId}`)).toMatchObject({ nodeId: first?.nodeId, state: 'alive' });
    expect(await ok(`metrics --node ${first?.nodeId}`)).toMatch(new RegExp(`bulkhead_node_object_memory_limit_bytes ${96 * 2 ** 20}\n[^]*bulkhead_node_spill_limit_bytes ${2 ** 30}\n`));
  }, TEST_TIMEOUT_MS);

  test('a second one in the same directory is refused; the first is not disturbed', async () => {
    const before = record();
    const second = await run(`up --detach --data ${data}`);
    expect(second).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/runs in .* already \(head at 127\.0\.0\.1:\d+\).*bulkhead down --data/) });
    expect(record()).toEqual(before);
  }, TEST_TIMEOUT_MS);

  test('tenants and identities; what a tenant may not do is exit 3 and reads as not-found', async () => {
    expect(await json('tenant create acme --quota cpus=2,memory=1GiB')).toMatchObject({ name: 'acme', number: 1, quota: { cpus: '2', memory: '1GiB' }, state: 'active' });
    await ok('tenant create globex');
    expect(await run('tenant create Acme!')).toMatchObject({ code: 2, err: expect.stringMatching(/tenant name 'Acme!' is not valid/) });
    expect(await run('tenant create wide --quota cats=2')).toMatchObject({ code: 2, err: expect.stringMatching(/'cats' is not known/) });
    for (const [name, tenant, roles] of [['ana', 'acme', '--role developer --role viewer'], ['olga', 'acme', '--role auditor'], ['tom', 'acme', '--role tenant-admin'], ['bob', 'globex', '--role developer,auditor']] as const) {
      const issued = await json(`identity issue user ${name} --tenant ${tenant} ${roles} --out ${join(home, name)}`);
      expect(issued).toMatchObject({ spiffeId: `spiffe://${record().trustDomain}/tenant/${tenant}/user/${name}`, profile: join(home, name) });
    }
    expect(statSync(join(home, 'ana', 'key.pem')).mode & 0o777).toBe(0o600);
    expect(await json('whoami', 'ana')).toMatchObject({ tenant: 'acme', kind: 'user', roles: ['platform/developer', 'platform/everyone', 'platform/viewer'] });
    const [token = ''] = lines((await run('whoami --token', 'ana')).out);
    const claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as { sub: string; exp: number };
    expect(claims.sub).toBe(`spiffe://${record().trustDomain}/tenant/acme/user/ana`);
    expect(claims.exp * 1_000 - Date.now()).toBeLessThan(6 * 60_000);
    const [other, none] = [await run('tenant show globex', 'ana'), await run('tenant show nowhere', 'ana')];
    expect(other).toMatchObject({ code: 3, out: '' });
    expect(none).toEqual(other);
    expect((await run('tenant create mine', 'ana')).code).toBe(3);
    expect((await run('status', 'ana')).code).toBe(3);
    expect((await run(`identity issue user eve --tenant globex --out ${join(home, 'eve')}`, 'tom')).code).toBe(3);
    expect(existsSync(join(home, 'eve'))).toBe(false);
  }, TEST_TIMEOUT_MS);

  test('policy: a good file is in force everywhere, a bad one changes nothing, history and rollback', async () => {
    const policy = (most: string): string => `version: 1\ntenant: acme\nroles:\n  batch:\n    permit: [{ action: task.submit, resource: task, when: { cpus: { lte: ${most} } } }]\nbindings: [{ role: batch, to: service/etl }]\n`;
    writeFileSync(join(home, 'acme.yaml'), policy('2'));
    const first = await json<{ version: number; inForceOn: string[] }>(`policy apply ${join(home, 'acme.yaml')}`, 'tom');
    expect(first.inForceOn.sort()).toEqual(record().raylets.map((r) => r.nodeId).sort());
    writeFileSync(join(home, 'bad.yaml'), policy('[2]'));
    expect(await run(`policy apply ${join(home, 'bad.yaml')}`, 'tom')).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/bad\.yaml:5:\d+: /) });
    // It parses, and the head finds what is wrong with it.
    writeFileSync(join(home, 'role.yaml'), policy('2').replace('role: batch', 'role: bath'));
    expect(await run(`policy apply ${join(home, 'role.yaml')}`, 'tom')).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/role\.yaml.*bath/) });
    expect((await run(`policy apply ${join(home, 'acme.yaml')}`, 'bob')).code).toBe(3);
    writeFileSync(join(home, 'acme.yaml'), policy('1'));
    const second = await json<{ version: number }>(`policy apply ${join(home, 'acme.yaml')}`, 'tom');
    const history = await json<{ versions: { version: number; appliedBy: string }[] }>('policy history', 'tom');
    expect(history.versions.map((v) => v.version)).toEqual([second.version, first.version]);
    expect(await json<{ version: number }>(`policy rollback ${first.version}`, 'tom')).toMatchObject({ tenant: 'acme' });
  }, TEST_TIMEOUT_MS);

  test('a program runs as a job; its streams, exit code and arguments are its own', async () => {
    writeFileSync(join(home, 'hello.ts'), [
      "import { connect } from 'bulkhead';", 'await using cluster = await connect();', "const twice = cluster.task((x: number) => { console.log('twice of', x); return 2 * x; });",
      'console.log(await cluster.get(twice(21)), process.argv.slice(2).join());', "console.error('to stderr');", "process.exitCode = process.argv.includes('--fail') ? 7 : 0;",
    ].join('\n'));
    expect(await run('run hello.ts --json -x', 'ana')).toEqual({ code: 0, out: '42 --json,-x\n', err: 'to stderr\n' });
    expect((await run('run --name nightly hello.ts --fail', 'ana')).code).toBe(7);
    expect(await run('run hello.ts')).toMatchObject({ code: 2, out: '', err: expect.stringMatching(/of the cluster itself, which runs no programs; use a tenant's/) });
    const { jobs } = await json<{ jobs: { jobId: string; name: string; status: string; tenant: string }[] }>('job list', 'ana');
    const mine = jobs.filter((j) => j.name === 'hello.ts' || j.name === 'nightly');
    expect(mine.map((j) => j.name)).toEqual(['nightly', 'hello.ts']);
    const job = mine[0]?.jobId ?? '';
    expect(await json(`job status ${job}`, 'ana')).toMatchObject({ jobId: job, tenant: 'acme', submitter: expect.stringMatching(/tenant\/acme\/user\/ana$/) });
    expect(await ok(`job logs ${job}`, 'ana')).toMatch(/twice of 21/);
    expect(lines(await ok(`logs job ${job} --json`, 'ana')).map((l) => JSON.parse(l) as object)).toEqual([expect.objectContaining({ text: expect.stringMatching(/twice of 21/), stream: 'stdout' })]);
    const { tasks } = await json<{ tasks: { id: string; state: string; nodeId: string }[] }>('list tasks', 'ana');
    expect(tasks.map((t) => t.state)).toEqual(['FINISHED', 'FINISHED']);
    expect(await json(`get task ${tasks[0]?.id}`, 'ana')).toMatchObject({ id: tasks[0]?.id, state: 'FINISHED' });
    expect(await json('summary tasks', 'ana')).toMatchObject({ kind: 'tasks', rows: [{ state: 'FINISHED', count: 2 }] });
    // The other tenant, by id and by name, and an id that nobody has: one and the same answer.
    const denied = [await run(`job status ${job}`, 'bob'), await run(`job status job-${'0'.repeat(24)}`, 'bob'), await run(`get task ${tasks[0]?.id}`, 'bob'), await run('list tasks --tenant acme', 'bob'), await run(`logs job ${job} --tenant acme`, 'bob')];
    for (const d of denied) expect(d).toEqual({ ...denied[0], code: 3, out: '' });
    expect(await json('list tasks', 'bob')).toMatchObject({ tasks: [] });
    expect(await run('list tasks')).toMatchObject({ code: 2, err: expect.stringMatching(/of no tenant: give --tenant NAME/) });
  }, TEST_TIMEOUT_MS);

  test('audit: tail, denials, stats, export, verification offline, and every tampering found', async () => {
    const tail = lines(await ok('audit tail --json --last 1000', 'olga')).map((l) => JSON.parse(l) as { node: string; index: number; record: { timeMs: number; action?: string; allow?: boolean } });
    expect(tail.some((t) => t.record.action === 'task.submit' && t.record.allow === true && t.node !== 'head')).toBe(true);
    expect(tail.map((t) => t.record.timeMs)).toEqual(tail.map((t) => t.record.timeMs).sort((a, b) => a - b));
    const denials = lines(await ok('audit tail --deny', 'bob'));
    expect(denials.length).toBeGreaterThan(0);
    // Its own, and those of others who tried to reach what is its.
    for (const line of denials) expect(line).toMatch(/^\S+Z DENY {2}(?:globex\/user\/bob |acme\/user\/\w+ (?:tenant\.read|identity\.issue) )/);
    expect(denials.some((l) => /task\.list on task by wall/.test(l))).toBe(true);
    expect((await run('audit tail --tenant acme', 'bob')).code).toBe(3);
    const stats = await json<{ records: number; byAction: Record<string, number>; nodes: { nodeId: string }[] }>('audit stats', 'olga');
    expect(stats.byAction['task.submit']).toBe(2);
    expect(stats.nodes.map((n) => n.nodeId)).toEqual(['head', ...record().raylets.map((r) => r.nodeId).sort()]);
    expect((await run('audit stats', 'ana')).code).toBe(3);
    const out = join(home, 'export');
    const exported = await json<{ records: number; logs: { directory: string }[] }>(`audit export -o ${out}`, 'olga');
    expect(exported.records).toBeGreaterThanOrEqual(stats.records);
    expect(exported.logs).toHaveLength(3);
    expect((await run(`audit export -o ${out}`, 'olga')).code).toBe(2);
    expect((await run(`audit export -o ${join(home, 'theirs')} --tenant acme`, 'bob')).code).toBe(3);
    expect(await ok(`audit verify ${out} --tenant acme`)).toMatch(/verified: \d+ records of tenant acme are complete and unchanged/);
    expect((await run(`audit verify ${out} --tenant globex`)).code).toBe(1);
    const file = join(out, exported.logs[0]?.directory ?? '', 'records.jsonl');
    const original = readFileSync(file, 'utf8');
    const all = original.split('\n');
    for (const changed of [original.replace('"allow":true', '"allow":false'), [...all.slice(0, 3), ...all.slice(4)].join('\n')]) {
      expect(changed).not.toBe(original);
      writeFileSync(file, changed);
      const verdict = await run(`audit verify ${out}`);
      expect(verdict).toMatchObject({ code: 1, out: expect.stringMatching(/BAD .*record \d+/) });
    }
    writeFileSync(file, original);
    expect((await run(`audit verify ${out}`)).code).toBe(0);
  }, TEST_TIMEOUT_MS);

  test('following the audit shows what happens, and ends with ^C', async () => {
    const following = start(['audit', 'tail', '--follow', '--json', '--last', '1'], 'olga');
    const result = finished(following);
    let seen = '';
    following.stdout?.on('data', (text: string) => (seen += text));
    await expect.poll(() => lines(seen).length, { timeout: 20_000 }).toBeGreaterThan(0);
    await ok('job list', 'ana');
    await expect.poll(() => lines(seen).some((l) => /"job\.list"/.test(l)), { timeout: 20_000 }).toBe(true);
    following.kill('SIGINT');
    expect(await result).toMatchObject({ code: 0, err: '' });
    const parsed = lines(seen).map((l) => JSON.parse(l) as { node: string; index: number });
    expect(new Set(parsed.map((p) => `${p.node} ${p.index}`)).size).toBe(parsed.length);
  }, TEST_TIMEOUT_MS);

  test('pki: show, rotate under running nodes, revoke', async () => {
    expect(await json('pki show')).toMatchObject({ trustDomain: record().trustDomain, keyManager: 'encrypted-file' });
    await ok('pki rotate');
    expect((await json<{ nodes: { state: string }[] }>('status')).nodes.map((n) => n.state)).toEqual(['alive', 'alive']);
    await ok(`pki join-token --most cpus=64,memory=256GiB,gpu=8 --out ${join(home, 'join.json')}`);
    expect(statSync(join(home, 'join.json')).mode & 0o777).toBe(0o600);
    expect(JSON.parse(readFileSync(join(home, 'join.json'), 'utf8'))).toMatchObject({ token: expect.stringMatching(/^[\w-]{16,}$/), attestationAddress: expect.any(String), trustBundle: expect.stringMatching(/BEGIN CERTIFICATE/) });
    expect((await run('pki show', 'ana')).code).toBe(3);
    await ok('whoami', 'bob');
    await ok('pki revoke tenant/globex/user/bob --reason left');
    expect((await run('whoami', 'bob')).code).not.toBe(0);
    await ok('whoami', 'ana');
  }, TEST_TIMEOUT_MS);

  test('deleting a tenant prints a certificate', async () => {
    expect(await json('tenant delete globex')).toMatchObject({ tenant: 'globex', statement: expect.stringMatching(/"tenant":"globex"/), signature: expect.any(String), verifierKey: expect.any(String) });
    expect((await json<{ tenants: { name: string; state: string }[] }>('tenant list')).tenants.map((t) => [t.name, t.state])).toEqual([['acme', 'active'], ['globex', 'deleted']]);
  }, TEST_TIMEOUT_MS);
});

test('down leaves nothing; the next start has the same cluster, in the foreground restarts what dies, and ends with ^C', async () => {
  const { trustDomain } = record();
  const before = pids();
  expect(await json('down')).toMatchObject({ stopped: 3, killed: 0 });
  expect(before.filter((pid) => !gone(pid))).toEqual([]);
  expect([existsSync(join(data, 'processes.json')), existsSync(runDirectory()), groups(trustDomain)]).toEqual([false, false, []]);
  expect(await ok('down')).toMatch(/no cluster runs in/);
  expect((await run('whoami', 'ana')).code).toBe(1);

  const child = start(['up', '--raylets', '1', '--cpus', '1', '--memory', '512MiB'], undefined);
  const result = finished(child);
  let said = '';
  child.stdout?.on('data', (text: string) => (said += text));
  await expect.poll(() => said, { timeout: 40_000 }).toMatch(/Stop it with \^C/);
  expect(record()).toMatchObject({ trustDomain, supervisor: { pid: child.pid } });
  await ok('whoami', 'ana');
  const { pid } = record().raylets[0]?.process as ProcessEntry;
  process.kill(pid, 'SIGKILL');
  await expect.poll(async () => record().raylets[0]?.process.pid !== pid && (await run('status')).code, { timeout: 40_000, interval: 500 }).toBe(0);
  const restarted = pids();
  child.kill('SIGINT');
  expect(await result).toMatchObject({ code: 0, err: expect.stringMatching(/raylet-1 ended \(SIGKILL\); it is started again/) });
  expect([...restarted, pid].filter((p) => !gone(p))).toEqual([]);
  expect([existsSync(join(data, 'processes.json')), existsSync(runDirectory()), groups(trustDomain)]).toEqual([false, false, []]);
}, TEST_TIMEOUT_MS);

test('after everything was killed at once, the next start cleans up; purge takes the data and the link', async () => {
  await ok('up --detach --raylets 1 --cpus 1 --memory 512MiB');
  const { trustDomain } = record();
  for (const pid of pids()) process.kill(pid, 'SIGKILL');
  await expect.poll(() => pids().every(gone)).toBe(true);
  await ok('up --detach --raylets 1 --cpus 1 --memory 512MiB');
  expect(await json('status')).toMatchObject({ trustDomain });
  await ok('down --purge');
  expect([existsSync(data), existsSync(runDirectory()), groups(trustDomain)]).toEqual([false, false, []]);
  expect(lstatSync(join(home, '.bulkhead', 'default'), { throwIfNoEntry: false })).toBeUndefined();
}, TEST_TIMEOUT_MS);

test('what up prints works when it is pasted, from a directory that knows nothing of the package, and again', async () => {
  const paste = async (text: string): Promise<CommandResult> => {
    const snippet = /\nTry:\n\n([^]*?)\n\n/.exec(text)?.[1] ?? '';
    return finished(spawn('bash', ['-euc', snippet], { cwd: home, env: { PATH: `${dirname(NODE)}:${process.env['PATH'] ?? ''}`, HOME: home }, stdio: ['ignore', 'pipe', 'pipe'], timeout: COMMAND_TIMEOUT_MS, killSignal: 'SIGKILL' }));
  };
  rmSync(join(home, 'ana'), { recursive: true, force: true });
  const first = await paste(await ok('up --detach --cpus 1 --memory 512MiB'));
  expect(first, first.err).toMatchObject({ code: 0, out: expect.stringMatching(/\n42\n$/) });
  await ok('down');
  expect(await paste(await ok('up --detach --cpus 1 --memory 512MiB'))).toMatchObject({ code: 0, out: '42\n' });
  await ok('down --purge');
}, 2 * TEST_TIMEOUT_MS);
