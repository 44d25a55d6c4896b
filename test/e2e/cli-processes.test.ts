/** What the command line believes about processes and directories that somebody else may have made. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { makeRunDirectory, removeRunDirectory, runDirectory } from '../../src/cli/leftovers.ts';
import { identify, isAlive, readRecord, signalProcess, waitUntilGone, writeRecord } from '../../src/cli/process-record.ts';
import { runInProcess, type CommandResult } from './cli-in-process.ts';

const CLI = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
let data: string;
let bystander: ChildProcess;

beforeEach(async () => {
  data = mkdtempSync(join(tmpdir(), 'bulkhead-cli-'));
  // A name that would fool a naive reader of /proc/<pid>/stat: it holds ') Z 0'.
  const program = join(data, 'a) Z 0 (b');
  symlinkSync('/bin/sleep', program);
  bystander = spawn(program, ['60'], { stdio: 'ignore' });
  await once(bystander, 'spawn');
});
afterEach(() => {
  bystander.kill('SIGKILL');
  rmSync(data, { recursive: true, force: true });
});

test('a process is its pid, its start and its boot', async () => {
  const me = identify(bystander.pid as number);
  expect(me).toBeDefined();
  if (me === undefined) return;
  expect(isAlive(me)).toBe(true);
  for (const other of [{ ...me, startTicks: String(Number(me.startTicks) + 1) }, { ...me, bootId: '0'.repeat(36) }, { ...me, pid: process.pid }]) {
    expect(isAlive(other)).toBe(false);
    expect(signalProcess(other, 'SIGKILL')).toBe(false);
  }
  expect(isAlive(me)).toBe(true);
  expect(signalProcess(me, 'SIGKILL')).toBe(true);
  expect(await waitUntilGone([me], 5_000)).toEqual([]);
  expect(identify(me.pid)).toBeUndefined();
});

test('down does not touch a process that has the pid of an old one', async () => {
  const real = identify(bystander.pid as number);
  expect(real).toBeDefined();
  if (real === undefined) return;
  const old = { ...real, startTicks: '1' };
  writeRecord(data, { version: 1, startedMs: 0, supervisor: old, head: old, trustDomain: 'gone.example', raylets: [{ name: 'raylet-1', process: old }] });
  const result = await runInProcess(['down', '--data', data, '--json']);
  expect(result).toMatchObject({ code: 0, err: '' });
  expect(JSON.parse(result.out)).toMatchObject({ stopped: 0, killed: 0 });
  expect(isAlive(real)).toBe(true);
  expect(readRecord(data)).toBeUndefined();
});

test('a damaged record is an error that says what to do, and stays', async () => {
  const good = { version: 1, startedMs: 0, raylets: [{ name: 'raylet-1', process: { pid: 5, startTicks: '1', bootId: 'a' } }] };
  const id = good.raylets[0]?.process;
  const changes = [{ raylets: [{ name: '../../etc', process: id }] }, { head: { ...id, pid: 1 } }, { head: { ...id, pid: '5' } }, { raylets: [{ name: 'raylet-1', process: { ...id, pid: -9 } }] }, { supervisor: { ...id, startTicks: 1 } }];
  const bad = ['', '[]', '{"version":2}', '{', ...changes.map((change) => JSON.stringify({ ...good, ...change }))];
  for (const text of bad) {
    writeFileSync(join(data, 'processes.json'), text);
    for (const command of [['down', '--data', data], ['up', '--data', data]]) expect(await runInProcess(command)).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/processes\.json is damaged; look for processes/) });
    expect(readFileSync(join(data, 'processes.json'), 'utf8')).toBe(text);
  }
  writeFileSync(join(data, 'processes.json'), JSON.stringify(good));
  expect(readRecord(data)).toEqual(good);
});

test('a run directory that somebody else prepared is refused, a link is not followed', async () => {
  const path = runDirectory(data);
  expect(path).toBe(`/dev/shm/bulkhead-${process.getuid?.() ?? 0}-${createHash('sha256').update(data).digest('hex').slice(0, 12)}`);
  try {
    const elsewhere = join(data, 'elsewhere');
    mkdirSync(elsewhere);
    writeFileSync(join(elsewhere, 'precious'), '');
    symlinkSync(elsewhere, path);
    expect(() => makeRunDirectory(data)).toThrow(/not a directory of yours/);
    expect(() => removeRunDirectory(data)).toThrow(/not a directory of yours/);
    expect(await runInProcess(['up', '--data', data])).toMatchObject({ code: 1, err: expect.stringMatching(/not a directory of yours/) });
    expect(existsSync(join(elsewhere, 'precious'))).toBe(true);
    rmSync(path);
    const mask = process.umask(0);
    mkdirSync(path, { mode: 0o777 });
    process.umask(mask);
    expect(() => makeRunDirectory(data)).toThrow(/not a directory of yours/);
  } finally {
    rmSync(path, { recursive: true, force: true });
  }
  expect(makeRunDirectory(data)).toBe(path);
  removeRunDirectory(data);
  expect(existsSync(path)).toBe(false);
});

/** Runs the command line where the file system looks as if bubblewrap had never been installed. */
async function withoutBubblewrap(args: readonly string[]): Promise<CommandResult> {
  const bwrap = ['/usr/bin/bwrap', '/bin/bwrap', '/usr/local/bin/bwrap'].filter((path) => existsSync(path));
  const hidden = [...new Set(bwrap.map((path) => realpathSync(path)))].flatMap((path) => ['--ro-bind', '/dev/null', path]);
  const child = spawn(bwrap[0] ?? 'bwrap', ['--dev-bind', '/', '/', ...hidden, process.execPath, CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env['PATH'], HOME: data }, timeout: 50_000, killSignal: 'SIGKILL' });
  const texts = { out: '', err: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => (texts.out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (texts.err += text));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, ...texts };
}

test('without a program that isolation needs, the start fails with exit 4, says which, and leaves nothing', async () => {
  const cluster = join(data, 'c');
  const up = await withoutBubblewrap(['up', '--detach', '--data', cluster, '--json']);
  if (up.code === 0) await runInProcess(['down', '--data', cluster]);
  expect(up).toMatchObject({ code: 4, out: '' });
  expect(JSON.parse(up.err.slice(up.err.indexOf('{')))).toMatchObject({ error: { code: 'LAYER_MISSING', message: expect.stringMatching(/raylet-1 did not start: .*bwrap.*install the package bubblewrap/) } });
  expect([existsSync(join(cluster, 'processes.json')), existsSync(runDirectory(cluster))]).toEqual([false, false]);
  expect(await withoutBubblewrap(['doctor', '--local'])).toMatchObject({ code: 4, err: expect.stringMatching(/install the package bubblewrap/) });
}, 120_000);

test('the shim finds Node 24 from an older node, and passes the exit code on', async () => {
  const shim = readFileSync(CLI, 'utf8');
  expect(shim.startsWith('#!/usr/bin/env node\n')).toBe(true);
  // The same shim, told that it is an old one.
  const old = `Object.defineProperty(process.versions, 'node', { value: '20.0.0' }); process.execve = undefined; process.argv.splice(1, 0, ${JSON.stringify(CLI)}); await import(${JSON.stringify(CLI)});`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', old, 'list', 'cats'], { stdio: ['ignore', 'pipe', 'pipe'] });
  let err = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const [code] = (await once(child, 'close')) as [number | null];
  expect([code, err]).toEqual([2, expect.stringMatching(/no kind 'cats'/)]);
});
