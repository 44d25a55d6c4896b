/** Quotas of projects, fair shares, priorities and preemption, on real cores in one thread: after every step the books are those of a naive model. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { projectQuotas } from '../../src/base/project-quota.ts';
import { PREEMPT_AFTER_MS } from '../../src/raylet/core/preemption.ts';
import { taskReason } from '../../src/raylet/core/reasons.ts';
import { TASK_STATE, type Task, type TenantState } from '../../src/raylet/core/state.ts';
import { NO_QUOTA, type TenantQuota } from '../../src/base/tenant-quota.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

const CPU = 10_000;

function setQuota(node: SimNode, tenant: number, quota: Partial<TenantQuota>): void {
  const state = node.core.state.tenants.get(tenant) as TenantState;
  node.core.setTenant(state.name, tenant, () => state.log, { ...NO_QUOTA, ...quota }, true);
}

function divided(projects: Readonly<Record<string, string>>, quota: Partial<TenantQuota> = {}): Partial<TenantQuota> {
  return { ...quota, projects: projectQuotas(projects) };
}

function tenantOf(node: SimNode, number: number): TenantState {
  return node.core.state.tenants.get(number) as TenantState;
}

function inUse(node: SimNode, tenant: number, project: string): number {
  return (tenantOf(node, tenant).projects.get(project)?.cpuUnitsInUse ?? 0) / CPU;
}

/** Counted from what runs, without a sum that is kept. */
function expectBooks(node: SimNode): void {
  const core = node.core.state;
  let all = 0;
  for (const tenant of core.tenants.values()) {
    const held = new Map<string, number>();
    let ofTenant = 0;
    for (const job of tenant.jobs) {
      let ofJob = 0;
      for (const c of job.classes.values()) for (const lease of c.leases) if (lease.holding) ofJob += c.resources.cpuUnits;
      for (const actor of job.actors) if (actor.holding) ofJob += actor.template.options.resources.cpuUnits;
      if (job.cpuUnitsInUse !== ofJob) throw new Error(`job ${job.id} has ${job.cpuUnitsInUse} in its books and holds ${ofJob}`);
      if (ofJob > job.project.quota.jobCpuUnits) throw new Error(`job ${job.id} holds ${ofJob}, more than it may`);
      held.set(job.project.name, (held.get(job.project.name) ?? 0) + ofJob);
      ofTenant += ofJob;
    }
    if (ofTenant !== tenant.cpuUnitsInUse) throw new Error(`tenant ${tenant.name} has ${tenant.cpuUnitsInUse} in its books and holds ${ofTenant}`);
    if (ofTenant > tenant.quota.cpuUnits) throw new Error(`tenant ${tenant.name} holds ${ofTenant}, more than it may`);
    let lent = 0;
    let taken = 0;
    for (const project of tenant.projects.values()) {
      const { quota, name } = project;
      const holds = held.get(name) ?? 0;
      if (holds !== project.cpuUnitsInUse) throw new Error(`project ${name} has ${project.cpuUnitsInUse} in its books and holds ${holds}`);
      if (holds > quota.cpuUnits + quota.cpuBorrowUnits) throw new Error(`project ${name} holds ${holds}, more than it may`);
      if (project.tasks > quota.tasks) throw new Error(`project ${name} has ${project.tasks} tasks, more than it may`);
      lent += quota.cpuLendUnits;
      taken += Math.max(0, holds - (quota.cpuUnits - quota.cpuLendUnits));
    }
    if (taken > lent || tenant.pool.cpuUnitsUsed !== taken) throw new Error(`${taken} of ${lent} lent units are used, the books say ${tenant.pool.cpuUnitsUsed}`);
    all += ofTenant;
  }
  if (core.available.cpuUnits + all !== core.config.total.cpuUnits) throw new Error(`${core.available.cpuUnits} free and ${all} held are not ${core.config.total.cpuUnits}`);
}

function submit(client: SimClient, template: number, what: number, count: number): void {
  client.get(Array.from({ length: count }, () => client.call(OP.SUBMIT, template, what)));
  client.flush();
}

/** Until nothing happens by itself any more, then on with the clock. */
function pass(world: World, ms: number): void {
  for (const until = world.nowMs + ms; world.nowMs < until; world.tick()) {
    world.run(100_000);
    for (const node of world.nodes) expectBooks(node);
  }
  world.run(100_000);
}

