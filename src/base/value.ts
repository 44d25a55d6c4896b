/**
 * The value codec: CBOR (RFC 8949) for what structured clone carries. Runs in drivers and inside isolates, so it uses
 * ECMAScript only. Must never: run in a trusted process on tenant bytes, touch a prototype on behalf of a key, allocate
 * more than a small multiple of its input, or carry code. The profile (tags, what is refused) is docs/adr/0007-values-and-code.md.
 */
import { BulkheadError } from './errors.ts';
import { readUtf8 } from './frame.ts';
import { OBJECT_ID_BYTES, quote } from './ids.ts';
import { MAX_STACK_CHARS, MAX_VALUE_DEPTH } from './limits.ts';
import { ArrowTable, NdArray, type TypedArray } from './neutral-data.ts';

/** Standard tags, and ours from 0x4248 ("BH") in IANA's first-come range. */
const TAG = {
  EPOCH: 1, POSITIVE_BIGINT: 2, NEGATIVE_BIGINT: 3, SHARED: 28, REFERENCE: 29, REGEXP: 35, ROWS: 40, UINT8: 64, SET: 258, MAP: 259, COLUMNS: 1040,
  OBJECT_REF: 0x4248, ACTOR: 0x4249, ERROR: 0x424a, UTF16: 0x424b, ARRAY_BUFFER: 0x424c, DATA_VIEW: 0x424d, SPARSE: 0x424e, REGEXP_FLAGS: 0x424f,
  DATE_MS: 0x4250, ARROW: 0x4251,
  /** Python's pickles: named when they are refused. */
  PICKLE: 0x424b5059,
} as const;

type TypedArrayConstructor = { new (buffer: ArrayBuffer): ArrayBufferView; readonly prototype: object; readonly BYTES_PER_ELEMENT: number };
/** RFC 8746, little-endian. Uint8Array is a bare byte string (Python's `bytes`); tag 64 is read too. */
const TYPED_ARRAYS: readonly (readonly [name: string, tag: number])[] = [
  ['Uint8ClampedArray', 68], ['Uint16Array', 69], ['Uint32Array', 70], ['BigUint64Array', 71], ['Int8Array', 72], ['Int16Array', 77],
  ['Int32Array', 78], ['BigInt64Array', 79], ['Float16Array', 84], ['Float32Array', 85], ['Float64Array', 86],
];
const TYPED_ARRAY_TAG = new Map<string, number>(TYPED_ARRAYS);
const TYPED_ARRAY_BY_TAG = new Map<number, TypedArrayConstructor>();
for (const [name, tag] of TYPED_ARRAYS) {
  const constructor = (globalThis as unknown as Record<string, TypedArrayConstructor | undefined>)[name];
  if (constructor !== undefined) TYPED_ARRAY_BY_TAG.set(tag, constructor);
}
const ERROR_CONSTRUCTORS = new Map<string, ErrorConstructor>([
  ['Error', Error], ['TypeError', TypeError as ErrorConstructor], ['RangeError', RangeError as ErrorConstructor], ['SyntaxError', SyntaxError as ErrorConstructor],
  ['ReferenceError', ReferenceError as ErrorConstructor], ['EvalError', EvalError as ErrorConstructor], ['URIError', URIError as ErrorConstructor],
]);

/** Brand checks that own properties and fake prototypes cannot fool: the getters throw on anything that is not the real thing. */
function getterOf(prototype: object, key: PropertyKey): (self: unknown) => never {
  const get = Object.getOwnPropertyDescriptor(prototype, key)?.get as (this: unknown) => never;
  return (self) => Reflect.apply(get, self, []);
}
const typedArrayPrototype = Object.getPrototypeOf(Uint8Array.prototype) as object;
const viewName: (self: unknown) => string = getterOf(typedArrayPrototype, Symbol.toStringTag);
const viewBuffer: (self: unknown) => ArrayBuffer = getterOf(typedArrayPrototype, 'buffer');
const viewOffset: (self: unknown) => number = getterOf(typedArrayPrototype, 'byteOffset');
const viewBytes: (self: unknown) => number = getterOf(typedArrayPrototype, 'byteLength');
const dataViewBuffer: (self: unknown) => ArrayBuffer = getterOf(DataView.prototype, 'buffer');
const dataViewOffset: (self: unknown) => number = getterOf(DataView.prototype, 'byteOffset');
const dataViewBytes: (self: unknown) => number = getterOf(DataView.prototype, 'byteLength');
const arrayBufferBytes: (self: unknown) => number = getterOf(ArrayBuffer.prototype, 'byteLength');
const mapSize: (self: unknown) => number = getterOf(Map.prototype, 'size');
const setSize: (self: unknown) => number = getterOf(Set.prototype, 'size');
const regExpSource: (self: unknown) => string = getterOf(RegExp.prototype, 'source');
const regExpFlags: (self: unknown) => string = getterOf(RegExp.prototype, 'flags');
const { getPrototypeOf, hasOwn, keys: keysOf, is: sameValue, defineProperty } = Object;
const { isArray } = Array;
const isView = ArrayBuffer.isView;
const { forEach: mapForEach } = Map.prototype;
const { forEach: setForEach } = Set.prototype;
const dateTime = Date.prototype.getTime;
const ARRAY = Array.prototype as object;
const OBJECT = Object.prototype;

/** Hosts that have them decode and encode long text faster; isolates do not when the prelude loads. */
interface HostText {
  readonly TextDecoder?: new (label: string, options: { fatal: boolean; ignoreBOM: boolean }) => { decode(bytes: Uint8Array): string };
  readonly TextEncoder?: new () => { encodeInto(text: string, into: Uint8Array): { written: number } };
}
const host = globalThis as HostText;
const textDecoder = host.TextDecoder === undefined ? undefined : new host.TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const textEncoder = host.TextEncoder === undefined ? undefined : new host.TextEncoder();
/** Below this, calling the host costs more than it saves. */
const HOST_TEXT_FROM = 48;

