/**
 * One build: what the throw-away sandbox (python/bulkhead/package_builder.py) asks goes to the broker, what it installed is written into a new directory, octet by octet from its
 * channel. Everything that it says is hostile. Must never: write outside the directory, a link, or more than the limits; call a set of files locked whose wheels the broker did not fetch.
 */
import { createHash } from 'node:crypto';
import { chmodSync, closeSync, fchmodSync, mkdirSync, openSync, writeSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { z } from 'zod';
import { BulkheadError } from '../../base/errors.ts';
import { MAX_ENVIRONMENT_BYTES, MAX_ENVIRONMENT_FILES } from '../../base/limits.ts';
import type { FetchedWheel, IndexBroker } from './index-broker.ts';
import { normalisedProject, wheelName } from './package-index.ts';

const FROM = { READY: 1, PAGE: 2, FILE: 3, ENTRY: 4, DATA: 5, DONE: 6, FAILED: 7 } as const;
const TO = { SPEC: 16, LINKS: 17, BODY: 18, END: 19, NONE: 20 } as const;
const MAX_FRAME_BYTES = 2 ** 20;
const MAX_PATH_CHARS = 1_024;
const MAX_TEXT_CHARS = 2_000;
const MAX_DEPTH = 40;

const EntrySchema = z.strictObject({ path: z.string().min(1).max(MAX_PATH_CHARS), executable: z.boolean(), bytes: z.int().min(0).max(MAX_ENVIRONMENT_BYTES) });

export interface BuildPort {
  readonly channel: Socket;
  /** Called when the sandbox says that it stands: throws when its layers are not seen. */
  ready(): void;
}

export interface Built {
  /** The wheels that are installed, by their digests. */
  readonly wheels: readonly FetchedWheel[];
  /** SHA-256 of the lock: names and digests of those wheels, sorted. */
  readonly lock: string;
  readonly bytes: number;
  readonly files: number;
}

function failed(why: string): BulkheadError {
  return new BulkheadError('ENVIRONMENT_FAILED', why);
}

const broke = (how: string): BulkheadError => failed(`the build of the packages was stopped: it ${how}`);

/** A path inside the environment's directory, in its parts; undefined: it is none. */
export function entryPath(path: string): readonly string[] | undefined {
  if (path.length > MAX_PATH_CHARS || path.includes('\0') || path.includes('\\')) return undefined;
  const parts = path.split('/');
  return parts.length <= MAX_DEPTH && parts.every((part) => part !== '' && part !== '.' && part !== '..' && Buffer.byteLength(part) <= 255) ? parts : undefined;
}

/** Writes what is installed, within limits; nothing of it is looked into. */
class Intake {
  readonly #directory: string;
  readonly #made = new Set<string>();
  readonly #seen = new Set<string>();
  readonly projects = new Map<string, string>();
  bytes = 0;
  files = 0;
  #fd = -1;
  #left = 0;

  constructor(directory: string) {
    this.#directory = directory;
  }

  begin(entry: z.infer<typeof EntrySchema>): void {
    if (this.#left > 0) throw broke('began a file before another ended');
    this.close();
    const parts = entryPath(entry.path);
    if (parts === undefined || this.#seen.has(entry.path)) throw broke('named a file outside its directory, or twice');
    this.#seen.add(entry.path);
    this.bytes += entry.bytes;
    if (++this.files > MAX_ENVIRONMENT_FILES || this.bytes > MAX_ENVIRONMENT_BYTES) throw failed(`the packages have more than ${MAX_ENVIRONMENT_FILES} files or ${MAX_ENVIRONMENT_BYTES} bytes when installed`);
    for (let depth = 1; depth < parts.length; depth++) {
      const parent = join(this.#directory, ...parts.slice(0, depth));
      if (this.#made.has(parent)) continue;
      mkdirSync(parent);
      chmodSync(parent, 0o755);
      this.#made.add(parent);
    }
    const path = join(this.#directory, ...parts);
    // Only directories and new files are ever made here, so that no part of the path is a link.
    this.#fd = openSync(path, 'wx', 0o644);
    fchmodSync(this.#fd, entry.executable ? 0o555 : 0o444);
    this.#left = entry.bytes;
    const info = parts.length === 2 ? /^(.+)-([^-]+)\.dist-info$/.exec(parts[0] as string) : null;
    if (info !== null) this.projects.set(normalisedProject(info[1] as string), info[2] as string);
  }

  data(part: Buffer): void {
    if (part.length > this.#left) throw broke('sent more of a file than it had said');
    this.#left -= part.length;
    for (let at = 0; at < part.length; ) at += writeSync(this.#fd, part, at);
  }

  done(): void {
    if (this.#left > 0) throw broke('ended in the middle of a file');
    this.close();
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Names and digests of the wheels whose projects are installed. Throws when one is there that was never fetched. */
export function lockOf(projects: ReadonlyMap<string, string>, fetched: readonly FetchedWheel[]): { readonly wheels: readonly FetchedWheel[]; readonly lock: string } {
  const wheels: FetchedWheel[] = [];
  for (const [project, version] of projects) {
    const wheel = fetched.find((w) => {
      const name = wheelName(w.file);
      return name?.project === project && sameVersion(name.version, version);
    });
    if (wheel === undefined) throw broke(`installed ${project}, which was not fetched`);
    wheels.push(wheel);
  }
  wheels.sort((a, b) => (a.file < b.file ? -1 : 1));
  return { wheels, lock: createHash('sha256').update(wheels.map((w) => `${w.sha256}  ${w.file}\n`).join('')).digest('hex') };
}

/** A dist-info directory and its wheel's name may write one version in two ways (`_` and `-`). */
function sameVersion(a: string, b: string): boolean {
  const plain = (v: string): string => v.replace(/[-_]+/g, '_').toLowerCase();
  return plain(a) === plain(b);
}

async function* frames(channel: Socket): AsyncGenerator<{ readonly kind: number; readonly body: Buffer }> {
  let held: Buffer = Buffer.alloc(0);
  for await (const chunk of channel) {
    held = held.length === 0 ? (chunk as Buffer) : Buffer.concat([held, chunk as Buffer]);
    let at = 0;
    while (held.length - at >= 5) {
      const length = held.readUInt32LE(at);
      if (length < 1 || length > MAX_FRAME_BYTES) throw broke('sent a message out of bounds');
      if (held.length - at < 4 + length) break;
      yield { kind: held[at + 4] as number, body: held.subarray(at + 5, at + 4 + length) };
      at += 4 + length;
    }
    held = held.subarray(at);
  }
}

async function say(channel: Socket, kind: number, body: Uint8Array | string = ''): Promise<void> {
  const octets = typeof body === 'string' ? Buffer.from(body, 'utf8') : body;
  const head = Buffer.alloc(5);
  head.writeUInt32LE(octets.length + 1, 0);
  head[4] = kind;
  channel.write(head);
  if (channel.write(octets)) return;
  await new Promise<void>((resolve) => {
    const go = (): void => {
      channel.off('drain', go);
      channel.off('close', go);
      resolve();
    };
    channel.on('drain', go);
    channel.on('close', go);
  });
}

/** Until everything is in `directory`, which is new and empty. Throws ENVIRONMENT_FAILED with what a tenant may read. */
export async function runBuild(port: BuildPort, broker: IndexBroker, requirements: readonly string[], directory: string): Promise<Built> {
  const { channel } = port;
  const intake = new Intake(directory);
  let ready = false;
  try {
    for await (const { kind, body } of frames(channel)) {
      if (!ready) {
        if (kind !== FROM.READY) throw broke('spoke before it was ready');
        port.ready();
        ready = true;
        await say(channel, TO.SPEC, JSON.stringify({ requirements }));
        continue;
      }
      switch (kind) {
        case FROM.PAGE: {
          const links = await broker.page(body.toString('latin1'));
          await (links === undefined ? say(channel, TO.NONE) : say(channel, TO.LINKS, JSON.stringify(links)));
          break;
        }
        case FROM.FILE: {
          const number = /^\d{1,7}$/.test(body.toString('latin1')) ? Number(body.toString('latin1')) : -1;
          for await (const part of broker.file(number)) await say(channel, TO.BODY, part);
          await say(channel, TO.END);
          break;
        }
        case FROM.ENTRY:
          intake.begin(parsedEntry(body));
          break;
        case FROM.DATA:
          intake.data(body);
          break;
        case FROM.DONE: {
          intake.done();
          return { ...lockOf(intake.projects, broker.fetched), bytes: intake.bytes, files: intake.files };
        }
        case FROM.FAILED:
          throw failed(['the packages could not be installed', ...broker.missing, plainText(body)].join('; '));
        default:
          throw broke('sent a message that is none');
      }
    }
  } catch (thrown) {
    if (thrown instanceof BulkheadError) throw thrown;
    if ((thrown as NodeJS.ErrnoException).code === 'ENOSPC') throw new BulkheadError('RESOURCE_EXHAUSTED', 'the disk of this node is full: the packages cannot be installed', { cause: thrown });
    throw new BulkheadError('ENVIRONMENT_FAILED', 'the packages could not be installed on this node; the operator finds the cause in the log', { cause: thrown });
  } finally {
    intake.close();
  }
  throw broke(ready ? 'ended before it was done (it may have used more memory than a build has)' : 'ended before it was ready');
}

function parsedEntry(body: Buffer): z.infer<typeof EntrySchema> {
  let said: unknown;
  try {
    said = JSON.parse(body.toString('utf8'));
  } catch {
    throw broke('named a file in a way that is none');
  }
  const parsed = EntrySchema.safeParse(said);
  if (!parsed.success) throw broke('named a file in a way that is none');
  return parsed.data;
}

/** What pip says, for the tenant whose packages they are: without control characters. */
function plainText(body: Buffer): string {
  return body.toString('utf8').replace(/[^\x20-\x7e]+/g, ' ').replace(/https?:\/\/127\.0\.0\.1:\d+\/(?:simple\/)?/g, '').slice(0, MAX_TEXT_CHARS);
}