const preempted = (node: SimNode, tenant: number): string[] => (node.logs.get(tenant)?.records ?? []).flatMap((r) => (r.type === 'lifecycle' && r.event === 'task.preempted' ? [r.detail] : []));

describe('the books of a quota tree', () => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])('hold after every step, whatever runs, dies, is lent or taken back (seed %i)', (seed) => {
    const world = new World({ nodes: 1 + (seed % 2), cpus: 4, seed });
    const quota = divided({
      'etl/cpus': '2', 'etl/cpus-lend': '2', 'etl/cpus-borrow': '1', 'bi/cpus': '2', 'bi/cpus-lend': '1', 'bi/cpus-borrow': '2', 'bi/job-cpus': '3', 'etl/priority': '10', 'bi/tasks': '20', 'adhoc/cpus': '1', 'adhoc/cpus-borrow': '3',
    }, { cpuUnits: 4 * CPU });
    for (const node of world.nodes) setQuota(node, 1, quota);
    const clients = [world.client(0, 1, 'ana', 'etl'), world.client(0, 1, 'ben', 'bi'), world.client(0, 1, 'cy', 'adhoc'), world.client(0, 1, 'dee'), world.client(0, 2, 'eve')];
    clients.forEach((client, i) => {
      client.define(1, CALL_KIND.TASK, { maxRetries: 2 });
      client.define(2, CALL_KIND.TASK, { cpus: 2, timeoutMs: 60 });
      client.define(3, CALL_KIND.TASK, { cpus: 0.5, timeoutMs: 1_500, priority: i === 0 ? 7 : -3 });
      client.define(4, CALL_KIND.ACTOR_CLASS, { cpus: 0.1 }, 'Counter');
    });
    for (let round = 0; round < 80; round++) {
      const client = clients[Math.floor(world.random() * clients.length)] as SimClient;
      const dice = world.random();
      if (dice < 0.4) submit(client, 1, world.random() < 0.1 ? DO.DIE : DO.RETURN, 1 + Math.floor(world.random() * 8));
      else if (dice < 0.6) submit(client, 2, DO.HANG, 1 + Math.floor(world.random() * 3));
      else if (dice < 0.85) submit(client, 3, DO.HANG, 1 + Math.floor(world.random() * 4));
      else if (dice < 0.9) client.get([client.call(OP.CREATE_ACTOR, 4, DO.RETURN)]);
      client.flush();
      for (let s = Math.floor(world.random() * 40); s > 0 && world.step(); s--) for (const node of world.nodes) expectBooks(node);
      if (world.random() < 0.2) world.nowMs += Math.floor(world.random() * 1_500);
      if (world.random() < 0.05) {
        const worker = world.anyWorker(world.nodes[0] as SimNode);
        if (worker !== undefined) world.killWorker(world.nodes[0] as SimNode, worker, false);
      }
      for (const node of world.nodes) expectBooks(node);
    }
    // Everybody is served in the end, those of the lowest priority too.
    for (let i = 0; i < 10_000; i++) {
      world.run(200_000);
      if (clients.every((c) => [...c.calls.values()].every((call) => call.answers.every((a) => a !== undefined)))) break;
      world.tick();
      for (const node of world.nodes) expectBooks(node);
    }
    for (const client of clients) for (const call of client.calls.values()) expect(call.answers.includes(undefined), 'every call has ended').toBe(false);
    for (const client of clients) {
      client.node.core.closeChannel(client.channel);
      world.drain(client.node);
    }
    world.run(200_000);
    for (const node of world.nodes) for (const tenant of node.core.state.tenants.values()) for (const project of tenant.projects.values()) expect([project.cpuUnitsInUse, project.memoryBytesInUse, project.tasks, project.inFlight, project.objectBytes]).toEqual([0, 0, 0, 0, 0]);
  });
});

