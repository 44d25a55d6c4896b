/** Tasks that are submitted under keys, and drivers that do nothing, in clusters of raylet cores. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { IDEMPOTENCY_TTL_MS, MAX_IDEMPOTENCY_KEYS_PER_JOB } from '../../src/base/limits.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { CHANNEL_KIND } from '../../src/raylet/core/state.ts';
import { DO, SimClient, World } from './world.ts';

function once(client: SimClient, key: string, what: number = DO.RETURN, template = 1, returns = 1): Uint8Array {
  const seq = client.nextSeq;
  client.nextSeq += returns;
  client.out.begin(OP.SUBMIT_ONCE).u32(0).u32(seq).u32(template).str(key).u16(0).u32(0).raw(Uint8Array.of(what, 7)).end();
  return makeId(client.prefix, seq);
}

function world(nodes = 1, seed = 4): { world: World; client: SimClient } {
  const made = new World({ nodes, cpus: 2, seed });
  const client = made.client(0, 1);
  client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  client.define(2, CALL_KIND.TASK, {});
  client.define(3, CALL_KIND.TASK, { returns: 2 });
  client.define(4, CALL_KIND.TASK, { returns: 'streaming' });
  return { world: made, client };
}

/** Another driver of the same job, of the same or another user. */
function another(made: World, of: SimClient, user = 'ana'): SimClient {
  const { job } = of.channel;
  const principal = user === 'ana' ? of.channel.principal : { ...of.channel.principal, spiffeId: `spiffe://sim/tenant/acme/user/${user}` as never };
  const client = new SimClient(made, of.node, of.node.core.openChannel(CHANNEL_KIND.DRIVER, job, principal, 0, {}));
  made.clients.push(client);
  client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
  made.drain(of.node);
  return client;
}

function run(made: World, ...clients: SimClient[]): void {
  for (const client of clients) client.flush();
  made.run(200_000);
}

const settled = (made: World): void => {
  for (const client of made.clients) client.node.core.closeChannel(client.channel);
  for (const node of made.nodes) made.drain(node);
  made.run(200_000);
  for (const node of made.nodes) {
    const core = node.core.state;
    expect(core.available).toEqual(core.config.total);
    for (const tenant of core.tenants.values()) expect([tenant.objectBytes, tenant.entries]).toEqual([0, 0]);
  }
};

