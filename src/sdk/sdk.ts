/**
 * The public face for drivers: `connect()` and the cluster it returns. It composes bundling, the client core and a transport, and holds
 * no policy: what may be done is decided by the raylet, and a refusal is an error of the ref that was asked for.
 */
import { createHash } from 'node:crypto';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BulkheadError } from '../base/errors.ts';
import { FrameReader, FrameWriter, OP } from '../base/frame.ts';
import { objectIdFromText, SESSION_PREFIX_BYTES } from '../base/ids.ts';
import { MAX_IDLE_MS } from '../base/limits.ts';
import { bundleModule, type Bundle } from './bundle.ts';
import { getValues, remoteClass, remoteFunction, remoteGenerator, waitFor, type ExportRef } from './calls.ts';
import { ClientCore } from './client-core.ts';
import { CLUSTER_CORES } from './cluster-cores.ts';
import { bundleFunction } from './inline-function.ts';
import type { ObjectRef } from './object-ref.ts';
import type { TaskOptions } from './options.ts';
import { foundGroup, placementGroup, type PlacementBundle, type PlacementGroup, type PlacementGroupOptions } from './placement-group.ts';
import { pythonExport } from './python-name.ts';
import { remoteError } from './remote-error.ts';
import type { ActorHandle, AnyClass, AnyFunction, GetOptions, RemoteClass, RemoteFunction, RemoteFunctionOf, RemoteGenerator, RemoteModule, Streamed, ValuesOf, WaitOptions, WaitResult } from './remote-types.ts';
import type { Tracer, TraceOptions } from './tracing.ts';
import type { Connection, ConnectTarget, Transport } from './transport.ts';

export { BulkheadError, type ErrorCode } from '../base/errors.ts';
export { ArrowTable, NdArray, type TypedArray } from '../base/neutral-data.ts';
export { ObjectRef } from './object-ref.ts';
export type { ObjectStream } from './object-stream.ts';
export type { ActorOptions, MethodOptions, TaskOptions } from './options.ts';
export type { PlacementBundle, PlacementGroup, PlacementGroupOptions } from './placement-group.ts';
export type { ActorHandle, GetOptions, RefOr, RemoteClass, RemoteFunction, RemoteGenerator, RemoteMethod, RemoteModule, RemoteStreamMethod, WaitOptions, WaitResult } from './remote-types.ts';
export type { TraceOptions } from './tracing.ts';
export type { Connection, Transport, TransportHandlers } from './transport.ts';

/** A full writer is sent at once; until then one microtask gathers what a turn writes. */
const FLUSH_BYTES = 256 * 1024;
/** Small values stay with their refs; a program that reads one object often reads its own memory. */
const KEPT_VALUE_BYTES = 16 * 1024;
/** Beyond what V8 lets buffers grow by without a collection. */
const COLLECT_BYTES = 128 * 2 ** 20;
const WELCOME_TIMEOUT_MS = 30_000;
const MAX_WELCOME_BYTES = 1 << 20;

export interface ConnectOptions {
  /** Directory of the profile; default: BULKHEAD_PROFILE, then ~/.bulkhead/default. */
  readonly profile?: string | undefined;
  /** `host:port`, instead of the profile's. */
  readonly address?: string | undefined;
  /** An existing job to join; default: a job of its own. */
  readonly job?: string | undefined;
  /** Project of the tenant whose quotas the job counts against; default: BULKHEAD_PROJECT, then the project `default`. The tenant's administrator makes projects. */
  readonly project?: string | undefined;
  /** End the session when the program has asked for nothing for so long and nothing of it is under way; default: no end, but for the tenant's quota `idle`. */
  readonly idleTimeoutMs?: number | undefined;
  /** How to reach the raylet; default: gRPC over mTLS as the profile says. */
  readonly transport?: Transport | undefined;
  /** Traces every call of this driver, and what those call, as OpenTelemetry spans; default: nothing is traced. Needs the right `task.list`. */
  readonly trace?: TraceOptions | undefined;
}

interface Welcome {
  readonly prefix: Uint8Array;
  readonly info: { readonly job?: string; readonly node?: string; readonly tenant?: string };
}

type SharedTaskOptions = TaskOptions;
type Inferred<F, O> = F extends (...args: infer A) => infer R ? ([Streamed<R>] extends [never] ? RemoteFunction<A, Awaited<R>, O> : RemoteGenerator<A, Streamed<R>>) : never;

export class Cluster implements AsyncDisposable {
  readonly #core: ClientCore;
  readonly #close: () => Promise<void>;
  readonly #modules = new Map<string, Promise<Bundle>>();
  readonly #welcome: Welcome;