describe('dominant resource fairness', () => {
  it('gives what its authors give: 9 cpus and 18 GB, one asks for <1, 4>, the other for <3, 1>: three tasks and two', () => {
    const world = new World({ nodes: 1, cpus: 9, seed: 3 });
    const node = world.nodes[0] as SimNode;
    const part = Math.floor(2 ** 33 / 18);
    const clients = [world.client(0, 1), world.client(0, 2)] as const;
    for (const tenant of [1, 2]) setQuota(node, tenant, { cpuUnits: 0 });
    clients[0].define(1, CALL_KIND.TASK, { cpus: 1, memoryBytes: 4 * part });
    clients[1].define(1, CALL_KIND.TASK, { cpus: 3, memoryBytes: part });
    for (const client of clients) submit(client, 1, DO.HANG, 20);
    world.run(10_000);
    for (const tenant of [1, 2]) setQuota(node, tenant, {});
    world.tick();
    world.run(10_000);
    expect([tenantOf(node, 1).cpuUnitsInUse / CPU, tenantOf(node, 2).cpuUnitsInUse / (3 * CPU)]).toEqual([3, 2]);
  });

  it.each([21, 22, 23, 24])('lets nobody starve: who comes late to a flood has half of the runs within a bounded time (seed %i)', (seed) => {
    const world = new World({ nodes: 1, cpus: 4, seed });
    const clients = [world.client(0, 1), world.client(0, 2)] as const;
    for (const client of clients) client.define(1, CALL_KIND.TASK, { timeoutMs: 20 });
    submit(clients[0], 1, DO.HANG, 600);
    pass(world, 500);
    submit(clients[1], 1, DO.HANG, 200);
    const before = world.ran.length;
    pass(world, 1_200);
    const late = clients[1].failed.length;
    const runs = world.ran.length - before;
    expect(runs).toBeGreaterThan(60);
    expect(late / runs).toBeGreaterThan(0.4);
    expect(late, 'and not all: the other has its part too').toBeLessThan(runs * 0.9);
  });

  it('holds between the projects of a tenant, and 100,000 queued tasks of one do not keep another from its turn', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 9 });
    const node = world.nodes[0] as SimNode;
    const etl = world.client(0, 1, 'ana', 'etl');
    const bi = world.client(0, 1, 'ben', 'bi');
    for (const client of [etl, bi]) client.define(1, CALL_KIND.TASK, { timeoutMs: 30 });
    for (let i = 0; i < 100; i++) {
      for (let k = 0; k < 1_000; k++) etl.call(OP.SUBMIT, 1, DO.HANG);
      etl.flush();
    }
    world.run(100_000);
    expect(inUse(node, 1, 'etl')).toBe(4);
    submit(bi, 1, DO.HANG, 40);
    for (let i = 0; i < 100 && bi.failed.length < 4; i++) {
      world.run(100_000);
      world.tick();
    }
    expect(bi.failed.length).toBeGreaterThanOrEqual(4);
    expect(inUse(node, 1, 'etl') + inUse(node, 1, 'bi')).toBe(4);
  });
});