/** What a ref or actor handle is on the wire. */
export interface WireRef {
  readonly id: Uint8Array;
  /** Class info (JSON) of an actor handle; undefined for an object ref. */
  readonly actor: string | undefined;
}

/** How a program represents refs and handles; without hooks they are refused in both directions. */
export interface RefHooks {
  describe(value: object): WireRef | undefined;
  ref(id: Uint8Array): unknown;
  actor(id: Uint8Array, info: string): unknown;
}

/** Thrown inside the encoder only; becomes INVALID_ARGUMENT with the path. */
class Refusal {
  readonly culprit: unknown;
  readonly why: string;

  constructor(culprit: unknown, why: string) {
    this.culprit = culprit;
    this.why = why;
  }
}

function describeInstance(value: object): string {
  let name = '';
  try {
    const constructor: unknown = (value as { constructor?: unknown }).constructor;
    if (typeof constructor === 'function' && typeof constructor.name === 'string') name = constructor.name;
  } catch {
    // A proxy or getter that throws stays nameless.
  }
  if (name === 'Promise') return 'is a Promise: await it first';
  if (name === 'WeakMap' || name === 'WeakSet' || name === 'WeakRef') return `is a ${name}: it cannot leave its program`;
  return name === '' ? 'is an object with an unknown prototype: pass a plain object' : `is an instance of class ${quote(name)}: pass a plain object, or keep it in an actor`;
}

