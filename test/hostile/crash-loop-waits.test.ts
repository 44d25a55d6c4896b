/** While the crash-loop breaker lets a tenant start no worker its work waits within its own limits, and others are not disturbed. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { actorReason, pendingReason } from '../../src/raylet/core/reasons.ts';
import type { Task } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const [ACME, GLOBEX] = [1, 2];
const OPEN_MS = 5_000;

/** acme's workers may start from the given time after the beginning on. */
function world(nodes = 1): { w: World; acme: SimClient; globex: SimClient; opensAt: number; starts: string[] } {
  const opensAt = 1_000_000 + OPEN_MS;
  const starts: string[] = [];
  const w = new World({
    nodes, cpus: 2, seed: 3,
    startsIn: (tenant, nowMs) => {
      starts.push(tenant);
      return tenant === 'acme' ? Math.max(0, opensAt - nowMs) : 0;
    },
  });
  const [acme, globex] = [w.client(0, ACME), w.client(0, GLOBEX)];
  for (const client of [acme, globex]) {
    client.define(1, CALL_KIND.TASK, { maxRetries: 2 });
    client.define(2, CALL_KIND.TASK, { queueTimeoutMs: 500 });
    client.define(3, CALL_KIND.ACTOR_CLASS, { cpus: 1 }, 'Counter');
    client.define(4, CALL_KIND.ACTOR_METHOD, {}, 'add');
  }
  return { w, acme, globex, opensAt, starts };
}

const answers = (client: SimClient): (string | undefined)[] => [...client.calls.values()].flatMap((call) => call.answers);

function rest(w: World, forMs = 0): void {
  for (const client of w.clients) client.flush();
  w.run(20_000);
  for (const until = w.nowMs + forMs; w.nowMs < until; ) {
    w.tick();
    w.run(20_000);
  }
}

describe('while the breaker of a tenant is open', () => {
  it('tasks and actors wait, with the reason, and run when it closes; others’ run at once', () => {
    const { w, acme, globex, opensAt, starts } = world();
    const task = acme.call(OP.SUBMIT, 1, DO.RETURN);
    const actor = acme.call(OP.CREATE_ACTOR, 3, DO.RETURN);
    acme.get([task, actor, acme.call(OP.CALL_ACTOR, 4, DO.RETURN, [], actor)]);
    globex.get(Array.from({ length: 3 }, () => globex.call(OP.SUBMIT, 1, DO.RETURN)));
    rest(w, OPEN_MS - 500);
    expect([answers(acme), answers(globex)]).toEqual([[undefined, undefined, undefined], ['value', 'value', 'value']]);
    const { state } = acme.node.core;
    expect(pendingReason(state, acme.channel.session.objects.get(1)?.producer as Task)).toContain('died too often; the next may start in 1 s');
    expect(actorReason(state, [...acme.channel.job.actors][0]!)).toContain('died too often');
    // Nothing is held for what does not run, and starting is not tried all the time.
    expect([acme.channel.job.tenant.cpuUnitsInUse, acme.channel.job.tenant.memoryBytesInUse]).toEqual([0, 0]);
    expect(starts.filter((tenant) => tenant === 'acme').length).toBeLessThan(5);
    rest(w, 1_000);
    expect(w.nowMs).toBeGreaterThan(opensAt);
    expect([answers(acme), acme.failed]).toEqual([['value', 'value', 'value'], []]);
  });

  it('a task waits no longer than its own limit for the queue, also one that was given back by a dead worker', () => {
    const { w, acme } = world();
    acme.get([acme.call(OP.SUBMIT, 2, DO.RETURN)]);
    rest(w, 1_000);
    expect(acme.failed).toEqual(['TIMEOUT']);
    // Later one runs, its worker dies, and the breaker opens again: it has waited from then on.
    const open = world();
    Object.assign(open.acme.channel.job.tenant, { nextStartMs: 0 });
    open.w.nowMs = open.opensAt + 1;
    open.acme.define(5, CALL_KIND.TASK, { queueTimeoutMs: 500, maxRetries: 5 });
    open.acme.get([open.acme.call(OP.SUBMIT, 5, DO.HANG)]);
    rest(open.w, 2_000);
    const [hanging] = [...open.w.hanging];
    if (hanging === undefined) throw new Error('it does not run');
    open.acme.channel.job.tenant.nextStartMs = open.w.nowMs + OPEN_MS;
    open.w.killWorker(hanging.node, hanging.slot.worker, false);
    rest(open.w, 400);
    expect(answers(open.acme)).toEqual([undefined]);
    rest(open.w, 300);
    expect(open.acme.failed).toEqual(['TIMEOUT']);
  });

  it('waiting work can be cancelled, and goes with its driver', () => {
    const { w, acme, globex } = world();
    const task = acme.call(OP.SUBMIT, 1, DO.RETURN);
    acme.get([task]);
    acme.call(OP.CREATE_ACTOR, 3, DO.RETURN);
    rest(w);
    acme.cancel(task, false);
    rest(w);
    expect(acme.failed).toEqual(['CANCELLED']);
    acme.call(OP.SUBMIT, 1, DO.RETURN);
    rest(w);
    acme.node.core.closeChannel(acme.channel);
    rest(w, 2 * OPEN_MS);
    const { state } = globex.node.core;
    expect([state.jobs.has(acme.channel.job.id), acme.channel.job.tenant.entries, [...state.workers.values()].filter((x) => x.tenant.name === 'acme')]).toEqual([false, 0, []]);
    expect(state.available.cpuUnits).toBe(state.config.total.cpuUnits - [...state.classes].reduce((sum, c) => sum + [...c.leases].filter((l) => l.holding).length * c.resources.cpuUnits, 0));
  });

  it('a worker that is there goes on, and no other tenant’s is ended to make room', () => {
    const { w, acme, globex } = world();
    Object.assign(acme.node.core.state.config, { maxWorkers: 2 });
    globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN), globex.call(OP.SUBMIT, 1, DO.RETURN)]);
    rest(w);
    // Its raylet says so when the worker that was one too many has died.
    acme.channel.job.tenant.nextStartMs = w.nowMs + OPEN_MS;
    const before = [...globex.node.core.state.workers.keys()];
    acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN)]);
    rest(w, 1_000);
    expect([...globex.node.core.state.workers.keys()]).toEqual(before);
  });
});
