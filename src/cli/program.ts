/**
 * The command tree: names, options, help. Every action loads its own code, so that `bulkhead --help` loads none. Must never: take a secret
 * as an argument.
 */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { homedir } from 'node:os';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { ExitCode, exitCodeOf, Terminal, UsageError } from './terminal.ts';

const EXIT_CODES = '\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 denied or not found, 4 an isolation layer is missing (bulkhead doctor).';

interface Common {
  readonly json?: boolean;
  readonly profile?: string;
}

type Action<Options> = (terminal: Terminal, args: string[], options: Options & Common) => Promise<void>;

/** A leaf of the tree: `--json` and, unless it is local, `--profile`. */
function leaf<Options>(parent: Command, usage: string, description: string, { local = false }: { local?: boolean }, build: (command: Command) => void, action: Action<Options>): void {
  const command = parent.command(usage).description(description).option('--json', 'print JSON for programs');
  if (!local) command.option('--profile <dir>', 'identity to use (default: BULKHEAD_PROFILE, then ~/.bulkhead/default)');
  build(command);
  command.action(async (...given: unknown[]) => {
    // Optional and repeated arguments come as undefined and lists.
    const args = given.slice(0, -2).flat().filter((arg) => arg !== undefined) as string[];
    const options = given.at(-2) as Options & Common;
    const terminal = new Terminal(options.json === true);
    await guarded(terminal, () => action(terminal, args, options));
  });
}

/** Tells what went wrong, once, and turns it into an exit code. */
async function guarded(terminal: Terminal, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (thrown) {
    terminal.fail(thrown);
    throw new ExitCode(exitCodeOf(thrown));
  }
}

function group(parent: Command, name: string, description: string): Command {
  return parent.command(name).description(description);
}

// --- values of options, refused where they are typed ------------------------------------------------------------------

function number(what: string, least: number, most: number, whole: boolean): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+(\.\d+)?$/.test(text) || value < least || value > most || (whole && !Number.isInteger(value))) throw new InvalidArgumentError(`give ${whole ? 'a whole number' : 'a number'} of ${what} from ${least} to ${most}.`);
    return value;
  };
}

function hostPort(text: string): string {
  if (!/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):\d{1,5}$/.test(text) || Number(text.slice(text.lastIndexOf(':') + 1)) > 65_535) throw new InvalidArgumentError("give HOST:PORT, for example 127.0.0.1:7400 (port 0: any free one).");
  return text;
}

function assignment(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const pairs = text.split(',').map((pair) => /^([A-Za-z][A-Za-z0-9_.:-]{0,62})=(.+)$/.exec(pair.trim()));
  const bad = pairs.findIndex((pair) => pair === null);
  if (bad >= 0) throw new InvalidArgumentError('give NAME=AMOUNT, several with commas, for example cpus=2,memory=2GiB.');
  return { ...before, ...Object.fromEntries(pairs.map((pair) => [pair?.[1] ?? '', pair?.[2] ?? ''])) };
}

function labels(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const pairs = text.split(',').map((pair) => /^((?:raylet-\d{1,4}:)?[A-Za-z][A-Za-z0-9_.:/-]{0,62})=([A-Za-z0-9][A-Za-z0-9._:/-]{0,127})$/.exec(pair.trim()));
  if (pairs.includes(null)) throw new InvalidArgumentError('give NAME=VALUE, several with commas, for example zone=eu,disk=ssd.');
  return { ...before, ...Object.fromEntries(pairs.map((pair) => [pair?.[1] ?? '', pair?.[2] ?? ''])) };
}

/** `raylet-2:zone` is one raylet's, `zone` everybody's. */
function labelsByRaylet(given: Readonly<Record<string, string>>, raylets: number): { readonly own: Record<string, string>; readonly of: Record<string, Record<string, string>> } {
  const own: Record<string, string> = {};
  const of: Record<string, Record<string, string>> = {};
  for (const [name, value] of Object.entries(given)) {
    const one = /^raylet-(\d{1,4}):(.+)$/.exec(name);
    if (one === null) own[name] = value;
    else if (Number(one[1]) < 1 || Number(one[1]) > raylets) throw new UsageError(`--label: there is no raylet-${one[1]}; --raylets is ${raylets}`);
    else (of[`raylet-${Number(one[1])}`] ??= {})[one[2] ?? ''] = value;
  }
  return { own, of };
}

