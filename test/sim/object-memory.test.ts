/** Memory of objects' files in random programs: limits hold, what was spilled comes back, and what was lost is computed again or says why not. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { OBJECT_STATUS } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from './world.ts';

const SIZE = 200_000;

function define(client: SimClient): void {
  client.define(1, CALL_KIND.TASK, { maxRetries: 3 });
  client.define(2, CALL_KIND.TASK, { maxRetries: 0 });
  client.define(3, CALL_KIND.TASK, { maxRetries: 3, returns: 2 });
  client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Maker');
  client.define(5, CALL_KIND.ACTOR_METHOD, {}, 'make');
}

/** The books say what is there. */
function expectBooks(world: World): void {
  for (const node of world.nodes) {
    const core = node.core.state;
    let all = 0;
    let onDisk = 0;
    for (const tenant of core.tenants.values()) {
      let own = 0;
      for (const entry of tenant.files) {
        if (entry.status !== OBJECT_STATUS.FILE || !node.files.has(entry.fileName)) throw new Error(`${entry.fileName} is in the books and not there`);
        own += entry.size;
      }
      for (const session of tenant.sessions) for (const entry of session.objects.values()) if (entry.spillName !== '') onDisk += entry.size;
      for (const project of tenant.projects.values()) {
        let ofProject = 0;
        for (const session of tenant.sessions) if (session.project === project) for (const entry of session.objects.values()) ofProject += entry.size;
        if (project.objectBytes !== ofProject) throw new Error(`${project.objectBytes} bytes of the project's objects in the books, ${ofProject} there`);
      }
      if (core.restoring === 0 && tenant.fileBytes !== own) throw new Error(`${tenant.fileBytes} bytes in the books, ${own} there`);
      all += tenant.fileBytes;
    }
    if (core.fileBytes !== all || core.spilledBytes !== onDisk) throw new Error(`books: ${core.fileBytes} of ${all} in memory, ${core.spilledBytes} of ${onDisk} on disk`);
  }
}

function expectNothingLeft(world: World): void {
  for (const client of world.clients) {
    client.node.core.closeChannel(client.channel);
    world.drain(client.node);
  }
  world.run(500_000);
  for (const node of world.nodes) {
    const core = node.core.state;
    expect([core.fileBytes, core.spillingBytes, core.spilledBytes, core.spilling.size, core.restoring]).toEqual([0, 0, 0, 0, 0]);
    expect([...node.files, ...node.spills.keys()]).toEqual([]);
    for (const tenant of core.tenants.values()) expect([tenant.fileBytes, tenant.objectBytes, tenant.spilledBytes, tenant.lineages.size, tenant.lineageBytes]).toEqual([0, 0, 0, 0, 0]);
    for (const session of core.sessions.values()) expect([...session.objects.values()].map((o) => `${o.status}/${o.handles}/${o.pins}/${o.uses}/${o.lineagePins}`)).toEqual([]);
  }
}

describe.each([1, 2, 3])('memory for five objects on each of %i nodes', (nodes) => {
  it.each([1, 2, 3, 4, 5, 6])('loses nothing, and the books are right after every step (seed %i)', (seed) => {
    const world = new World({ nodes, cpus: 2, seed: seed * 31 + nodes, objectMemoryBytes: 5 * SIZE, spillBytes: 2 ** 30, ...(seed % 2 === 0 ? { disk: (what) => (what === 'write' && world.random() < 0.2 ? { code: 'RESOURCE_EXHAUSTED', message: 'full', stack: '' } : undefined) } : {}) });
    const clients = [world.client(0, 1), world.client(nodes - 1, 2)];
    for (const client of clients) define(client);
    const held = new Map<SimClient, Uint8Array[]>(clients.map((client) => [client, []]));
    const calls: ReturnType<SimClient['get']>[] = [];
    for (let round = 0; round < 120; round++) {
      const client = clients[Math.floor(world.random() * clients.length)] as SimClient;
      const refs = held.get(client) as Uint8Array[];
      const any = (): Uint8Array | undefined => refs[Math.floor(world.random() * refs.length)];
      const dice = world.random();
      const one = any();
      if (dice < 0.35) refs.push(client.call(OP.SUBMIT, 1, DO.LARGE, one !== undefined && world.random() < 0.5 ? [one] : []));
      else if (dice < 0.45) refs.push(client.call(OP.SUBMIT, 3, DO.LARGE, [], undefined, 2));
      else if (dice < 0.8 && one !== undefined) calls.push(client.get([one]));
      else if (one !== undefined && refs.length > 6) {
        refs.splice(refs.indexOf(one), 1);
        client.release([one]);
      }
      client.flush();
      for (let i = Math.floor(world.random() * 12); i > 0; i--) {
        world.step();
        expectBooks(world);
      }
    }
    world.run(500_000);
    world.nowMs += 2_000;
    world.tick();
    world.run(500_000);
    for (const call of calls) expect(call.answers).toEqual(call.answers.map(() => 'value'));
    expect(world.nodes.some((node) => [...node.logs.values()].some((log) => log.records.some((r) => r.type === 'lifecycle' && r.event === 'object.spilled')))).toBe(true);
    expectNothingLeft(world);
  });
});

