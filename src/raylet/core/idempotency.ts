/**
 * Tasks that are submitted under a key run once: who submits again under the key of a task of its job, as the same principal, gets the same
 * refs, under indexes of its own session. A key is forgotten after a while, with its job, and when the task ended for reasons that were not
 * its own. Must never: hand out a ref of another principal or job, or keep more keys than the limit.
 */
import { IDEMPOTENCY_TTL_MS, MAX_IDEMPOTENCY_KEYS_PER_JOB } from '../../base/limits.ts';
import type { Core } from './core.ts';
import { addAlias, unpin } from './objects.ts';
import { OBJECT_STATUS, type Channel, type Failure, type Job, type ObjectEntry, type Once, type Template } from './state.ts';

const MAX_KEY_CHARS = 256;
/** What a call failed with itself is what it answers; of these it may be that it never ran. */
const OWN_FAILURES: ReadonlySet<Failure['code']> = new Set(['TASK_FAILED', 'INVALID_ARGUMENT', 'TIMEOUT', 'OUT_OF_MEMORY']);

function nameOf(channel: Channel, key: string): string {
  return `${channel.principal.spiffeId} ${key}`;
}

function stands(entry: ObjectEntry): boolean {
  return entry.status !== OBJECT_STATUS.FAILED || (entry.failure !== undefined && OWN_FAILURES.has(entry.failure.code));
}

function forget(core: Core, job: Job, name: string, once: Once): void {
  job.once.delete(name);
  for (const entry of once.entries) unpin(core, entry);
}

/** The task that was submitted under this key before, or why there can be none. */
export function submittedBefore(core: Core, channel: Channel, key: string, template: Template): Once | Failure | undefined {
  const { job } = channel;
  if (key === '' || key.length > MAX_KEY_CHARS) return { code: 'INVALID_ARGUMENT', message: `an idempotency key has 1 to ${MAX_KEY_CHARS} characters`, stack: '' };
  if (template.options.stream !== undefined) return { code: 'INVALID_ARGUMENT', message: 'a call that streams has no idempotency key: a stream is read once', stack: '' };
  const name = nameOf(channel, key);
  const once = job.once.get(name);
  if (once !== undefined && once.untilMs > core.nowMs && once.entries.every(stands)) {
    if (once.function === functionOf(template)) return once;
    return { code: 'INVALID_ARGUMENT', message: 'the idempotency key was used for another function or other options: use a key for one call', stack: '' };
  }
  if (once !== undefined) forget(core, job, name, once);
  if (job.once.size < MAX_IDEMPOTENCY_KEYS_PER_JOB) return undefined;
  expireKeys(core, job);
  if (job.once.size < MAX_IDEMPOTENCY_KEYS_PER_JOB) return undefined;
  return { code: 'RESOURCE_EXHAUSTED', message: `the job has ${job.once.size} idempotency keys in use on this node: each is kept for ${IDEMPOTENCY_TTL_MS / 60_000} minutes`, stack: '' };
}

function functionOf(template: Template): string {
  return `${template.digestHex} ${template.exportName} ${template.optionsJson}`;
}

/** The refs of the first submission, as those of this one. */
export function giveSame(channel: Channel, seq: number, once: Once): void {
  once.entries.forEach((entry, i) => addAlias(channel.session, seq + i, entry));
}

/** A task was submitted under a key for the first time. */
export function remember(core: Core, channel: Channel, key: string, template: Template, seq: number, count: number): void {
  const entries: ObjectEntry[] = [];
  for (let i = 0; i < count; i++) {
    const entry = channel.session.objects.get(seq + i);
    if (entry === undefined) continue;
    entry.pins++;
    entries.push(entry);
  }
  channel.job.once.set(nameOf(channel, key), { function: functionOf(template), entries, untilMs: core.nowMs + IDEMPOTENCY_TTL_MS });
}

/** In the order of their ends, since each is kept for as long. */
export function expireKeys(core: Core, job: Job): void {
  for (const [name, once] of job.once) {
    if (once.untilMs > core.nowMs) return;
    forget(core, job, name, once);
  }
}

export function forgetKeys(core: Core, job: Job): void {
  for (const [name, once] of job.once) forget(core, job, name, once);
}
