/**
 * `bulkhead/runtime`: what code on the cluster calls. Inside an isolate the bundler resolves it to the object that the trusted prelude
 * keeps; elsewhere every call says so. Holds no state and no credential.
 */
import { BulkheadError } from '../base/errors.ts';
import type { ObjectRef } from './object-ref.ts';
import type { ActorOptions, TaskOptions } from './options.ts';
import type { PlacementBundle, PlacementGroup, PlacementGroupOptions } from './placement-group.ts';
import type { ActorHandle, AnyClass, AnyFunction, GetOptions, RemoteClass, RemoteFunctionOf, ValuesOf, WaitOptions, WaitResult } from './remote-types.ts';

export { BulkheadError, type ErrorCode } from '../base/errors.ts';
export { ArrowTable, NdArray, type TypedArray } from '../base/neutral-data.ts';
export type { ObjectRef } from './object-ref.ts';
export type { ActorHandle, RefOr, RemoteClass, RemoteFunction, RemoteFunctionOf, RemoteGenerator, RemoteMethod, RemoteStreamMethod } from './remote-types.ts';
export type { ObjectStream } from './object-stream.ts';
export type { ActorOptions, MethodOptions, TaskOptions } from './options.ts';
export type { PlacementBundle, PlacementGroup, PlacementGroupOptions } from './placement-group.ts';

/** Facts of the running call. Frozen. */
export interface RuntimeContext {
  /** Id of this call: that of its (first) ref at the caller. */
  readonly taskId: string;
  /** Id of the actor that the call is of, null in a task. */
  readonly actorId: string | null;
  readonly jobId: string;
  readonly nodeId: string;
  readonly tenant: string;
  /** SPIFFE ID of the job: what the calls made here act as. */
  readonly principal: string;
  /** Of the actor; '' in a task. */
  readonly namespace: string;
  /** Name of the function, or `Class.method`. */
  readonly name: string;
  /** 0 for the first try. */
  readonly attempt: number;
  /** What it holds: `cpus`, `memory` in bytes, custom ones by name. */
  readonly resources: Readonly<Record<string, number>>;
  /** W3C trace context, where the driver traces its calls: for what the code tells others. */
  readonly traceparent?: string;
  /** `sha256:…` of its bundle. */
  readonly code: string;
}

export interface Runtime {
  /** A function that its module exports, as a task. */
  task<F extends AnyFunction>(fn: F, options?: TaskOptions): RemoteFunctionOf<F>;
  /** A handle to a named actor, or an exported class as an actor class. */
  actor<T = Record<string, (...args: never[]) => unknown>>(name: string): Promise<ActorHandle<T>>;
  actor<C extends AnyClass>(actorClass: C, options?: ActorOptions): RemoteClass<C>;
  /** A Python function or class by its name, as in a driver. */
  python<F extends AnyFunction = (...args: unknown[]) => unknown>(name: string, options?: TaskOptions): RemoteFunctionOf<F>;
  pythonClass<C extends AnyClass = new (...args: unknown[]) => Record<string, AnyFunction>>(name: string): RemoteClass<C>;
  put<T>(value: T): Promise<ObjectRef<T>>;
  get<T>(ref: ObjectRef<T>, options?: GetOptions): Promise<T>;
  get<const R extends readonly ObjectRef[]>(refs: R, options?: GetOptions): Promise<ValuesOf<R>>;
  wait<R extends ObjectRef>(refs: readonly R[], options?: WaitOptions): Promise<WaitResult<R>>;
  cancel(ref: ObjectRef, options?: { readonly force?: boolean }): Promise<void>;
  kill(actor: { readonly id: string }, options?: { readonly noRestart?: boolean }): Promise<void>;
  /** As in a driver: resources that are reserved together. Bound to the job, unless it is detached. */
  placementGroup(bundles: readonly PlacementBundle[], options?: PlacementGroupOptions): PlacementGroup;
  getPlacementGroup(name: string): Promise<PlacementGroup>;
  /** Inside an actor: ends it, for good. Its calls under way and to come fail with ACTOR_DIED. Does not return. */
  exitActor(): never;
  context(): RuntimeContext;
}

/** The global under which the prelude keeps the runtime; it is frozen there. */
export const RUNTIME_GLOBAL = '__bulkhead_runtime';
/** What a bundle may import from `bulkhead/runtime`. */
export const RUNTIME_EXPORTS = ['task', 'actor', 'put', 'get', 'wait', 'cancel', 'kill', 'placementGroup', 'getPlacementGroup', 'exitActor', 'context', 'python', 'pythonClass', 'BulkheadError', 'NdArray', 'ArrowTable'] as const;

function runtime(): Runtime {
  const found = (globalThis as Record<string, unknown>)[RUNTIME_GLOBAL];
  if (found === undefined) throw new BulkheadError('UNAVAILABLE', "bulkhead/runtime works inside tasks and actors only: in a driver, use the cluster that connect() returns");
  return found as Runtime;
}

export const task: Runtime['task'] = (...args) => runtime().task(...args);
export const actor: Runtime['actor'] = ((...args: Parameters<Runtime['actor']>) => runtime().actor(...args)) as Runtime['actor'];
export const python: Runtime['python'] = (name, options) => runtime().python(name, options);
export const pythonClass: Runtime['pythonClass'] = (name) => runtime().pythonClass(name);
export const put: Runtime['put'] = (value) => runtime().put(value);
export const get: Runtime['get'] = ((...args: Parameters<Runtime['get']>) => runtime().get(...args)) as Runtime['get'];
export const wait: Runtime['wait'] = (refs, options) => runtime().wait(refs, options);
export const cancel: Runtime['cancel'] = (ref, options) => runtime().cancel(ref, options);
export const kill: Runtime['kill'] = (handle, options) => runtime().kill(handle, options);
export const placementGroup: Runtime['placementGroup'] = (bundles, options) => runtime().placementGroup(bundles, options);
export const getPlacementGroup: Runtime['getPlacementGroup'] = (name) => runtime().getPlacementGroup(name);
export const exitActor: Runtime['exitActor'] = () => runtime().exitActor();
export const context: Runtime['context'] = () => runtime().context();
