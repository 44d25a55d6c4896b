/**
 * The trusted prelude of an isolate: `install(emit, config)` builds the globals that tenant code gets, freezes the language under them
 * and returns the host's way in. It runs once, before any tenant code, and keeps `emit` to itself.
 */
import { BulkheadError } from '../../../base/errors.ts';
import { SESSION_PREFIX_BYTES } from '../../../base/ids.ts';
import { ArrowTable, NdArray } from '../../../base/neutral-data.ts';
import { decodeValue, encodeValue } from '../../../base/value.ts';
import { getValues, remoteClass, remoteFunction, remoteGenerator, waitFor } from '../../../sdk/calls.ts';
import { ObjectRef } from '../../../sdk/object-ref.ts';
import { foundGroup, placementGroup, type PlacementBundle, type PlacementGroupOptions } from '../../../sdk/placement-group.ts';
import { pythonExport } from '../../../sdk/python-name.ts';
import { RUNTIME_GLOBAL } from '../../../sdk/runtime.ts';
import type { ActorOptions, TaskOptions } from '../../../sdk/options.ts';
import type { GetOptions, WaitOptions } from '../../../sdk/remote-types.ts';
import { abortApi, DOMException, Event, EventTarget } from './abort.ts';
import { Executor, isGeneratorFunction, type Emit } from './executor.ts';
import { harden } from './harden.ts';
import { format, inspect } from './inspect.ts';
import { sha256 } from './sha2.ts';
import { atob, btoa, TextDecoder, TextEncoder } from './text-codecs.ts';
import { URL, URLSearchParams } from './url.ts';
import { webCrypto } from './web-crypto.ts';

export interface GuestConfig {
  /** 20 octets, as numbers or hex digits. */
  readonly sessionPrefix: readonly number[] | string;
  /** 32 random octets, as numbers or hex digits; without them `crypto` has no randomness and says so. */
  readonly seed?: readonly number[] | string;
}

/** What the host may call. Nothing that tenant code made is returned or thrown. */
export interface Guest {
  deliver(batch: ArrayBuffer): ArrayBuffer | undefined;
  attach(attachment: number, bytes: ArrayBuffer): void;
  fireTimer(id: number): void;
  load(codeNumber: number, factory: () => unknown): void;
}

function octets(value: readonly number[] | string, length: number): Uint8Array {
  const bytes = typeof value === 'string' ? Uint8Array.from({ length: value.length / 2 }, (_, i) => Number.parseInt(value.slice(2 * i, 2 * i + 2), 16)) : Uint8Array.from(value);
  if (bytes.length !== length) throw new BulkheadError('INVALID_ARGUMENT', `the configuration of the prelude needs ${length} octets where it has ${bytes.length}`);
  return bytes;
}

export interface InstallOptions {
  /** Where the globals go; the test harness gives an object of its own. */
  readonly global: Record<string, unknown>;
  /** Freeze the language's objects and stop the clock: always in an isolate, never in a test's own realm. */
  readonly isolated: boolean;
}