/** Where `culprit` sits under `root`, for an error message; does not run getters. */
function pathTo(root: unknown, culprit: unknown, rootName: string): string {
  const visited = new Set<object>();
  let budget = 50_000;
  const walk = (value: unknown, path: string, depth: number): string | undefined => {
    if (sameValue(value, culprit)) return path;
    if (typeof value !== 'object' || value === null || depth > MAX_VALUE_DEPTH || visited.has(value) || --budget < 0) return undefined;
    visited.add(value);
    const step = (child: unknown, at: string): string | undefined => walk(child, path + at, depth + 1);
    if (value instanceof Map || value instanceof Set) {
      let i = 0;
      for (const entry of value instanceof Map ? value.entries() : value.values()) {
        const found = value instanceof Map ? (step((entry as [unknown, unknown])[0], `.keys()[${i}]`) ?? step((entry as [unknown, unknown])[1], `.values()[${i}]`)) : step(entry, `.values()[${i}]`);
        if (found !== undefined) return found;
        i++;
      }
      return undefined;
    }
    for (const key of value instanceof Error ? ['cause'] : keysOf(value)) {
      const property = Object.getOwnPropertyDescriptor(value, key);
      if (property === undefined || !('value' in property)) continue;
      const found = step(property.value, isArray(value) ? `[${key}]` : /^[A-Za-z_$][\w$]*$/.test(key) ? `.${key}` : `[${quote(key)}]`);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  try {
    return walk(root, rootName, 0) ?? `something in ${rootName}`;
  } catch {
    return `something in ${rootName}`;
  }
}

const INITIAL_BYTES = 4_096;
/** A larger buffer is given away with its value instead of being kept. */
const KEEP_BYTES = 256 * 1024;
const LINEAR_SEEN = 8;
const ALIGNED_BYTES = 4_096;

class Encoder {
  bytes = new Uint8Array(INITIAL_BYTES);
  view = new DataView(this.bytes.buffer);
  at = 0;
  hooks: RefHooks | undefined;
  contained: Uint8Array[] = [];
  /** First pass: objects met so far (a short list, then a set) and those met again. */
  seen: object[] = [];
  seenCount = 0;
  seenSet: Set<object> | undefined;
  repeated: Set<object> | undefined;
  /** Second pass, only when something was met twice: its objects with their tag 28 index, -1 before the first. */
  shared: Map<object, number> | undefined;
  sharedCount = 0;

  begin(hooks: RefHooks | undefined): void {
    this.at = 0;
    this.hooks = hooks;
    this.contained = [];
    this.shared = undefined;
    this.sharedCount = 0;
    this.forgetSeen();
  }

  forgetSeen(): void {
    for (let i = 0; i < this.seenCount && i < LINEAR_SEEN; i++) this.seen[i] = OBJECT;
    this.seenCount = 0;
    this.seenSet = undefined;
    this.repeated = undefined;
  }

  root(value: unknown, name: string): void {
    try {
      this.value(value, 0);
      if (this.repeated !== undefined) {
        this.shared = new Map();
        for (const object of this.repeated) this.shared.set(object, -1);
        this.at = 0;
        this.contained = [];
        this.value(value, 0);
      }
    } catch (thrown) {
      if (!(thrown instanceof Refusal)) throw thrown;
      throw new BulkheadError('INVALID_ARGUMENT', `${pathTo(value, thrown.culprit, name)} ${thrown.why}`);
    } finally {
      this.forgetSeen();
      this.shared = undefined;
    }
  }

  need(n: number): void {
    if (this.at + n <= this.bytes.length) return;
    const grown = new Uint8Array(n > KEEP_BYTES ? this.at + n + 64 : Math.max(this.bytes.length * 2, this.at + n));
    grown.set(this.bytes.subarray(0, this.at));
    this.bytes = grown;
    this.view = new DataView(grown.buffer);
  }

  head(major: number, n: number): void {
    this.need(9);
    const { bytes } = this;
    if (n < 24) bytes[this.at++] = major | n;
    else if (n < 0x100) {
      bytes[this.at] = major | 24;
      bytes[this.at + 1] = n;
      this.at += 2;
    } else if (n < 0x1_0000) {
      bytes[this.at] = major | 25;
      bytes[this.at + 1] = n >> 8;
      bytes[this.at + 2] = n;
      this.at += 3;
    } else if (n < 0x1_0000_0000) {
      bytes[this.at] = major | 26;
      this.view.setUint32(this.at + 1, n);
      this.at += 5;
    } else {
      bytes[this.at] = major | 27;
      this.view.setUint32(this.at + 1, Math.floor(n / 0x1_0000_0000));
      this.view.setUint32(this.at + 5, n % 0x1_0000_0000);
      this.at += 9;
    }
  }

  byte(b: number): void {
    this.need(1);
    this.bytes[this.at++] = b;
  }

  octets(from: Uint8Array): void {
    this.head(0x40, from.length);
    this.need(from.length);
    this.bytes.set(from, this.at);
    this.at += from.length;
  }

  value(value: unknown, depth: number): void {
    switch (typeof value) {
      case 'number':
        return this.number(value);
      case 'string':
        return this.string(value);
      case 'boolean':
        return this.byte(value ? 0xf5 : 0xf4);
      case 'undefined':
        return this.byte(0xf7);
      case 'bigint':
        return this.bigint(value);
      case 'object':
        return value === null ? this.byte(0xf6) : this.object(value, depth);
      case 'function':
        throw new Refusal(value, 'is a function: functions do not travel; export it from a module and submit it as a task');
      default:
        throw new Refusal(value, 'is a symbol');
    }
  }

  number(value: number): void {
    if (Number.isSafeInteger(value) && (value !== 0 || !sameValue(value, -0))) return value >= 0 ? this.head(0, value) : this.head(0x20, -1 - value);
    this.float(value);
  }

  float(value: number): void {
    this.need(9);
    this.bytes[this.at] = 0xfb;
    this.view.setFloat64(this.at + 1, value);
    this.at += 9;
  }

  string(text: string): void {
    const { length } = text;
    if (length >= HOST_TEXT_FROM && textEncoder !== undefined) return this.longString(text);
    this.need(9 + length);
    const start = this.at;
    this.head(0x60, length);
    const { bytes } = this;
    let p = this.at;
    for (let i = 0; i < length; i++) {
      const c = text.charCodeAt(i);
      if (c >= 0x80) {
        this.at = start;
        return this.longString(text);
      }
      bytes[p++] = c;
    }
    this.at = p;
  }

  longString(text: string): void {
    const { length } = text;
    if (!text.isWellFormed()) {
      // Lone surrogates have no UTF-8: they keep their UTF-16 code units, so that every string round-trips.
      this.head(0xc0, TAG.UTF16);
      this.head(0x40, length * 2);
      this.need(length * 2);
      for (let i = 0; i < length; i++, this.at += 2) this.view.setUint16(this.at, text.charCodeAt(i), true);
      return;
    }
    if (textEncoder !== undefined) {
      // The head's size depends on the length, which is known only after; ASCII guesses right, else the text moves by a few octets.
      this.need(9 + length * 3);
      const start = this.at;
      this.head(0x60, length);
      const guessed = this.at - start;
      const { written } = textEncoder.encodeInto(text, this.bytes.subarray(this.at, this.at + length * 3));
      this.at = start;
      this.head(0x60, written);
      if (this.at - start !== guessed) textEncoder.encodeInto(text, this.bytes.subarray(this.at, this.at + length * 3));
      this.at += written;
      return;
    }
    let size = 0;
    for (let i = 0; i < length; i++) {
      const c = text.charCodeAt(i);
      size += c < 0x80 ? 1 : c < 0x800 || (c >= 0xd800 && c < 0xe000) ? 2 : 3;
    }
    this.head(0x60, size);
    this.need(size);
    const { bytes } = this;
    let p = this.at;
    for (let i = 0; i < length; i++) {
      let c = text.charCodeAt(i);
      if (c < 0x80) {
        bytes[p++] = c;
        continue;
      }
      if (c >= 0xd800 && c < 0xe000) {
        c = 0x10000 + ((c - 0xd800) << 10) + (text.charCodeAt(++i) - 0xdc00);
        bytes[p++] = 0xf0 | (c >> 18);
        bytes[p++] = 0x80 | ((c >> 12) & 0x3f);
        bytes[p++] = 0x80 | ((c >> 6) & 0x3f);
      } else if (c < 0x800) bytes[p++] = 0xc0 | (c >> 6);
      else {
        bytes[p++] = 0xe0 | (c >> 12);
        bytes[p++] = 0x80 | ((c >> 6) & 0x3f);
      }
      bytes[p++] = 0x80 | (c & 0x3f);
    }
    this.at = p;
  }

  bigint(value: bigint): void {
    this.head(0xc0, value >= 0n ? TAG.POSITIVE_BIGINT : TAG.NEGATIVE_BIGINT);
    const magnitude = value >= 0n ? value : -1n - value;
    let hex = magnitude === 0n ? '' : magnitude.toString(16);
    if (hex.length % 2 === 1) hex = `0${hex}`;
    const size = hex.length / 2;
    this.head(0x40, size);
    this.need(size);
    for (let i = 0; i < size; i++) this.bytes[this.at++] = Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  }

  /** True when `object` was met before in this pass; it then needs tag 28, known only to the second pass. */
  metBefore(object: object): boolean {
    const count = this.seenCount;
    if (this.seenSet === undefined) {
      for (let i = 0; i < count; i++) if (this.seen[i] === object) return this.repeat(object);
      if (count < LINEAR_SEEN) {
        this.seen[count] = object;
        this.seenCount = count + 1;
        return false;
      }
      this.seenSet = new Set();
      for (let i = 0; i < count; i++) this.seenSet.add(this.seen[i] as object);
    }
    const { size } = this.seenSet;
    this.seenSet.add(object);
    return this.seenSet.size === size && this.repeat(object);
  }

  repeat(object: object): true {
    (this.repeated ??= new Set()).add(object);
    return true;
  }

  object(object: object, depth: number): void {
    if (depth >= MAX_VALUE_DEPTH) throw new Refusal(object, `is nested deeper than ${MAX_VALUE_DEPTH}`);
    if (this.shared === undefined) {
      if (this.metBefore(object)) return this.byte(0xf6);
    } else {
      const index = this.shared.get(object);
      if (index !== undefined) {
        if (index >= 0) {
          this.head(0xc0, TAG.REFERENCE);
          return this.head(0, index);
        }
        this.shared.set(object, this.sharedCount++);
        this.head(0xc0, TAG.SHARED);
      }
    }
    const prototype = getPrototypeOf(object) as object | null;
    if (isArray(object)) {
      // Array.prototype of any realm is itself an array; a subclass's prototype is not.
      if (prototype !== ARRAY && !isArray(prototype)) throw new Refusal(object, describeInstance(object));
      return this.array(object, depth);
    }
    if (prototype === OBJECT || prototype === null) return this.plain(object as Record<string, unknown>, depth);
    this.special(object, prototype, depth);
  }

  array(array: readonly unknown[], depth: number): void {
    const { length } = array;
    // Looked for before anything is written: what is written cannot be taken back without forgetting what was shared.
    for (let i = 0; i < length; i++) if (array[i] === undefined && !hasOwn(array, i)) return this.sparse(array, depth);
    this.head(0x80, length);
    for (let i = 0; i < length; i++) this.value(array[i], depth + 1);
  }

  sparse(array: readonly unknown[], depth: number): void {
    const indexes = keysOf(array).filter((key) => String(Number(key) >>> 0) === key && Number(key) < 0xffff_ffff);
    this.head(0xc0, TAG.SPARSE);
    this.head(0x80, 2);
    this.head(0, array.length);
    this.head(0xa0, indexes.length);
    for (const key of indexes) {
      this.head(0, Number(key));
      this.value(array[Number(key)], depth + 1);
    }
  }

  plain(object: Record<string, unknown>, depth: number): void {
    const keys = keysOf(object);
    this.head(0xa0, keys.length);
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i] as string;
      this.string(key);
      this.value(object[key], depth + 1);
    }
  }

  special(object: object, prototype: object, depth: number): void {
    if (isView(object)) return this.viewOf(object);
    if (prototype === Map.prototype) return this.branded(object, () => this.map(object as Map<unknown, unknown>, depth));
    if (prototype === Set.prototype) return this.branded(object, () => this.set(object as Set<unknown>, depth));
    if (prototype === Date.prototype) return this.branded(object, () => this.date(Reflect.apply(dateTime, object, []) as number));
    const described = this.hooks?.describe(object);
    if (described !== undefined) return this.ref(described);
    if (prototype === NdArray.prototype) return this.shaped(object as NdArray);
    if (prototype === ArrowTable.prototype) return this.arrow(object as ArrowTable);
    if (prototype === RegExp.prototype) return this.branded(object, () => this.regexp(object));
    if (prototype === ArrayBuffer.prototype) {
      return this.branded(object, () => {
        arrayBufferBytes(object);
        this.head(0xc0, TAG.ARRAY_BUFFER);
        this.octets(new Uint8Array(object as ArrayBuffer));
      });
    }
    if (object instanceof Error) return this.error(object, depth);
    // An ordinary object of another realm (a test runner's, say): its prototype is the end of the chain and looks like Object.prototype.
    if (getPrototypeOf(prototype) === null && hasOwn(prototype, 'isPrototypeOf') && hasOwn(prototype, 'hasOwnProperty')) return this.plain(object as Record<string, unknown>, depth);
    throw new Refusal(object, describeInstance(object));
  }

  /** Runs a writer that starts with a brand check; an object that only has the prototype fails it. */
  branded(object: object, write: () => void): void {
    const start = this.at;
    try {
      write();
    } catch (thrown) {
      if (thrown instanceof TypeError && this.at === start) throw new Refusal(object, 'only looks like a built-in object: its prototype was set by hand');
      throw thrown;
    }
  }

  map(map: Map<unknown, unknown>, depth: number): void {
    const size = mapSize(map);
    this.head(0xc0, TAG.MAP);
    this.head(0xa0, size);
    let written = 0;
    Reflect.apply(mapForEach, map, [
      (value: unknown, key: unknown) => {
        this.value(key, depth + 1);
        this.value(value, depth + 1);
        written++;
      },
    ]);
    if (written !== size) throw new Refusal(map, 'changed while it was encoded');
  }

  set(set: Set<unknown>, depth: number): void {
    const size = setSize(set);
    this.head(0xc0, TAG.SET);
    this.head(0x80, size);
    let written = 0;
    Reflect.apply(setForEach, set, [
      (value: unknown) => {
        this.value(value, depth + 1);
        written++;
      },
    ]);
    if (written !== size) throw new Refusal(set, 'changed while it was encoded');
  }

  date(ms: number): void {
    const seconds = ms / 1000;
    // Seconds are what other CBOR readers know; far dates, where a double cannot hold them to the millisecond, are ours.
    if (Number.isNaN(ms) || Math.round(seconds * 1000) === ms) {
      this.head(0xc0, TAG.EPOCH);
      if (Number.isSafeInteger(seconds)) this.number(seconds);
      else this.float(seconds);
    } else {
      this.head(0xc0, TAG.DATE_MS);
      this.number(ms);
    }
  }

  regexp(object: object): void {
    const source = regExpSource(object);
    const flags = regExpFlags(object);
    this.head(0xc0, flags === '' ? TAG.REGEXP : TAG.REGEXP_FLAGS);
    if (flags !== '') this.head(0x80, 2);
    this.string(source);
    if (flags !== '') this.string(flags);
  }

  viewOf(object: object): void {
    const name = viewName(object) as string | undefined;
    if (name === undefined) {
      this.head(0xc0, TAG.DATA_VIEW);
      return this.octets(new Uint8Array(dataViewBuffer(object), dataViewOffset(object), dataViewBytes(object)));
    }
    if (name === 'Uint8Array') return this.octets(new Uint8Array(viewBuffer(object), viewOffset(object), viewBytes(object)));
    const tag = TYPED_ARRAY_TAG.get(name);
    if (tag === undefined) throw new Refusal(object, `is a ${quote(name)}, which this version does not carry`);
    this.elements(object, tag);
  }

  elements(object: object, tag: number): void {
    const octets = new Uint8Array(viewBuffer(object), viewOffset(object), viewBytes(object));
    if (octets.length < ALIGNED_BYTES) {
      this.head(0xc0, tag);
      return this.octets(octets);
    }
    // Heads of eight octets: a large array by itself begins where a reader that maps the value needs no copy.
    this.need(8 + octets.length);
    this.bytes[this.at] = 0xd9;
    this.bytes[this.at + 1] = 0;
    this.bytes[this.at + 2] = tag;
    this.bytes[this.at + 3] = 0x5a;
    this.view.setUint32(this.at + 4, octets.length);
    this.bytes.set(octets, this.at + 8);
    this.at += 8 + octets.length;
  }

  shaped({ shape, data, order }: NdArray): void {
    this.head(0xc0, order === 'F' ? TAG.COLUMNS : TAG.ROWS);
    this.head(0x80, 2);
    this.head(0x80, shape.length);
    for (const n of shape) this.head(0, n);
    const name = viewName(data) as string | undefined;
    const tag = name === 'Uint8Array' ? TAG.UINT8 : TYPED_ARRAY_TAG.get(name ?? '');
    if (tag === undefined) throw new Refusal(data, 'is not a typed array that an NdArray can have');
    this.elements(data, tag);
  }

  arrow({ ipc }: ArrowTable): void {
    if (viewName(ipc) !== 'Uint8Array') throw new Refusal(ipc, 'is not the octets of an Arrow stream: give a Uint8Array');
    this.head(0xc0, TAG.ARROW);
    this.octets(new Uint8Array(viewBuffer(ipc), viewOffset(ipc), viewBytes(ipc)));
  }

  ref(described: WireRef): void {
    this.contained.push(described.id);
    this.head(0xc0, described.actor === undefined ? TAG.OBJECT_REF : TAG.ACTOR);
    if (described.actor !== undefined) this.head(0x80, 2);
    this.octets(described.id);
    if (described.actor !== undefined) this.string(described.actor);
  }

  error(error: Error, depth: number): void {
    const text = (value: unknown, otherwise: string): string => (typeof value === 'string' ? value : otherwise);
    const hasCause = hasOwn(error, 'cause');
    this.head(0xc0, TAG.ERROR);
    this.head(0x80, hasCause ? 4 : 3);
    this.string(text(error.name, 'Error'));
    this.string(text(error.message, ''));
    const stack: unknown = error.stack;
    if (typeof stack === 'string') this.string(stack.slice(0, MAX_STACK_CHARS));
    else this.byte(0xf7);
    if (hasCause) this.value(error.cause, depth + 1);
  }
}

