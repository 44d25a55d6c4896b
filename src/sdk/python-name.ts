/**
 * Python functions and classes by name: `package.module:function`. The name is all of the code that travels, so that it is what policies and the audit log see;
 * nodes import it from the environment of their interpreter. Runs in drivers and isolates; ECMAScript only. Must never: carry a pickle.
 */
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import type { ExportRef } from './calls.ts';
import type { ClientCore } from './client-core.ts';

/** How nodes tell a name from a pickle (python/bulkhead/api.py). */
const NAME_HEAD = 'BKPN1\n';
const NAME = /^[A-Za-z_]\w{0,127}(?:\.[A-Za-z_]\w{0,127}){0,15}:[A-Za-z_]\w{0,127}(?:\.[A-Za-z_]\w{0,127}){0,7}$/;

/** @param sha256 of this program's runtime. Throws INVALID_ARGUMENT for what is no name. */
export function pythonExport(core: ClientCore, name: string, sha256: (octets: Uint8Array) => Uint8Array): ExportRef {
  if (!NAME.test(name)) throw new BulkheadError('INVALID_ARGUMENT', `${quote(name)} is not the name of a Python function or class: give 'package.module:name'`);
  const text = NAME_HEAD + name;
  const source = Uint8Array.from({ length: text.length }, (_, i) => text.charCodeAt(i));
  let digest = '';
  for (const octet of sha256(source)) digest += (octet + 0x100).toString(16).slice(1);
  return { digest, exportName: name.slice(Math.max(name.lastIndexOf('.'), name.lastIndexOf(':')) + 1), python: true, ready: () => core.sendCode(digest, source) };
}