function time(text: string): number {
  const ms = Date.parse(text);
  if (!Number.isFinite(ms)) throw new InvalidArgumentError('give a time as ISO 8601, for example 2026-03-01T08:00:00Z or 2026-03-01.');
  return ms;
}

function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, ...text.split(',').map((part) => part.trim()).filter((part) => part !== '')];
}

function dataDirectory(given: string | undefined): string {
  return given === undefined ? resolve(homedir(), '.bulkhead', 'cluster') : resolve(given);
}

function version(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version;
}

function pythonInterpreter(named: string | undefined): string | undefined {
  const chosen = named ?? process.env['BULKHEAD_PYTHON'];
  return chosen === undefined || chosen === '' ? undefined : resolve(chosen);
}

function clusterCommands(program: Command): void {
  leaf<{ data?: string; python?: string; pythonIndex?: string; pythonIndexFiles?: string[]; pythonIndexLoopbackHttp?: boolean; raylets: number; listen?: string; metrics?: string; gateway?: string; detach?: boolean; cpus?: number; memory?: string; objectMemory?: string; spill?: string; resources?: Record<string, string>; label?: Record<string, string>; insecureDev?: string[] }>(
    program, 'up', 'start a cluster on this machine: a head and raylets', { local: true },
    (c) => c
      .option('--data <dir>', 'data directory (default: ~/.bulkhead/cluster)')
      .option('--python <file>', 'interpreter that Python tasks run under, with the packages that it has, in gVisor (default: BULKHEAD_PYTHON, else no Python)')
      .option('--python-index <url>', 'package index that pip and uv of runtime environments install from, https (default: the one of pip on this machine: PIP_INDEX_URL, pip.conf; else they are refused)')
      .option('--python-index-files <host...>', 'hosts besides the index’s own that its files are on')
      .option('--python-index-loopback-http', 'let the index be plain http on a loopback address')
      .addOption(new Option('--raylets <n>', 'raylets to start').argParser(number('raylets', 1, 64, true)).default(1))
      .option('--listen <host:port>', 'where the head listens (default: loopback, any port, the same one again later)', hostPort)
      .option('--metrics <host:port>', 'where Prometheus scrapes the head, over mTLS; raylets have the ports after it (default: nowhere)', hostPort)
      .option('--gateway <host:port>', 'where HTTP clients find the gateway (Ray’s Jobs API), over HTTPS with bearer tokens (default: nowhere)', hostPort)
      .option('--detach', 'return when it is ready and leave it running')
      .option('--cpus <n>', 'CPUs of each raylet (default: an equal share of this machine)', number('CPUs', 0.0001, 10_000, false))
      .option('--memory <amount>', 'memory of each raylet, for example 2GiB')
      .option('--object-memory <amount>', 'memory that objects may take on each raylet, at least 1MiB (default: 30 % of its memory); the rest goes to disk')
      .option('--spill <amount>', 'disk that objects may take on each raylet beyond that, encrypted; 0: none (default: 64GiB)')
      .option('--resources <k=v>', 'custom resources of each raylet', assignment)
      .option('--label <k=v,...>', 'labels of the raylets, for example zone=eu; of one of them: raylet-2:zone=us; may be given again', labels)
      .option('--insecure-dev <layer...>', 'isolation layers that may be missing; stamped on every audit record')
      .addHelpText('after', "\nThe first start makes the certificate authority, the data directory and the administrator's profile."),
    async (terminal, _args, o) => {
      const { up } = await import('./commands/up.ts');
      const { parseMemory } = await import('../base/resources.ts');
      const { MIN_OBJECT_MEMORY_BYTES } = await import('../base/limits.ts');
      const { LAYERS } = await import('../sandbox/jail/layers.ts');
      const { pythonIndex } = await import('./python-index.ts');
      const unknown = o.insecureDev?.find((layer) => !(LAYERS as readonly string[]).includes(layer));
      if (unknown !== undefined) throw new UsageError(`--insecure-dev: there is no layer '${unknown}'; the layers are: ${LAYERS.join(', ')}`);
      const resources = Object.fromEntries(Object.entries(o.resources ?? {}).map(([name, amount]) => {
        if (!/^\d+(\.\d{1,4})?$/.test(amount)) throw new UsageError(`--resources: the amount of ${name} is not a number`);
        return [name, Number(amount)];
      }));
      const amount = (text: string | undefined): number | undefined => (text === undefined ? undefined : parseMemory(text));
      const objectMemoryBytes = amount(o.objectMemory);
      if (objectMemoryBytes !== undefined && objectMemoryBytes < MIN_OBJECT_MEMORY_BYTES) throw new UsageError(`--object-memory: ${o.objectMemory} is less than 1MiB`);
      const { own, of } = labelsByRaylet(o.label ?? {}, o.raylets);
      await up(terminal, {
        dataDir: dataDirectory(o.data), raylets: o.raylets, listen: o.listen, metrics: o.metrics, gateway: o.gateway, cpus: o.cpus, memoryBytes: amount(o.memory), objectMemoryBytes, spillBytes: amount(o.spill), resources, labels: own, labelsOf: of, insecureDev: o.insecureDev ?? [],
        python: pythonInterpreter(o.python), pythonIndex: pythonIndex({ url: o.pythonIndex, files: o.pythonIndexFiles, loopbackHttp: o.pythonIndexLoopbackHttp }), detach: o.detach === true,
      });
    },
  );
  leaf<{ data?: string; purge?: boolean }>(
    program, 'down', 'stop the cluster of this machine; nothing but its data stays', { local: true },
    (c) => c.option('--data <dir>', 'data directory (default: ~/.bulkhead/cluster)').option('--purge', 'delete the data directory too: keys, tenants and audit logs are gone'),
    async (terminal, _args, o) => (await import('./commands/down.ts')).down(terminal, { dataDir: dataDirectory(o.data), purge: o.purge === true }),
  );
  leaf(program, 'status', 'nodes, resources, tenants, versions', {}, () => undefined, async (terminal, _args, o) => (await import('./commands/status.ts')).status(terminal, o.profile));
}