describe('memory for three objects', () => {
  function small(options: Partial<ConstructorParameters<typeof World>[0]> = {}): { world: World; client: SimClient } {
    const world = new World({ nodes: 1, cpus: 2, seed: 5, objectMemoryBytes: 3 * SIZE, spillBytes: 2 ** 30, ...options });
    const client = world.client(0, 1);
    define(client);
    return { world, client };
  }
  function settle(world: World): void {
    world.run(100_000);
    world.nowMs += 3_000;
    world.tick();
    world.run(100_000);
  }

  it('the tenant that has most makes room, its longest unused first, and a neighbour’s object stays', () => {
    const { world, client } = small();
    const other = world.client(0, 2);
    const theirs = other.putLarge(SIZE);
    other.flush();
    settle(world);
    const mine = Array.from({ length: 5 }, () => client.putLarge(SIZE));
    client.flush();
    settle(world);
    const core = world.nodes[0]!.core.state;
    const status = (of: SimClient, id: Uint8Array): number | undefined => of.channel.session.objects.get(id[20] as number)?.status;
    expect(status(other, theirs)).toBe(OBJECT_STATUS.FILE);
    expect(mine.map((id) => status(client, id))).toEqual([OBJECT_STATUS.SPILLED, OBJECT_STATUS.SPILLED, OBJECT_STATUS.SPILLED, OBJECT_STATUS.FILE, OBJECT_STATUS.FILE]);
    expect(core.fileBytes).toBe(3 * SIZE);
    const call = client.get(mine);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(mine.map(() => 'value'));
    expectNothingLeft(world);
  });

  it('a tenant’s own limit spills its objects and nobody else’s', () => {
    const { world, client } = small({ quota: { objectMemoryBytes: SIZE } });
    const refs = Array.from({ length: 3 }, () => client.putLarge(SIZE));
    client.flush();
    settle(world);
    expect(client.channel.job.tenant.fileBytes).toBe(SIZE);
    const call = client.get(refs);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(['value', 'value', 'value']);
    expectNothingLeft(world);
  });

  it('a full disk refuses puts with a reason, keeps what is there, and takes them again when there is room', () => {
    let full = true;
    const { world, client } = small({ disk: (what) => (what === 'write' && full ? { code: 'RESOURCE_EXHAUSTED', message: 'the disk is full', stack: '' } : undefined) });
    const kept = Array.from({ length: 4 }, () => client.putLarge(SIZE));
    client.flush();
    for (let i = 0; i < 200; i++) world.step();
    const late = client.putLarge(SIZE);
    const refused = client.get([late]);
    client.flush();
    world.run(100_000);
    expect(refused.answers).toEqual(['failed']);
    expect(client.failed).toEqual(['RESOURCE_EXHAUSTED']);
    expect(client.reasons[0]).toMatch(/none can be moved to disk now: the disk is full/);
    const all = client.get(kept);
    client.flush();
    settle(world);
    expect(all.answers).toEqual(kept.map(() => 'value'));
    full = false;
    settle(world);
    const again = client.get([client.putLarge(SIZE)]);
    client.flush();
    settle(world);
    expect(again.answers).toEqual(['value']);
    expectNothingLeft(world);
  });

  it('what disk objects may take is bounded', () => {
    const { world, client } = small({ spillBytes: SIZE });
    // One on disk, three in memory, and the one that shows that no more go.
    const refs = Array.from({ length: 5 }, () => client.putLarge(SIZE));
    client.flush();
    settle(world);
    const more = client.get([client.putLarge(SIZE)]);
    client.flush();
    world.run(100_000);
    expect(more.answers).toEqual(['failed']);
    expect(client.reasons[0]).toMatch(/bytes of disk that this node has for objects are used up/);
    expect(world.nodes[0]!.core.state.spilledBytes).toBe(SIZE);
    const all = client.get(refs);
    client.flush();
    settle(world);
    expect(all.answers).toEqual(refs.map(() => 'value'));
    expectNothingLeft(world);
  });

  it('one that is larger than all memory is refused', () => {
    const { world, client } = small();
    const call = client.get([client.putLarge(4 * SIZE)]);
    client.flush();
    settle(world);
    expect([call.answers, client.failed]).toEqual([['failed'], ['RESOURCE_EXHAUSTED']]);
    expectNothingLeft(world);
  });

  it('a damaged file of a result is computed again, of a put is OBJECT_LOST with the reason', () => {
    const { world, client } = small({ objectMemoryBytes: SIZE });
    const put = client.putLarge(SIZE);
    const small1 = client.call(OP.SUBMIT, 1, DO.RETURN);
    const made = client.call(OP.SUBMIT, 1, DO.LARGE, [small1]);
    client.flush();
    settle(world);
    const node = world.nodes[0]!;
    const last = client.putLarge(SIZE);
    client.flush();
    settle(world);
    for (const name of node.spills.keys()) node.spills.set(name, 1_000);
    const ran = world.ran.length;
    const call = client.get([made, put]);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(['value', 'failed']);
    expect(world.ran.length).toBe(ran + 1);
    expect([client.failed, client.reasons]).toEqual([['OBJECT_LOST'], [expect.stringMatching(/it cannot be computed again: it was put/)]]);
    const log = node.logs.get(1)!.records;
    expect(log.filter((r) => r.type === 'lifecycle' && r.event === 'object.lost')).toHaveLength(2);
    expect(log.filter((r) => r.type === 'decision' && r.detail.endsWith(' reconstructed'))).toHaveLength(1);
    client.release([last]);
    expectNothingLeft(world);
  });

  it('a result that is computed again with other octets leaves with their digest; one that was written on after it left does not', () => {
    const { world, client } = small({ objectMemoryBytes: SIZE });
    const made = client.call(OP.SUBMIT, 1, DO.LARGE);
    client.flush();
    settle(world);
    const { core, spills, logs } = world.nodes[0]!;
    const entry = client.channel.session.objects.get(made[20] as number)!;
    const leaves = (octet: number): boolean => core.mayCross(entry, new Uint8Array(32).fill(octet));
    const altered = (): number => logs.get(1)!.records.filter((r) => r.type === 'lifecycle' && r.event === 'object.altered').length;
    expect([leaves(1), leaves(1), altered()]).toEqual([true, true, 0]);
    // To the disk, where it is damaged, and made again for whoever asks.
    const again = (): void => {
      const last = client.putLarge(SIZE);
      client.flush();
      settle(world);
      for (const name of spills.keys()) spills.set(name, 1_000);
      const ran = world.ran.length;
      client.release([last]);
      const call = client.get([made]);
      client.flush();
      settle(world);
      expect([call.answers, world.ran.length]).toEqual([['value'], ran + 1]);
    };
    again();
    expect([entry.digest, leaves(2), altered()]).toEqual([undefined, true, 0]);
    expect([leaves(1), leaves(2), entry.altered, altered()]).toEqual([false, true, true, 1]);
    again();
    expect([leaves(3), entry.altered, altered()]).toEqual([true, false, 1]);
    client.release([made]);
    expectNothingLeft(world);
  });

  it('a chain of lost results is computed again from its beginning, also where the arguments were released', () => {
    const { world, client } = small({ objectMemoryBytes: SIZE });
    const first = client.call(OP.SUBMIT, 1, DO.LARGE);
    const second = client.call(OP.SUBMIT, 1, DO.LARGE, [first]);
    const third = client.call(OP.SUBMIT, 1, DO.LARGE, [second]);
    client.flush();
    settle(world);
    client.release([first, second]);
    client.putLarge(SIZE);
    client.flush();
    settle(world);
    const node = world.nodes[0]!;
    expect(client.channel.job.tenant.objectBytes, 'bytes of what was released are gone').toBe(2 * SIZE);
    for (const name of node.spills.keys()) node.spills.set(name, 1_000);
    const ran = world.ran.length;
    const call = client.get([third]);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(['value']);
    expect(world.ran.length).toBe(ran + 3);
    expectNothingLeft(world);
  });

  it('a put that was released is no argument any more: the reason names it; one that is held is', () => {
    const { world, client } = small({ objectMemoryBytes: 2 * SIZE });
    const [gone, kept] = [client.putLarge(SIZE), client.putLarge(SIZE)];
    const [a, b] = [client.call(OP.SUBMIT, 1, DO.LARGE, [gone]), client.call(OP.SUBMIT, 1, DO.LARGE, [kept])];
    client.flush();
    settle(world);
    client.release([gone]);
    const fill = [client.putLarge(SIZE), client.putLarge(SIZE)];
    client.flush();
    settle(world);
    const node = world.nodes[0]!;
    const keptName = client.channel.session.objects.get(kept[20] as number)!.spillName;
    for (const name of node.spills.keys()) if (name !== keptName) node.spills.set(name, 1_000);
    const call = client.get([a, b]);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(['failed', 'value']);
    expect(client.reasons[0]).toMatch(/an argument of its task is gone: it cannot be computed again/);
    client.release(fill);
    expectNothingLeft(world);
  });

  it('is not computed again where its task is not tried again, or the policy of now forbids it', () => {
    let allowed = true;
    const { world, client } = small({ objectMemoryBytes: SIZE, decide: (request) => allowed || request.action !== 'task.submit' });
    const once = client.call(OP.SUBMIT, 2, DO.LARGE);
    const tried = client.call(OP.SUBMIT, 1, DO.LARGE);
    client.flush();
    settle(world);
    client.putLarge(SIZE);
    client.flush();
    settle(world);
    for (const name of world.nodes[0]!.spills.keys()) world.nodes[0]!.spills.set(name, 1_000);
    allowed = false;
    const call = client.get([once, tried]);
    client.flush();
    settle(world);
    expect(call.answers).toEqual(['failed', 'failed']);
    expect([...client.reasons].sort()).toEqual([expect.stringMatching(/cannot be computed again/), expect.stringMatching(/the policy of now does not allow/)]);
    expectNothingLeft(world);
  });

  it('results that were on a node that died are computed again', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 9 });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, { maxRetries: 3, cpus: 1 });
    const refs = Array.from({ length: 12 }, () => client.call(OP.SUBMIT, 1, DO.LARGE));
    client.flush();
    world.run(100_000);
    const remote = refs.filter((id) => client.channel.session.objects.get(id[20] as number)?.status === OBJECT_STATUS.REMOTE);
    expect(remote.length).toBeGreaterThan(0);
    world.loseNode(world.nodes[1]!);
    world.run(100_000);
    const call = client.get(refs);
    client.flush();
    world.run(100_000);
    expect(call.answers).toEqual(refs.map(() => 'value'));
    client.node.core.closeChannel(client.channel);
    world.drain(client.node);
    world.run(100_000);
    expect([world.nodes[0]!.core.state.fileBytes, client.channel.job.tenant.lineages.size]).toEqual([0, 0]);
  });
});

