/**
 * What tasks and actors print: one JSON line per piece, a file per job in its tenant's directory, capped. Must never: build a
 * path from anything but a checked tenant name and job id; grow without bound.
 */
import { appendFileSync, closeSync, existsSync, mkdirSync, openSync, readdirSync, readSync, rmSync, statSync, watch } from 'node:fs';
import { dirname, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { parseJobId, parseTenantName, type JobId } from '../base/ids.ts';
import { MAX_LOG_BYTES, MAX_LOG_BYTES_PER_TENANT } from '../base/limits.ts';

const MAX_JOB_LOG_BYTES = 64 * 2 ** 20;
/** What a piece counts beyond its octets: some tens of thousands of empty ones are all that a source has. */
const PIECE_OVERHEAD_BYTES = 16;
const MAX_WAITING_BYTES = 4 * 2 ** 20;
const READ_BYTES = 65_536;
const FULL = new TextEncoder().encode(`\n… the log of this task is full at ${MAX_LOG_BYTES} bytes; the rest was dropped\n`);

export interface LogLine {
  readonly timeMs: number;
  readonly task: string;
  readonly actor: string;
  readonly name: string;
  readonly stream: 'stdout' | 'stderr';
  readonly text: string;
}

export class JobLogs {
  readonly #dir: string;
  readonly #tenantBytes: number;
  readonly #sizes = new Map<string, number>();
  readonly #perSource = new Map<string, number>();
  /** By tenant. */
  readonly #totals = new Map<string, number>();
  /** What came in this turn, by file. */
  readonly #waiting = new Map<string, { readonly tenant: string; readonly pieces: { readonly line: Omit<LogLine, 'text'>; readonly parts: Uint8Array[] }[] }>();
  readonly #onError: (error: unknown) => void;
  #waitingBytes = 0;
  #flushing: NodeJS.Immediate | undefined = undefined;

  constructor(dir: string, tenantBytes = MAX_LOG_BYTES_PER_TENANT, onError: (error: unknown) => void = () => undefined) {
    this.#tenantBytes = tenantBytes;
    this.#onError = onError;
    this.#dir = dir;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  }

  #path(tenant: string, job: string): string {
    return join(this.#dir, parseTenantName(tenant), `${parseJobId(job)}.jsonl`);
  }

  /** Kept in memory until this turn of the event loop ends: a frame of a few octets must not cost a call to the disk. */
  append(tenant: string, job: JobId, line: Omit<LogLine, 'text'>, bytes: Uint8Array): void {
    const source = `${job} ${line.task}`;
    const before = this.#perSource.get(source) ?? 0;
    if (before >= MAX_LOG_BYTES) return;
    // What is empty costs work too.
    const after = before + bytes.length + PIECE_OVERHEAD_BYTES;
    if (this.#perSource.size > 100_000) this.#perSource.clear();
    this.#perSource.set(source, after);
    const full = after >= MAX_LOG_BYTES;
    if (bytes.length === 0 && !full) return;
    const path = this.#path(tenant, job);
    let waiting = this.#waiting.get(path);
    if (waiting === undefined) this.#waiting.set(path, (waiting = { tenant, pieces: [] }));
    const parts = full ? [bytes.subarray(0, MAX_LOG_BYTES - before), FULL] : [bytes];
    const last = waiting.pieces.at(-1);
    if (last !== undefined && last.line.task === line.task && last.line.actor === line.actor && last.line.name === line.name && last.line.stream === line.stream) last.parts.push(...parts);
    else waiting.pieces.push({ line, parts });
    this.#waitingBytes += bytes.length + PIECE_OVERHEAD_BYTES;
    if (this.#waitingBytes >= MAX_WAITING_BYTES) this.flush();
    else this.#flushing ??= globalThis.setImmediate(() => this.flush());
  }

  /** Writes what has gathered, a call to the disk per job. What the disk does not take is lost, and reported. */
  flush(): void {
    clearImmediate(this.#flushing);
    this.#flushing = undefined;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    this.#waitingBytes = 0;
    for (const [path, { tenant, pieces }] of waiting) {
      try {
        this.#write(tenant, path, pieces.map(({ line, parts }) => `${JSON.stringify({ ...line, text: Buffer.concat(parts).toString('utf8') })}\n`));
      } catch (error) {
        this.#onError(error);
      }
    }
  }

  #write(tenant: string, path: string, entries: readonly string[]): void {
    let size = this.#sizes.get(path) ?? statSync(path, { throwIfNoEntry: false })?.size ?? 0;
    const fresh = size === 0;
    const fitting: string[] = [];
    for (const entry of entries) {
      const bytes = Buffer.byteLength(entry);
      if (size >= MAX_JOB_LOG_BYTES || !this.#makeRoom(tenant, path, bytes)) break;
      fitting.push(entry);
      size += bytes;
    }
    if (fitting.length === 0) return;
    if (fresh) mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    appendFileSync(path, fitting.join(''), { mode: 0o600 });
    this.#sizes.set(path, size);
  }

  /** All tenants' logs are on one disk, with the audit logs: the oldest of a tenant's own make room. */
  #makeRoom(tenant: string, path: string, bytes: number): boolean {
    const dir = dirname(path);
    const sizeOf = (name: string): number => statSync(join(dir, name), { throwIfNoEntry: false })?.size ?? 0;
    const names = (): string[] => (existsSync(dir) ? readdirSync(dir) : []);
    let total = this.#totals.get(tenant) ?? names().reduce((sum, name) => sum + sizeOf(name), 0);
    if (total + bytes > this.#tenantBytes) {
      const oldest = names().map((name) => ({ path: join(dir, name), ms: statSync(join(dir, name)).mtimeMs, size: sizeOf(name) })).filter((f) => f.path !== path).sort((a, b) => a.ms - b.ms);
      for (const file of oldest) {
        if (total + bytes <= this.#tenantBytes) break;
        rmSync(file.path, { force: true });
        // Full, for a job that still prints: it would push the others out in turn.
        this.#sizes.set(file.path, MAX_JOB_LOG_BYTES);
        total -= file.size;
      }
    }
    this.#totals.set(tenant, total + bytes);
    return total + bytes <= this.#tenantBytes;
  }

  /** Lines of a job, or of all the tenant's, that `keep` accepts; with `follow`, those that come until `signal`. */
  async *read(tenant: string, job: string | undefined, keep: (line: LogLine) => boolean, follow: boolean, signal: AbortSignal): AsyncGenerator<LogLine, void, undefined> {
    const readers = new Map<string, LineReader>();
    for (;;) {
      this.flush();
      for (const name of job === undefined ? this.#jobs(tenant) : [job]) {
        let reader = readers.get(name);
        if (reader === undefined) readers.set(name, (reader = new LineReader(this.#path(tenant, name))));
        for await (const line of reader.more(signal)) if (keep(line)) yield line;
      }
      if (!follow || signal.aborted) return;
      await changed(this.#dir, signal);
    }
  }

  /** Jobs of a tenant that have printed something here. */
  #jobs(tenant: string): string[] {
    const dir = join(this.#dir, parseTenantName(tenant));
    return existsSync(dir) ? readdirSync(dir).map((name) => name.replace(/\.jsonl$/, '')) : [];
  }

  forget(tenant: string): void {
    this.#totals.delete(tenant);
    const dir = join(this.#dir, parseTenantName(tenant));
    for (const path of this.#waiting.keys()) if (dirname(path) === dir) this.#waiting.delete(path);
    for (const path of this.#sizes.keys()) if (dirname(path) === dir) this.#sizes.delete(path);
    rmSync(dir, { recursive: true, force: true });
  }
}

/** The lines of one file, as it grows. */
class LineReader {
  readonly #path: string;
  readonly #decoder = new TextDecoder();
  #offset = 0;
  #rest = '';

  constructor(path: string) {
    this.#path = path;
  }

  /** A chunk in a turn of the event loop: files are large, and the calls of others go on between. */
  async *more(signal: AbortSignal): AsyncGenerator<LogLine, void, undefined> {
    if (!existsSync(this.#path)) return;
    const fd = openSync(this.#path, 'r');
    try {
      const chunk = Buffer.alloc(READ_BYTES);
      while (!signal.aborted) {
        const n = readSync(fd, chunk, 0, chunk.length, this.#offset);
        if (n === 0) return;
        this.#offset += n;
        const lines = (this.#rest + this.#decoder.decode(chunk.subarray(0, n), { stream: true })).split('\n');
        this.#rest = lines.pop() ?? '';
        for (const text of lines) yield JSON.parse(text) as LogLine;
        if (n === chunk.length) await setImmediate();
      }
    } finally {
      closeSync(fd);
    }
  }
}

/** Resolves when something may have been appended, at the latest after a quarter of a second. */
function changed(dir: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const watcher = watch(dir, { recursive: false });
    const end = (): void => {
      clearTimeout(timer);
      watcher.close();
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, 250);
    watcher.on('change', end);
    watcher.on('error', end);
    signal.addEventListener('abort', end, { once: true });
  });
}
