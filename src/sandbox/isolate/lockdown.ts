/**
 * The last script that runs in a context before tenant code: it removes every global that is not on this allow-list. It runs after the
 * prelude, which has captured for itself what it needs. Must never name anything that reads a clock, shares memory between
 * threads, compiles machine code from bytes, or tells when memory is collected.
 */

/** ECMAScript's own, minus WebAssembly, SharedArrayBuffer, Atomics, WeakRef, FinalizationRegistry and Intl. */
const LANGUAGE = [
  'globalThis', 'Infinity', 'NaN', 'undefined', 'eval', 'isFinite', 'isNaN', 'parseFloat', 'parseInt', 'decodeURI', 'decodeURIComponent', 'encodeURI', 'encodeURIComponent', 'escape', 'unescape',
  'Object', 'Function', 'Boolean', 'Symbol', 'Number', 'BigInt', 'Math', 'Date', 'String', 'RegExp', 'Array', 'Map', 'Set', 'WeakMap', 'WeakSet', 'ArrayBuffer', 'DataView', 'JSON',
  'Int8Array', 'Uint8Array', 'Uint8ClampedArray', 'Int16Array', 'Uint16Array', 'Int32Array', 'Uint32Array', 'BigInt64Array', 'BigUint64Array', 'Float16Array', 'Float32Array', 'Float64Array',
  'Error', 'AggregateError', 'EvalError', 'RangeError', 'ReferenceError', 'SyntaxError', 'TypeError', 'URIError', 'SuppressedError', 'DisposableStack', 'AsyncDisposableStack',
  'Promise', 'Proxy', 'Reflect', 'Iterator',
] as const;

/** What the prelude provides. */
const PRELUDE = [
  'console', 'TextEncoder', 'TextDecoder', 'URL', 'URLSearchParams', 'structuredClone', 'queueMicrotask', 'setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'setImmediate', 'clearImmediate',
  'crypto', 'Crypto', 'CryptoKey', 'SubtleCrypto', 'performance', 'btoa', 'atob', 'AbortController', 'AbortSignal', 'Event', 'EventTarget', 'DOMException', 'Blob', 'process', '__bulkhead_runtime',
] as const;

export const ALLOWED_GLOBALS: readonly string[] = [...LANGUAGE, ...PRELUDE];

/** Removes or, where it cannot, fails: a global that stays makes the slot fail rather than run. */
export const LOCKDOWN_SOURCE = `(() => {
  'use strict';
  const allowed = new Set(${JSON.stringify(ALLOWED_GLOBALS)});
  for (const name of Reflect.ownKeys(globalThis)) {
    if (typeof name === 'string' && allowed.has(name)) continue;
    if (name === Symbol.toStringTag) continue;
    if (!Reflect.deleteProperty(globalThis, name)) throw new Error('a global cannot be removed: ' + String(name));
  }
})();`;