export function installInto(options: InstallOptions, emit: Emit, configText: string): Guest {
  const { global } = options;
  const config = JSON.parse(configText) as GuestConfig;
  const realNow = Date.now;
  const startedAt = realNow();
  let turnNow = startedAt;
  const resolved = Promise.resolve();
  const then = Promise.prototype.then;
  const microtask = (run: () => void): void => void Reflect.apply(then, resolved, [run]);
  const executor = new Executor({
    emit, sessionPrefix: octets(config.sessionPrefix, SESSION_PREFIX_BYTES), now: realNow, queueMicrotask: microtask,
    collects: typeof FinalizationRegistry === 'undefined' ? undefined : FinalizationRegistry,
    entered: () => {
      turnNow = realNow();
    },
  });
  const { core } = executor;

  const define = (name: string, value: unknown): void => {
    Object.defineProperty(global, name, { value, writable: true, configurable: true, enumerable: false });
  };
  const callback = (run: unknown, what: string): (() => void) => {
    if (typeof run !== 'function') throw new TypeError(`${what} takes a function`);
    return run as () => void;
  };

  const log = (stream: 1 | 2) => (...args: unknown[]): void => executor.log(stream, format(args));
  const [stdout, stderr] = [log(1), log(2)];
  define('console', {
    log: stdout, info: stdout, debug: stdout, dir: (value: unknown) => executor.log(1, inspect(value)), warn: stderr, error: stderr,
    trace: (...args: unknown[]) => executor.log(2, `Trace: ${format(args)}`),
    assert: (condition: unknown, ...args: unknown[]) => {
      if (!condition) executor.log(2, `Assertion failed${args.length === 0 ? '' : `: ${format(args)}`}`);
    },
  });
  const timer = (name: string, repeats: boolean) => (run: unknown, ms?: unknown, ...args: unknown[]): number => {
    const call = callback(run, name) as (...args: unknown[]) => void;
    return executor.setTimer(() => call(...args), Number(ms ?? 0), repeats);
  };
  const clear = (id: unknown): void => executor.clearTimer(Number(id));
  define('setTimeout', timer('setTimeout', false));
  define('setInterval', timer('setInterval', true));
  define('clearTimeout', clear);
  define('clearInterval', clear);
  define('queueMicrotask', (run: unknown) => microtask(executor.bind(callback(run, 'queueMicrotask'))));
  define('TextEncoder', TextEncoder);
  define('TextDecoder', TextDecoder);
  define('URL', URL);
  define('URLSearchParams', URLSearchParams);
  define('atob', atob);
  define('btoa', btoa);
  define('structuredClone', (value: unknown, cloneOptions?: { transfer?: readonly ArrayBuffer[] }) => {
    const copy = decodeValue(encodeValue(value, core.hooks).bytes, core.hooks);
    for (const buffer of cloneOptions?.transfer ?? []) buffer.transfer();
    return copy;
  });
  const { AbortController, AbortSignal } = abortApi((fire, ms) => executor.setTimer(fire, ms, false));
  for (const [name, value] of Object.entries({ AbortController, AbortSignal, DOMException, Event, EventTarget })) define(name, value);
  define('crypto', webCrypto(config.seed === undefined ? undefined : octets(config.seed, 32)));
  define('performance', Object.freeze({ now: () => turnNow - startedAt, timeOrigin: startedAt }));
  if (options.isolated) define('Date', standingDate(() => turnNow));

  const notExported = (what: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `${what} inside a task takes what its own module exports: add 'export', so that other isolates can find it`);
  };
  /** A failed call that nobody awaits is nobody's error; V8 would report it to the host as one of the isolate. */
  const quiet = <T>(promise: Promise<T>): Promise<T> => {
    void Reflect.apply(then, promise, [undefined, () => undefined]);
    return promise;
  };
  const runtime = {
    task: (fn: unknown, taskOptions?: TaskOptions) => (isGeneratorFunction(fn) ? remoteGenerator : remoteFunction)(core, executor.exportOf(fn) ?? notExported('task(fn)'), taskOptions),
    actor: (of: unknown, actorOptions?: ActorOptions) => (typeof of === 'string' ? quiet(core.lookupActor(of)) : remoteClass(core, executor.exportOf(of) ?? notExported('actor(Class)'), actorOptions)),
    python: (name: string, taskOptions?: TaskOptions) => remoteFunction(core, pythonExport(core, name, sha256), taskOptions),
    pythonClass: (name: string) => remoteClass(core, pythonExport(core, name, sha256)),
    put: (value: unknown) => quiet(core.put(value)),
    get: (refs: ObjectRef | readonly ObjectRef[], getOptions?: GetOptions) => quiet(getValues(core, refs, getOptions)),
    wait: (refs: readonly ObjectRef[], waitOptions?: WaitOptions) => quiet(waitFor(core, refs, waitOptions)),
    cancel: (ref: ObjectRef, cancelOptions?: { force?: boolean }) => quiet(core.cancel(ref, cancelOptions?.force === true)),
    kill: (handle: object, killOptions?: { noRestart?: boolean }) => quiet(core.kill(handle, killOptions?.noRestart === false)),
    placementGroup: (bundles: readonly PlacementBundle[], groupOptions?: PlacementGroupOptions) => placementGroup(core, bundles, groupOptions),
    getPlacementGroup: (name: string) => quiet(core.lookupGroup(name).then((found) => foundGroup(core, found))),
    exitActor: () => executor.exitActor(),
    context: () => executor.context(),
    BulkheadError, NdArray, ArrowTable,
  };
  Object.defineProperty(global, RUNTIME_GLOBAL, { value: Object.freeze(runtime), writable: false, configurable: false, enumerable: false });
  if (options.isolated) {
    harden(global);
    for (const shared of [BulkheadError, ObjectRef, NdArray, ArrowTable]) {
      Object.freeze(shared);
      Object.freeze(shared.prototype);
    }
  }

  return Object.freeze({
    deliver: (batch: ArrayBuffer) => executor.deliver(batch),
    attach: (attachment: number, bytes: ArrayBuffer) => executor.attach(attachment, bytes),
    fireTimer: (id: number) => executor.fireTimer(id),
    load: (codeNumber: number, factory: () => unknown) => executor.load(codeNumber, factory),
  });
}

/** `Date` whose now stands still until the host enters again: no clock to measure other tenants by. */
function standingDate(now: () => number): DateConstructor {
  const Real = Date;
  function Standing(this: unknown, ...args: unknown[]): unknown {
    if (new.target === undefined) return new Real(now()).toString();
    return Reflect.construct(Real, args.length === 0 ? [now()] : args, new.target);
  }
  Object.defineProperties(Standing, {
    name: { value: 'Date' }, length: { value: 7 }, prototype: { value: Real.prototype, writable: false }, now: { value: () => now(), configurable: true, writable: true },
    parse: { value: Real.parse, configurable: true, writable: true }, UTC: { value: Real.UTC, configurable: true, writable: true },
  });
  Object.defineProperty(Real.prototype, 'constructor', { value: Standing, writable: true, configurable: true, enumerable: false });
  return Standing as unknown as DateConstructor;
}

export function install(emit: Emit, config: string): Guest {
  return installInto({ global: globalThis as unknown as Record<string, unknown>, isolated: true }, emit, config);
}
