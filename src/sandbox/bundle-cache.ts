/**
 * Bundles of the sandbox's own programs (worker host, prelude), kept between starts: bundling takes longer than the rest of a jail's image. A kept bundle
 * counts while every file that went into it is the same by size and times, and while nobody but us or root could have written it.
 * Must never: bundle tenant code (src/sdk/bundle.ts does, on the client), or fail because a bundle cannot be kept.
 */
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, fstatSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { BuildOptions } from 'esbuild';

const KEPT_IN = fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url));

/** Path, size, time of content and of anything else, ms. */
type Input = readonly [path: string, size: number, mtimeMs: number, ctimeMs: number];

function inputOf(path: string): Input {
  const { size, mtimeMs, ctimeMs } = statSync(path);
  return [path, size, mtimeMs, ctimeMs];
}

/** The bundled text of a program. `options` without entry and output; the same for the same sources. */
export async function bundled(entry: string, options: Omit<BuildOptions, 'entryPoints' | 'write' | 'bundle' | 'metafile'>): Promise<string> {
  const keptFile = join(KEPT_IN, `bundle-${createHash('sha256').update(JSON.stringify([entry, options])).digest('hex').slice(0, 24)}.json`);
  const kept = readKept(keptFile);
  if (kept !== undefined) return kept;
  const { build, stop } = await import('esbuild');
  const result = await build({ ...options, entryPoints: [entry], bundle: true, write: false, metafile: true, absWorkingDir: process.cwd() });
  const [file] = result.outputFiles;
  if (file === undefined) throw new Error(`esbuild made nothing of ${entry}`);
  keep(keptFile, Object.keys(result.metafile.inputs).map((path) => resolve(path)), file.text);
  // The bundler's own process has done its work; it would stay for as long as we do.
  await stop();
  return file.text;
}

function readKept(path: string): string | undefined {
  try {
    const fd = openSync(path, 'r');
    try {
      const { uid, mode } = fstatSync(fd);
      if ((uid !== 0 && uid !== process.getuid?.()) || (mode & 0o022) !== 0) return undefined;
      const { inputs, text } = JSON.parse(readFileSync(fd, 'utf8')) as { inputs: readonly Input[]; text: string };
      const same = inputs.length > 0 && inputs.every((input) => inputOf(input[0]).every((value, i) => value === input[i]));
      return same ? text : undefined;
    } finally {
      closeSync(fd);
    }
  } catch {
    // None, or of an older form: it is made anew.
    return undefined;
  }
}

function keep(path: string, inputs: readonly string[], text: string): void {
  const aside = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    mkdirSync(KEPT_IN, { recursive: true });
    writeFileSync(aside, JSON.stringify({ inputs: inputs.map(inputOf), text }), { mode: 0o644, flag: 'wx' });
    renameSync(aside, path);
  } catch {
    // A read-only installation bundles at each start.
    rmSync(aside, { force: true });
  }
}
