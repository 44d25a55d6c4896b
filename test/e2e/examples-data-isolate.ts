/**
 * Run by examples-data.test.ts in a process of its own, because isolated-vm needs `--no-node-snapshot`: bundles the flights module
 * as the SDK does, decodes the last row group in a bare 64 MiB isolate and prints what came out as JSON.
 */
import { fileURLToPath } from 'node:url';
import ivm from 'isolated-vm';
import { openFlights } from '../../examples/flights/data.ts';
import { rowGroupsOf } from '../../examples/flights/flights.ts';
import { bundleModule } from '../../src/sdk/bundle.ts';

const bundle = await bundleModule(fileURLToPath(new URL('../../examples/flights/flights.ts', import.meta.url)));
const script = new TextDecoder().decode(bundle.source);
const context = await new ivm.Isolate({ memoryLimit: 64 }).createContext();
await context.eval(`for (const name of ['WebAssembly', 'SharedArrayBuffer', 'Atomics', 'WeakRef', 'FinalizationRegistry', 'Intl', 'console']) delete globalThis[name];
  globalThis.TextDecoder = class { decode(bytes) { return String.fromCharCode(...bytes); } };
  globalThis.TextEncoder = class { encode(text) { return Uint8Array.from(text, (c) => c.charCodeAt(0)); } };`);
await context.eval(`globalThis.flights = (() => { ${script}\nreturn __bulkhead_exports; })();`);
const file = openFlights();
const range = rowGroupsOf(file.footer).at(-1)!;
const result = await context.evalClosure(
  'return flights.delaysOfRowGroup($0, $1, $2).then((d) => JSON.stringify({ rows: d.rows, delayByHour: Array.from(d.byHour.delayMinutes), origins: Array.from(d.byOrigin) }));',
  [file.bytes(range.start, range.end), file.footer, range], { arguments: { copy: true }, result: { copy: true, promise: true } });
console.log(result);