/** Marks a shared object whose container does not exist yet: a reference to it is malformed. */
const PENDING = Symbol('pending');
const fromCharCode = String.fromCharCode;
/** As numpy has. */
const MAX_DIMENSIONS = 32;

class Decoder {
  bytes: Uint8Array = new Uint8Array(0);
  view: DataView = new DataView(this.bytes.buffer);
  at = 0;
  end = 0;
  hooks: RefHooks | undefined;
  shared: unknown[] | undefined;

  root(bytes: Uint8Array, hooks: RefHooks | undefined): unknown {
    // A Buffer's slice() would alias; a plain view over the same memory copies.
    this.bytes = getPrototypeOf(bytes) === Uint8Array.prototype ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
    this.end = bytes.length;
    this.hooks = hooks;
    this.shared = undefined;
    const value = this.value(0, -1);
    if (this.at !== this.end) this.refuse(`${this.end - this.at} octets are left over`);
    return value;
  }

  refuse(what: string): never {
    throw new BulkheadError('INVALID_ARGUMENT', `malformed value at octet ${this.at}: ${what}`);
  }

  take(n: number): number {
    const { at } = this;
    if (n > this.end - at) this.refuse('it ends too early');
    this.at = at + n;
    return at;
  }

  u32(at: number): number {
    const { bytes } = this;
    return (((bytes[at] as number) << 24) | ((bytes[at + 1] as number) << 16) | ((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number)) >>> 0;
  }

  float(at: number, double: boolean): number {
    if (this.view.buffer !== this.bytes.buffer || this.view.byteOffset !== this.bytes.byteOffset || this.view.byteLength !== this.bytes.byteLength) this.view = new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.byteLength);
    return double ? this.view.getFloat64(at) : this.view.getFloat32(at);
  }

