/**
 * A reference to an object of the cluster: a future value, or one that was put. Runs in drivers and in isolates. It has no
 * `then`, so that it never resolves by accident, and never becomes JSON: values are fetched with `get`, ids travel as text on purpose.
 */
import { BulkheadError } from '../base/errors.ts';
import { objectIdText, type ObjectIdText } from '../base/ids.ts';

declare const valueOfRef: unique symbol;

export class ObjectRef<T = unknown> {
  /** Type only. */
  declare readonly [valueOfRef]: T;
  readonly #id: Uint8Array;
  /** What the client knows of the object already: objects never change, so that it need not ask twice. */
  #known: { encoded: Uint8Array | undefined } | undefined = undefined;
  /** Never read: it lives as long as the ref does, and its end is what the client notices. */
  // oxlint-disable-next-line no-unused-private-class-members
  readonly #lifetime: object | undefined;

  /** @param id 24 octets that nobody else changes. */
  constructor(id: Uint8Array, lifetime?: object) {
    this.#id = id;
    this.#lifetime = lifetime;
  }

  /** The id as text, `obj-…`: for logs, the command line, and `cluster.ref(id)`. Having it grants nothing. */
  get id(): ObjectIdText {
    return objectIdText(this.#id);
  }

  toJSON(): never {
    throw new BulkheadError('INVALID_ARGUMENT', 'an ObjectRef does not become JSON: fetch its value with get(ref), pass the ref itself as an argument, or store ref.id');
  }

  toString(): string {
    return `ObjectRef(${this.id})`;
  }

  /** For the client that holds the ref: the object is ready, and this is its encoded value if that is small enough to keep. */
  static know(ref: ObjectRef, encoded: Uint8Array | undefined): void {
    if (ref.#known === undefined) ref.#known = { encoded };
    else ref.#known.encoded ??= encoded;
  }

  static forget(ref: ObjectRef): void {
    ref.#known = undefined;
  }

  static isReady(ref: ObjectRef): boolean {
    return ref.#known !== undefined;
  }

  static encodedOf(ref: ObjectRef): Uint8Array | undefined {
    return ref.#known?.encoded;
  }

  /** The id of a real ref, undefined for anything else; a look-alike does not pass. */
  static idOf(value: unknown): Uint8Array | undefined {
    return typeof value === 'object' && value !== null && #id in value ? value.#id : undefined;
  }
}