function doctorCommand(program: Command): void {
  leaf<{ local?: boolean }>(program, 'doctor', 'which isolation layers are really on, read back from the kernel', {}, (c) => c.option('--local', 'this machine only, even when a cluster runs'), async (terminal, _args, o) =>
    (await import('./commands/doctor.ts')).doctor(terminal, { local: o.local === true, profile: o.profile }));
}

function tenantCommands(program: Command): void {
  const tenant = group(program, 'tenant', 'tenants and their quotas');
  const commands = (): Promise<typeof import('./commands/tenant.ts')> => import('./commands/tenant.ts');
  leaf<{ quota?: Record<string, string> }>(tenant, 'create <name>', 'make a tenant', {}, (c) => c.option('--quota <k=v,...>', 'for example cpus=2,memory=2GiB,objects=1GiB,tasks=10000,actors=100,workers=8,idle=30m', assignment), async (terminal, [name = ''], o) =>
    (await commands()).createTenant(terminal, name, o.quota ?? {}, o.profile));
  leaf(tenant, 'list', 'all tenants, or your own', {}, () => undefined, async (terminal, _args, o) => (await commands()).listTenants(terminal, o.profile));
  leaf(tenant, 'show <name>', 'one tenant', {}, () => undefined, async (terminal, [name = ''], o) => (await commands()).showTenant(terminal, name, o.profile));
  leaf<{ remove?: string[] }>(tenant, 'quota <name> [k=v,...]', "change quotas and budgets of a tenant, or with 'tenant/project' of one of its projects; those not named stay", {}, (c) => c.option('--remove <quota>', 'the tenant is to have this one no more; may be given again', collect), async (terminal, [name = '', text], o) => {
    if (text === undefined && o.remove === undefined) throw new UsageError('what of it? for example: bulkhead tenant quota acme cpus=4,budget-calls=100000, or --remove budget-calls');
    let quota: Record<string, string>;
    try {
      quota = text === undefined ? {} : assignment(text);
    } catch {
      throw new UsageError(`${text?.slice(0, 100) ?? ''} is not a list of quotas: give NAME=AMOUNT, several with commas, for example cpus=2,memory=2GiB`);
    }
    await (await commands())[name.includes('/') ? 'setProjectQuota' : 'setQuota'](terminal, name, quota, o.remove ?? [], o.profile);
  });
  leaf<{ yes?: boolean }>(tenant, 'delete <name>', "destroy a tenant's keys and print a signed deletion certificate", {}, (c) => c.option('--yes', 'do not ask (a terminal is asked otherwise)'), async (terminal, [name = ''], o) =>
    (await commands()).deleteTenant(terminal, name, o.yes === true, o.profile));
}