  /** The number in an initial byte's low bits or after it; beyond 2^53 it is refused, as no length or tag is that large. */
  argument(info: number): number {
    if (info < 24) return info;
    if (info === 24) return this.bytes[this.take(1)] as number;
    if (info === 25) {
      const at = this.take(2);
      return ((this.bytes[at] as number) << 8) | (this.bytes[at + 1] as number);
    }
    if (info === 26) return this.u32(this.take(4));
    if (info !== 27) return this.refuse('an indefinite or reserved length');
    const at = this.take(8);
    const value = this.u32(at) * 0x1_0000_0000 + this.u32(at + 4);
    return Number.isSafeInteger(value) ? value : this.refuse('a number beyond 2^53 where a length or tag is expected');
  }

  value(depth: number, slot: number): unknown {
    if (depth > MAX_VALUE_DEPTH) this.refuse(`it is nested deeper than ${MAX_VALUE_DEPTH}`);
    const initial = this.bytes[this.take(1)] as number;
    if (initial < 24) return initial;
    const info = initial & 0x1f;
    switch (initial >> 5) {
      case 0:
        return this.integer(info, false);
      case 1:
        return this.integer(info, true);
      case 2:
        return this.octets(info);
      case 3:
        return this.text(this.argument(info));
      case 4:
        return this.array(info, depth, slot);
      case 5:
        return this.plain(info, depth, slot);
      case 6:
        return this.tagged(this.argument(info), depth, slot);
      default:
        return this.simple(info);
    }
  }

