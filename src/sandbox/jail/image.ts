/**
 * What a worker's jail shows: the node binary, its C libraries by name, two addons, the bundled worker host, the guest prelude and the
 * two filters. Built once per pool into a directory that only the raylet can write. Must never hold anything of a tenant or a secret.
 */
import { accessSync, constants, copyFileSync, existsSync, linkSync, mkdirSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BulkheadError } from '../../base/errors.ts';
import { bundled } from '../bundle-cache.ts';
import { buildPrelude } from '../isolate/build-prelude.ts';
import type { Bind, JailSpec } from './bubblewrap.ts';
import { compileSeccomp, RUN_TIME, seccompArch, START_UP } from './seccomp.ts';

/** ABI of node 24, for which isolated-vm brings a prebuilt addon. */
const NODE_ABI = '137';
const LIBRARIES = ['libdl.so.2', 'libstdc++.so.6', 'libm.so.6', 'libgcc_s.so.1', 'libpthread.so.0', 'libc.so.6'];
const LOADER: Readonly<Record<string, string>> = { x64: '/lib64/ld-linux-x86-64.so.2', arm64: '/lib/ld-linux-aarch64.so.1' };
const NODE_FLAGS = ['--no-node-snapshot', '--no-warnings', '--disable-sigusr1', '--max-old-space-size=128', '--max-semi-space-size=8', '--no-experimental-require-module', '/app/worker-host.cjs'];

export interface JailImage {
  readonly directory: string;
  readonly seccompFile: string;
  readonly readOnly: readonly Bind[];
}

export interface ImageOptions {
  /** Made if absent. Every parent must be searchable by the workers' users. */
  readonly directory: string;
  /** Source of the guest prelude; undefined builds the real one. */
  readonly prelude?: string;
}

/** The directory on the way to `path` that another user could not pass, or undefined. */
export function unsearchableParent(path: string): string | undefined {
  for (let directory = dirname(path); ; directory = dirname(directory)) {
    if ((statSync(directory).mode & 0o001) === 0) return directory;
    if (directory === '/') return undefined;
  }
}

function findLibrary(name: string): string {
  const triplet = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu';
  for (const directory of [`/lib/${triplet}`, `/usr/lib/${triplet}`, '/lib64', '/usr/lib64']) if (existsSync(`${directory}/${name}`)) return `${directory}/${name}`;
  throw new BulkheadError('LAYER_MISSING', `layer empty-root is missing: the library ${name} that node needs was not found; use a distribution with glibc`);
}

/** A package's file by walking up from this one: `exports` maps hide addons from `require.resolve`. */
function packageFile(path: string): string {
  for (let directory = dirname(fileURLToPath(import.meta.url)); ; directory = dirname(directory)) {
    const candidate = join(directory, 'node_modules', path);
    if (existsSync(candidate)) return realpathSync(candidate);
    if (directory === dirname(directory)) throw new BulkheadError('UNAVAILABLE', `the file ${path} is not installed; run npm ci`);
  }
}

export function findNode(): string {
  try {
    return packageFile('node/bin/node');
  } catch {
    return realpathSync(process.execPath);
  }
}

/** As a hard link where the file system allows, else a copy. */
function place(source: string, target: string): void {
  try {
    linkSync(source, target);
  } catch {
    copyFileSync(source, target, constants.COPYFILE_FICLONE);
  }
}

let host: Promise<string> | undefined;

function buildHost(): Promise<string> {
  host ??= bundled(fileURLToPath(new URL('../isolate/worker-host.ts', import.meta.url)), { format: 'cjs', platform: 'node', target: 'node24', legalComments: 'none', minifySyntax: true, minifyWhitespace: true, logLevel: 'silent' });
  host.catch(() => (host = undefined));
  return host;
}

/** Makes what every image needs and nothing of a node decides, so that a process may do it before it knows its configuration. */
export async function prepareImage(): Promise<void> {
  await buildHost();
  await buildPrelude();
}

export async function buildImage(options: ImageOptions): Promise<JailImage> {
  const arch = seccompArch(process.arch);
  const loader = LOADER[process.arch];
  if (loader === undefined || process.platform !== 'linux') throw new BulkheadError('LAYER_MISSING', 'layer empty-root is missing: workers run on Linux with glibc only');
  const directory = options.directory;
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const program = await buildHost();
  const prelude = options.prelude ?? (await buildPrelude());
  const at = (name: string): string => join(directory, name);
  writeFileSync(at('worker-host.cjs'), program, { mode: 0o644 });
  writeFileSync(at('prelude.js'), prelude, { mode: 0o644 });
  writeFileSync(at('start-up.bpf'), compileSeccomp(START_UP, arch), { mode: 0o644 });
  writeFileSync(at('run-time.bpf'), compileSeccomp(RUN_TIME, arch), { mode: 0o644 });
  place(packageFile(`isolated-vm/prebuilds/linux-${process.arch}/isolated-vm.abi${NODE_ABI}.glibc.node`), at('isolated-vm.node'));
  place(packageFile(`@koromix/koffi-linux-${process.arch}/linux_${process.arch}/koffi.node`), at('koffi.node'));
  let node = findNode();
  if (process.getuid?.() === 0 && unsearchableParent(node) !== undefined) {
    place(node, at('node'));
    node = at('node');
  }
  const app = (name: string): Bind => ({ source: at(name), target: `/app/${name}` });
  return {
    directory,
    seccompFile: at('start-up.bpf'),
    readOnly: [
      ...LIBRARIES.map(findLibrary).map((path) => ({ source: path, target: path })),
      { source: loader, target: loader },
      { source: node, target: '/app/node' },
      app('worker-host.cjs'), app('prelude.js'), app('run-time.bpf'), app('isolated-vm.node'), app('koffi.node'),
    ],
  };
}

export interface WorkerDirectories {
  readonly objects: string;
  readonly code: string;
  readonly staging: string;
}

/** The jail of one worker. `program` is node unless a test puts hostile native code in its place. */
export function workerSpec(image: JailImage, directories: WorkerDirectories, program?: Bind): JailSpec {
  return {
    program: program?.target ?? '/app/node',
    args: program === undefined ? NODE_FLAGS : [],
    readOnly: [
      ...image.readOnly,
      ...(program === undefined ? [] : [program]),
      { source: directories.objects, target: '/objects' },
      { source: directories.code, target: '/code' },
    ],
    readWrite: [{ source: directories.staging, target: '/staging' }],
    devices: ['/dev/null', '/dev/urandom'],
    // No io_uring: the filter refuses it. Nothing else: what is in the environment is the tenant's to read.
    env: { UV_USE_IO_URING: '0', UV_THREADPOOL_SIZE: '2' },
    uid: 65_534,
    gid: 65_534,
  };
}

/** Absolute path of an installed program, or LAYER_MISSING with what to install. */
export function findProgram(name: string, remedy: string): string {
  for (const directory of ['/usr/bin', '/bin', '/usr/local/bin']) {
    try {
      accessSync(`${directory}/${name}`, constants.X_OK);
      return `${directory}/${name}`;
    } catch {
      // Not there.
    }
  }
  throw new BulkheadError('LAYER_MISSING', `layer jail is missing: ${name} is not installed; ${remedy}`);
}