it('a value that finds no room when it comes from another node is refused to whoever asks then, and given to who asks later', () => {
  const world = new World({ nodes: 2, cpus: 1, seed: 9, objectMemoryBytes: 5 * SIZE, spillBytes: 0 });
  const client = world.client(0, 1);
  define(client);
  const refs = Array.from({ length: 4 }, () => client.call(OP.SUBMIT, 1, DO.LARGE));
  client.flush();
  world.run(100_000);
  const remote = refs.find((id) => client.channel.session.objects.get(id[20] as number)?.status === OBJECT_STATUS.REMOTE) as Uint8Array;
  expect(remote).toBeDefined();
  client.release(refs.filter((id) => id !== remote));
  // One more than there is room for, and none may go to disk.
  const filling = Array.from({ length: 6 }, () => client.putLarge(SIZE));
  client.flush();
  world.run(100_000);
  const [refused, argument] = [client.get([remote]), client.get([client.call(OP.SUBMIT, 2, DO.RETURN, [remote])])];
  client.flush();
  world.run(100_000);
  expect([refused.answers, argument.answers, client.failed]).toEqual([['failed'], ['failed'], ['RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']]);
  client.release(filling);
  client.flush();
  world.run(100_000);
  world.nowMs += 5_000;
  world.tick();
  const got = client.get([remote]);
  client.flush();
  world.run(100_000);
  expect(got.answers).toEqual(['value']);
  expectBooks(world);
  expectNothingLeft(world);
});

it('a copy of what another node has leaves the books of its project too when it leaves memory', () => {
  const world = new World({ nodes: 2, cpus: 1, seed: 9, objectMemoryBytes: 5 * SIZE, spillBytes: 2 ** 30 });
  const client = world.client(0, 1);
  define(client);
  const refs = Array.from({ length: 4 }, () => client.call(OP.SUBMIT, 1, DO.LARGE));
  client.flush();
  world.run(100_000);
  const entry = [...client.channel.session.objects.values()].find((e) => e.status === OBJECT_STATUS.REMOTE);
  client.get(refs);
  client.flush();
  world.run(100_000);
  expect(entry?.status).toBe(OBJECT_STATUS.FILE);
  for (let i = 0; i < 8; i++) client.putLarge(SIZE);
  client.flush();
  world.run(100_000);
  expect(entry?.status).toBe(OBJECT_STATUS.REMOTE);
  expectBooks(world);
  expectNothingLeft(world);
});
