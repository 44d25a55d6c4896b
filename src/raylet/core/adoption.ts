/**
 * Making a detached actor again whose node, with the raylet that owned it, is lost: here, for a session of the same principal that asked for
 * its name. What it is made of comes from the head, which got it from the lost node: it is checked like what a client sends, and decided as
 * that session's own creation. Must never: give it another's rights, or take what it cannot check.
 */
import { hex } from '../../base/ids.ts';
import { resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { CALL_KIND } from '../../base/frame.ts';
import { classInfoOf, keepSeed } from './actors.ts';
import { EXPORT_NAME, storeCode } from './client-calls.ts';
import type { Core } from './core.ts';
import { parseFunctionOptions, type FunctionOptions } from './function-options.ts';
import { DENIED } from './objects.ts';
import { countCall, elsewhere } from './quota-tree.ts';
import { Actor, CHANNEL_KIND, Channel, failureOf, FunctionStats, Task, Template, type Failure } from './state.ts';

/** What an actor is made of, as the head keeps it. */
export interface ActorSeed {
  readonly options: string;
  /** As in CREATE_ACTOR, without refs. */
  readonly args: Uint8Array;
  readonly code: Uint8Array;
  readonly restarts: number;
}

/** `u16 0, refs 0`: arguments without refs begin like this. */
const NO_REFS_BYTES = 6;
const INDEX = 1;

function unusable(why: string): Failure {
  return { code: 'ACTOR_DIED', message: `the node of this actor is lost, and it is not made again: ${why}`, stack: '' };
}

export function adoptActor(core: Core, channel: Channel, name: string, namespace: string, classInfo: string, seed: ActorSeed): Failure | undefined {
  const { job } = channel;
  const { tenant } = job;
  const { digest, exportName } = parseInfo(classInfo);
  if (digest === undefined || exportName === undefined || !EXPORT_NAME.test(exportName)) return unusable('its class is not told');
  if (hex(core.config.sha256(seed.code)) !== digest) return unusable('its code is not what it was');
  if (seed.args.length < NO_REFS_BYTES || seed.args.subarray(0, NO_REFS_BYTES).some((octet) => octet !== 0)) return unusable('its arguments are refs to what was lost');
  let options: FunctionOptions;
  try {
    options = parseFunctionOptions(seed.options, true, core.config.python);
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return failureOf(error);
  }
  if (!options.detached || options.name !== name || options.namespace !== namespace || options.isolation === 'gvisor') return unusable('its options are not those of this actor');
  if (options.maxRestarts !== -1 && seed.restarts >= options.maxRestarts) return unusable(`it has used up its ${options.maxRestarts} restarts`);
  if (tenant.actors >= tenant.quota.actors) return { code: 'QUOTA_EXCEEDED', message: `the tenant has ${tenant.actors} actors on this node, its quota is ${tenant.nominal.actors}${elsewhere(tenant.quota.actors, tenant.nominal.actors)}: kill some of them, or ask for a larger quota (actors)`, stack: '' };
  const code = `sha256:${digest}`;
  const target = resource('actor', { tenant: tenant.name, name, owner: channel.principal.spiffeId, label: options.label, code, function: exportName, cpus: options.resources.cpuUnits / 10_000, memory: options.resources.memoryBytes, isolation: options.isolation, detached: true });
  const session = core.newSession(tenant, channel.principal.spiffeId);
  session.project = channel.job.project;
  // It belongs to no client: it ends when it is killed, or with its job.
  session.closed = true;
  const seq = core.decide(channel, 'code.register', resource('code', { tenant: tenant.name, name: code, owner: channel.principal.spiffeId, code, size: seed.code.length }), code, -1, 1, 'of a detached actor');
  const created = seq < 0 ? seq : core.decide(channel, 'actor.create', target, session.prefixHex, INDEX, 1, `${code} ${exportName} again`);
  const stored = created >= 0 && storeCode(core, tenant, digest, seed.code.slice());
  if (!stored) {
    core.sessions.delete(session.prefixHex);
    tenant.sessions.delete(session);
    return created < 0 ? DENIED : { code: 'RESOURCE_EXHAUSTED', message: 'the tenant’s code in use on this node leaves no room for the actor’s: let jobs and actors end', stack: '' };
  }
  const template = new Template({
    originHex: session.prefixHex, kind: CALL_KIND.ACTOR_CLASS, digestHex: digest, exportName, methodName: '', optionsJson: seed.options, options, stats: new FunctionStats(), resource: target, detail: `${code} ${exportName}`, schedulingClass: undefined, groupResource: undefined,
  });
  // Nobody reads what is written to it.
  const owner = new Channel(core.nextNumber(), CHANNEL_KIND.DRIVER, session, job, channel.principal, channel.depth, undefined);
  owner.closed = true;
  const task = new Task(owner, INDEX, template, seed.args.slice(), 0, NO_REFS_BYTES, seed.args.length, created, channel.depth, core.nowMs);
  owner.inFlight++;
  countCall(owner, CALL_KIND.ACTOR_CLASS, 1);
  core.callsInFlight++;
  const actor = new Actor(session, INDEX, job, template, task, name);
  actor.restarts = task.attempt = seed.restarts + 1;
  session.actors.set(INDEX, actor);
  job.actors.add(actor);
  tenant.actors++;
  keepSeed(actor);
  core.out.push({ type: 'register-name', actor, id: core.idOf(session, INDEX), classInfo: classInfoOf(actor) });
  return undefined;
}

function parseInfo(text: string): { digest?: string; exportName?: string } {
  try {
    const info = JSON.parse(text) as { digest?: unknown; export?: unknown } | null;
    return typeof info?.digest === 'string' && typeof info.export === 'string' ? { digest: info.digest, exportName: info.export } : {};
  } catch {
    return {};
  }
}
