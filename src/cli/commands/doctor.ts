/** `bulkhead doctor`: what this machine and every raylet really have, read back from the kernel. Exit code 4 when a layer is missing. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, statfsSync } from 'node:fs';
import { availableParallelism, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { profileDirectory } from '../../sdk/head-client.ts';
import { LAYER_REMEDIES, type Layer } from '../../sandbox/jail/layers.ts';
import { PYTHON_REMEDY, pythonEnvironment } from '../../sandbox/gvisor/python-environment.ts';
import { findRunsc } from '../../sandbox/gvisor/runsc.ts';
import { probeLayers } from '../../sandbox/worker-pool.ts';
import { findRay, RAY_VERSION } from '../ray-package.ts';
import { bytesText, ExitCode, printable, type Terminal } from '../terminal.ts';

const HERE = 'this machine';

interface ShownLayer {
  readonly name: string;
  readonly on: boolean;
  readonly detail: string;
  readonly remedy: string;
}

interface Report {
  readonly where: string;
  readonly insecureDev: boolean;
  readonly layers: readonly ShownLayer[];
}

function bubblewrapVersion(): string {
  try {
    return execFileSync('bwrap', ['--version'], { encoding: 'utf8', timeout: 5_000, stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return 'not found';
  }
}

function said(look: () => string): string {
  try {
    return look();
  } catch (thrown) {
    return toSafeError(thrown).safeMessage;
  }
}

/** What Python tasks need: not a layer of every node, so its absence is told and fails nothing. */
function python(): Record<string, string> {
  const interpreter = process.env['BULKHEAD_PYTHON'] ?? '';
  return {
    gvisor: said(() => findRunsc().text),
    python: interpreter === '' ? `none named: ${PYTHON_REMEDY}` : said(() => {
      const { version, cloudpickle } = pythonEnvironment(interpreter);
      return `${version}, cloudpickle ${cloudpickle}`;
    }),
  };
}

function machine(): Record<string, string> {
  const shared = existsSync('/dev/shm') ? statfsSync('/dev/shm') : undefined;
  const mounts = readFileSync('/proc/mounts', 'latin1');
  return {
    kernel: release(), node: process.version, user: String(process.getuid?.() ?? ''), cpus: String(availableParallelism()), memory: bytesText(totalmem()),
    'shared memory': shared === undefined ? 'none: mount /dev/shm' : `${bytesText(shared.bavail * shared.bsize)} free of ${bytesText(shared.blocks * shared.bsize)}`,
    cgroups: [/ cgroup2 /.test(mounts) ? 'v2' : '', / cgroup /.test(mounts) ? 'v1' : ''].filter((v) => v !== '').join(', ') || 'none', bubblewrap: bubblewrapVersion(), ...python(), ray: said(() => (findRay(), RAY_VERSION)),
  };
}

const ofProbe = (layers: readonly Layer[]): ShownLayer[] => layers.map((l) => ({ name: l.layer, on: l.on, detail: l.detail, remedy: l.on ? '' : LAYER_REMEDIES[l.layer] }));

function show(terminal: Terminal, { where, insecureDev, layers }: Report): void {
  const missing = layers.filter((l) => !l.on);
  terminal.say(`${where === HERE ? '\n' : ''}${terminal.colour('bold', where)}${insecureDev ? ' (started with --insecure-dev)' : ''}: ${missing.length === 0 ? `all ${layers.length} layers are on` : `${missing.length} of ${layers.length} layers are MISSING`}`);
  // The same names on every node: where all is well, one line says it; --json has the details.
  if (missing.length === 0 && where !== HERE) return;
  terminal.table(['LAYER', 'ON', 'SEEN', 'WHAT TO DO'], layers.map((l) => [l.name, { text: l.on ? 'yes' : 'NO', colour: l.on ? 'green' : 'red' }, l.detail.slice(0, 60), l.remedy]));
}

export async function doctor(terminal: Terminal, { local, profile }: { readonly local: boolean; readonly profile: string | undefined }): Promise<void> {
  const facts = machine();
  terminal.table(['MACHINE', ''], Object.entries(facts));
  const reports: Report[] = [];
  const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
  let failure: BulkheadError | undefined;
  try {
    reports.push({ where: HERE, insecureDev: false, layers: ofProbe(await terminal.progress('starting a jail to look at', probeLayers({ clock }))) });
  } catch (thrown) {
    failure = toSafeError(thrown);
    if (failure.code === 'INTERNAL') throw thrown;
  }
  const notes: string[] = [];
  if (!local && existsSync(join(profileDirectory(profile), 'profile.json'))) {
    try {
      reports.push(...(await terminal.progress('asking the raylets', askRaylets(profile, notes))));
    } catch (thrown) {
      const error = toSafeError(thrown);
      // Whoever names a profile wants to hear of its cluster; the default one may be of a cluster that is down.
      if (profile !== undefined) throw thrown;
      notes.push(error.code === 'DENIED' ? 'the layers of the cluster are shown to its administrator only' : `the cluster was not asked: ${error.safeMessage}`);
    }
  }
  terminal.answer({ machine: facts, reports, notes, ...(failure === undefined ? {} : { failure: failure.safeMessage }) });
  for (const report of reports) show(terminal, report);
  for (const note of notes) terminal.note(printable(note));
  if (failure !== undefined) throw failure.code === 'LAYER_MISSING' ? failure : new BulkheadError('LAYER_MISSING', `no jail can be started on this machine: ${failure.safeMessage}`, { cause: failure });
  const missing = reports.flatMap((r) => r.layers.filter((l) => !l.on).map((l) => `${l.name} (${r.where})`));
  if (missing.length > 0) {
    terminal.warn(`missing: ${missing.join(', ')}`);
    throw new ExitCode(4);
  }
}

async function askRaylets(profile: string | undefined, notes: string[]): Promise<Report[]> {
  const { CallerSession } = await import('../session.ts');
  const { Inspection } = await import('../../rpc/generated/bulkhead/v1/raylet_pb.js');
  await using session = await CallerSession.open(profile);
  const { answers, unreachable } = await session.ask(await session.raylets(), (raylet) => raylet.to(Inspection).doctor({}, { timeoutMs: 40_000 }));
  for (const { nodeId, error } of unreachable) notes.push(`node ${nodeId} did not answer: ${error.safeMessage}`);
  return answers.map((a) => ({ where: `node ${a.nodeId}`, insecureDev: a.insecureDev, layers: a.layers.map(({ name, on, detail, remedy }) => ({ name, on, detail, remedy })) })).sort((a, b) => (a.where < b.where ? -1 : 1));
}
