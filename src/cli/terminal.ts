/**
 * Everything the command line writes: results on stdout (tables and sentences for people, JSON for programs), progress and errors on
 * stderr. Must never: let foreign text reach a terminal with its control characters, or colour what is not a terminal.
 */
import { BulkheadError, toSafeError, type ErrorCode } from '../base/errors.ts';

export type Colour = 'green' | 'red' | 'yellow' | 'dim' | 'bold';
const SGR: Readonly<Record<Colour, readonly [number, number]>> = { green: [32, 39], red: [31, 39], yellow: [33, 39], dim: [2, 22], bold: [1, 22] };
const PROGRESS_AFTER_MS = 1_000;

/** A cell of a table. */
export type Cell = string | { readonly text: string; readonly colour: Colour | undefined };

/** Wrong usage found by a command itself: exit code 2. */
export class UsageError extends Error {}

/** Ends a command with an exit code after it has said all there is to say. */
export class ExitCode extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`exit ${exitCode}`);
    this.exitCode = exitCode;
  }
}

const EXIT_OF_CODE: Partial<Record<ErrorCode, number>> = { INVALID_ARGUMENT: 2, DENIED: 3, UNAUTHENTICATED: 3, LAYER_MISSING: 4 };

export function exitCodeOf(thrown: unknown): number {
  if (thrown instanceof ExitCode) return thrown.exitCode;
  if (thrown instanceof UsageError) return 2;
  return thrown instanceof BulkheadError ? (EXIT_OF_CODE[thrown.code] ?? 1) : 1;
}

/** Control characters as visible escapes; a line break stays only where `lines` says so. */
export function printable(text: string, lines = false): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, (c) => (lines && (c === '\n' || c === '\t') ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`));
}

/** JSON of messages: 64-bit integers as numbers where they are exact, bytes as base64, no protobuf type names. */
export function jsonText(value: unknown): string {
  return JSON.stringify(value, function (this: Record<string, unknown>, key, shown: unknown) {
    // A Buffer has turned itself into an object of numbers by now; what it was is in its holder.
    const v = this[key] instanceof Uint8Array ? this[key] : shown;
    if (key === '$typeName' || key === '$unknown') return undefined;
    if (typeof v === 'bigint') return v <= BigInt(Number.MAX_SAFE_INTEGER) && v >= BigInt(Number.MIN_SAFE_INTEGER) ? Number(v) : String(v);
    if (v instanceof Uint8Array) return Buffer.from(v).toString('base64');
    return v;
  });
}

export class Terminal {
  readonly json: boolean;
  readonly #colours: boolean;
  readonly #errorColours: boolean;

  constructor(json: boolean) {
    const wanted = (stream: NodeJS.WriteStream): boolean => stream.isTTY && (process.env['NO_COLOR'] ?? '') === '' && process.env['TERM'] !== 'dumb';
    this.json = json;
    this.#colours = !json && wanted(process.stdout);
    this.#errorColours = wanted(process.stderr);
  }

  colour(colour: Colour, text: string): string {
    return this.#colours ? paint(colour, text) : text;
  }

  /** A result for people; nothing when the answer is JSON. */
  say(text: string): void {
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  /** The result for programs: one document, or one line of a stream. */
  answer(value: unknown): void {
    if (this.json) process.stdout.write(`${jsonText(value)}\n`);
  }

  /** Bytes as they are, for logs of the caller's own programs. */
  raw(bytes: Uint8Array | string): void {
    process.stdout.write(bytes);
  }

  note(text: string): void {
    process.stderr.write(`${this.#errorColours ? paint('dim', text) : text}\n`);
  }

  warn(text: string): void {
    process.stderr.write(`${this.#errorColours ? paint('yellow', text) : text}\n`);
  }

  /** Rows under headers, columns as wide as their widest cell; `right`: columns of numbers. Foreign text is made printable. */
  table(headers: readonly string[], rows: readonly (readonly Cell[])[], right: readonly number[] = []): void {
    if (this.json) return;
    const cells = rows.map((row) => row.map((cell) => (typeof cell === 'string' ? { text: printable(cell), colour: undefined } : { text: printable(cell.text), colour: cell.colour })));
    const widths = headers.map((header, i) => cells.reduce((width, row) => Math.max(width, row[i]?.text.length ?? 0), header.length));
    const line = (row: readonly { readonly text: string; readonly colour?: Colour | undefined }[]): string => row.map(({ text, colour }, i) => {
      const padded = right.includes(i) ? text.padStart(widths[i] ?? 0) : i === row.length - 1 ? text : text.padEnd(widths[i] ?? 0);
      return colour === undefined ? padded : this.colour(colour, padded);
    }).join('  ').trimEnd();
    process.stdout.write(`${[this.colour('bold', line(headers.map((text) => ({ text })))), ...cells.map(line)].join('\n')}\n`);
  }

  /** Runs `work`; from a second on, says on stderr what is being waited for. */
  async progress<T>(what: string, work: Promise<T>): Promise<T> {
    const startedMs = performance.now();
    let shown = false;
    const live = process.stderr.isTTY && !this.json;
    const timer = setInterval(() => {
      if (live) process.stderr.write(`\r${what} … ${Math.round((performance.now() - startedMs) / 1_000)} s`);
      else if (!shown) process.stderr.write(`${what} …\n`);
      shown = true;
    }, PROGRESS_AFTER_MS);
    try {
      return await work;
    } finally {
      clearInterval(timer);
      if (shown && live) process.stderr.write('\r\u001b[K');
    }
  }

  /** What, where, what to do; as JSON for programs. */
  fail(thrown: unknown): void {
    if (thrown instanceof ExitCode) return;
    const usage = thrown instanceof UsageError;
    const { code, safeMessage } = usage ? { code: 'INVALID_ARGUMENT', safeMessage: thrown.message } : toSafeError(thrown);
    if (this.json) process.stderr.write(`${jsonText({ error: { code, message: safeMessage } })}\n`);
    else process.stderr.write(`${this.#errorColours ? paint('red', 'error:') : 'error:'} ${printable(safeMessage, true)}\n`);
    if (!usage && code === 'INTERNAL') {
      const cause = thrown instanceof BulkheadError ? thrown.cause : thrown;
      if (process.env['BULKHEAD_DEBUG'] === '1') process.stderr.write(`${printable(cause instanceof Error ? (cause.stack ?? cause.message) : String(cause), true)}\n`);
      else process.stderr.write(`${printable(cause instanceof Error ? cause.message : '', true)}\n(BULKHEAD_DEBUG=1 shows where)\n`);
    }
  }
}

function paint(colour: Colour, text: string): string {
  const [on, off] = SGR[colour];
  return `\u001b[${on}m${text}\u001b[${off}m`;
}

// --- how quantities read ---------------------------------------------------------------------------------------------

export function bytesText(bytes: number): string {
  for (const [unit, size] of [['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 2 ** 10]] as const) if (bytes >= size) return `${(bytes / size).toFixed(bytes >= 100 * size ? 0 : 1)} ${unit}`;
  return `${bytes} B`;
}

export function timeText(ms: number): string {
  return ms <= 0 ? '' : new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');
}

export function durationText(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1_000));
  if (s < 120) return `${s} s`;
  if (s < 7_200) return `${Math.floor(s / 60)} min`;
  return s < 172_800 ? `${Math.floor(s / 3_600)} h` : `${Math.floor(s / 86_400)} d`;
}
