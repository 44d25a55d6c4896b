/** A detached actor whose node is lost, made again by another raylet's core: what it takes, what it decides, what it refuses. */
import { describe, expect, it } from 'vitest';
import { World, type SimClient, type SimNode } from './world.ts';

/** The digest of everything in the simulation. */
const DIGEST = '09'.repeat(32);
const INFO = JSON.stringify({ digest: DIGEST, export: 'Counter' });
/** No refs, then what the simulated constructor does: return. */
const ARGS = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 7);
const SEED = { options: JSON.stringify({ name: 'phoenix', detached: true, maxRestarts: 2 }), args: ARGS, code: Uint8Array.of(1, 2, 3), restarts: 0 };

function scene(decide?: (action: string) => boolean): { world: World; node: SimNode; client: SimClient } {
  const world = new World({ nodes: 1, cpus: 2, seed: 4, ...(decide === undefined ? {} : { decide: (request) => decide(request.action) }) });
  return { world, node: world.nodes[0] as SimNode, client: world.client(0, 1) };
}

const actorsOf = (node: SimNode) => [...node.core.state.jobs.values()].flatMap((job) => [...job.actors]);

describe('adoption', () => {
  it('makes the actor in its next life, decided and recorded as a creation of who asked', () => {
    const { world, node, client } = scene();
    expect(node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED)).toBe(undefined);
    world.drain(node);
    world.run(5_000);
    const [actor] = actorsOf(node);
    expect([actor?.state, actor?.restarts, actor?.nameRegistered, actor?.template.options.detached]).toEqual(['ALIVE', 1, true, true]);
    expect(world.ran.map((r) => [r.kind, r.attempt, [...r.payload]])).toEqual([[1, 1, [0, 7]]]);
    const decided = node.logs.get(1)?.records.flatMap((r) => (r.type === 'decision' && r.allow ? [`${r.action} ${r.principal}`] : []));
    expect(decided).toEqual([`code.register ${client.channel.principal.spiffeId}`, `actor.create ${client.channel.principal.spiffeId}`]);
    // It restarts here, as often as it may still.
    for (const state of ['ALIVE', 'DEAD']) {
      world.killWorker(node, actor!.worker!, false);
      world.run(5_000);
      for (let i = 0; i < 40; i++) world.tick();
      world.run(5_000);
      expect([actor?.state, actor?.restarts]).toEqual([state, 2]);
    }
    expect([node.core.state.available, node.core.state.callsInFlight]).toEqual([node.core.state.config.total, 0]);
    expect(node.core.state.tenants.get(1)?.heldBytes).toBe(0);
  });

  it('outlives the driver that asked, and ends with its job', () => {
    const { world, node, client } = scene();
    node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED);
    world.drain(node);
    world.run(5_000);
    const [actor] = actorsOf(node);
    node.core.closeChannel(client.channel);
    world.drain(node);
    world.run(5_000);
    expect(actor?.state).toBe('ALIVE');
    node.core.stopJob(client.channel.job.id, 'stopped');
    world.drain(node);
    world.run(5_000);
    expect(actor?.state).toBe('DEAD');
  });

  it('by two at once: the one that did not get the name ends', () => {
    const { world, node, client } = scene();
    node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED);
    world.nameTaken = () => true;
    world.drain(node);
    world.run(5_000);
    expect([actorsOf(node), world.ran]).toEqual([[], []]);
    expect([node.core.state.tenants.get(1)?.heldBytes, node.core.state.tenants.get(1)?.actors]).toEqual([0, 0]);
  });

  it('counts in the quota of actors', () => {
    const { world, node, client } = scene();
    const tenant = node.core.state.tenants.get(1)!;
    tenant.quota.actors = 1;
    expect(node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED)).toBe(undefined);
    expect([tenant.actors, node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED)?.code]).toEqual([1, 'QUOTA_EXCEEDED']);
    world.drain(node);
    world.run(5_000);
    expect(tenant.actors).toBe(1);
  });

  it.each<[string, string, typeof SEED]>([
    ['its restarts are used up', INFO, { ...SEED, restarts: 2 }],
    ['code that is not what its class says', JSON.stringify({ digest: '0a'.repeat(32), export: 'Counter' }), SEED],
    ['a class that is not told', '{}', SEED],
    ['a class that is no name', JSON.stringify({ digest: DIGEST, export: '../x' }), SEED],
    ['a description that is none', 'null', SEED],
    ['refs among its arguments', INFO, { ...SEED, args: Uint8Array.of(1, 0, ...ARGS) }],
    ['arguments that are none', INFO, { ...SEED, args: new Uint8Array(0) }],
    ['options of another actor', INFO, { ...SEED, options: JSON.stringify({ name: 'other', detached: true, maxRestarts: 2 }) }],
    ['options of one that ends with its job', INFO, { ...SEED, options: JSON.stringify({ name: 'phoenix', maxRestarts: 2 }) }],
    ['options that are none', INFO, { ...SEED, options: '{"maxRestarts":"many"}' }],
  ])('refuses %s, and leaves nothing', (_what, info, seed) => {
    const { world, node, client } = scene();
    const sessions = node.core.state.sessions.size;
    expect(['ACTOR_DIED', 'INVALID_ARGUMENT']).toContain(node.core.adoptActor(client.channel, 'phoenix', '', info, seed)?.code);
    world.drain(node);
    world.run(5_000);
    expect([actorsOf(node), world.ran, node.core.state.sessions.size]).toEqual([[], [], sessions]);
  });

  it.each(['code.register', 'actor.create'])('is denied to who may not %s', (action) => {
    let asked = 0;
    // The driver itself sends code once.
    const { world, node, client } = scene((wanted) => wanted !== action || (action === 'code.register' && ++asked === 1));
    client.flush();
    world.run(5_000);
    const sessions = node.core.state.sessions.size;
    expect(node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED)?.code).toBe('DENIED');
    world.drain(node);
    world.run(5_000);
    expect([actorsOf(node), world.ran, node.core.state.sessions.size]).toEqual([[], [], sessions]);
    expect(node.logs.get(1)?.records.at(-1)).toMatchObject({ type: 'decision', allow: false, action });
  });

  it('of a name that another has by now ends the actor that lost it', () => {
    const { world, node, client } = scene();
    node.core.adoptActor(client.channel, 'phoenix', '', INFO, SEED);
    world.drain(node);
    world.run(5_000);
    const [actor] = actorsOf(node);
    node.core.nameLost(actor!);
    world.drain(node);
    world.run(5_000);
    expect([actor?.state, actor?.restarts]).toEqual(['DEAD', 1]);
  });
});
