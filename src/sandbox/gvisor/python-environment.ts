/**
 * What a Python sandbox shows of the host: an interpreter, its standard library, one directory of packages, the C libraries and our worker. Read once,
 * from the interpreter that the operator names. Must never: take a path from a tenant.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { BulkheadError } from '../../base/errors.ts';
import type { Bind } from '../jail/bubblewrap.ts';

export const PYTHON_VARIABLE = 'BULKHEAD_PYTHON';
export const PYTHON_REMEDY = `name an interpreter of 3.10 or later whose packages have cloudpickle: bulkhead up --python PATH, or ${PYTHON_VARIABLE}`;
const PROBE_TIMEOUT_MS = 20_000;
/** Where things are inside. */
const INSIDE = { python: '/opt/python', packages: '/opt/packages', worker: '/opt/bulkhead', environment: '/opt/environment' };

const PROBE = `
import json, sys, sysconfig
import cloudpickle
print(json.dumps({
    "version": list(sys.version_info[:2]), "base": sys.base_prefix, "executable": getattr(sys, "_base_executable", sys.executable),
    "packages": sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}), "cloudpickle": cloudpickle.__version__,
}))
`;

const ProbeSchema = z.object({ version: z.tuple([z.int(), z.int()]), base: z.string(), executable: z.string(), packages: z.array(z.string()).min(1), cloudpickle: z.string() });

export interface PythonEnvironment {
  /** For instance `3.11`. */
  readonly version: string;
  readonly cloudpickle: string;
  readonly readOnly: readonly Bind[];
  /** Inside the sandbox. */
  readonly program: string;
  readonly args: readonly string[];
  /** Where its packages are inside. */
  readonly paths: readonly string[];
  readonly env: readonly string[];
}

/** The Python package of this project: the worker and what tenants import. */
function workerPackage(): string {
  for (let directory = dirname(fileURLToPath(import.meta.url)); directory !== '/'; directory = dirname(directory)) {
    const candidate = join(directory, 'python', 'bulkhead');
    if (existsSync(join(candidate, 'worker.py'))) return candidate;
  }
  throw new BulkheadError('LAYER_MISSING', 'layer python is missing: the folder python/bulkhead is not beside the program; install the package whole');
}

/** Throws LAYER_MISSING with the reason. */
export function pythonEnvironment(interpreter: string): PythonEnvironment {
  let probed: z.infer<typeof ProbeSchema>;
  try {
    probed = ProbeSchema.parse(JSON.parse(execFileSync(interpreter, ['-I', '-c', PROBE], { encoding: 'utf8', timeout: PROBE_TIMEOUT_MS, stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env['PATH'] ?? '' } })));
  } catch (thrown) {
    const said = String((thrown as { stderr?: unknown }).stderr ?? '');
    throw new BulkheadError('LAYER_MISSING', `layer python is missing: ${said.includes('cloudpickle') ? 'the interpreter has no cloudpickle' : 'the interpreter cannot be asked what it is'}; ${PYTHON_REMEDY}`, { cause: thrown });
  }
  const [major, minor] = probed.version;
  if (major !== 3 || minor < 10) throw new BulkheadError('LAYER_MISSING', `layer python is missing: the interpreter is ${major}.${minor}; ${PYTHON_REMEDY}`);
  const version = `${major}.${minor}`;
  const ofSystem = probed.base === '/usr';
  // Several places only on Debian's own interpreter, whose packages are under /usr/lib as well.
  const packages = probed.packages.filter((path) => existsSync(path)).map((path, i) => ({ source: realpathSync(path), target: `${INSIDE.packages}/${i}` }));
  const readOnly: Bind[] = [
    ...['/lib', '/lib64', '/usr/lib'].filter((path) => existsSync(path)).map((path) => ({ source: realpathSync(path), target: path })),
    ...(ofSystem ? [{ source: realpathSync(probed.executable), target: `/usr/bin/python${version}` }] : [{ source: realpathSync(probed.base), target: INSIDE.python }]),
    ...packages,
    { source: workerPackage(), target: `${INSIDE.worker}/bulkhead` },
  ];
  return {
    version, cloudpickle: probed.cloudpickle, readOnly,
    program: ofSystem ? `/usr/bin/python${version}` : `${INSIDE.python}/bin/python${version}`,
    args: argumentsFor('worker', packages.map((bind) => bind.target)), paths: packages.map((bind) => bind.target),
    env: ['PATH=/usr/bin', 'HOME=/tmp', 'LANG=C.UTF-8', 'PYTHONDONTWRITEBYTECODE=1', 'OPENBLAS_NUM_THREADS=1', 'OMP_NUM_THREADS=1', ...(ofSystem ? [] : [`LD_LIBRARY_PATH=${INSIDE.python}/lib`])],
  };
}

/** `module`: of our package, whose `main` is process 1. */
function argumentsFor(module: string, paths: readonly string[], argument = ''): string[] {
  return ['-I', '-S', '-c', `import sys; sys.path[1:1] = [${[INSIDE.worker, ...paths].map((path) => JSON.stringify(path)).join(', ')}]; from bulkhead.${module} import main; main(${argument})`];
}

/** The same with a tenant's packages, which its slots see and process 1 does not. `directory`: of the host, sealed. */
export function withPackages(environment: PythonEnvironment, directory: string): PythonEnvironment {
  return { ...environment, readOnly: [...environment.readOnly, { source: directory, target: INSIDE.environment }], args: argumentsFor('worker', environment.paths, JSON.stringify(INSIDE.environment)) };
}

/** The same interpreter, to install packages with it. */
export function packageBuilder(environment: PythonEnvironment): PythonEnvironment {
  return { ...environment, args: argumentsFor('package_builder', environment.paths) };
}