function identityCommands(program: Command): void {
  const identity = group(program, 'identity', 'identities of users and services');
  leaf<{ tenant?: string; role?: string[]; out: string; force?: boolean }>(identity, 'issue <kind> <name>', "make a profile for a user or service (kind: 'user' or 'service'), or for the cluster's monitor ('component' 'monitor')", {},
    (c) => c.option('--tenant <name>', 'tenant of the identity (default: your own)').option('--role <role>', 'developer, viewer, auditor, tenant-admin, or a role of the tenant; may be given again', collect)
      .requiredOption('--out <dir>', 'new directory for the profile: svid.pem, key.pem, bundle.pem, profile.json').option('--force', 'replace the profile that is there'),
    async (terminal, [kind = '', name = ''], o) => {
      if (kind !== 'user' && kind !== 'service' && kind !== 'component') throw new UsageError(`the kind is 'user' or 'service', not '${kind.slice(0, 40)}'; for example: bulkhead identity issue user ana --tenant acme --role developer --out DIR`);
      await (await import('./commands/identity.ts')).issueIdentity(terminal, { kind, name, tenant: o.tenant, roles: o.role ?? [], out: resolve(o.out), force: o.force === true }, o.profile);
    });
  leaf<{ token?: boolean }>(program, 'whoami', 'SPIFFE ID, tenant, roles and expiry in force', {}, (c) => c.option('--token', 'print a short-lived bearer JWT for HTTP clients'), async (terminal, _args, o) =>
    (await import('./commands/identity.ts')).whoAmI(terminal, o.token === true, o.profile));
}

function policyCommands(program: Command): void {
  const policy = group(program, 'policy', 'policy files: who may do what');
  const commands = (): Promise<typeof import('./commands/policy.ts')> => import('./commands/policy.ts');
  const local = { local: true };
  const on = (c: Command): Command => c.option('--on <k=v,...>', 'attributes of the resource, for example cpus=2,label=published', assignment).option('--tenant <name>', 'whose resource (default: the only tenant among the files)');
  leaf(policy, 'check <files...>', 'check files, and run the tests in them; needs no cluster', local, () => undefined, async (terminal, files) => (await commands()).checkFiles(terminal, files, false));
  leaf(policy, 'test <files...>', 'run the tests in the files, one line each; needs no cluster', local, () => undefined, async (terminal, files) => (await commands()).checkFiles(terminal, files, true));
  leaf<{ on?: Record<string, string>; tenant?: string; role?: string[] }>(policy, 'explain <who> <action> [files...]', 'why a decision comes out as it does; needs no cluster', local,
    (c) => on(c).option('--role <role>', 'a role that the identity was issued with; may be given again', collect).addHelpText('after', '\nWHO: user/ana, service/etl, tenant/acme/user/ana, system/admin, node/ID. ACTION: task.submit, object.get, …'),
    async (terminal, [who = '', action = '', ...files], o) => (await commands()).explainDecision(terminal, who, action, files, { tenant: o.tenant, on: o.on ?? {}, roles: o.role ?? [] }));
  leaf<{ on?: Record<string, string>; tenant?: string }>(policy, 'who-can <action> [files...]', 'everyone whom the files permit an action; needs no cluster', local, (c) => on(c),
    async (terminal, [action = '', ...files], o) => (await commands()).whoCanDo(terminal, action, files, { tenant: o.tenant, on: o.on ?? {} }));
  leaf(policy, 'apply <files...>', 'put files in force on every node; a file that does not check changes nothing', {}, () => undefined, async (terminal, files, o) => (await commands()).applyFiles(terminal, files, o.profile));
  leaf<{ tenant?: string }>(policy, 'history', 'versions that were applied', {}, (c) => c.option('--tenant <name>', "default: your own; the administrator's: the platform"), async (terminal, _args, o) => (await commands()).policyHistory(terminal, o.tenant, o.profile));
  leaf<{ tenant?: string }>(policy, 'rollback <version>', 'put an earlier version in force again', {}, (c) => c.option('--tenant <name>', "default: your own; the administrator's: the platform"), async (terminal, [version = ''], o) => {
    if (!/^[1-9]\d{0,8}$/.test(version)) throw new UsageError("the version is a number of 'bulkhead policy history'");
    await (await commands()).rollbackPolicy(terminal, Number(version), o.tenant, o.profile);
  });
}

