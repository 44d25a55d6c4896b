/** `bulkhead up`: a cluster on this machine, until ^C, or detached. */
import { existsSync, lstatSync, mkdirSync, readFileSync, readlinkSync, realpathSync, symlinkSync, unlinkSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import { adminProfile } from '../leftovers.ts';
import { LocalCluster, type ClusterOptions, type Ended } from '../local-cluster.ts';
import { ExitCode, printable, type Terminal } from '../terminal.ts';

const FIRST_BACKOFF_MS = 500;
const LONGEST_BACKOFF_MS = 30_000;
/** A process that ran this long starts with the first backoff again. */
const STABLE_AFTER_MS = 60_000;

export function defaultProfileLink(): string {
  return join(homedir(), '.bulkhead', 'default');
}

/** Makes the administrator the default profile where there is none. Returns whether commands without --profile are now the administrator of this cluster. */
function linkDefaultProfile(admin: string): boolean {
  const link = defaultProfileLink();
  const target = realpathSync(admin);
  if (existsSync(link)) return realpathSync(link) === target;
  mkdirSync(join(link, '..'), { recursive: true, mode: 0o700 });
  // A link that leads nowhere is of a cluster that was purged.
  if (lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() === true) unlinkSync(link);
  symlinkSync(target, link);
  return true;
}

/** After a purge: the link would lead nowhere. */
export function unlinkDefaultProfile(admin: string): void {
  const link = defaultProfileLink();
  if (lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() === true && readlinkSync(link) === admin) unlinkSync(link);
}

function shellWord(text: string): string {
  return /^[A-Za-z0-9_./~:@=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** How the user calls this program. */
function commandName(): string {
  if (process.env['npm_command'] === 'exec' || process.env['npm_lifecycle_event'] === 'npx') return 'npx bulkhead';
  const onPath = (process.env['PATH'] ?? '').split(':').some((dir) => dir !== '' && existsSync(join(dir, 'bulkhead')));
  return onPath ? 'bulkhead' : shellWord(fileURLToPath(new URL('../../../bin/bulkhead.js', import.meta.url)));
}

/** Of the profile that the snippet makes: this cluster's already, another's, or none. */
function snippetProfile(trustDomain: string): 'ours' | 'foreign' | 'none' {
  const directory = join(homedir(), '.bulkhead', 'ana');
  if (!existsSync(directory)) return 'none';
  try {
    return (JSON.parse(readFileSync(join(directory, 'profile.json'), 'utf8')) as { trustDomain?: unknown }).trustDomain === trustDomain ? 'ours' : 'foreign';
  } catch {
    return 'foreign';
  }
}

function snippet(admin: string, isDefault: boolean, trustDomain: string): string {
  const program = commandName();
  const as = isDefault ? '' : ` --profile ${shellWord(admin)}`;
  const profile = snippetProfile(trustDomain);
  const issue = [
    `${program} tenant create acme${as}`,
    `${program} identity issue user ana --tenant acme --role developer --out ~/.bulkhead/ana${profile === 'foreign' ? ' --force' : ''}${as}`,
  ];
  return [
    ...(profile === 'ours' ? [] : issue),
    "cat > hello.ts <<'EOF'",
    "import { connect } from 'bulkhead';",
    'await using cluster = await connect();',
    'const double = cluster.task((x: number) => 2 * x);',
    'console.log(await cluster.get(double(21)));',
    'EOF',
    `${program} run --profile ~/.bulkhead/ana hello.ts`,
  ].join('\n');
}

/** Keeps the cluster up until a signal; a process that dies is reported and started again. */
async function watchOver(cluster: LocalCluster, terminal: Terminal): Promise<void> {
  const stop = new AbortController();
  const startedMs = new Map<string, number>();
  const backoffMs = new Map<string, number>();
  const restart = async ({ name, how }: Ended): Promise<void> => {
    for (let why = how; !stop.signal.aborted; ) {
      const stable = performance.now() - (startedMs.get(name) ?? 0) > STABLE_AFTER_MS;
      const waitMs = stable ? FIRST_BACKOFF_MS : Math.min((backoffMs.get(name) ?? FIRST_BACKOFF_MS / 2) * 2, LONGEST_BACKOFF_MS);
      backoffMs.set(name, waitMs);
      terminal.warn(`${name} ended (${printable(why)}); it is started again in ${waitMs / 1_000} s`);
      await sleep(waitMs, undefined, { signal: stop.signal }).catch(() => undefined);
      if (stop.signal.aborted) return;
      startedMs.set(name, performance.now());
      try {
        await cluster.restart(name);
        terminal.note(`${name} is up again`);
        return;
      } catch (thrown) {
        why = thrown instanceof Error ? thrown.message : String(thrown);
      }
    }
  };
  cluster.onEnded = (ended) => void restart(ended);
  // Signals end the wait; a child that nobody waits for keeps this process alive.
  await new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => resolve());
  });
  stop.abort();
}

export async function up(terminal: Terminal, options: ClusterOptions & { readonly detach: boolean }): Promise<void> {
  const startedMs = performance.now();
  const interrupted = new Promise<'interrupted'>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => resolve('interrupted'));
  });
  const starting = LocalCluster.start(options);
  const first = await terminal.progress('starting the cluster', Promise.race([starting, interrupted]));
  if (first === 'interrupted') {
    terminal.note('interrupted; what was started is stopped again');
    await (await starting.catch(() => undefined))?.stop();
    throw new ExitCode(1);
  }
  const cluster = first;
  const admin = adminProfile(options.dataDir);
  const isDefault = linkDefaultProfile(admin);
  const { head, record } = cluster;
  const readyMs = Math.round(performance.now() - startedMs);
  terminal.answer({ ready: true, address: head?.address, trustDomain: head?.trustDomain, dataDir: options.dataDir, adminProfile: admin, raylets: record.raylets.map((r) => ({ name: r.name, nodeId: r.nodeId, address: r.address, metrics: cluster.metricsAddresses.get(r.name) })), metrics: head?.metricsAddress, gateway: cluster.gatewayUrl, readyMs });
  terminal.say(`${terminal.colour('green', 'ready')} in ${(readyMs / 1_000).toFixed(1)} s: head ${head?.address}, ${record.raylets.length} raylet${record.raylets.length === 1 ? '' : 's'}, trust domain ${head?.trustDomain}, data in ${options.dataDir}`);
  if (cluster.gatewayUrl !== undefined) terminal.say(`gateway ${cluster.gatewayUrl}: its clients verify it with bundle.pem of a profile, and bring a token of 'bulkhead token create'`);
  if (options.insecureDev.length > 0) terminal.warn(`without isolation layers: ${options.insecureDev.join(', ')}; this is stamped on every audit record`);
  terminal.say(`\nTry:\n\n${snippet(admin, isDefault, head?.trustDomain ?? '')}\n`);
  if (options.detach) {
    terminal.say(`It runs in the background; stop it with: ${commandName()} down${options.dataDir === defaultDataDir() ? '' : ` --data ${shellWord(options.dataDir)}`}`);
    cluster.detach();
    return;
  }
  terminal.say('Stop it with ^C.');
  await watchOver(cluster, terminal);
  terminal.note('stopping');
  await terminal.progress('stopping', cluster.stop());
  terminal.say('stopped; nothing is left behind but the data directory');
}

export function defaultDataDir(): string {
  return join(homedir(), '.bulkhead', 'cluster');
}
