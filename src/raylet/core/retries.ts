/**
 * When a task is tried again, and after how long: what it ran in was lost, or it failed with what its options name. A task has `maxRetries`
 * tries after its first for both together, as in Ray. Must never: try again what was cancelled, or what nobody asked to be tried again.
 */
import { CALL_KIND } from '../../base/frame.ts';
import { MAX_RETRY_DELAY_MS } from '../../base/limits.ts';
import type { Core } from './core.ts';
import { enqueue, requeue } from './scheduler.ts';
import { TASK_STATE, type Failure, type Task } from './state.ts';

export function hasRetries(task: Task): boolean {
  const { maxRetries } = task.template.options;
  return maxRetries === -1 || task.attempt < maxRetries;
}

/** Whether its options name this failure: by its code, or, as its isolate has found, by the class of what was thrown. */
export function wantsRetry(task: Task, failure: Failure): boolean {
  const { retryOn } = task.template.options;
  if (retryOn.length === 0 || task.template.kind !== CALL_KIND.TASK || failure.code === 'CANCELLED') return false;
  return hasRetries(task) && (retryOn.includes(failure.code) || (task.retryable && task.cancelled === undefined));
}

/** Tries again: at once what was lost for the first time, else after a while that doubles and is not the same for all. */
export function retry(core: Core, task: Task, lost: boolean): void {
  task.attempt++;
  task.cancelled = undefined;
  task.retryable = false;
  task.killAtMs = 0;
  task.slot = undefined;
  task.upstream = undefined;
  task.blocked = 0;
  const { retryDelayMs } = task.template.options;
  const doubled = task.attempt - (lost ? 2 : 1);
  if (doubled < 0 || retryDelayMs === 0) return requeue(core, task);
  const delayMs = Math.min(retryDelayMs * 2 ** Math.min(doubled, 30), MAX_RETRY_DELAY_MS);
  // Half of it at least: calls that failed together do not all come again together.
  task.notBeforeMs = core.nowMs + Math.ceil(delayMs * (0.5 + (core.config.random.bytes(1)[0] as number) / 512));
  task.state = TASK_STATE.WAITING;
  core.delayed.add(task);
}

/** Once in a while: those whose time has come. */
export function takeUpDelayed(core: Core): void {
  for (const task of core.delayed) {
    if (task.state === TASK_STATE.WAITING) {
      if (task.notBeforeMs > core.nowMs) continue;
      task.queuedMs = core.nowMs;
      enqueue(core, task);
    }
    core.delayed.delete(task);
  }
}