function tokenCommands(program: Command): void {
  const token = group(program, 'token', 'bearer tokens, for HTTP clients of the gateway');
  const commands = (): Promise<typeof import('./commands/token.ts')> => import('./commands/token.ts');
  leaf<{ out?: string; name?: string; hours: number }>(token, 'create', 'a token that lets whoever has it act as you by HTTP', {},
    (c) => c.option('--out <file>', 'where to write it, readable for you alone (default: standard output, where that is no terminal)').option('--name <name>', 'what lists show').addOption(new Option('--hours <n>', 'how long it is in force').argParser(number('hours', 0.01, 168, false)).default(8)),
    async (terminal, _args, o) => (await commands()).createToken(terminal, { out: o.out, name: o.name ?? '', ttlSeconds: Math.round(o.hours * 3_600) }, o.profile));
  leaf(token, 'list', 'yours that are in force', {}, () => undefined, async (terminal, _args, o) => (await commands()).listTokens(terminal, o.profile));
  leaf(token, 'revoke <id>', 'end one at once', {}, () => undefined, async (terminal, [id = ''], o) => (await commands()).revokeToken(terminal, id, o.profile));
}

function workCommands(program: Command): void {
  const run = program.command('run <file> [args...]').description('run a driver program as a job: its streams, its exit code').passThroughOptions()
    .option('--profile <dir>', 'identity to use (default: BULKHEAD_PROFILE, then ~/.bulkhead/default)').option('--name <name>', "the job's name (default: the file's)").option('--project <name>', 'whose quotas it counts against (default: BULKHEAD_PROJECT, then the project default)')
    .option('--working-dir <dir>', 'of a Python program: what goes with it into its sandbox (default: the file alone)').option('--env-file <file>', 'of a Python program: its environment, NAME=VALUE lines')
    .option('--requirements <file>', 'of a Python program: packages to install for it and its calls, as pip’s requirements files')
    .addHelpText('after', '\nWhat follows FILE belongs to the program. A .py file runs in a sandbox on the cluster, others on this machine.');
  run.action(async (file: string, args: string[], o: { profile?: string; name?: string; project?: string; workingDir?: string; envFile?: string; requirements?: string }) => {
    await guarded(new Terminal(false), async () => (await import('./commands/run.ts')).runDriver(file, args, { profile: o.profile, name: o.name, project: o.project, workingDir: o.workingDir, envFile: o.envFile, requirements: o.requirements }));
  });
  leaf<{ out: string }>(program, 'bundle <file>', 'make the one script that nodes run of a JavaScript or TypeScript module; needs no cluster', { local: true },
    (c) => c.requiredOption('-o, --out <file>', "where to write it; '-': standard output").addHelpText('after', '\nPython programs call what it exports: ray.cross_language.js_function(FILE, NAME).'),
    async (terminal, [file = ''], o) => (await import('./commands/bundle.ts')).bundle(terminal, file, o.out));
  const job = group(program, 'job', 'jobs');
  const jobs = (): Promise<typeof import('./commands/job.ts')> => import('./commands/job.ts');
  const logs = (): Promise<typeof import('./commands/logs.ts')> => import('./commands/logs.ts');
  job.command('submit [command...]').description('run a command of Python as a job in a sandbox, as Ray’s does: its output, its exit code').passThroughOptions()
    .option('--profile <dir>', 'identity to use (default: BULKHEAD_PROFILE, then ~/.bulkhead/default)').option('--name <name>', "the job's name (default: the file's)").option('--project <name>', 'whose quotas it counts against (default: BULKHEAD_PROJECT, then the project default)')
    .option('--working-dir <dir>', 'what goes with it into its sandbox, where it starts').option('--env-file <file>', 'its environment, NAME=VALUE lines').option('--requirements <file>', 'packages to install for it and its calls')
    .option('--no-wait', 'print the id of the job once it is under way, and go; a process in the background keeps its connection')
    .addHelpText('after', '\nFor example: bulkhead job submit --working-dir . -- python main.py --fast')
    .action((command: string[], o: { profile?: string; name?: string; project?: string; workingDir?: string; envFile?: string; requirements?: string; wait: boolean }) => {
      const terminal = new Terminal(false);
      return guarded(terminal, async () => {
        const { submitInBackground, submitJob } = await import('./commands/run.ts');
        const options = { profile: o.profile, name: o.name, project: o.project, workingDir: o.workingDir, envFile: o.envFile, requirements: o.requirements };
        if (o.wait) return submitJob(command, options);
        terminal.say(await submitInBackground(command, options));
        return undefined;
      });
    });
  leaf<{ tenant?: string }>(job, 'list', 'jobs, newest first', {}, (c) => c.option('--tenant <name>', 'default: your own'), async (terminal, _args, o) => (await jobs()).listJobs(terminal, o.tenant, o.profile));
  leaf(job, 'status <id>', 'one job', {}, () => undefined, async (terminal, [id = ''], o) => (await jobs()).showJob(terminal, id, o.profile));
  leaf(job, 'stop <id>', 'end a job: its tasks, actors and sessions', {}, () => undefined, async (terminal, [id = ''], o) => (await jobs()).stopJob(terminal, id, o.profile));
  leaf<{ tenant?: string; follow?: boolean }>(job, 'logs <id>', 'what its tasks and actors printed', {}, (c) => c.option('--tenant <name>', 'default: your own').option('-f, --follow', 'go on until the job ends'), async (terminal, [id = ''], o) =>
    (await logs()).logs(terminal, 'job', id, { tenant: o.tenant, follow: o.follow === true }, o.profile));
  leaf<{ tenant?: string; follow?: boolean; job?: string; task?: string; actor?: string }>(program, 'logs [kind] [id]', 'what a job, task or actor printed', {},
    (c) => c.option('--tenant <name>', 'default: your own').option('-f, --follow', 'go on until it ends, or ^C').option('--job <id>', 'the same as: logs job ID').option('--task <id>', 'of one call of a task or actor').option('--actor <id>', 'of all calls of an actor'),
    async (terminal, args, o) => {
      const named = (['job', 'task', 'actor'] as const).flatMap((k) => (o[k] === undefined ? [] : [[k, o[k]]]));
      const [[kind, id] = []] = args.length === 2 ? [args, ...named] : named;
      if (kind === undefined || id === undefined || named.length + (args.length > 0 ? 1 : 0) !== 1) throw new UsageError('logs of what? give one of: job ID, task ID, actor ID');
      await (await logs()).logs(terminal, kind, id, { tenant: o.tenant, follow: o.follow === true }, o.profile);
    });
  leaf<{ tenant?: string; job?: string; from?: number; out: string }>(program, 'timeline', 'when calls waited and ran, as a Chrome trace for ui.perfetto.dev', {},
    (c) => c.requiredOption('-o, --out <file>', 'the trace, JSON').option('--tenant <name>', 'default: your own').option('--job <id>', 'of one job').option('--from <time>', 'leave out what ended before, ISO 8601', time),
    async (terminal, _args, o) => (await import('./commands/timeline.ts')).timeline(terminal, { tenant: o.tenant, job: o.job, fromMs: o.from, out: resolve(o.out) }, o.profile));
  const entities = (): Promise<typeof import('./commands/entities.ts')> => import('./commands/entities.ts');
  const kinds = '\nKIND: nodes, tenants, workers, jobs, tasks, actors, objects, placement-groups.';
  leaf<{ tenant?: string; job?: string; limit?: number }>(program, 'list <kind>', 'what runs and what is stored, as far as you may see it', {},
    (c) => c.option('--tenant <name>', 'default: your own').option('--job <id>', 'of one job').option('--limit <n>', 'at most this many (default: 1000)', number('entries', 1, 10_000, true)).addHelpText('after', kinds),
    async (terminal, [kind = ''], o) => (await entities()).list(terminal, kind, { tenant: o.tenant, job: o.job, limit: o.limit }, o.profile));
  leaf<{ tenant?: string }>(program, 'get <kind> <id>', 'one of them', {}, (c) => c.option('--tenant <name>', 'default: your own').addHelpText('after', kinds), async (terminal, [kind = '', id = ''], o) => (await entities()).get(terminal, kind, id, o.tenant, o.profile));
  leaf<{ tenant?: string }>(program, 'summary <kind>', 'how many of them, by name and state', {}, (c) => c.option('--tenant <name>', 'default: your own').addHelpText('after', kinds), async (terminal, [kind = ''], o) => (await entities()).summary(terminal, kind, o.tenant, o.profile));
}