describe('borrowing', () => {
  const PROJECTS = { 'etl/cpus': '2', 'etl/cpus-lend': '2', 'bi/cpus': '2', 'bi/cpus-borrow': '2', 'shy/cpus': '1' };

  function borrowed(options: object = {}): { world: World; node: SimNode; bi: SimClient; etl: SimClient } {
    const world = new World({ nodes: 1, cpus: 6, seed: 5, quota: divided(PROJECTS) });
    const bi = world.client(0, 1, 'ben', 'bi');
    const etl = world.client(0, 1, 'ana', 'etl');
    bi.define(1, CALL_KIND.TASK, options);
    etl.define(1, CALL_KIND.TASK, { cpus: 1 });
    submit(bi, 1, DO.HANG, 10);
    pass(world, 50);
    return { world, node: world.nodes[0] as SimNode, bi, etl };
  }

  it('goes as far as the borrower may and siblings lend; what nobody lends stays free', () => {
    const { world, node, bi } = borrowed();
    expect(inUse(node, 1, 'bi')).toBe(4);
    expect(node.core.state.available.cpuUnits).toBe(2 * CPU);
    const shy = world.client(0, 1, 'cy', 'shy');
    shy.define(1, CALL_KIND.TASK, {});
    submit(shy, 1, DO.HANG, 3);
    pass(world, 20);
    expect([inUse(node, 1, 'shy'), inUse(node, 1, 'bi')], 'its own, which it does not lend').toEqual([1, 4]);
    expect(bi.failed).toEqual([]);
  });

  it('is taken back when the owner asks, after a grace, from tasks that may be tried again, and costs them no try', () => {
    const { world, node, bi, etl } = borrowed({ maxRetries: 1 });
    submit(etl, 1, DO.RETURN, 1);
    pass(world, PREEMPT_AFTER_MS / 2);
    expect(preempted(node, 1)).toEqual([]);
    pass(world, PREEMPT_AFTER_MS);
    expect(preempted(node, 1)).toEqual([expect.stringContaining('project etl takes back what it lent')]);
    expect(etl.calls.get(1)?.answers).toEqual(['value']);
    pass(world, 200);
    expect(inUse(node, 1, 'bi'), 'lent again').toBe(4);
    // Ten tasks, four places: the one that was stopped ran twice, both times as its first try.
    const tries = world.ran.filter((r) => r.caller === bi.channel.number || r.kind === CALL_KIND.TASK).map((r) => r.attempt);
    expect(new Set(tries)).toEqual(new Set([0]));
    expect(bi.failed).toEqual([]);
  });

  it('waits for what may not be tried again', () => {
    const { world, node, etl } = borrowed({ maxRetries: 0 });
    submit(etl, 1, DO.RETURN, 1);
    pass(world, 4 * PREEMPT_AFTER_MS);
    expect(preempted(node, 1)).toEqual([]);
    expect(etl.calls.get(1)?.answers).toEqual([undefined]);
  });

  it('priority takes nothing from a sibling that has no more than its own, for who would have to borrow it', () => {
    const world = new World({ nodes: 1, cpus: 2, seed: 5, quota: divided({ 'etl/cpus': '2', 'etl/cpus-lend': '2', 'bi/cpus': '0', 'bi/cpus-borrow': '2', 'bi/priority': '50' }) });
    const node = world.nodes[0] as SimNode;
    const [etl, bi] = [world.client(0, 1, 'ana', 'etl'), world.client(0, 1, 'ben', 'bi')] as const;
    etl.define(1, CALL_KIND.TASK, {});
    bi.define(1, CALL_KIND.TASK, { priority: 50 });
    submit(etl, 1, DO.HANG, 2);
    pass(world, 20);
    submit(bi, 1, DO.HANG, 2);
    pass(world, 4 * PREEMPT_AFTER_MS);
    expect([inUse(node, 1, 'etl'), inUse(node, 1, 'bi'), preempted(node, 1).length]).toEqual([2, 0, 0]);
  });

  it('leaves a project what is its own: only what was borrowed is taken', () => {
    const { world, node, etl } = borrowed();
    submit(etl, 1, DO.HANG, 5);
    pass(world, 6 * PREEMPT_AFTER_MS);
    expect([inUse(node, 1, 'etl'), inUse(node, 1, 'bi')]).toEqual([2, 2]);
    expect(preempted(node, 1)).toHaveLength(2);
  });

  it('a preempted task that its client cancels is cancelled, and does not run again', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 2, quota: divided({ 'default/priority': '1' }) });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.define(2, CALL_KIND.TASK, { priority: 1 });
    const low = client.call(OP.SUBMIT, 1, DO.HANG);
    client.get([low]);
    client.flush();
    pass(world, 20);
    submit(client, 2, DO.HANG, 1);
    for (let i = 0; i < 10_000 && preempted(world.nodes[0] as SimNode, 1).length === 0; i++) world.tick();
    client.cancel(low, false);
    client.flush();
    pass(world, 100);
    expect(client.failed).toEqual(['CANCELLED']);
    expect(world.ran).toHaveLength(2);
  });
});

