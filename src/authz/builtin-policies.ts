/** The policy data that ships with Bulkhead, read from `policies/`. Missing or broken data stops the process: nothing is decided without it. */
import { readFileSync } from 'node:fs';
import { BulkheadError } from '../base/errors.ts';
import { parseMethods, type MethodFile } from './methods.ts';

/** As `CheckInput.files` takes it. */
export const DEFAULTS_FILE = 'defaults.yaml';

function read(name: string): string {
  try {
    return readFileSync(new URL(`../../policies/${name}`, import.meta.url), 'utf8');
  } catch (cause) {
    throw new BulkheadError('INTERNAL', `policies/${name} cannot be read; the installation is incomplete: install Bulkhead again`, { cause });
  }
}

/** The platform's first policy: roles that tenants can use, what nodes and the administrator may do. */
export function defaultPolicy(): { readonly name: string; readonly content: string; readonly tenant: '' } {
  return { name: DEFAULTS_FILE, content: read(DEFAULTS_FILE), tenant: '' };
}

export function builtinMethods(): MethodFile {
  return parseMethods(read('methods.yaml'));
}