function metricsCommand(program: Command): void {
  leaf<{ tenant?: string; node?: string }>(program, 'metrics', "numbers of head and raylets in Prometheus' text format", {},
    (c) => c.option('--tenant <name>', "default: your own; the administrator's and the monitor's: the components and all tenants").option('--node <id>', "of one component: a node's id, or 'head' (default: all)"),
    async (terminal, _args, o) => (await import('./commands/metrics.ts')).metrics(terminal, { tenant: o.tenant, node: o.node }, o.profile));
}

function usageCommand(program: Command): void {
  leaf<{ tenant?: string; from?: number; to?: number; csv?: boolean; partial?: boolean }>(program, 'usage', 'what a tenant used, summed from the audit logs of all nodes', {},
    (c) => c.option('--tenant <name>', 'default: your own').option('--from <time>', 'first time, ISO 8601 (default: the first of this month, UTC)', time).option('--to <time>', 'time after the last, ISO 8601 (default: now)', time)
      .option('--csv', 'CSV in the FOCUS format, a line for each hour, node and meter').option('--partial', 'go on although a node is away'),
    async (terminal, _args, o) => (await import('./commands/usage.ts')).usage(terminal, { tenant: o.tenant, fromMs: o.from, toMs: o.to, csv: o.csv === true, partial: o.partial === true }, o.profile));
}

