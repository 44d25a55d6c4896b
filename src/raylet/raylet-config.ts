/** The raylet's configuration: one JSON document on stdin, parsed strictly. The join token in it is a secret: read once, never kept. */
import { readFileSync } from 'node:fs';
import { isAbsolute, join as joinPath } from 'node:path';
import { availableParallelism, totalmem } from 'node:os';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { parseTrustDomain, type TrustDomain } from '../base/ids.ts';
import { LABEL_KEY, LABEL_VALUE, parseLabels, type Labels } from '../base/labels.ts';
import { MAX_AUDIT_BYTES_PER_TENANT, MAX_SPILL_BYTES, MIN_OBJECT_MEMORY_BYTES } from '../base/limits.ts';
import { parseUnits, UNITS_PER_CPU, type ResourceVector } from '../base/resources.ts';

const address = z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):\d{1,5}$/, "expected 'host:port' (port 0: any free one)");
const directory = z.string().min(1).max(4_096).refine((p) => isAbsolute(p) && !p.includes('\0'), 'expected an absolute path');
const ConfigSchema = z.strictObject({
  dataDir: directory,
  /** On tmpfs: objects, code and workers live here. */
  runDir: directory,
  trustDomain: z.string(),
  listen: address.default('127.0.0.1:0'),
  /** Where Prometheus scrapes, over mTLS; nowhere when left out. */
  metricsListen: address.optional(),
  /** What other nodes and drivers are told; the listening address when left out. */
  advertise: address.optional(),
  headAddress: address,
  /** For the first start: how the node gets its identity. Later its own SVID is renewed. */
  join: z.strictObject({ token: z.string().min(16).max(256), attestationAddress: address, trustBundle: z.string().max(65_536) }).optional(),
  cpus: z.number().positive().max(10_000).optional(),
  memoryBytes: z.int().positive().optional(),
  /** Memory (tmpfs) and disk that objects' files may take; beyond the first they are moved to disk, encrypted. */
  objectMemoryBytes: z.int().min(MIN_OBJECT_MEMORY_BYTES).optional(),
  spillBytes: z.int().nonnegative().default(MAX_SPILL_BYTES),
  /** Where, on a disk; in the data directory when left out. Emptied at each start. */
  spillDir: directory.optional(),
  resources: z.record(z.string().regex(/^[A-Za-z][A-Za-z0-9_.:-]{0,62}$/), z.number().nonnegative()).default({}),
  /** What the operator calls this node by; refused beyond what its join token or the head's configuration allows. */
  labels: z.record(z.string().regex(LABEL_KEY), z.string().regex(LABEL_VALUE)).default({}),
  warmWorkers: z.int().min(0).max(64).default(2),
  maxWorkers: z.int().min(1).max(4_096).default(64),
  /** Of each tenant's audit log on this node, in bytes; then its calls are refused here. */
  auditBytesPerTenant: z.int().min(2 ** 20).default(MAX_AUDIT_BYTES_PER_TENANT),
  /** Interpreter whose version and packages Python tasks get, in sandboxes of gVisor; without it none runs here. */
  python: directory.optional(),
  /** Where packages of runtime environments come from; without it they are refused here. The URL may have a name and password: a secret. */
  pythonIndex: z.strictObject({
    url: z.string().min(1).max(2_048), fileHosts: z.array(z.string().regex(/^[a-z0-9.-]{1,253}(?::\d{1,5})?$/, 'expected a host, with a port perhaps')).max(16).default([]), certificateAuthorities: z.string().max(4 * 2 ** 20).optional(),
    loopbackHttp: z.boolean().default(false),
  }).optional(),
  /** Isolation layers that may be missing, by name; stamped on every audit record. Empty: none may. */
  insecureDev: z.array(z.string().max(64)).default([]),
});

export interface RayletConfig {
  readonly dataDir: string;
  readonly runDir: string;
  readonly trustDomain: TrustDomain;
  readonly listen: string;
  readonly metricsListen: string | undefined;
  readonly advertise: string | undefined;
  readonly headAddress: string;
  readonly join: { readonly token: string; readonly attestationAddress: string; readonly trustBundle: string } | undefined;
  readonly total: ResourceVector;
  readonly labels: Labels;
  readonly objectMemoryBytes: number;
  readonly spillBytes: number;
  readonly spillDir: string;
  readonly warmWorkers: number;
  readonly maxWorkers: number;
  readonly auditBytesPerTenant: number;
  readonly python: string | undefined;
  readonly pythonIndex: { readonly url: string; readonly fileHosts: readonly string[]; readonly certificateAuthorities?: string | undefined; readonly loopbackHttp: boolean } | undefined;
  readonly insecureDev: readonly string[];
}

export function parseRayletConfig(text: string): RayletConfig {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the raylet's configuration is not valid: ${why}`);
  };
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return refuse('it is not one JSON document on stdin');
  }
  const parsed = ConfigSchema.safeParse(json);
  // Only where and what: a value in it may be the join token.
  if (!parsed.success) return refuse(parsed.error.issues.map((i) => `${i.path.join('.') || 'it'}: ${i.message}`).join('; '));
  const { cpus, memoryBytes, objectMemoryBytes, spillDir, resources, trustDomain, join, advertise, metricsListen, labels, python, pythonIndex, ...rest } = parsed.data;
  // A part stays with the operating system, the raylet itself and the page cache.
  const memory = memoryBytes ?? Math.floor(totalmem() * 0.7);
  const custom = Object.entries(resources).map(([name, amount]) => [name, parseUnits(`resource ${name}`, amount)] as const);
  return {
    ...rest, trustDomain: parseTrustDomain(trustDomain), join, advertise, metricsListen, labels: parseLabels(labels), python, pythonIndex,
    // As Ray has it.
    objectMemoryBytes: objectMemoryBytes ?? Math.floor(memory * 0.3),
    spillDir: spillDir ?? joinPath(rest.dataDir, 'spill'),
    total: {
      cpuUnits: cpus === undefined ? availableParallelism() * UNITS_PER_CPU : parseUnits('cpus', cpus),
      memoryBytes: memory,
      custom: custom.length === 0 ? undefined : Object.fromEntries(custom),
    },
  };
}

export function readRayletConfig(): RayletConfig {
  return parseRayletConfig(readFileSync(0, 'utf8'));
}