  simple(info: number): unknown {
    switch (info) {
      case 20:
        return false;
      case 21:
        return true;
      case 22:
        return null;
      case 23:
        return undefined;
      case 25:
        return this.half();
      case 26:
        return this.float(this.take(4), false);
      case 27:
        return this.float(this.take(8), true);
      default:
        return this.refuse('an unknown simple value');
    }
  }

  half(): number {
    const at = this.take(2);
    const bits = ((this.bytes[at] as number) << 8) | (this.bytes[at + 1] as number);
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    const magnitude = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction === 0 ? Infinity : NaN) : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return (bits & 0x8000) === 0 ? magnitude : -magnitude;
  }

  integer(info: number, negative: boolean): number | bigint {
    if (info === 27) {
      const at = this.take(8);
      const value = this.u32(at) * 0x1_0000_0000 + this.u32(at + 4);
      if (value < Number.MAX_SAFE_INTEGER) return negative ? -1 - value : value;
      if (value === Number.MAX_SAFE_INTEGER && !negative) return value;
      // Other languages have 64-bit integers: they stay exact.
      const exact = (BigInt(this.u32(at)) << 32n) | BigInt(this.u32(at + 4));
      return negative ? -1n - exact : exact;
    }
    const value = this.argument(info);
    return negative ? -1 - value : value;
  }

  octets(info: number): Uint8Array<ArrayBuffer> {
    const n = this.argument(info);
    const at = this.take(n);
    return this.bytes.slice(at, at + n) as Uint8Array<ArrayBuffer>;
  }

  text(n: number): string {
    const at = this.take(n);
    const { bytes } = this;
    const end = at + n;
    if (n >= HOST_TEXT_FROM) {
      if (textDecoder !== undefined) {
        try {
          return textDecoder.decode(bytes.subarray(at, end));
        } catch {
          return this.refuse('text is not valid UTF-8');
        }
      }
      let p = at;
      while (p < end && (bytes[p] as number) < 0x80) p++;
      if (p < end) return readUtf8(bytes, at, end);
      let text = '';
      for (let from = at; from < end; from += 4_096) text += Reflect.apply(fromCharCode, undefined, bytes.subarray(from, Math.min(from + 4_096, end)) as unknown as number[]) as string;
      return text;
    }
    let text = '';
    let p = at;
    while (p + 4 <= end) {
      const a = bytes[p] as number;
      const b = bytes[p + 1] as number;
      const c = bytes[p + 2] as number;
      const d = bytes[p + 3] as number;
      if ((a | b | c | d) >= 0x80) return readUtf8(bytes, at, end);
      text += fromCharCode(a, b, c, d);
      p += 4;
    }
    while (p < end) {
      const a = bytes[p++] as number;
      if (a >= 0x80) return readUtf8(bytes, at, end);
      text += fromCharCode(a);
    }
    return text;
  }

  /** A count of elements that take at least `each` octets, checked against what is left before anything is allocated. */
  count(info: number, each: number): number {
    const n = this.argument(info);
    if (n * each > this.end - this.at) this.refuse(`${n} elements do not fit in what is left`);
    return n;
  }

  keep(slot: number, object: object): void {
    if (slot >= 0) (this.shared as unknown[])[slot] = object;
  }

  array(info: number, depth: number, slot: number): unknown[] {
    const n = this.count(info, 1);
    const array: unknown[] = [];
    this.keep(slot, array);
    for (let i = 0; i < n; i++) array[i] = this.value(depth + 1, -1);
    return array;
  }

  key(): string {
    const initial = this.bytes[this.take(1)] as number;
    if (initial >> 5 === 3) return this.text(this.argument(initial & 0x1f));
    if (initial >> 5 === 6 && this.argument(initial & 0x1f) === TAG.UTF16) return this.utf16();
    return this.refuse('the key of an object is not text');
  }

  plain(info: number, depth: number, slot: number): object {
    const n = this.count(info, 2);
    const object: Record<string, unknown> = {};
    this.keep(slot, object);
    for (let i = 0; i < n; i++) {
      const key = this.key();
      // Inherited names are rare: only they pay for the exact check, and are defined, never assigned (`__proto__` has a setter).
      if (key in object) {
        if (hasOwn(object, key)) this.refuse(`the key ${quote(key)} comes twice`);
        defineProperty(object, key, { value: this.value(depth + 1, -1), writable: true, enumerable: true, configurable: true });
      } else object[key] = this.value(depth + 1, -1);
    }
    return object;
  }

  /** The head of an array or byte string that a tag demands. */
  expect(major: number, what: string): number {
    const initial = this.bytes[this.take(1)] as number;
    if (initial >> 5 !== major) this.refuse(`${what} has content of another type`);
    return initial & 0x1f;
  }

  expectText(what: string): string {
    const value = this.value(MAX_VALUE_DEPTH - 2, -1);
    return typeof value === 'string' ? value : this.refuse(`${what} is not text`);
  }

  tagged(tag: number, depth: number, slot: number): unknown {
    switch (tag) {
      case TAG.EPOCH: {
        const seconds = this.value(depth + 1, -1);
        if (typeof seconds !== 'number') return this.refuse('a date is not a number');
        return new Date(Math.round(seconds * 1000));
      }
      case TAG.DATE_MS: {
        const ms = this.value(depth + 1, -1);
        return typeof ms === 'number' ? new Date(ms) : this.refuse('a date is not a number');
      }
      case TAG.POSITIVE_BIGINT:
        return this.bigint();
      case TAG.NEGATIVE_BIGINT:
        return -1n - this.bigint();
      case TAG.SHARED:
        return this.sharedValue(depth, slot);
      case TAG.REFERENCE: {
        const index = this.argument(this.expect(0, 'a reference'));
        const found = this.shared === undefined || index >= this.shared.length ? PENDING : this.shared[index];
        return found === PENDING ? this.refuse('a reference to nothing') : found;
      }
      case TAG.REGEXP:
        return this.regexp(this.expectText('a regular expression'), '');
      case TAG.REGEXP_FLAGS: {
        if (this.expect(4, 'a regular expression') !== 2) this.refuse('a regular expression is not a pair');
        const source = this.expectText('a regular expression');
        return this.regexp(source, this.expectText('its flags'));
      }
      case TAG.UINT8:
        return this.octets(this.expect(2, 'a typed array'));
      case TAG.SET: {
        const n = this.count(this.expect(4, 'a set'), 1);
        const set = new Set<unknown>();
        this.keep(slot, set);
        for (let i = 0; i < n; i++) set.add(this.value(depth + 1, -1));
        return set.size === n ? set : this.refuse('an element of a set comes twice');
      }
      case TAG.MAP: {
        const n = this.count(this.expect(5, 'a map'), 2);
        const map = new Map<unknown, unknown>();
        this.keep(slot, map);
        for (let i = 0; i < n; i++) {
          const key = this.value(depth + 1, -1);
          map.set(key, this.value(depth + 1, -1));
        }
        return map.size === n ? map : this.refuse('a key of a map comes twice');
      }
      case TAG.UTF16:
        return this.utf16();
      case TAG.ARRAY_BUFFER:
        return this.octets(this.expect(2, 'a buffer')).buffer;
      case TAG.DATA_VIEW:
        return new DataView(this.octets(this.expect(2, 'a view')).buffer);
      case TAG.SPARSE:
        return this.sparse(depth, slot);
      case TAG.ERROR:
        return this.error(depth, slot);
      case TAG.OBJECT_REF: {
        if (this.hooks === undefined) return this.refuse('an object ref where none may be');
        return this.hooks.ref(this.id());
      }
      case TAG.ACTOR: {
        if (this.hooks === undefined) return this.refuse('an actor handle where none may be');
        if (this.expect(4, 'an actor handle') !== 2) this.refuse('an actor handle is not a pair');
        const id = this.id();
        return this.hooks.actor(id, this.expectText('class info'));
      }
      case TAG.ROWS:
      case TAG.COLUMNS:
        return this.shaped(tag);
      case TAG.ARROW:
        return new ArrowTable(this.octets(this.expect(2, 'an Arrow table')));
      case TAG.PICKLE:
        return this.refuse('it is a pickle of a Python program, which only Python reads: return it to others as data, with Neutral(value), a numpy array or an Arrow table');
      default:
        return this.elements(tag);
    }
  }

  elements(tag: number): ArrayBufferView {
    const constructor = TYPED_ARRAY_BY_TAG.get(tag);
    if (constructor === undefined) return this.refuse(`unknown tag ${tag}`);
    const octets = this.octets(this.expect(2, 'a typed array'));
    if (octets.length % constructor.BYTES_PER_ELEMENT !== 0) this.refuse('a typed array has a broken element');
    return new constructor(octets.buffer);
  }

  shaped(tag: number): NdArray {
    if (this.expect(4, 'an array of dimensions') !== 2) this.refuse('an array with a shape is not a pair');
    const n = this.count(this.expect(4, 'a shape'), 1);
    if (n > MAX_DIMENSIONS) this.refuse(`an array of ${n} dimensions`);
    const shape: number[] = [];
    let size = 1;
    for (let i = 0; i < n; i++) {
      const length = this.argument(this.expect(0, 'a dimension'));
      shape.push(length);
      size *= length;
    }
    const initial = this.at < this.end ? (this.bytes[this.at] as number) : 0;
    let of: number = TAG.UINT8;
    if (initial >> 5 === 6) {
      this.at++;
      of = this.argument(initial & 0x1f);
    }
    const data = (of === TAG.UINT8 ? this.octets(this.expect(2, 'a typed array')) : this.elements(of)) as TypedArray;
    if (data.length !== size) this.refuse('an array has another number of elements than its shape');
    return new NdArray(shape, data, tag === TAG.ROWS ? 'C' : 'F');
  }

  sharedValue(depth: number, slot: number): unknown {
    if (slot >= 0) this.refuse('a value is marked as shared twice');
    this.shared ??= [];
    const index = this.shared.length;
    this.shared.push(PENDING);
    const value = this.value(depth + 1, index);
    if (typeof value !== 'object' || value === null) this.refuse('a scalar is marked as shared');
    this.shared[index] = value;
    return value;
  }

  id(): Uint8Array {
    const octets = this.octets(this.expect(2, 'an id'));
    return octets.length === OBJECT_ID_BYTES ? octets : this.refuse('an id has another length');
  }

  utf16(): string {
    const octets = this.octets(this.expect(2, 'text'));
    if (octets.length % 2 !== 0) this.refuse('UTF-16 text has half a code unit');
    let text = '';
    for (let i = 0; i < octets.length; i += 2) text += fromCharCode((octets[i] as number) | ((octets[i + 1] as number) << 8));
    return text;
  }

  bigint(): bigint {
    const octets = this.octets(this.expect(2, 'a big integer'));
    let hex = '0x0';
    for (let i = 0; i < octets.length; i++) hex += ((octets[i] as number) + 0x100).toString(16).slice(1);
    try {
      return BigInt(hex);
    } catch {
      return this.refuse('a big integer is too large');
    }
  }

  regexp(source: string, flags: string): RegExp {
    try {
      return new RegExp(source, flags);
    } catch {
      return this.refuse('a regular expression does not parse');
    }
  }

  sparse(depth: number, slot: number): unknown[] {
    if (this.expect(4, 'a sparse array') !== 2) this.refuse('a sparse array is not a pair');
    const length = this.argument(this.expect(0, 'the length of a sparse array'));
    if (length > 0xffff_ffff) this.refuse('a sparse array is too long');
    const n = this.count(this.expect(5, 'a sparse array'), 2);
    const array: unknown[] = [];
    this.keep(slot, array);
    let previous = -1;
    for (let i = 0; i < n; i++) {
      const index = this.argument(this.expect(0, 'an index'));
      if (index <= previous || index >= length) this.refuse('an index of a sparse array is out of order or range');
      previous = index;
      array[index] = this.value(depth + 1, -1);
    }
    array.length = length;
    return array;
  }

  error(depth: number, slot: number): Error {
    const n = this.expect(4, 'an error');
    if (n !== 3 && n !== 4) this.refuse('an error has another number of fields');
    const name = this.expectText('the name of an error');
    const message = this.expectText('the message of an error');
    const stack = this.value(depth + 1, -1);
    if (stack !== undefined && typeof stack !== 'string') this.refuse('the stack of an error is not text');
    const error = new (ERROR_CONSTRUCTORS.get(name) ?? Error)(message);
    const hidden = (key: string, value: unknown): void => void defineProperty(error, key, { value, writable: true, enumerable: false, configurable: true });
    hidden('stack', stack);
    if (error.name !== name) hidden('name', name);
    this.keep(slot, error);
    if (n === 4) hidden('cause', this.value(depth + 1, -1));
    return error;
  }
}