function auditCommands(program: Command): void {
  const audit = group(program, 'audit', 'the record of every decision');
  const commands = (): Promise<typeof import('./commands/audit.ts')> => import('./commands/audit.ts');
  const tenant = "default: your own; the administrator's: the cluster's own log";
  leaf<{ tenant?: string; last: number; follow?: boolean; deny?: boolean }>(audit, 'tail', 'the latest records of all nodes, by time', {},
    (c) => c.option('--tenant <name>', tenant).addOption(new Option('-n, --last <n>', 'how many').argParser(number('records', 1, 10_000, true)).default(50)).option('-f, --follow', 'go on until ^C').option('--deny', 'denials only'),
    async (terminal, _args, o) => (await commands()).auditTail(terminal, { tenant: o.tenant, last: o.last, follow: o.follow === true, deny: o.deny === true }, o.profile));
  leaf<{ tenant?: string; from?: number; to?: number; format: string; out: string; partial?: boolean }>(audit, 'export', 'records, proofs and checkpoints as files that anyone can verify', {},
    (c) => c.option('--tenant <name>', tenant).option('--from <time>', 'first time, ISO 8601', time).option('--to <time>', 'time after the last, ISO 8601', time)
      .addOption(new Option('--format <format>', 'of the readable records').choices(['jsonl', 'ocsf', 'cef']).default('jsonl')).requiredOption('-o, --out <dir>', 'new or empty directory').option('--partial', 'go on although a node is away'),
    async (terminal, _args, o) => (await commands()).auditExport(terminal, { tenant: o.tenant, fromMs: o.from, toMs: o.to, format: o.format, out: resolve(o.out), partial: o.partial === true }, o.profile));
  leaf<{ key?: string[]; earlier?: string[]; tenant?: string }>(audit, 'verify <dir>', 'check an export; needs no cluster; exit 1 names the first bad record', { local: true },
    (c) => c.option('--key <file>', 'verifier keys that you have from elsewhere', collect).option('--earlier <file>', 'a checkpoint kept from an earlier export, which this one must extend', collect).option('--tenant <name>', 'the tenant that it must be of'),
    async (terminal, [dir = ''], o) => (await commands()).auditVerify(terminal, resolve(dir), { keys: o.key ?? [], earlier: o.earlier ?? [], tenant: o.tenant }));
  leaf<{ tenant?: string }>(audit, 'stats', 'how many decisions, on which nodes', {}, (c) => c.option('--tenant <name>', tenant), async (terminal, _args, o) => (await commands()).auditStats(terminal, o.tenant, o.profile));
}

