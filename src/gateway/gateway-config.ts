/** The gateway's configuration: one JSON document on stdin, parsed strictly. Holds no secret: its key is in the profile. */
import { readFileSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';

const MAX_CONFIG_BYTES = 65_536;
const address = z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):\d{1,5}$/, "expected 'host:port' (port 0: any free one)");
const ConfigSchema = z.strictObject({
  /** Of the component `gateway`: `bulkhead identity issue component gateway --out DIR`. */
  profile: z.string().max(4_096).refine((p) => isAbsolute(p) && !p.includes('\0'), 'expected an absolute path'),
  /** Of the head, where it is not the profile's. */
  headAddress: address.optional(),
  listen: address.default('127.0.0.1:0'),
});

export type GatewayConfig = z.infer<typeof ConfigSchema>;

/** Throws INVALID_ARGUMENT. */
export function parseGatewayConfig(text: string): GatewayConfig {
  let json: unknown;
  try {
    json = text.length > MAX_CONFIG_BYTES ? undefined : JSON.parse(text);
  } catch {
    // Said below.
  }
  const parsed = ConfigSchema.safeParse(json);
  if (!parsed.success) throw new BulkheadError('INVALID_ARGUMENT', `the gateway's configuration is not valid: ${parsed.error.issues.map((i) => `${i.path.join('.') || 'it'}: ${i.message}`).join('; ')}`);
  return parsed.data;
}

export function readGatewayConfig(): GatewayConfig {
  return parseGatewayConfig(readFileSync(0, 'utf8'));
}