/** A value's octets; `contained` are the ids of the refs and handles inside it. */
export interface EncodedValue {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly contained: readonly Uint8Array[];
}

const NOTHING_CONTAINED: readonly Uint8Array[] = [];
/** Encoders at rest. A getter in a value may encode another value meanwhile, so one is not enough. */
const idleEncoders: Encoder[] = [];
const idleDecoders: Decoder[] = [];

function encodeWith<T>(value: unknown, hooks: RefHooks | undefined, name: string, use: (encoder: Encoder) => T): T {
  const encoder = idleEncoders.pop() ?? new Encoder();
  encoder.begin(hooks);
  encoder.root(value, name);
  const result = use(encoder);
  if (encoder.bytes.length <= KEEP_BYTES && idleEncoders.length < 4) idleEncoders.push(encoder);
  return result;
}

/**
 * Encodes a value as its own memory. `name` is how an error message calls it (`args`, `result`).
 * Throws INVALID_ARGUMENT naming the path of the first thing that does not travel; what a getter throws passes through.
 */
export function encodeValue(value: unknown, hooks?: RefHooks, name = 'value'): EncodedValue {
  return encodeWith(value, hooks, name, copyOut);
}

function copyOut(encoder: Encoder): EncodedValue {
  // A buffer that will not be kept is given away without a copy.
  const bytes = encoder.bytes.length > KEEP_BYTES ? encoder.bytes.subarray(0, encoder.at) : encoder.bytes.slice(0, encoder.at);
  return { bytes, contained: encoder.contained.length === 0 ? NOTHING_CONTAINED : encoder.contained };
}

