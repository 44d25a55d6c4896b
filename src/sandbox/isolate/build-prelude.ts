/**
 * Bundles the trusted prelude (guest/) into one script whose completion value is `install`. Built where workers are started from, never
 * inside the jail. The globals that the prelude uses are captured as constants around it: tenant code may rebind `globalThis.Map`.
 */
import { fileURLToPath } from 'node:url';
import { bundled } from '../bundle-cache.ts';

const CAPTURED = [
  'Object', 'Function', 'Array', 'String', 'Number', 'Boolean', 'Symbol', 'BigInt', 'Math', 'JSON', 'Reflect', 'Proxy', 'Promise', 'Map', 'Set', 'WeakMap', 'Date', 'RegExp', 'ArrayBuffer', 'DataView', 'Uint8Array',
  'Int32Array', 'Uint32Array', 'Float32Array', 'Float64Array', 'BigUint64Array', 'Error', 'TypeError', 'RangeError', 'SyntaxError', 'ReferenceError', 'EvalError', 'URIError', 'AggregateError',
  'FinalizationRegistry', 'parseInt', 'parseFloat',
];

let built: Promise<string> | undefined;

/** The script: one expression, ES2024, ASCII (V8 keeps one octet a character), the same text for the same sources. Built once per process. */
export function buildPrelude(): Promise<string> {
  built ??= bundle();
  built.catch(() => (built = undefined));
  return built;
}

async function bundle(): Promise<string> {
  const text = await bundled(fileURLToPath(new URL('./guest/prelude.ts', import.meta.url)), {
    format: 'iife', globalName: 'prelude', platform: 'neutral', target: 'es2024', legalComments: 'none', minifySyntax: true, minifyWhitespace: true, logLevel: 'silent',
  });
  // esbuild leaves regular expressions as they are written.
  const ascii = text.replace(/[^\0-\x7f]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return `(() => {\n'use strict';\nconst { ${CAPTURED.join(', ')} } = globalThis;\n${ascii}\nreturn prelude.install;\n})();\n`;
}
