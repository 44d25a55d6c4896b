/** The head's configuration: parsed once, strictly. Holds no secret. */
import { fstatSync, readFileSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { parseTrustDomain, type TrustDomain } from '../base/ids.ts';
import { LABEL_KEY, LABEL_VALUE } from '../base/labels.ts';
import { MAX_AUDIT_BYTES_PER_TENANT, MAX_NODE_CPUS, MAX_NODE_CUSTOM, MAX_NODE_MEMORY_BYTES } from '../base/limits.ts';
import { UNITS_PER_CPU } from '../base/resources.ts';
import type { NodeMost } from './core/nodes.ts';

const MAX_CONFIG_BYTES = 65_536;
const address = z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):\d{1,5}$/, "expected 'host:port' (port 0: any free one)");
const ConfigSchema = z.strictObject({
  /** Absolute; made 0700 at the first start. */
  dataDir: z.string().min(1).max(4_096),
  listen: address.default('127.0.0.1:0'),
  attestationListen: address.default('127.0.0.1:0'),
  /** Where Prometheus scrapes, over mTLS; nowhere when left out. */
  metricsListen: address.optional(),
  /** Host name or address by which clients and nodes reach this machine, where it is not the one to listen on. */
  advertiseHost: z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\])$/, 'expected a host name or address').optional(),
  /** Names of DNS by which HTTP clients reach the gateway; its certificate has them. */
  gatewayNames: z.array(z.string().regex(/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/, 'expected a lower-case name of DNS')).max(16).default(['localhost']),
  /** Chosen at the first start and kept; later it may be left out, and must not differ. */
  trustDomain: z.string().optional(),
  /** Of each tenant's audit log on this head, in bytes; then its calls are refused here. */
  auditBytesPerTenant: z.int().min(2 ** 20).default(MAX_AUDIT_BYTES_PER_TENANT),
  /** What one node may say at most that it has, where its join token says nothing: a node that lies about it draws the others' work. */
  nodeMost: z.strictObject({ cpus: z.number().positive().max(1e6).default(MAX_NODE_CPUS), memoryBytes: z.int().positive().default(MAX_NODE_MEMORY_BYTES), each: z.number().positive().max(1e6).default(MAX_NODE_CUSTOM) }).prefault({}),
  /** Labels that any node may say it has, with their values, where its join token says nothing. None: only what tokens say. */
  nodeLabels: z.record(z.string().regex(LABEL_KEY), z.array(z.string().regex(LABEL_VALUE)).max(1_000)).default({}),
  insecureDev: z.boolean().default(false),
});

export interface HeadConfig {
  readonly dataDir: string;
  readonly listen: string;
  readonly attestationListen: string;
  readonly metricsListen: string | undefined;
  readonly advertiseHost: string | undefined;
  readonly gatewayNames: readonly string[];
  readonly trustDomain: TrustDomain | undefined;
  readonly auditBytesPerTenant: number;
  readonly nodeMost: NodeMost;
  readonly insecureDev: boolean;
}

export function parseHeadConfig(text: string): HeadConfig {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the head's configuration is not valid: ${why}`);
  };
  if (text.length > MAX_CONFIG_BYTES) return refuse(`it is larger than ${MAX_CONFIG_BYTES} bytes`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return refuse('it is not one JSON document; write it to stdin and close that, for example {"dataDir":"/var/lib/bulkhead"}');
  }
  const parsed = ConfigSchema.safeParse(json);
  if (!parsed.success) return refuse(parsed.error.issues.map((i) => `${i.path.join('.') || 'it'}: ${i.message}`).join('; '));
  const { dataDir, trustDomain, advertiseHost, metricsListen, nodeMost, nodeLabels, ...rest } = parsed.data;
  if (!isAbsolute(dataDir) || dataDir.includes('\0')) return refuse('dataDir is not an absolute path');
  return {
    ...rest, dataDir, advertiseHost, metricsListen, nodeMost: { cpuUnits: Math.floor(nodeMost.cpus * UNITS_PER_CPU), memoryBytes: nodeMost.memoryBytes, eachUnits: Math.floor(nodeMost.each * UNITS_PER_CPU), labels: nodeLabels },
    trustDomain: trustDomain === undefined ? undefined : parseTrustDomain(trustDomain),
  };
}

/** Arguments of the process: nothing, or `--config-fd N`. */
export function readHeadConfig(args: readonly string[]): HeadConfig {
  let fd = 0;
  if (args.length > 0) {
    const [name, value = ''] = args;
    if (args.length !== 2 || name !== '--config-fd' || !/^\d{1,3}$/.test(value)) throw new BulkheadError('INVALID_ARGUMENT', 'usage: bulkhead head [--config-fd N], with the configuration as JSON on that descriptor (default 0, stdin)');
    fd = Number(value);
  }
  try {
    if (fstatSync(fd).isCharacterDevice()) throw new BulkheadError('INVALID_ARGUMENT', 'the head reads its configuration from a pipe or file on stdin, not from a terminal');
    return parseHeadConfig(readFileSync(fd, 'utf8'));
  } catch (error) {
    if (error instanceof BulkheadError) throw error;
    throw new BulkheadError('INVALID_ARGUMENT', `the head's configuration cannot be read from descriptor ${fd}`, { cause: error });
  }
}