describe('priority', () => {
  it('goes first among what waits, and may stop what is of less, in the same tenant only', () => {
    const world = new World({ nodes: 1, cpus: 2, seed: 8 });
    const node = world.nodes[0] as SimNode;
    setQuota(node, 1, divided({ 'default/priority': '9' }));
    const client = world.client(0, 1);
    const other = world.client(0, 2);
    client.define(1, CALL_KIND.TASK, {});
    client.define(2, CALL_KIND.TASK, { priority: 9 });
    client.define(3, CALL_KIND.TASK, { priority: 5 });
    other.define(1, CALL_KIND.TASK, { priority: -100 });
    submit(other, 1, DO.HANG, 1);
    submit(client, 1, DO.HANG, 1);
    pass(world, 50);
    submit(client, 3, DO.HANG, 1);
    submit(client, 2, DO.RETURN, 1);
    pass(world, PREEMPT_AFTER_MS + 200);
    expect(preempted(node, 1)).toEqual([expect.stringContaining('for tasks of priority 9')]);
    expect(preempted(node, 2)).toEqual([]);
    expect([tenantOf(node, 1).cpuUnitsInUse, tenantOf(node, 2).cpuUnitsInUse], 'the neighbour keeps its part').toEqual([CPU, CPU]);
    expect(client.calls.get(3)?.answers, 'the highest has run').toEqual(['value']);
    const holding = [...node.core.state.classes].filter((c) => c.job.tenant.number === 1 && [...c.leases].some((l) => l.holding)).map((c) => c.priority);
    expect(holding, 'and the next highest runs now').toEqual([5]);
  });

  it('beyond what the project may is refused where the function is defined, and less than 0 is free for all', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 1, quota: divided({ 'etl/priority': '3' }) });
    const etl = world.client(0, 1, 'ana', 'etl');
    const plain = world.client(0, 1, 'ben');
    etl.define(1, CALL_KIND.TASK, { priority: 4 });
    etl.define(2, CALL_KIND.TASK, { priority: 3 });
    plain.define(1, CALL_KIND.TASK, { priority: 1 });
    plain.define(2, CALL_KIND.TASK, { priority: -7 });
    for (const client of [etl, plain]) {
      submit(client, 1, DO.RETURN, 1);
      submit(client, 2, DO.RETURN, 1);
    }
    world.run(10_000);
    expect([etl.failed, plain.failed]).toEqual([['QUOTA_EXCEEDED'], ['QUOTA_EXCEEDED']]);
    expect(etl.reasons[0]).toContain('priority 4 is more than project etl may have (3)');
  });
});

describe('reasons', () => {
  const WAITING = { 'etl/cpus': '2', 'bi/cpus': '2', 'bi/cpus-lend': '2' };
  const reasonOf = (client: SimClient): string => {
    const waiting = [...client.channel.session.objects.values()].flatMap(({ producer }) => (producer?.state === TASK_STATE.QUEUED ? [producer] : []));
    return taskReason(client.node.core.state, waiting[0] as Task);
  };

  it.each([
    [WAITING, 'waits: project etl uses 2 of 2 cpus; 2 could be borrowed from bi, had it a limit for that (cpus-borrow)'],
    [{ ...WAITING, 'etl/cpus-borrow': '1' }, 'waits: project etl uses 2 of 2 cpus and 1 of 1 that it may borrow'],
    [{ ...WAITING, 'etl/cpus-borrow': '4' }, 'waits: project etl uses 2 of 2 cpus and 2 of 4 that it may borrow; its siblings lend no more'],
    [{ 'etl/job-cpus': '3' }, 'waits: its job uses 3 of the 3 cpus that a job of project etl may have'],
    [{ 'etl/cpus': '0.5' }, 'needs 1 cpus, project etl may have 0.5: it can never start'],
  ])('%j: %s', (projects, reason) => {
    const world = new World({ nodes: 1, cpus: 8, seed: 5, quota: divided(projects) });
    const etl = world.client(0, 1, 'ana', 'etl');
    etl.define(1, CALL_KIND.TASK, {});
    submit(etl, 1, DO.HANG, 6);
    pass(world, 20);
    expect(reasonOf(etl)).toBe(reason);
  });
});