function pkiCommands(program: Command): void {
  const pki = group(program, 'pki', 'the certificate authority of the cluster');
  const commands = (): Promise<typeof import('./commands/pki.ts')> => import('./commands/pki.ts');
  leaf(pki, 'show', 'authorities in force, and how much they issued', {}, () => undefined, async (terminal, _args, o) => (await commands()).showPki(terminal, o.profile));
  leaf(pki, 'rotate', 'a new authority; nothing that runs notices', {}, () => undefined, async (terminal, _args, o) => (await commands()).rotateAuthority(terminal, o.profile));
  leaf<{ reason: string }>(pki, 'revoke <whom>', 'end an identity everywhere: a SPIFFE ID, its path (tenant/acme/user/ana), or a serial number', {}, (c) => c.option('--reason <text>', 'kept in the audit log', ''), async (terminal, [whom = ''], o) =>
    (await commands()).revoke(terminal, whom, o.reason, o.profile));
  leaf<{ node?: string; most?: Record<string, string>; label?: Record<string, string>; out?: string }>(pki, 'join-token', 'a single-use token with which a node joins', {}, (c) => c.option('--node <id>', 'node id (default: one is chosen)')
    .option('--most <k=v,...>', 'what the node may say at most that it has, for example cpus=64,memory=256GiB,gpu=8', assignment)
    .option('--label <k=v,...>', 'labels that the node may have, for example zone=eu; may be given again', labels)
    .option('--out <file>', 'new file for token, address and trust bundle, readable by you only'), async (terminal, _args, o) =>
    (await commands()).joinToken(terminal, { nodeId: o.node ?? '', most: o.most, labels: o.label ?? {}, out: o.out === undefined ? undefined : resolve(o.out) }, o.profile));
}

export function buildProgram(): Command {
  const program = new Command('bulkhead').description('Shared compute for tenants who do not trust each other.').version(version(), '-V, --version').addHelpText('after', EXIT_CODES).enablePositionalOptions();
  clusterCommands(program);
  doctorCommand(program);
  tenantCommands(program);
  identityCommands(program);
  policyCommands(program);
  workCommands(program);
  metricsCommand(program);
  usageCommand(program);
  auditCommands(program);
  pkiCommands(program);
  tokenCommands(program);
  program.command('bench [args...]').description('the rows of `ray microbenchmark` with every control on; --ray runs Ray beside it').allowUnknownOption().passThroughOptions()
    .action((args: string[]) => guarded(new Terminal(false), async () => (await import('./commands/run.ts')).runBench(args)));
  return program;
}

function prepare(command: Command, path: string, json: boolean): void {
  command.exitOverride().showHelpAfterError(json ? false : `(${path} --help shows how)`).configureOutput({ outputError: (text, write) => (json ? undefined : write(text)) });
  for (const child of command.commands) prepare(child, `${path} ${child.name()}`, json);
}

/** Runs one command line; returns the exit code. */
export async function runCommandLine(args: readonly string[]): Promise<number> {
  // A reader that went away (`| head`) ends the program quietly.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  const program = buildProgram();
  // What follows `run FILE` is not ours, but then the command line was right.
  const json = args.includes('--json');
  prepare(program, 'bulkhead', json);
  try {
    await program.parseAsync(args, { from: 'user' });
    return 0;
  } catch (thrown) {
    if (thrown instanceof ExitCode) return thrown.exitCode;
    if (!(thrown instanceof CommanderError)) {
      new Terminal(json).fail(thrown);
      return exitCodeOf(thrown);
    }
    if (thrown.exitCode === 0) return 0;
    if (json) new Terminal(true).fail(new UsageError(thrown.message.replace(/^error: /, '')));
    return 2;
  }
}
