/**
 * What drivers and isolates offer alike over a client core: remote functions and classes, get and wait. One place, so that a program
 * means the same on both sides. ECMAScript only.
 */
import { BulkheadError } from '../base/errors.ts';
import { CALL_KIND } from '../base/frame.ts';
import { describeActorHandle, type ClassInfo } from './actor-handle.ts';
import type { ClientCore } from './client-core.ts';
import type { ObjectRef } from './object-ref.ts';
import type { ObjectStream } from './object-stream.ts';
import { actorOptions, taskOptions, type ActorOptions, type TaskOptions } from './options.ts';
import type { GetOptions, WaitOptions, WaitResult } from './remote-types.ts';

/** A function or class of a bundle. `ready` runs before its first use on a channel: it sends the code. */
export interface ExportRef {
  readonly digest: string;
  readonly exportName: string;
  /** Of a class: its methods that are generators. */
  readonly streams?: readonly string[] | undefined;
  readonly ready?: (() => void) | undefined;
  /** It is Python's, found by its name under whichever version a node has. */
  readonly python?: boolean;
}

export type AnyRemoteFunction = ((...args: unknown[]) => ObjectRef | ObjectRef[] | ObjectStream) & { options(options: TaskOptions): AnyRemoteFunction };

export function remoteFunction(core: ClientCore, of: ExportRef, options?: TaskOptions): AnyRemoteFunction {
  const { json, returns, stream, key } = taskOptions(options, of.python);
  let template = 0;
  const call = (...args: unknown[]): ObjectRef | ObjectRef[] | ObjectStream => {
    if (template === 0) {
      of.ready?.();
      template = core.template({ kind: CALL_KIND.TASK, digest: of.digest, exportName: of.exportName, method: '', options: json, returns });
    }
    return stream === undefined ? core.submit(template, returns, args, key) : core.submitStream(template, stream, args);
  };
  return Object.assign(call, { options: (next: TaskOptions): AnyRemoteFunction => remoteFunction(core, of, { ...options, ...next }) });
}

export type AnyRemoteGenerator = ((...args: unknown[]) => ObjectStream) & { options(options: TaskOptions): AnyRemoteGenerator };

/** A generator function as a task: what it yields arrives while it goes on. The call is made at once, whether or not anyone iterates. */
export function remoteGenerator(core: ClientCore, of: ExportRef, options?: TaskOptions): AnyRemoteGenerator {
  if (options?.returns !== undefined && options.returns !== 'streaming') throw new BulkheadError('INVALID_ARGUMENT', 'option returns does not go with a generator: it returns as many refs as it yields');
  const call = remoteFunction(core, of, { ...options, returns: 'streaming' }) as unknown as AnyRemoteGenerator;
  return Object.assign(call, { options: (next: TaskOptions): AnyRemoteGenerator => remoteGenerator(core, of, { ...options, ...next }) });
}

export interface AnyRemoteClass {
  create(...args: unknown[]): Promise<object>;
  options(options: ActorOptions): AnyRemoteClass;
}

export function remoteClass(core: ClientCore, of: ExportRef, options?: ActorOptions): AnyRemoteClass {
  const { json, returns } = actorOptions(options, of.streams, of.python);
  const info: ClassInfo = { digest: of.digest, exportName: of.exportName, streams: of.streams ?? [] };
  return {
    async create(...args) {
      of.ready?.();
      const template = core.template({ kind: CALL_KIND.ACTOR_CLASS, digest: of.digest, exportName: of.exportName, method: '', options: json, returns });
      const handle = core.createActor(template, info, args);
      if (options?.name === undefined) return handle;
      // A name belongs to one actor: asking who has it now tells whether this one was made, and with getIfExists which one to use.
      const found = await core.lookupActor(options.namespace === undefined ? options.name : `${options.namespace}/${options.name}`);
      const id = describeActorHandle(handle)?.id;
      const same = describeActorHandle(found)?.id.every((octet, i) => octet === id?.[i]) === true;
      // Its own handle keeps it alive; the one that was looked up does not.
      if (same) return handle;
      if (options.getIfExists !== true) {
        throw new BulkheadError('INVALID_ARGUMENT', `an actor named '${options.name}' exists already: use it with actor('${options.name}'), or create with getIfExists: true`);
      }
      return found;
    },
    options: (next) => remoteClass(core, of, { ...options, ...next }),
  };
}

/** `get(ref)` or `get([refs])`. */
export async function getValues(core: ClientCore, refs: ObjectRef | readonly ObjectRef[], options: GetOptions = {}): Promise<unknown> {
  if (Array.isArray(refs)) return core.get(refs as readonly ObjectRef[], options.timeoutMs);
  const [value] = await core.get([refs as ObjectRef], options.timeoutMs);
  return value;
}

export async function waitFor<R extends ObjectRef>(core: ClientCore, refs: readonly R[], options: WaitOptions = {}): Promise<WaitResult<R>> {
  const count = options.count ?? 1;
  // As in Ray: never more than were asked for, in the order of the refs.
  const positions = new Set((await core.wait(refs, count, options.timeoutMs)).slice(0, count));
  return { ready: refs.filter((_, i) => positions.has(i)), pending: refs.filter((_, i) => !positions.has(i)) };
}
