/**
 * Lost objects: computed again by their owner where the task that made them may be tried again and its arguments are there, or can be computed again
 * themselves. Bounded in depth and in tries, and decided anew by the policy of now. Puts, results of actors and what streamed are not computed again:
 * they are lost, and say why. Must never: run a task for another principal than the one that submitted it, or on its own behalf after its job ended.
 */
import { BulkheadError } from '../../base/errors.ts';
import { CALL_KIND } from '../../base/frame.ts';
import { MAX_RECONSTRUCTION_DEPTH, MAX_RECONSTRUCTIONS } from '../../base/limits.ts';
import { RECONSTRUCTED } from '../../base/usage-record.ts';
import { forgetHolder } from './broadcast.ts';
import type { Core } from './core.ts';
import { awaitEntry, dropValue, isLocal, settleFailed, SHED } from './objects.ts';
import { countCall } from './quota-tree.ts';
import { OBJECT_STATUS, Task, type Failure, type Lineage, type ObjectEntry } from './state.ts';

/** The bytes of a settled value are gone, against everybody's will. */
export function loseEntry(core: Core, entry: ObjectEntry, failure: Failure): void {
  // What is fetched from its owner is fetched again; the owner knows how to make it.
  if (entry.session.nodeNumber !== core.config.nodeNumber && entry.remoteId !== undefined && entry.status !== OBJECT_STATUS.REMOTE) {
    const { contained } = entry;
    entry.contained = undefined;
    dropValue(core, entry);
    entry.contained = contained;
    entry.status = OBJECT_STATUS.REMOTE;
    if (entry.waiters !== undefined) core.fetches.push(entry);
    return;
  }
  dropValue(core, entry);
  entry.remote = undefined;
  if (entry.session.nodeNumber === core.config.nodeNumber) entry.remoteId = undefined;
  const why = rebuild(core, entry, 0);
  if (why === undefined) return;
  entry.status = OBJECT_STATUS.PENDING;
  settleFailed(core, entry, { code: 'OBJECT_LOST', message: `${failure.message}; ${why}`, stack: '' });
}

/** Begins to compute it again. Returns why it cannot be. */
function rebuild(core: Core, entry: ObjectEntry, depth: number): string | undefined {
  const { lineage } = entry;
  if (lineage === undefined) return 'it cannot be computed again: it was put, came from an actor or a stream, its task is not tried again (maxRetries), or that was too long ago';
  if (depth >= MAX_RECONSTRUCTION_DEPTH) return `what it is computed from was lost too, more than ${MAX_RECONSTRUCTION_DEPTH} calls deep`;
  const { channel, template } = lineage;
  const { maxRetries } = template.options;
  if (lineage.rebuilt >= MAX_RECONSTRUCTIONS || (maxRetries !== -1 && lineage.attempt >= maxRetries)) return `its task has used its tries (${lineage.attempt + 1})`;
  if (channel.closed || channel.job.stopped || !channel.job.tenant.active) return 'its job has ended';
  for (const dep of lineage.deps) {
    if (dep.status !== OBJECT_STATUS.FAILED) continue;
    if (dep.failure !== SHED && dep.lineage === undefined) return `an argument of its task is lost: ${dep.failure?.message ?? ''}`;
    const why = rebuild(core, dep, depth + 1);
    if (why !== undefined) return `an argument of its task is gone: ${why}`;
  }
  let auditSeq;
  try {
    auditSeq = core.decide(channel, 'task.submit', template.resource, channel.session.prefixHex, lineage.seq, 1, `${template.detail}${RECONSTRUCTED}`);
  } catch (error) {
    // Whose step this is has no part in it: a full log of the tenant must not end that.
    if (!(error instanceof BulkheadError)) throw error;
    return `its task cannot be put on record: ${error.safeMessage}`;
  }
  if (auditSeq < 0) return 'the policy of now does not allow its task';
  lineage.rebuilt++;
  lineage.attempt++;
  const task = again(core, lineage, auditSeq);
  for (let i = 0; i < template.options.returns; i++) {
    const result = channel.session.objects.get(lineage.seq + i);
    if (result === undefined || (result !== entry && !(result.status === OBJECT_STATUS.FAILED && result.failure === SHED))) continue;
    result.status = OBJECT_STATUS.PENDING;
    result.failure = undefined;
    result.producer = task;
    forgetOctets(core, result);
  }
  if (task.missing === 0) core.rebuilds.push(task);
  return undefined;
}

/** A task need not give the same octets twice: what was known of those that are gone says nothing of those that come, for whom it leaves to as for the first time. */
function forgetOctets(core: Core, entry: ObjectEntry): void {
  entry.digest = undefined;
  entry.altered = entry.pickle = entry.pickleTold = false;
  const spread = core.spreads.get(entry);
  if (spread !== undefined) for (const holder of [...spread.holders.keys()]) forgetHolder(core, spread, holder);
}

function again(core: Core, lineage: Lineage, auditSeq: number): Task {
  const { channel, args, deps, contained } = lineage;
  const task = new Task(channel, lineage.seq, lineage.template, args, 0, lineage.restStart, args.length, auditSeq, lineage.depth, core.nowMs);
  task.attempt = lineage.attempt;
  task.origin = lineage.origin;
  task.depthLimit = lineage.depthLimit;
  channel.inFlight++;
  countCall(channel, CALL_KIND.TASK, 1);
  core.callsInFlight++;
  if (contained.length > 0) task.contained = [...contained];
  for (const inner of contained) inner.pins++;
  if (deps.length === 0) return task;
  task.deps = [...deps];
  task.depPositions = [...lineage.depPositions];
  for (const dep of deps) {
    dep.pins++;
    dep.uses++;
    if (isLocal(dep)) continue;
    task.missing++;
    awaitEntry(core, dep, { call: undefined, position: 0, task });
  }
  return task;
}
