/**
 * `npm run build`: the package as it is published, in dist/. Node does not strip types inside node_modules, so it is compiled; the
 * layout stays that of the repository, so that every path relative to a file (policies, entry points of processes) holds. Another
 * directory: `node scripts/build.ts DIR`. Must never: put anything into the package that is not in the lists below.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const DIST = resolve(process.argv[2] ?? join(ROOT, 'dist'));
/** Beside compiled src: what programs read at run time, and what a package must carry. */
const COPIED = ['bin/bulkhead.js', 'policies', 'proto', 'src/rpc/generated', 'python/pyproject.toml', 'python/bulkhead', 'README.md', 'GUARANTEES.md', 'SECURITY.md', 'CHANGELOG.md', 'LICENSE'];

interface Manifest {
  [field: string]: unknown;
  readonly exports: Readonly<Record<string, { readonly types: string; readonly default: string }>>;
}

function files(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'utf8' }).map((name) => join(directory, name)).filter((path) => statSync(path).isFile());
}

/** The compiler rewrites imports; programs that are started by URL are named in strings. One form only, so that none is missed. */
function rewriteEntryPoints(path: string): void {
  const text = readFileSync(path, 'utf8');
  const rewritten = text.replace(/new URL\('((?:\.\.?\/)[\w./-]+)\.ts', import\.meta\.url\)/g, "new URL('$1.js', import.meta.url)");
  const left = /^(?!\s*(?:\*|\/\/)).*['"`]\.{1,2}\/[\w./-]+\.ts['"`]/m.exec(rewritten);
  if (left !== null) throw new Error(`${path} still names a TypeScript file: ${left[0].trim()}`);
  if (rewritten !== text) writeFileSync(path, rewritten);
}

if (existsSync(DIST) && readdirSync(DIST).length > 0 && !existsSync(join(DIST, 'bin', 'bulkhead.js'))) throw new Error(`${DIST} holds something else than an earlier build: give an empty directory`);
rmSync(DIST, { recursive: true, force: true });
execFileSync(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', join(ROOT, 'tsconfig.build.json'), '--outDir', DIST], { cwd: ROOT, stdio: 'inherit' });
for (const name of COPIED) {
  const to = join(DIST, name);
  mkdirSync(dirname(to), { recursive: true });
  cpSync(join(ROOT, name), to, { recursive: true, filter: (path) => !/__pycache__$/.test(path) });
}
for (const path of files(DIST).filter((p) => p.endsWith('.js') && !p.includes('/generated/'))) rewriteEntryPoints(path);

const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Manifest;
const compiled = (path: string, suffix: string): string => path.replace(/\.ts$/, suffix);
// What only a checkout needs stays out; `private` too, which keeps the checkout itself from being published.
const { scripts: _scripts, devDependencies: _development, private: _private, ...kept } = manifest;
writeFileSync(join(DIST, 'package.json'), `${JSON.stringify({
  ...kept,
  exports: { ...Object.fromEntries(Object.entries(manifest.exports).map(([name, to]) => [name, { types: compiled(to.types, '.d.ts'), default: compiled(to.default, '.js') }])), './package.json': './package.json' },
}, null, 2)}\n`);
console.log(`dist: ${files(DIST).length} files, ${(files(DIST).reduce((sum, path) => sum + statSync(path).size, 0) / 2 ** 20).toFixed(1)} MiB; publish with: npm publish ${DIST}`);
