/**
 * A Python program as a job: its driver is one call in a sandbox of the tenant's, with the files and variables that it was given, and no credential. The code that
 * travels is described in python/bulkhead/runtime_env.py. Must never: look into a package, or put a variable anywhere but into that code.
 */
import { createHash } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';
import { CALL_KIND } from '../base/frame.ts';
import { MAX_CODE_BYTES } from '../base/limits.ts';
import { CLUSTER_CORES } from './cluster-cores.ts';
import type { ObjectRef } from './object-ref.ts';
import type { Cluster } from './sdk.ts';

const HEAD = 'BKPY2\n';
const MAX_VARIABLES = 256;
const MAX_VARIABLE_CHARS = 32_768;
const MAX_ARGUMENTS = 1_024;

export interface ProgramPackage {
  /** `working_dir` and `py_module` are zip archives; a `file` lies beside the program, for the driver alone. */
  readonly kind: 'working_dir' | 'py_module' | 'file';
  readonly name: string;
  readonly bytes: Uint8Array;
}

export interface PythonProgram {
  /** What follows `python`: a file of the packages, or -m, or -c, and the program's own arguments. */
  readonly argv: readonly string[];
  readonly variables: Readonly<Record<string, string>>;
  readonly packages: readonly ProgramPackage[];
  /** What nodes install for it, as `pip` of a runtime environment has it. */
  readonly requirements?: readonly string[] | undefined;
  readonly cpus?: number | undefined;
  readonly memoryBytes?: number | undefined;
  readonly resources?: Readonly<Record<string, number>> | undefined;
}

/** Throws INVALID_ARGUMENT, naming the variable or the limit and never a value. */
function sourceOf({ argv, variables, packages, requirements = [] }: PythonProgram): Uint8Array {
  if (argv.length === 0 || argv.length > MAX_ARGUMENTS) throw new BulkheadError('INVALID_ARGUMENT', `a program has 1 to ${MAX_ARGUMENTS} arguments`);
  const names = Object.keys(variables);
  if (names.length > MAX_VARIABLES) throw new BulkheadError('INVALID_ARGUMENT', `env_vars has more than ${MAX_VARIABLES} variables`);
  for (const name of names) {
    if (!/^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(name)) throw new BulkheadError('INVALID_ARGUMENT', 'env_vars: a name is letters, digits and _');
    const value = variables[name] as string;
    if (value.length > MAX_VARIABLE_CHARS || value.includes('\0')) throw new BulkheadError('INVALID_ARGUMENT', `env_vars: the value of ${name} is longer than ${MAX_VARIABLE_CHARS} characters, or has a NUL`);
  }
  const header = Buffer.from(JSON.stringify({ variables, packages: packages.map(({ kind, name, bytes }) => ({ kind, name, bytes: bytes.length })), ...(requirements.length === 0 ? {} : { requirements }), job: { argv } }), 'utf8');
  const length = Buffer.alloc(4);
  length.writeUInt32LE(header.length);
  const source = Buffer.concat([Buffer.from(HEAD, 'latin1'), length, header, ...packages.map((p) => p.bytes)]);
  if (source.length > MAX_CODE_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `the program with its packages has ${source.length} bytes; at most ${MAX_CODE_BYTES} travel as code: leave data out of working_dir, and pass it with ray.put`);
  return source;
}

/** Submits the driver. Its value is the program's exit code; it fails when the sandbox did. */
export function submitProgram(cluster: Cluster, program: PythonProgram): ObjectRef<number> {
  const core = CLUSTER_CORES.get(cluster);
  if (core === undefined) throw new BulkheadError('INTERNAL', 'a cluster without its core');
  const source = sourceOf(program);
  const digest = createHash('sha256').update(source).digest('hex');
  const own = program.packages.some((p) => p.kind !== 'file') || Object.keys(program.variables).length > 0 || (program.requirements?.length ?? 0) > 0;
  // What has variables or modules of its own runs where no other job's code does.
  const suffix = own ? `+${createHash('sha256').update(`${cluster.jobId}\0${digest}`).digest('hex').slice(0, 32)}` : '';
  const { cpus = 0, memoryBytes, resources, requirements = [] } = program;
  const options = JSON.stringify({ runtime: `python3${suffix}`, isolation: 'gvisor', cpus, maxRetries: 0, name: DRIVER_NAME, ...(requirements.length === 0 ? {} : { packages: requirements }), ...(memoryBytes === undefined ? {} : { memoryBytes }), ...(resources === undefined ? {} : { resources }) });
  core.sendCode(digest, source);
  return core.submit(core.template({ kind: CALL_KIND.TASK, digest, exportName: DRIVER_NAME, method: '', options, returns: 1 }), 1, []) as ObjectRef<number>;
}

/** What the driver is called where calls are listed, and where they print. */
export const DRIVER_NAME = 'driver';
