/** Types of the public face: how a module's functions and classes look from the other side of the cluster. No code. */
import type { ActorOptions, MethodOptions, TaskOptions } from './options.ts';
import type { ObjectRef } from './object-ref.ts';
import type { ObjectStream } from './object-stream.ts';

/** An argument: the value, or a ref to it that resolves before the call. */
export type RefOr<T> = T | ObjectRef<T>;
type RefOrAll<A extends readonly unknown[]> = { [K in keyof A]: RefOr<A[K]> };

// The only `any`s are in the constraints of inference, where `unknown` would refuse every function.
// oxlint-disable-next-line typescript/no-explicit-any
export type AnyFunction = (...args: any[]) => unknown;
// oxlint-disable-next-line typescript/no-explicit-any
export type AnyClass = abstract new (...args: any[]) => object;

/** What a generator yields; never for what is none. */
export type Streamed<R> = [R] extends [never] ? never : [R] extends [Generator<infer T, unknown, never> | AsyncGenerator<infer T, unknown, never>] ? Awaited<T> : never;
/** What there is to iterate in what a function returns. */
type Iterated<R> = R extends AsyncIterable<infer T> | Iterable<infer T> ? Awaited<T> : unknown;

type Result<R, O> = O extends { readonly returns: infer N }
  ? N extends 'streaming'
    ? ObjectStream<Iterated<R>>
    : N extends 1
    ? ObjectRef<R>
    : R extends readonly unknown[]
      ? { -readonly [K in keyof R]: ObjectRef<R[K]> }
      : ObjectRef<unknown>[]
  : ObjectRef<R>;

/** A function that runs as a task; `options` returns the same function with other options. */
export interface RemoteFunction<A extends readonly unknown[], R, O = unknown> {
  (...args: RefOrAll<A>): Result<R, O>;
  options<const P extends TaskOptions>(options: P): RemoteFunction<A, R, P>;
}

export interface RemoteMethod<A extends readonly unknown[], R, O = unknown> {
  (...args: RefOrAll<A>): Result<R, O>;
  options<const P extends MethodOptions>(options: P): RemoteMethod<A, R, P>;
}

/** A generator function: each value it yields is an object of its own and comes while it goes on, `for await (const ref of module.chunks(data))`. */
export interface RemoteGenerator<A extends readonly unknown[], T> {
  (...args: RefOrAll<A>): ObjectStream<T>;
  options(options: Omit<TaskOptions, 'returns'>): RemoteGenerator<A, T>;
}

/** A method that is a generator. */
export interface RemoteStreamMethod<A extends readonly unknown[], T> {
  (...args: RefOrAll<A>): ObjectStream<T>;
  options(options: Omit<MethodOptions, 'returns'>): RemoteStreamMethod<A, T>;
}

export type RemoteFunctionOf<F> = F extends (...args: infer A) => infer R
  ? [R] extends [never]
    ? RemoteFunction<A, never>
    : [Streamed<R>] extends [never]
      ? RemoteFunction<A, Awaited<R>>
      : RemoteGenerator<A, Streamed<R>>
  : never;

/** A handle's methods are calls: each returns a ref at once, in the order they were made. */
export type ActorHandle<T> = {
  readonly [K in keyof T as T[K] extends AnyFunction ? K : never]: T[K] extends (...args: infer A) => infer R ? ([Streamed<R>] extends [never] ? RemoteMethod<A, Awaited<R>> : RemoteStreamMethod<A, Streamed<R>>) : never;
} & {
  /** The actor's id as text. */
  readonly id: string;
};

export interface RemoteClass<C extends AnyClass> {
  create(...args: C extends abstract new (...args: infer A) => object ? RefOrAll<A> : never): Promise<ActorHandle<InstanceType<C>>>;
  options(options: ActorOptions): RemoteClass<C>;
}

export type RemoteModule<M> = {
  readonly [K in keyof M as M[K] extends AnyFunction | AnyClass ? K : never]: M[K] extends AnyClass ? RemoteClass<M[K]> : RemoteFunctionOf<M[K]>;
};

/** What `get` of several refs resolves to. */
export type ValuesOf<R extends readonly unknown[]> = { -readonly [K in keyof R]: R[K] extends ObjectRef<infer T> ? T : never };

export interface WaitResult<R extends ObjectRef = ObjectRef> {
  readonly ready: R[];
  readonly pending: R[];
}

export interface GetOptions {
  /** Then TIMEOUT; the computation goes on. */
  readonly timeoutMs?: number | undefined;
}

export interface WaitOptions {
  /** How many must be ready; default 1. */
  readonly count?: number | undefined;
  /** Then what is ready so far; default: no limit. 0 looks without waiting. */
  readonly timeoutMs?: number | undefined;
}