/**
 * Whether an encoded value of `total` octets, of which `start` is the beginning, is one buffer or typed array and nothing else. Then its octets,
 * from `headBytes` on, can be gathered in a buffer of their own, and `finish` makes the value of it without a copy.
 */
export function singleBuffer(start: Uint8Array, total: number): { readonly headBytes: number; readonly finish: (octets: ArrayBuffer) => unknown } | undefined {
  let at = 0;
  const argument = (info: number): number => {
    if (info < 24) return info;
    const bytes = info === 24 ? 1 : info === 25 ? 2 : info === 26 ? 4 : info === 27 ? 8 : 0;
    let n = bytes === 0 || at + bytes > start.length ? Number.NaN : 0;
    for (let i = 0; i < bytes; i++) n = n * 256 + (start[at++] ?? 0);
    return n;
  };
  let tag: number = TAG.UINT8;
  let initial = start[at++] ?? 0;
  if (initial >> 5 === 6) {
    tag = argument(initial & 0x1f);
    initial = start[at++] ?? 0;
  }
  if (initial >> 5 !== 2 || argument(initial & 0x1f) + at !== total) return undefined;
  if (tag === TAG.UINT8) return { headBytes: at, finish: (octets) => new Uint8Array(octets) };
  if (tag === TAG.ARRAY_BUFFER) return { headBytes: at, finish: (octets) => octets };
  const constructor = TYPED_ARRAY_BY_TAG.get(tag);
  if (constructor === undefined || (total - at) % constructor.BYTES_PER_ELEMENT !== 0) return undefined;
  return { headBytes: at, finish: (octets) => new constructor(octets) };
}

/** Decodes one value. Throws INVALID_ARGUMENT on anything malformed; allocates no more than a small multiple of the input. */
export function decodeValue(bytes: Uint8Array, hooks?: RefHooks): unknown {
  const decoder = idleDecoders.pop() ?? new Decoder();
  const value = decoder.root(bytes, hooks);
  decoder.shared = undefined;
  if (idleDecoders.length < 4) idleDecoders.push(decoder);
  return value;
}
