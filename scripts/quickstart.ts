/**
 * `npm run quickstart`: an embedded cluster, two tenants from policy files, real work of the first, the second one's attempts at it, and
 * the first one's audit exported and verified offline. Everything goes through the command line, as a user would type it; each
 * command is printed. Stops everything it started, also when something fails.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { requirePackages, SANDBOX_PACKAGES } from './system-packages.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const CLI = join(ROOT, 'bin', 'bulkhead.js');
const OUT = join(ROOT, 'quickstart-output');
const IDS_TIMEOUT_MS = 120_000;
const colour = process.stdout.isTTY && process.env['NO_COLOR'] === undefined;
const bold = (text: string): string => (colour ? `\x1b[1m${text}\x1b[0m` : text);
const dim = (text: string): string => (colour ? `\x1b[2m${text}\x1b[0m` : text);

const work = mkdtempSync(join(tmpdir(), 'bulkhead-quickstart-'));
const data = join(work, 'cluster');
const profile = (name: string): string => join(work, 'profiles', name);
const startedMs = performance.now();
let step = 0;

function title(text: string): void {
  console.log(`\n${bold(`${++step}. ${text}`)}  ${dim(`(${((performance.now() - startedMs) / 1000).toFixed(1)} s)`)}`);
}

function shown(args: readonly string[], as: string | undefined): void {
  const words = args.map((a) => (a.startsWith(work) ? `$WORK${a.slice(work.length)}` : a.startsWith(ROOT) ? relative(ROOT, a) : a));
  console.log(dim(`   $ ${as === undefined ? '' : `BULKHEAD_PROFILE=$WORK/profiles/${as} `}npx bulkhead ${words.join(' ')}`));
}

interface Result {
  readonly code: number;
  readonly stdout: string;
}

function start(args: readonly string[], as: string | undefined, stdio: ('ignore' | 'pipe' | 'inherit')[]): ChildProcess {
  shown(args, as);
  return spawn(process.execPath, [CLI, ...args], { cwd: ROOT, stdio, env: { ...process.env, HOME: work, ...(as === undefined ? { BULKHEAD_PROFILE: join(data, 'head', 'admin') } : { BULKHEAD_PROFILE: profile(as) }) } });
}

/** Runs a command; its standard output is returned, its errors are shown. Fails unless the exit code is the wanted one. */
async function run(args: readonly string[], options: { readonly as?: string; readonly wanted?: number; readonly show?: boolean } = {}): Promise<Result> {
  const child = start(args, options.as, ['ignore', 'pipe', 'pipe']);
  let stdout = '';
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    if (options.show === true) process.stdout.write(text.replace(/^(?=.)/gm, '   '));
  });
  const code = await new Promise<number>((resolve) => child.on('close', (status) => resolve(status ?? 1)));
  if (code !== (options.wanted ?? 0)) throw new Error(`the command ended with ${code}: ${stderr.slice(-2_000)}${stdout.slice(-2_000)}`);
  return { code, stdout };
}

