/** Type tests: they hold when this file compiles; the run only proves that it was loaded. */
import { describe, expectTypeOf, it } from 'vitest';
import type { ActorHandle, Cluster, ObjectRef, ObjectStream, RefOr, RemoteModule } from '../../src/sdk/sdk.ts';

type Flow = typeof import('./fixtures/flow.ts');
declare const flow: RemoteModule<Flow>;
declare const cluster: Cluster;

describe('types', () => {
  it('turn functions into calls that return refs', () => {
    expectTypeOf<ReturnType<typeof flow.add>>().toEqualTypeOf<ObjectRef<number>>();
    expectTypeOf<Parameters<typeof flow.add>>().toEqualTypeOf<[a: RefOr<number>, b: RefOr<number>]>();
    expectTypeOf<ReturnType<typeof flow.fib>>().toEqualTypeOf<ObjectRef<number>>();
    expectTypeOf<Extract<keyof RemoteModule<Flow>, 'version' | 'add'>>().toEqualTypeOf<'add'>();
  });

  it('turn generators into iterations over refs', () => {
    expectTypeOf<ReturnType<typeof flow.chunks>>().toEqualTypeOf<ObjectStream<number[]>>();
    expectTypeOf<ReturnType<typeof flow.slowChunks>>().toEqualTypeOf<ObjectStream<string>>();
  });

  it('keep unions and never whole', () => {
    expectTypeOf<ReturnType<typeof flow.fail>>().toEqualTypeOf<ObjectRef<never>>();
    const either = () => cluster.task((n: number): number | string => (n > 0 ? n : 'none'));
    expectTypeOf<ReturnType<ReturnType<typeof either>>>().toEqualTypeOf<ObjectRef<number | string>>();
  });

  it('know several returns', () => {
    const divide = (): unknown => flow.divide.options({ returns: 2 })(1);
    const one = () => flow.divide.options({ cpus: 1 })(1);
    const two = () => flow.divide.options({ returns: 2 })(1);
    expectTypeOf(divide).toBeFunction();
    expectTypeOf<ReturnType<typeof one>>().toEqualTypeOf<ObjectRef<[quotient: number, rest: number]>>();
    expectTypeOf<ReturnType<typeof two>>().toEqualTypeOf<[quotient: ObjectRef<number>, rest: ObjectRef<number>]>();
  });

  it('turn classes into actor classes', () => {
    const create = () => flow.Counter.options({ name: 'x', detached: true }).create(1);
    expectTypeOf<Awaited<ReturnType<typeof create>>['add']>().toBeCallableWith(1);
    expectTypeOf<ReturnType<ActorHandle<InstanceType<Flow['Counter']>>['slowAdd']>>().toEqualTypeOf<ObjectRef<number>>();
    // @ts-expect-error an unknown option
    const wrongOption = () => flow.Counter.options({ nam: 'x' });
    // @ts-expect-error an argument of another type
    const wrongArgument = () => flow.add('1', 2);
    // @ts-expect-error an argument too few
    const tooFew = () => flow.add(1);
    expectTypeOf([wrongOption, wrongArgument, tooFew]).toBeArray();
  });

  it('give values for refs', () => {
    const one = () => cluster.get(flow.add(1, 2));
    const tuple = () => cluster.get([flow.add(1, 2), flow.where()]);
    const list = (refs: ObjectRef<string>[]) => cluster.get(refs);
    const inline = () => cluster.task((a: Map<string, number>, b?: string) => [a.size, b] as const);
    expectTypeOf<Awaited<ReturnType<typeof one>>>().toEqualTypeOf<number>();
    expectTypeOf<Awaited<ReturnType<typeof tuple>>>().toEqualTypeOf<[number, string]>();
    expectTypeOf<Awaited<ReturnType<typeof list>>>().toEqualTypeOf<string[]>();
    expectTypeOf<ReturnType<ReturnType<typeof inline>>>().toEqualTypeOf<ObjectRef<readonly [number, string | undefined]>>();
    expectTypeOf<Parameters<ReturnType<typeof inline>>>().toEqualTypeOf<[a: RefOr<Map<string, number>>, b?: RefOr<string | undefined>]>();
  });
});
