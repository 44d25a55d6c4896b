/**
 * A profile: a directory with the identity of a person or service and the way to its cluster: `svid.pem` (leaf and intermediate), `key.pem`
 * (PKCS#8, 0600), `bundle.pem` (roots), `profile.json`. Must never: use a key that others can read.
 *
 * Renewal changes three files. They are first written as one (`.renewal.json`), then one by one; a reader that finds `.renewal.json`
 * takes that, so that a crash in between never pairs a key with another key's certificate. One process writes at a time (`.lock`).
 */
import { open, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { parseSpiffeId, parseTrustDomain, type TrustDomain } from '../base/ids.ts';
import { openPrivateDirectory, readGuardedFile, readPrivateFile, writeFileAtomic } from './private-file.ts';
import { svidMaterial, type SvidMaterial } from './svid-material.ts';

const ProfileSchema = z.strictObject({
  version: z.literal(1),
  /** `host:port` of the cluster's gRPC endpoint. */
  address: z.string().regex(/^(?:[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):[0-9]{1,5}$/, "expected 'host:port'"),
  spiffeId: z.string(),
  trustDomain: z.string(),
  /** HTTPS address of the gateway, when the cluster has one. */
  gateway: z.string().max(512).startsWith('https://').optional(),
});
const RenewalSchema = z.strictObject({ keyPem: z.string(), certificateChainPem: z.string(), trustBundlePem: z.string() });

export interface Profile {
  readonly address: string;
  readonly gateway: string | undefined;
  readonly svid: SvidMaterial;
}

/** Reads a profile directory. Throws INVALID_ARGUMENT with the file and the fix. */
export async function readProfile(dir: string): Promise<Profile> {
  const path = join(dir, 'profile.json');
  const text = (await readGuardedFile(path))?.toString('utf8');
  if (text === undefined) throw new BulkheadError('INVALID_ARGUMENT', `${dir} is not a profile: profile.json is missing; make one with: bulkhead identity issue … --out '${dir}'`);
  const parsed = ProfileSchema.safeParse(parseJson(text, path));
  if (!parsed.success) throw new BulkheadError('INVALID_ARGUMENT', `${path} is not valid: ${parsed.error.issues[0]?.path.join('.') ?? ''} ${parsed.error.issues[0]?.message ?? ''}`);
  const trustDomain = parseTrustDomain(parsed.data.trustDomain);
  const svid = await readSvid(dir, trustDomain);
  if (svid.spiffeId !== parseSpiffeId(parsed.data.spiffeId).id) throw new BulkheadError('INVALID_ARGUMENT', `${path} is for another identity than ${join(dir, 'svid.pem')}; issue the identity again`);
  return { address: parsed.data.address, gateway: parsed.data.gateway, svid };
}

/** A renewal by another process may come between two reads; a pair that does not fit is read again before it counts as damaged. */
async function readSvid(dir: string, trustDomain: TrustDomain): Promise<SvidMaterial> {
  for (let attempt = 1; ; attempt++) {
    const journal = join(dir, '.renewal.json');
    const renewal = await readPrivateFile(journal);
    try {
      const parts = renewal === undefined
        ? { keyPem: await requireFile(dir, 'key.pem', true), certificateChainPem: await requireFile(dir, 'svid.pem', false), trustBundlePem: await requireFile(dir, 'bundle.pem', false) }
        : parseRenewal(renewal.toString('utf8'), journal);
      return svidMaterial({ trustDomain, ...parts });
    } catch (error) {
      if (attempt < 3) {
        await sleep(20);
        continue;
      }
      throw new BulkheadError('INVALID_ARGUMENT', `profile ${dir}: ${error instanceof BulkheadError ? error.safeMessage : 'its files are not valid'}`, { cause: error });
    }
  }
}

function parseRenewal(text: string, path: string): z.infer<typeof RenewalSchema> {
  const parsed = RenewalSchema.safeParse(parseJson(text, path));
  if (!parsed.success) throw new BulkheadError('INVALID_ARGUMENT', `${path} is damaged; issue the identity again`);
  return parsed.data;
}

/** A lock that is older than this was left by a process that died: writing takes milliseconds. */
const STALE_LOCK_MS = 30_000;

async function lock(path: string): Promise<AsyncDisposable> {
  for (let attempt = 1; ; attempt++) {
    const file = await open(path, 'wx', 0o600).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw new BulkheadError('UNAVAILABLE', `${path} cannot be written; check free space and permissions of its directory`, { cause: error });
    });
    if (file !== undefined) {
      await file.close();
      return { [Symbol.asyncDispose]: () => unlink(path).catch(() => undefined) };
    }
    const status = await stat(path).catch(() => undefined);
    if (status !== undefined && Date.now() - status.mtimeMs > STALE_LOCK_MS) await unlink(path).catch(() => undefined);
    else if (attempt >= 100) throw new BulkheadError('UNAVAILABLE', `another process is writing this profile; if none is, remove ${path}`);
    else await sleep(20);
  }
}

/** Makes the directory (0700) and writes all four files. */
export async function writeProfile(dir: string, profile: Profile): Promise<void> {
  await openPrivateDirectory(dir);
  await writeProfileSvid(dir, profile.svid);
  const { address, gateway, svid } = profile;
  const json = ProfileSchema.parse({ version: 1, address, spiffeId: svid.spiffeId, trustDomain: svid.trustDomain, ...(gateway === undefined ? {} : { gateway }) });
  await writeFileAtomic(join(dir, 'profile.json'), `${JSON.stringify(json, undefined, 2)}\n`, 0o600);
}

/** Replaces key, chain and bundle of a profile: all or nothing, also across a crash. */
export async function writeProfileSvid(dir: string, svid: SvidMaterial): Promise<void> {
  await using _lock = await lock(join(dir, '.lock'));
  const journal = join(dir, '.renewal.json');
  await writeFileAtomic(journal, JSON.stringify({ keyPem: svid.privateKeyPem, certificateChainPem: svid.certificateChainPem, trustBundlePem: svid.trustBundlePem }), 0o600);
  await writeFileAtomic(join(dir, 'key.pem'), svid.privateKeyPem, 0o600);
  await writeFileAtomic(join(dir, 'svid.pem'), svid.certificateChainPem, 0o644);
  await writeFileAtomic(join(dir, 'bundle.pem'), svid.trustBundlePem, 0o644);
  await unlink(journal);
}

async function requireFile(dir: string, name: string, secret: boolean): Promise<string> {
  const path = join(dir, name);
  const content = await (secret ? readPrivateFile(path) : readGuardedFile(path));
  if (content === undefined) throw new BulkheadError('INVALID_ARGUMENT', `${path} is missing; issue the identity again`);
  return content.toString('utf8');
}

function parseJson(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new BulkheadError('INVALID_ARGUMENT', `${path} is not JSON; issue the identity again`);
  }
}
