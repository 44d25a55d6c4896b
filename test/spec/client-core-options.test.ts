/** Options are checked where they are written: by name, by value, with a hint. */
import { describe, expect, it } from 'vitest';
import { actorOptions, methodOptions, taskOptions } from '../../src/sdk/options.ts';

const json = (options: { json: string }): unknown => JSON.parse(options.json);

describe('options', () => {
  it('map to what DEFINE carries', () => {
    expect(json(taskOptions({ cpus: 0.5, memory: '64MiB', timeoutMs: 5_000, maxRetries: 3, returns: 2, resources: { gpu: 0.25 }, labels: { zone: 'a' }, scheduling: 'spread', isolation: 'isolate', retryOn: ['TASK_FAILED'], name: 'Any/Name' }))).toEqual({
      cpus: 0.5, memoryBytes: 67_108_864, timeoutMs: 5_000, maxRetries: 3, returns: 2, resources: { gpu: 0.25 }, labels: { zone: 'a' }, scheduling: 'spread', isolation: 'isolate', retryOn: ['TASK_FAILED'], name: 'Any/Name',
    });
    expect(json(actorOptions({ name: 'delays', detached: true, getIfExists: true, maxRestarts: 3, maxConcurrency: 4, maxPendingCalls: 10, namespace: 'x' }))).toEqual({ name: 'delays', detached: true, getIfExists: true, maxRestarts: 3, maxConcurrency: 4, maxPendingCalls: 10, namespace: 'x' });
    expect(json(methodOptions({ timeoutMs: 1 }))).toEqual({ timeoutMs: 1 });
    expect(json(taskOptions())).toEqual({});
    expect(json(taskOptions({ name: undefined } as never))).toEqual({});
  });

  it('are the same whatever their order', () => {
    expect(taskOptions({ cpus: 1, memory: 5 }).json).toBe(taskOptions({ memory: 5, cpus: 1 }).json);
    expect(taskOptions({ returns: 3 }).returns).toBe(3);
  });

  it('of placement take a group or its id, and labels in every form', () => {
    const id = `obj-${'a'.repeat(48)}`;
    for (const placementGroup of [id, { id }]) expect(JSON.parse(taskOptions({ placementGroup, bundleIndex: 1 }).json)).toEqual({ placementGroup: id, bundleIndex: 1 });
    const labels = { zone: 'eu', tier: { in: ['a', 'b'] }, disk: { notIn: ['hdd'] }, gpu: { exists: true } };
    expect(JSON.parse(actorOptions({ labels, fallback: [{ labels: { zone: 'us' } }, {}], nodeAffinity: { node: 'n1', soft: true } }).json)).toEqual({ labels, fallback: [{ labels: { zone: 'us' } }, {}], nodeAffinity: { node: 'n1', soft: true } });
  });

  const refused: [() => unknown, RegExp][] = [
    [() => taskOptions({ cpu: 1 } as never), /a task has no option 'cpu': did you mean cpus\?/], [() => taskOptions({ timeout: 5 } as never), /did you mean timeoutMs\?/], [() => taskOptions({ maxretries: 5 } as never), /did you mean maxRetries\?/],
    [() => taskOptions({ num_cpus: 5 } as never), /did you mean cpus\?|the options are/], [() => taskOptions({ maxRestarts: 1 } as never), /a task has no option 'maxRestarts'/], [() => actorOptions({ returns: 1 } as never), /an actor has no option 'returns'/],
    [() => taskOptions({ __proto__: null, constructor: 1 } as never), /no option 'constructor'/], [() => taskOptions([] as never), /must be an object/], [() => taskOptions('x' as never), /must be an object/],
    [() => taskOptions({ cpus: -1 }), /cpus '-1'/], [() => taskOptions({ cpus: '2' as never }), /cpus '2'/], [() => taskOptions({ memory: '64 megs' }), /memory '64 megs'/], [() => taskOptions({ timeoutMs: 0 }), /timeoutMs: 0 is not valid/],
    [() => taskOptions({ timeoutMs: 1.5 }), /timeoutMs: 1.5/], [() => taskOptions({ returns: 65 }), /returns: 65 is not valid: give a whole number from 0 to 64/], [() => taskOptions({ scheduling: 'random' as never }), /give one of default, spread/],
    [() => taskOptions({ resources: { 'a b': 1 } }), /resources key/], [() => taskOptions({ resources: { gpu: Infinity } }), /resources.gpu/], [() => taskOptions({ labels: ['x'] as never }), /give an object/],
    [() => taskOptions({ placementGroup: 'group-1' }), /option placementGroup: .* give a placement group, or its id/], [() => taskOptions({ placementGroup: { id: 7 } as never }), /give a placement group, or its id/], [() => taskOptions({ bundleIndex: -2 }), /bundleIndex: -2 is not valid/],
    [() => taskOptions({ labels: { zone: { like: 'e' } } as never }), /option labels: label zone: 'like'/], [() => taskOptions({ labels: { zone: {} } }), /label zone asks for nothing/], [() => actorOptions({ nodeAffinity: { node: 'n', hard: true } as never }), /give the id of a node, or \{ node, soft \}/],
    [() => actorOptions({ name: 'Has Spaces' }), /option name/], [() => actorOptions({ detached: true }), /detached needs a name/], [() => actorOptions({ getIfExists: true }), /getIfExists needs a name/], [() => actorOptions({ detached: 'yes' as never }), /give true or false/],
  ];
  for (const [make, message] of refused) it(`refuse: ${message.source}`, () => expect(make).toThrow(message));
});
