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
    const args = given.slice(0, -2).flat() as string[];
    const options = given.at(-2) as Options & Common;
    const terminal = new Terminal(options.json === true);
    try {
      await action(terminal, args, options);
    } catch (thrown) {
      terminal.fail(thrown);
      throw new ExitCode(exitCodeOf(thrown));
    }
  });
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

export { number, hostPort, assignment, time, collect };

function version(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version;
}

function clusterCommands(program: Command): void {
  leaf<{ data?: string; raylets: number; listen?: string; detach?: boolean; cpus?: number; memory?: string; resources?: Record<string, string>; insecureDev?: string[] }>(
    program, 'up', 'start a cluster on this machine: a head and raylets', { local: true },
    (c) => c
      .option('--data <dir>', 'data directory (default: ~/.bulkhead/cluster)')
      .addOption(new Option('--raylets <n>', 'raylets to start').argParser(number('raylets', 1, 64, true)).default(1))
      .option('--listen <host:port>', 'where the head listens (default: loopback, any port, the same one again later)', hostPort)
      .option('--detach', 'return when it is ready and leave it running')
      .option('--cpus <n>', 'CPUs of each raylet (default: an equal share of this machine)', number('CPUs', 0.0001, 10_000, false))
      .option('--memory <amount>', 'memory of each raylet, for example 2GiB')
      .option('--resources <k=v>', 'custom resources of each raylet', assignment)
      .option('--insecure-dev <layer...>', 'isolation layers that may be missing; stamped on every audit record')
      .addHelpText('after', "\nThe first start makes the certificate authority, the data directory and the administrator's profile."),
    async (terminal, _args, o) => {
      const { up } = await import('./commands/up.ts');
      const { parseMemory } = await import('../base/resources.ts');
      const { LAYERS } = await import('../sandbox/jail/layers.ts');
      const unknown = o.insecureDev?.find((layer) => !(LAYERS as readonly string[]).includes(layer));
      if (unknown !== undefined) throw new UsageError(`--insecure-dev: there is no layer '${unknown}'; the layers are: ${LAYERS.join(', ')}`);
      const resources = Object.fromEntries(Object.entries(o.resources ?? {}).map(([name, amount]) => {
        if (!/^\d+(\.\d{1,4})?$/.test(amount)) throw new UsageError(`--resources: the amount of ${name} is not a number`);
        return [name, Number(amount)];
      }));
      await up(terminal, {
        dataDir: dataDirectory(o.data), raylets: o.raylets, listen: o.listen, cpus: o.cpus, memoryBytes: o.memory === undefined ? undefined : parseMemory(o.memory), resources, insecureDev: o.insecureDev ?? [], detach: o.detach === true,
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

export function buildProgram(): Command {
  const program = new Command('bulkhead').description('Shared compute for tenants who do not trust each other.').version(version(), '-V, --version').addHelpText('after', EXIT_CODES);
  clusterCommands(program);
  return program;
}

function prepare(command: Command): void {
  command.exitOverride().showHelpAfterError('(bulkhead --help shows how)').configureOutput({ outputError: (text, write) => write(text) });
  for (const child of command.commands) prepare(child);
}

/** Runs one command line; returns the exit code. */
export async function runCommandLine(args: readonly string[]): Promise<number> {
  // A reader that went away (`| head`) ends the program quietly.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  const program = buildProgram();
  prepare(program);
  try {
    await program.parseAsync(args, { from: 'user' });
    return 0;
  } catch (thrown) {
    if (thrown instanceof ExitCode) return thrown.exitCode;
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2;
    new Terminal(false).fail(thrown);
    return exitCodeOf(thrown);
  }
}