async function appears(file: string, child: ChildProcess): Promise<void> {
  for (const end = performance.now() + IDS_TIMEOUT_MS; performance.now() < end; ) {
    if (existsSync(file)) return;
    if (child.exitCode !== null) throw new Error(`the first tenant's program ended with ${child.exitCode} before it had a result`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error('the first tenant’s program had no result in time');
}

interface Attempt {
  readonly what: string;
  readonly action: string;
  readonly resource: string;
  readonly denied: boolean;
  readonly code: string;
}

interface AuditLine {
  readonly node: string;
  readonly index: number;
  readonly record: { readonly type: string; readonly action?: string; readonly allow?: boolean; readonly principal: string; readonly rule?: string; readonly resource: string; readonly resourceKind: string };
}

async function quickstart(): Promise<void> {
  requirePackages(SANDBOX_PACKAGES);
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  console.log(dim(`WORK=${work}`));

  title('A cluster on this machine: one head and two raylets, separate processes that meet only over mTLS');
  await run(['up', '--data', data, '--raylets', '2', '--detach'], {});
  await run(['status'], { show: true });
  await run(['doctor'], { show: true });

  title('Two tenants who do not trust each other, each with a policy file, users with certificates');
  for (const tenant of ['acme', 'globex']) {
    await run(['tenant', 'create', tenant]);
    await run(['policy', 'apply', join(ROOT, 'examples', 'flights', 'policies', `${tenant}.yaml`)], { show: true });
  }
  for (const [tenant, user] of [['acme', 'ana'], ['acme', 'olga'], ['globex', 'bob']] as const) await run(['identity', 'issue', 'user', user, '--tenant', tenant, '--out', profile(user)]);

  title('Acme: three million flights, decoded by tasks inside jailed isolates, merged by tasks, counted by an actor');
  const ids = join(work, 'ids.json');
  const driver = start(['run', join(ROOT, 'examples', 'flights', 'driver.ts'), '--out', OUT, '--result-id-file', ids, '--hold'], 'ana', ['pipe', 'inherit', 'inherit']);
  const ended = new Promise<number>((resolve) => driver.on('close', (code) => resolve(code ?? 1)));
  try {
    await appears(ids, driver);

    title('Globex has learnt the ids of Acme’s result, actor and job, and tries to use them');
    const { stdout } = await run(['run', join(ROOT, 'examples', 'flights', 'intruder.ts'), '--ids', ids, '--tenant', 'acme', '--json'], { as: 'bob' });
    const attempts = JSON.parse(stdout) as Attempt[];
    const { stdout: tail } = await run(['audit', 'tail', '--tenant', 'globex', '--deny', '--json'], { as: 'bob' });
    const denials = tail.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as AuditLine);
    const used = new Set<AuditLine>();
    for (const attempt of attempts) {
      const line = denials.find((l) => !used.has(l) && l.record.action === attempt.action);
      if (line !== undefined) used.add(line);
      console.log(`   ${attempt.denied ? 'denied' : bold('NOT DENIED')}  ${attempt.what}`);
      console.log(dim(`           record ${line === undefined ? 'missing' : `${line.node} #${line.index}: ${line.record.principal} ${line.record.action ?? ''} on ${line.record.resourceKind} ${line.record.resource.slice(0, 24)}… denied by ${line.record.rule ?? ''}`}`));
      if (!attempt.denied || line === undefined) throw new Error('an attempt across the tenant wall was not denied, or left no record');
    }
  } finally {
    // The first program holds its result until then, so that the attempts were at something that existed.
    driver.stdin?.end();
  }
  if ((await ended) !== 0) throw new Error('the first tenant’s program failed');

  title('Acme’s auditor exports every decision of its tenant and verifies it, without the cluster');
  await run(['audit', 'stats', '--tenant', 'acme'], { as: 'olga', show: true });
  const audit = join(OUT, 'audit');
  await run(['audit', 'export', '--tenant', 'acme', '-o', audit], { as: 'olga', show: true });

  title('Everything stops; nothing is left behind');
  await run(['down', '--data', data, '--purge'], { show: true });
  await run(['audit', 'verify', audit], { show: true });
  console.log(`\n${bold(`Done in ${((performance.now() - startedMs) / 1000).toFixed(1)} s.`)} The chart is ${relative(process.cwd(), join(OUT, 'flights.svg'))}, the verified audit ${relative(process.cwd(), audit)}.`);
}

let failed = false;
const stop = async (): Promise<void> => {
  if (existsSync(join(data, 'processes.json'))) await run(['down', '--data', data]).catch(() => undefined);
  rmSync(work, { recursive: true, force: true });
};
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    console.error('\nStopping…');
    void stop().then(() => process.exit(130));
  });
}
try {
  await quickstart();
} catch (error) {
  failed = true;
  console.error(`\nThe quickstart failed: ${error instanceof Error ? error.message : String(error)}`);
  for (const log of ['head.log', 'raylet-1.log', 'raylet-2.log']) {
    const path = join(data, 'logs', log);
    if (existsSync(path)) console.error(`--- ${log}\n${readFileSync(path, 'utf8').slice(-1_500)}`);
  }
}
await stop();
process.exit(failed ? 1 : 0);