describe('rates and counts', () => {
  it('calls per second: a second’s worth at once, then as they come; the tenant, the project and the job each have theirs', () => {
    const world = new World({ nodes: 1, cpus: 2, seed: 4 });
    setQuota(world.nodes[0] as SimNode, 1, divided({ 'etl/calls': '6', 'etl/job-calls': '4' }, { callsPerSecond: 8 }));
    const [a, b, plain] = [world.client(0, 1, 'ana', 'etl'), world.client(0, 1, 'ben', 'etl'), world.client(0, 1, 'cy')] as const;
    for (const client of [a, b, plain]) {
      client.define(1, CALL_KIND.TASK, {});
      submit(client, 1, DO.RETURN, 10);
      world.run(10_000);
    }
    expect([a.failed.length, b.failed.length, plain.failed.length]).toEqual([6, 8, 8]);
    expect([a.reasons[0], b.reasons[0], plain.reasons[0]]).toEqual([expect.stringContaining('a job of project etl may make 4 calls'), expect.stringContaining('project etl may make 6 calls'), expect.stringContaining('the tenant may make 8 calls')]);
    world.nowMs += 1_000;
    submit(a, 1, DO.RETURN, 10);
    world.run(10_000);
    expect(a.failed.length).toBe(12);
  });

  it('calls in flight: tasks, creations and actor calls together, of the tenant, the project and the job; what ends makes room', () => {
    const world = new World({ nodes: 1, cpus: 8, seed: 4, quota: divided({ 'etl/inflight': '5', 'etl/job-inflight': '4' }, { inFlight: 7 }) });
    const [a, b, plain] = [world.client(0, 1, 'ana', 'etl'), world.client(0, 1, 'ben', 'etl'), world.client(0, 1, 'cy')] as const;
    const flying = (): number[] => [tenantOf(world.nodes[0] as SimNode, 1).inFlight, tenantOf(world.nodes[0] as SimNode, 1).projects.get('etl')?.inFlight ?? 0];
    for (const client of [a, b, plain]) {
      client.define(1, CALL_KIND.TASK, { timeoutMs: 30 });
      client.define(2, CALL_KIND.ACTOR_CLASS, { cpus: 0 });
      client.define(3, CALL_KIND.ACTOR_METHOD, { timeoutMs: 30 });
    }
    // The creation has ended before the calls are made.
    const actor = a.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    a.flush();
    world.run(10_000);
    expect(flying()).toEqual([0, 0]);
    a.get([1, 2, 3].map(() => a.call(OP.CALL_ACTOR, 3, DO.HANG, [], actor)));
    a.flush();
    world.run(10_000);
    submit(a, 1, DO.HANG, 2);
    world.run(10_000);
    expect(a.reasons).toEqual(['a job of project etl has 4 calls in flight from this node, its quota is 4: wait for results before making more, or ask for a larger quota (job-inflight)']);
    submit(b, 1, DO.HANG, 3);
    world.run(10_000);
    expect(b.reasons).toEqual([expect.stringContaining('project etl has 5 calls in flight'), expect.stringContaining('(inflight)')]);
    submit(plain, 1, DO.HANG, 3);
    plain.get([plain.call(OP.CALL_ACTOR, 3, DO.HANG, [], actor)]);
    plain.flush();
    world.run(10_000);
    expect([flying(), plain.failed, plain.reasons[0]]).toEqual([[7, 5], ['QUOTA_EXCEEDED', 'QUOTA_EXCEEDED'], expect.stringContaining('the tenant has 7 calls in flight')]);
    pass(world, 500);
    expect(flying()).toEqual([0, 0]);
    submit(a, 1, DO.RETURN, 4);
    world.run(10_000);
    expect(a.failed.filter((code) => code === 'QUOTA_EXCEEDED')).toHaveLength(1);
  });

  it('tasks in flight and objects of a project end at its quota, and come back with what ends', () => {
    const world = new World({ nodes: 1, cpus: 2, seed: 4, quota: divided({ 'etl/tasks': '3', 'etl/objects': '250000' }) });
    const etl = world.client(0, 1, 'ana', 'etl');
    const plain = world.client(0, 1, 'ben');
    for (const client of [etl, plain]) client.define(1, CALL_KIND.TASK, { timeoutMs: 30 });
    submit(etl, 1, DO.HANG, 5);
    world.run(10_000);
    expect(etl.failed).toEqual(['QUOTA_EXCEEDED', 'QUOTA_EXCEEDED']);
    expect(etl.reasons[0]).toContain('project etl has 3 tasks');
    pass(world, 500);
    const refs = Array.from({ length: 3 }, () => etl.call(OP.SUBMIT, 1, DO.LARGE));
    etl.get(refs);
    etl.flush();
    submit(plain, 1, DO.LARGE, 3);
    world.run(10_000);
    expect(etl.reasons.at(-1)).toContain('objects of project etl');
    expect(plain.failed).toEqual([]);
  });

  it('a project’s smaller quota takes nothing from what runs, and gives nothing more until it is met', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 4, quota: divided({ 'etl/cpus': '4' }) });
    const node = world.nodes[0] as SimNode;
    const etl = world.client(0, 1, 'ana', 'etl');
    etl.define(1, CALL_KIND.TASK, { timeoutMs: 200 });
    submit(etl, 1, DO.HANG, 8);
    pass(world, 50);
    expect(inUse(node, 1, 'etl')).toBe(4);
    setQuota(node, 1, divided({ 'etl/cpus': '1' }));
    world.tick();
    expect(inUse(node, 1, 'etl')).toBe(4);
    for (let i = 0; i < 200; i++) {
      world.run(10_000);
      world.tick();
    }
    expect(inUse(node, 1, 'etl')).toBeLessThanOrEqual(1);
    expect(etl.failed.length).toBeGreaterThan(4);
  });
});
