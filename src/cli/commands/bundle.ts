/**
 * `bulkhead bundle`: a JavaScript or TypeScript module as the one script that nodes run, for programs in other languages that call its functions
 * (`ray.cross_language.js_function`). Needs no cluster. Must never: run what it bundles.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { bundleModule } from '../../sdk/bundle.ts';
import { printable, UsageError, type Terminal } from '../terminal.ts';

export async function bundle(terminal: Terminal, file: string, out: string): Promise<void> {
  if (!existsSync(file)) throw new UsageError(`${file} is not there; give a .ts or .js module`);
  const { source, digest, exports } = await bundleModule(resolve(file));
  // By itself on standard output, for a program that reads it there.
  if (out === '-') return terminal.raw(source);
  writeFileSync(out, source);
  const shown = [...exports].filter(([, kind]) => kind !== 'value').map(([name, kind]) => ({ name, kind }));
  terminal.answer({ file: out, digest: `sha256:${digest}`, exports: shown });
  terminal.say(printable(`${out}  sha256:${digest}\n${shown.map(({ name, kind }) => `  ${name} (${kind})`).join('\n')}`, true));
}