  /** Made by `connect()`. */
  constructor(core: ClientCore, welcome: Welcome, close: () => Promise<void>) {
    this.#core = core;
    this.#welcome = welcome;
    this.#close = close;
    CLUSTER_CORES.set(this, core);
  }

  get jobId(): string {
    return this.#welcome.info.job ?? '';
  }

  get nodeId(): string {
    return this.#welcome.info.node ?? '';
  }

  get tenant(): string {
    return this.#welcome.info.tenant ?? '';
  }

  /**
   * Bundles a module with its dependencies; its functions become tasks and its classes actors. A relative path is relative to the file that
   * calls this; `new URL('./x.ts', import.meta.url)` says the same without looking at the stack.
   */
  async module<M>(file: string | URL): Promise<RemoteModule<M>> {
    const path = file instanceof URL ? fileURLToPath(file) : /^file:/.test(file) ? fileURLToPath(new URL(file)) : resolve(callerDirectory(new Error().stack), file);
    let bundling = this.#modules.get(path);
    if (bundling === undefined) {
      bundling = bundleModule(path);
      this.#modules.set(path, bundling);
      bundling.catch(() => this.#modules.delete(path));
    }
    const bundle = await bundling;
    const module: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
    for (const [name, kind] of bundle.exports) {
      const of = this.#export(bundle, name);
      if (kind === 'class') module[name] = Object.freeze(remoteClass(this.#core, of));
      else if (kind === 'function') module[name] = remoteFunction(this.#core, of);
      else if (kind === 'generator') module[name] = remoteGenerator(this.#core, of);
      else if (kind === 'unknown') module[name] = Object.assign(remoteFunction(this.#core, of), { create: remoteClass(this.#core, of).create });
    }
    return new Proxy(Object.freeze(module), {
      get(target, key) {
        if (typeof key === 'symbol' || key === 'then' || key in target) return target[key as string];
        const kind = bundle.exports.get(key);
        throw new BulkheadError('INVALID_ARGUMENT', kind === undefined ? `the module exports no '${key.slice(0, 100)}'; it exports ${Object.keys(target).join(', ')}` : `the export '${key}' is a ${kind}, neither a function nor a class`);
      },
    }) as RemoteModule<M>;
  }

  #export(bundle: Bundle, exportName: string): ExportRef {
    return { digest: bundle.digest, exportName, streams: bundle.streams.get(exportName), ready: () => this.#core.sendCode(bundle.digest, bundle.source) };
  }

  /** An inline function as a task. It must not use anything around it: a free variable is refused, by name. */
  task<F extends AnyFunction, const O extends SharedTaskOptions = Record<never, never>>(fn: F, options?: O): Inferred<F, O> {
    const bundle = bundleFunction(fn);
    const remote = bundle.exports.get('default') === 'generator' ? remoteGenerator : remoteFunction;
    return remote(this.#core, this.#export(bundle, 'default'), options) as unknown as Inferred<F, O>;
  }

  /**
   * A Python function by its name, `package.module:function`, as a task: nodes import it from the environment of their interpreter. Arguments and
   * results are plain values (docs/python.md): numpy arrays are typed arrays or `NdArray`, Arrow tables `ArrowTable`, dicts objects or Maps.
   */
  python<F extends AnyFunction = (...args: unknown[]) => unknown>(name: string, options?: TaskOptions): RemoteFunctionOf<F> {
    return remoteFunction(this.#core, pythonExport(this.#core, name, sha256), options) as unknown as RemoteFunctionOf<F>;
  }

  /** A Python class by its name, `package.module:Class`, for actors. */
  pythonClass<C extends AnyClass = new (...args: unknown[]) => Record<string, AnyFunction>>(name: string): RemoteClass<C> {
    return Object.freeze(remoteClass(this.#core, pythonExport(this.#core, name, sha256))) as unknown as RemoteClass<C>;
  }

  get<T>(ref: ObjectRef<T>, options?: GetOptions): Promise<T>;
  get<const R extends readonly ObjectRef[]>(refs: R, options?: GetOptions): Promise<ValuesOf<R>>;
  async get(refs: ObjectRef | readonly ObjectRef[], options?: GetOptions): Promise<unknown> {
    return getValues(this.#core, refs, options);
  }

  async put<T>(value: T): Promise<ObjectRef<T>> {
    return (await this.#core.put(value)) as ObjectRef<T>;
  }

  async wait<R extends ObjectRef>(refs: readonly R[], options?: WaitOptions): Promise<WaitResult<R>> {
    return waitFor(this.#core, refs, options);
  }

  /** Stops the task behind a ref; `force` also when it is in the middle of running. Resolves when the raylet has taken note. */
  async cancel(ref: ObjectRef, options: { readonly force?: boolean } = {}): Promise<void> {
    await this.#core.cancel(ref, options.force === true);
  }

  /** Ends an actor for good; with `noRestart: false` it starts again if its `maxRestarts` allows. */
  async kill(actor: { readonly id: string }, options: { readonly noRestart?: boolean } = {}): Promise<void> {
    await this.#core.kill(actor, options.noRestart === false);
  }

  /** A handle to a named actor. */
  async actor<T = Record<string, AnyFunction>>(name: string): Promise<ActorHandle<T>> {
    return (await this.#core.lookupActor(name)) as ActorHandle<T>;
  }

  /** Reserves resources together, all of them or none: `group.ready()` has its value when they are. Tasks and actors run in it by the options `placementGroup` and `bundleIndex`. */
  placementGroup(bundles: readonly PlacementBundle[], options?: PlacementGroupOptions): PlacementGroup {
    return placementGroup(this.#core, bundles, options);
  }

  /** A named placement group of the tenant's. */
  async getPlacementGroup(name: string): Promise<PlacementGroup> {
    return foundGroup(this.#core, await this.#core.lookupGroup(name));
  }

  /** A ref from its id as text. Whether it may be used is decided when it is. */
  ref<T = unknown>(id: string): ObjectRef<T> {
    return this.#core.refFrom(objectIdFromText(id)) as ObjectRef<T>;
  }

  /** Gives a ref up before it is collected: its object may be freed. */
  release(ref: ObjectRef): void {
    this.#core.release(ref);
  }

  async close(): Promise<void> {
    await this.#close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
  }
}

/** Directory of the first stack frame outside the SDK; the main program's where there is none. */
function callerDirectory(stack: string | undefined): string {
  const here = dirname(fileURLToPath(import.meta.url));
  for (const line of (stack ?? '').split('\n').slice(1)) {
    const found = /\(?((?:file:\/\/)?\/[^()]*?):\d+:\d+\)?$/.exec(line.trim())?.[1];
    if (found === undefined) continue;
    const path = found.startsWith('file:') ? fileURLToPath(found) : found;
    if (dirname(path) !== here) return dirname(path);
  }
  return process.argv[1] === undefined ? process.cwd() : dirname(resolve(process.argv[1]));
}

function sha256(octets: Uint8Array): Uint8Array {
  return createHash('sha256').update(octets).digest();
}

/** Loaded on demand: a program that brings its own transport needs no gRPC. */
/** Not zeroed: that costs as much as receiving what is to be written over it. */
function allocate(bytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer as ArrayBuffer);
}

/**
 * Node has no call for it that a library may use. What V8 counts besides its own heap is memory of buffers: one that is never touched costs no page, and makes it
 * start the collection that it would start for a real one of that size.
 */
function collect(): void {
  try {
    void new ArrayBuffer(COLLECT_BYTES);
  } catch {
    // No room for it: then it collects anyway.
  }
}

async function defaultTransport(target: ConnectTarget): Promise<Transport> {
  const { grpcTransport } = await import('./grpc-transport.ts');
  return grpcTransport(target);
}

/** Connects to the cluster of a profile. Throws UNAVAILABLE, UNAUTHENTICATED or DENIED, saying what to do. */
export async function connect(options: ConnectOptions = {}): Promise<Cluster> {
  const { profile, address, job, project, idleTimeoutMs } = options;
  if (idleTimeoutMs !== undefined && !(Number.isSafeInteger(idleTimeoutMs) && idleTimeoutMs >= 1 && idleTimeoutMs <= MAX_IDLE_MS)) throw new BulkheadError('INVALID_ARGUMENT', `idleTimeoutMs ${idleTimeoutMs} must be a whole number of milliseconds from 1 to ${MAX_IDLE_MS}`);
  const transport = options.transport ?? (await defaultTransport({ profile, address, job, project }));
  const writer = new FrameWriter();
  const reader = new FrameReader();
  const tracer: Tracer | undefined = options.trace === undefined ? undefined : (await import('./tracing.ts')).openTracer(options.trace);
  let core: ClientCore | undefined;
  let connection: Connection | undefined;
  let sending: Promise<void> | undefined;
  let scheduled = false;
  let closing: Promise<void> | undefined;
  const welcomed = Promise.withResolvers<Welcome>();
  welcomed.promise.catch(() => undefined);

  const lost = (error?: Error): void => {
    const shown = error instanceof BulkheadError ? error : new BulkheadError('UNAVAILABLE', error === undefined ? 'the connection to the cluster is closed' : 'the connection to the cluster was lost', { cause: error });
    welcomed.reject(shown);
    core?.close(shown);
  };
  const flush = (): void => {
    core?.writeReleases();
    if (writer.length > 0) sendBehind(undefined);
  };
  /** Batches in order while the connection asks to wait: what is in them is the program's own, so that nothing is refused for being large. */
  const queued: { readonly batch: Uint8Array<ArrayBuffer>; readonly tail: Uint8Array | undefined }[] = [];
  const sendBehind = (tail: Uint8Array | undefined): void => {
    if (connection === undefined) return;
    queued.push({ batch: writer.takeView(), tail });
    sending ??= drain();
  };
  const drain = (): Promise<void> | undefined => {
    for (let next = queued.shift(); next !== undefined; next = queued.shift()) {
      const wait = connection?.send(next.batch, next.tail);
      if (wait === undefined) continue;
      return wait.then(
        () => {
          sending = drain();
          return sending;
        },
        (error: unknown) => lost(error instanceof Error ? error : undefined),
      );
    }
    return undefined;
  };
  const touched = (): void => {
    if (writer.length >= FLUSH_BYTES) return flush();
    if (scheduled) return;
    scheduled = true;
    queueMicrotask(() => {
      scheduled = false;
      flush();
    });
  };
  const welcome = (frame: FrameReader): void => {
    const prefix = frame.raw(SESSION_PREFIX_BYTES).slice();
    const info = JSON.parse(frame.text(MAX_WELCOME_BYTES)) as Welcome['info'];
    frame.finish();
    core = new ClientCore({
      sessionPrefix: prefix, writer, touched, parent: () => 0, drained: () => sending, sendTail: sendBehind, keptValueBytes: KEPT_VALUE_BYTES, allocate, collect, collects: FinalizationRegistry,
      ...(tracer === undefined ? {} : { traceparent: () => tracer.traceparent, submitted: (seq: number) => tracer.submitted(seq) }),
      timers: { set: (ms, fire) => setTimeout(fire, ms), clear: (timer) => clearTimeout(timer as NodeJS.Timeout) },
      onRejected: (error) => process.emitWarning(error.safeMessage, 'BulkheadRejected', error.code),
    });
    if (idleTimeoutMs !== undefined) core.idleLimit(idleTimeoutMs);
    welcomed.resolve({ prefix, info });
  };
  const credentialRefused = (frame: FrameReader): void => {
    const error = remoteError(frame.str(), frame.text(MAX_WELCOME_BYTES));
    frame.finish();
    connection?.credentialRefused?.(error);
  };
  const refused = (frame: FrameReader): void => {
    frame.u32();
    welcomed.reject(remoteError(frame.str(), frame.text(MAX_WELCOME_BYTES)));
  };

  connection = await transport.open({
    batch(batch) {
      try {
        reader.reset(batch);
        while (reader.next()) {
          if (core !== undefined) {
            if (reader.op === OP.CREDENTIAL_REFUSED) credentialRefused(reader);
            else if (!core.receive(reader)) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame (op 0x${reader.op.toString(16)}): not for a driver`);
          } else if (reader.op === OP.WELCOME) welcome(reader);
          else if (reader.op === OP.FAILED) refused(reader);
          else throw new BulkheadError('INVALID_ARGUMENT', 'malformed frame: the cluster did not say welcome first');
        }
      } catch (thrown) {
        lost(thrown instanceof Error ? thrown : undefined);
        void connection?.close();
      }
    },
    large: (head, length) => core?.place(head, length),
    closed: lost,
  });
  const opened = connection;
  const timer = setTimeout(() => welcomed.reject(new BulkheadError('UNAVAILABLE', `the cluster accepted the connection but did not answer within ${WELCOME_TIMEOUT_MS / 1000} s`)), WELCOME_TIMEOUT_MS);
  try {
    const said = await welcomed.promise;
    tracer?.start(opened, said.prefix, said.info.job ?? '', said.info.tenant ?? '');
    const close = (): Promise<void> =>
      (closing ??= (async () => {
        flush();
        await sending;
        await tracer?.finish();
        core?.close(new BulkheadError('UNAVAILABLE', 'the connection to the cluster is closed'));
        await opened.close();
      })());
    return new Cluster(core as unknown as ClientCore, said, close);
  } catch (thrown) {
    await opened.close();
    throw thrown;
  } finally {
    clearTimeout(timer);
  }
}
