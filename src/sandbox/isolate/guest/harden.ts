/**
 * Freezes the language's own objects before tenant code runs, so that the prelude can use them like any code does: nobody can replace
 * `Uint8Array.prototype.set` to see another call's frames, or plant a setter on `Object.prototype` to catch what the prelude assigns.
 * Adding to or replacing built-ins throws in tenant code; what programs commonly override on their own objects stays assignable.
 */

const { defineProperty, freeze, getOwnPropertyDescriptor, getOwnPropertyNames, getPrototypeOf, hasOwn } = Object;

/**
 * A frozen data property cannot be shadowed by assignment further down the chain (`Foo.prototype.toString = …` would throw).
 * An accessor can: its setter defines the property on the object that was assigned to.
 */
function keepAssignable(prototype: object, keys: readonly string[]): void {
  for (const key of keys) {
    const property = getOwnPropertyDescriptor(prototype, key);
    if (property === undefined || !('value' in property) || property.configurable !== true) continue;
    const value: unknown = property.value;
    defineProperty(prototype, key, {
      get: () => value,
      set(this: unknown, replacement: unknown) {
        if (this === prototype || (typeof this !== 'object' && typeof this !== 'function') || this === null) throw new TypeError(`cannot replace the built-in ${key}`);
        if (hasOwn(this, key)) throw new TypeError(`cannot assign to ${key}`);
        defineProperty(this, key, { value: replacement, writable: true, enumerable: true, configurable: true });
      },
      enumerable: false,
      configurable: false,
    });
  }
}

export function harden(global: Record<string, unknown>): void {
  keepAssignable(Object.prototype, getOwnPropertyNames(Object.prototype).filter((key) => key !== '__proto__'));
  keepAssignable(Function.prototype, ['toString', 'constructor']);
  const errors = [Error, TypeError, RangeError, SyntaxError, ReferenceError, EvalError, URIError, AggregateError];
  for (const error of errors) {
    keepAssignable(error.prototype, ['constructor', 'name', 'message', 'toString']);
    freeze(error.prototype);
  }
  // Error itself stays open: programs set Error.stackTraceLimit. RegExp stays open: V8 leaves its fast path when RegExp.prototype is
  // frozen (measured: 16 times slower), and the prelude puts no secret through a regular expression.
  const names = [
    'Object', 'Function', 'Array', 'Map', 'Set', 'WeakMap', 'WeakSet', 'Promise', 'String', 'Number', 'Boolean', 'Symbol', 'BigInt', 'Date', 'Proxy', 'ArrayBuffer', 'DataView', 'Iterator',
    'Int8Array', 'Uint8Array', 'Uint8ClampedArray', 'Int16Array', 'Uint16Array', 'Int32Array', 'Uint32Array', 'BigInt64Array', 'BigUint64Array', 'Float16Array', 'Float32Array', 'Float64Array',
  ];
  for (const name of names) {
    const constructor = global[name] as { prototype?: object } | undefined;
    if (constructor === undefined) continue;
    if (constructor.prototype !== undefined && name !== 'Iterator') freeze(constructor.prototype);
    if (name !== 'Iterator') freeze(constructor);
  }
  const typedArray = getPrototypeOf(Uint8Array) as { prototype: object };
  freeze(typedArray.prototype);
  freeze(typedArray);
  const iterators: object[] = [[][Symbol.iterator](), new Map()[Symbol.iterator](), new Set()[Symbol.iterator](), ''[Symbol.iterator](), 'a'.matchAll(/a/g)];
  for (const iterator of iterators) freeze(getPrototypeOf(iterator) as object);
  for (const object of [Math, JSON, Reflect]) freeze(object);
}
