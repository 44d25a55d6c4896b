/**
 * Actor handles: objects whose every method is a call to the actor. Runs in drivers and in isolates. A handle knows the class it was
 * made from (code digest and export), so that it can define methods on any channel it is passed to. Must never answer to `then`.
 */
import { BulkheadError } from '../base/errors.ts';
import { CALL_KIND } from '../base/frame.ts';
import { objectIdText } from '../base/ids.ts';
import type { WireRef } from '../base/value.ts';
import type { ObjectRef } from './object-ref.ts';
import type { ObjectStream, StreamWindow } from './object-stream.ts';
import { methodOptions, type MethodOptions } from './options.ts';

export interface ClassInfo {
  /** 64 hex digits. */
  readonly digest: string;
  readonly exportName: string;
  /** Methods that are generators: what they yield is streamed. */
  readonly streams: readonly string[];
}

/** The part of ClientCore that handles need. */
export interface ActorCaller {
  template(template: { kind: typeof CALL_KIND.ACTOR_METHOD; digest: string; exportName: string; method: string; options: string; returns: number }): number;
  callActor(actor: Uint8Array, template: number, returns: number, args: readonly unknown[]): ObjectRef | ObjectRef[];
  callActorStream(actor: Uint8Array, template: number, window: StreamWindow, args: readonly unknown[]): ObjectStream;
}

interface Target {
  readonly id: Uint8Array;
  readonly info: ClassInfo;
  /** Reachable for as long as the handle or one of its methods is. */
  readonly lifetime: object | undefined;
}

class ActorHandleObject {}
const targets = new WeakMap<object, Target>();

type Method = ((...args: unknown[]) => ObjectRef | ObjectRef[] | ObjectStream) & { options(options: MethodOptions): Method };

function method(caller: ActorCaller, target: Target, name: string, options: MethodOptions | undefined): Method {
  const { json, returns, stream } = methodOptions(target.info.streams.includes(name) ? { returns: 'streaming', ...options } : options);
  let template = 0;
  const call = (...args: unknown[]): ObjectRef | ObjectRef[] | ObjectStream => {
    if (template === 0) template = caller.template({ kind: CALL_KIND.ACTOR_METHOD, digest: target.info.digest, exportName: target.info.exportName, method: name, options: json, returns });
    return stream === undefined ? caller.callActor(target.id, template, returns, args) : caller.callActorStream(target.id, template, stream, args);
  };
  return Object.assign(call, { options: (next: MethodOptions): Method => method(caller, target, name, { ...options, ...next }) });
}

export function actorHandle(caller: ActorCaller, id: Uint8Array, info: ClassInfo, lifetime: object | undefined): object {
  const target: Target = { id, info, lifetime };
  const methods = new Map<string, Method>();
  const refuse = (): never => {
    throw new BulkheadError('INVALID_ARGUMENT', "an actor handle has no state to change: call a method of the actor");
  };
  const handle = new Proxy(new ActorHandleObject(), {
    get(_, key) {
      if (typeof key === 'symbol' || key === 'then' || key === 'constructor') return undefined;
      if (key === 'id') return objectIdText(id);
      if (key === 'toJSON') return () => refuseJson();
      if (key === 'toString') return () => `ActorHandle(${info.exportName}, ${objectIdText(id)})`;
      let found = methods.get(key);
      if (found === undefined) methods.set(key, (found = method(caller, target, key, undefined)));
      return found;
    },
    set: refuse,
    defineProperty: refuse,
    deleteProperty: refuse,
    setPrototypeOf: refuse,
  });
  targets.set(handle, target);
  return handle;
}

function refuseJson(): never {
  throw new BulkheadError('INVALID_ARGUMENT', 'an actor handle does not become JSON: pass the handle itself as an argument, or give the actor a name');
}

/** Class info travels as JSON: `{ digest, export, streams? }`. */
function classInfoText({ digest, exportName, streams }: ClassInfo): string {
  return JSON.stringify(streams.length === 0 ? { digest, export: exportName } : { digest, export: exportName, streams });
}

/** The wire form of a real handle, undefined for anything else. */
export function describeActorHandle(value: unknown): WireRef | undefined {
  const target = typeof value === 'object' && value !== null ? targets.get(value) : undefined;
  return target === undefined ? undefined : { id: target.id, actor: classInfoText(target.info) };
}