describe('a task under a key', () => {
  it.each([1, 2])('runs once, whatever how often it is submitted, and every ref of it has its value (%i nodes)', (nodes) => {
    const { world: made, client } = world(nodes);
    const refs = Array.from({ length: 5 }, () => once(client, 'a', DO.LARGE));
    const call = client.get(refs);
    run(made, client);
    const late = client.get([once(client, 'a', DO.LARGE)]);
    // A ref of it is an argument like another.
    const used = client.get([client.call(OP.SUBMIT, 2, DO.RETURN, [refs[3] as Uint8Array])]);
    run(made, client);
    expect([call.answers, late.answers, used.answers]).toEqual([refs.map(() => 'value'), ['value'], ['value']]);
    expect(made.ran.filter((r) => r.payload[0] === DO.LARGE)).toHaveLength(1);
    const pair = [once(client, 'b', DO.RETURN, 3, 2), once(client, 'b', DO.RETURN, 3, 2)];
    const both = client.get(pair.flatMap((id) => [id, makeId(client.prefix, new DataView(id.buffer).getUint32(20, true) + 1)]));
    run(made, client);
    expect(both.answers).toEqual(['value', 'value', 'value', 'value']);
    settled(made);
  });

  it('is another for another user, another job and another tenant', () => {
    const { world: made, client } = world();
    const [same, other, job, tenant] = [another(made, client), another(made, client, 'ben'), made.client(0, 1), made.client(0, 2)];
    for (const c of [job, tenant]) c.define(1, CALL_KIND.TASK, { maxRetries: 0 });
    const calls = [client, same, other, job, tenant].map((c) => c.get([once(c, 'a')]));
    run(made, client, same, other, job, tenant);
    expect(calls.map((c) => c.answers)).toEqual(calls.map(() => ['value']));
    expect(made.ran).toHaveLength(4);
    settled(made);
  });

  it('keeps what a ref is worth to one client when another lets go of it, or ends', () => {
    const { world: made, client } = world();
    const second = another(made, client);
    const [first, again] = [once(client, 'a', DO.LARGE), once(second, 'a', DO.LARGE)];
    run(made, client);
    run(made, second);
    second.release([again, again]);
    client.release([first]);
    run(made, client, second);
    const third = second.get([once(second, 'a', DO.LARGE)]);
    run(made, second);
    client.node.core.closeChannel(client.channel);
    made.drain(client.node);
    const fourth = second.get([once(second, 'a', DO.LARGE)]);
    run(made, second);
    expect([third.answers, fourth.answers, made.ran.length]).toEqual([['value'], ['value'], 1]);
    settled(made);
  });

  it('answers what it failed with itself, and runs again when it was not its own failure', () => {
    const { world: made, client } = world();
    for (const what of [DO.THROW, DO.THROW, DO.DIE, DO.DIE]) {
      client.get([once(client, `key ${what}`, what)]);
      run(made, client);
    }
    expect(client.failed).toEqual(['TASK_FAILED', 'TASK_FAILED', 'WORKER_DIED', 'WORKER_DIED']);
    expect(made.ran.map((r) => r.payload[0])).toEqual([DO.THROW, DO.DIE, DO.DIE]);
    const hanging = once(client, 'c', DO.HANG);
    client.get([hanging]);
    run(made, client);
    client.cancel(hanging, true);
    run(made, client);
    client.get([once(client, 'c', DO.RETURN)]);
    run(made, client);
    expect(client.failed.at(-1)).toBe('CANCELLED');
    expect(client.failed).toHaveLength(5);
    settled(made);
  });

  it('of another function, with a stream, or with no key at all is refused', () => {
    const { world: made, client } = world();
    client.get([once(client, 'a'), once(client, 'a', DO.RETURN, 2), once(client, ''), once(client, 'k'.repeat(257)), once(client, 's', DO.STREAM, 4)]);
    run(made, client);
    expect(client.failed).toEqual(['INVALID_ARGUMENT', 'INVALID_ARGUMENT', 'INVALID_ARGUMENT', 'INVALID_ARGUMENT']);
    settled(made);
  });

  it('is forgotten after a while, and keys are so many', () => {
    const { world: made, client } = world();
    client.get([once(client, 'a')]);
    run(made, client);
    made.nowMs += IDEMPOTENCY_TTL_MS;
    made.tick();
    expect(client.channel.job.once.size).toBe(0);
    client.get([once(client, 'a')]);
    run(made, client);
    expect(made.ran).toHaveLength(2);
    const { job } = client.channel;
    for (let i = 0; i < MAX_IDEMPOTENCY_KEYS_PER_JOB; i++) job.once.set(`x ${i}`, { function: '', entries: [], untilMs: made.nowMs + 1_000_000 });
    client.get([once(client, 'one more')]);
    run(made, client);
    expect(client.failed).toEqual(['RESOURCE_EXHAUSTED']);
    job.once.clear();
  });

  it('whose index is in use ends its client’s channel', () => {
    const { world: made, client } = world();
    once(client, 'a');
    client.nextSeq = 1;
    once(client, 'a');
    const batch = client.out.take();
    expect(() => client.node.core.clientBatch(client.channel, batch, made.nowMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('that is denied is denied, known or not', () => {
    const made = new World({ nodes: 1, cpus: 1, seed: 2, decide: (r) => r.action !== 'task.submit' });
    const client = made.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.get([once(client, 'a'), once(client, 'a')]);
    run(made, client);
    expect([client.failed, client.channel.job.once.size]).toEqual([['DENIED', 'DENIED'], 0]);
  });
});

describe('a driver that does nothing', () => {
  const idle = (client: SimClient, ms: number): void => void client.out.begin(OP.IDLE_LIMIT).u32(ms).end();

  it('is ended after the time that it asked for, and not while something is under way', () => {
    const { world: made, client } = world();
    const other = made.client(0, 2);
    idle(client, 1_000);
    const ref = client.call(OP.SUBMIT, 2, DO.HANG);
    client.get([ref]);
    run(made, client, other);
    for (let i = 0; i < 5; i++) {
      made.nowMs += 900;
      made.tick();
    }
    expect(client.channel.closed).toBe(false);
    client.cancel(ref, true);
    run(made, client);
    made.nowMs += 900;
    made.tick();
    expect(client.channel.closed).toBe(false);
    // Refs that are collected ask for nothing.
    client.release([ref]);
    run(made, client);
    made.nowMs += 200;
    made.tick();
    expect([client.channel.closed, other.channel.closed]).toEqual([true, false]);
    const records = client.node.logs.get(1)?.records ?? [];
    expect(records.filter((r) => r.type === 'lifecycle' && r.event === 'session.idle')).toHaveLength(1);
    settled(made);
  });

  it('is ended after what its tenant’s quota allows, whatever it asked for', () => {
    const { world: made, client } = world();
    const { quota } = client.channel.job.tenant;
    quota.idleMs = 500;
    idle(client, 1_000_000);
    run(made, client);
    made.nowMs += 600;
    made.tick();
    expect(client.channel.closed).toBe(true);
  });
});
