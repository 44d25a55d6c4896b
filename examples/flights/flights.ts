/**
 * The tenant's code of the flights example: runs inside isolates, so plain JavaScript only (no Node modules, no fetch, no clock).
 * It decodes one row group of a Parquet file into delays by airport and by hour, and merges such results.
 * It must never keep per-row objects: a row group has 272,727 rows, and a task has a memory limit.
 */
import { parquetMetadata, parquetRead } from 'hyparquet';
import { decompress } from 'fzstd';

/** Sums over a set of flights. Delays are arrival delays in minutes; early arrivals count as negative minutes, as in the data. */
export interface Tally {
  flights: number;
  delayMinutes: number;
  /** Flights that arrived 15 minutes late or more: the US Department of Transportation's definition of a late flight. */
  late: number;
}

export interface Delays {
  rows: number;
  /** Hours since 1970 of the first and the last departure; local times, so to be shown as if they were UTC. */
  firstHour: number;
  lastHour: number;
  /** By airport code: flights that left from it, and flights that arrived at it. */
  byOrigin: Map<string, Tally>;
  byDestination: Map<string, Tally>;
  /** 24 tallies as columns, by the hour (local time of the airport) in which the flight left. */
  byHour: { flights: Float64Array; delayMinutes: Float64Array; late: Float64Array };
}

/** Where a row group lies in the file: bytes `start` to `end`. */
export interface RowGroupRange {
  readonly index: number;
  readonly rows: number;
  readonly start: number;
  readonly end: number;
}

/** What a task needs of the progress actor. A handle fits, and so does the plain object in a test. */
export interface RowCounter {
  add(rows: number): unknown;
}

const LATE_MINUTES = 15;
const HOURS = 24;
const MICROS_PER_HOUR = 3_600_000_000n;
const COLUMNS = ['date', 'delay', 'origin', 'destination'];

/** Reads the row groups' places from the end of the file: `footer` is its last bytes, the metadata and 8 bytes of trailer. */
export function rowGroupsOf(footer: Uint8Array): RowGroupRange[] {
  return parquetMetadata(footer).row_groups.map((group, index) => {
    const chunks = group.columns.map((column) => {
      if (column.meta_data === undefined) throw new TypeError(`row group ${index} has a column without metadata`);
      const start = Number(column.meta_data.dictionary_page_offset ?? column.meta_data.data_page_offset);
      return { start, end: start + Number(column.meta_data.total_compressed_size) };
    });
    return { index, rows: Number(group.num_rows), start: Math.min(...chunks.map((c) => c.start)), end: Math.max(...chunks.map((c) => c.end)) };
  });
}

/** Decodes and sums one row group. `bytes` are the file's bytes of that row group's range. */
export async function delaysOfRowGroup(bytes: Uint8Array, footer: Uint8Array, range: RowGroupRange, progress?: RowCounter): Promise<Delays> {
  if (bytes.length !== range.end - range.start) throw new RangeError(`row group ${range.index} needs ${range.end - range.start} bytes, got ${bytes.length}`);
  const metadata = parquetMetadata(footer);
  const group = metadata.row_groups[range.index];
  if (group === undefined) throw new RangeError(`the file has ${metadata.row_groups.length} row groups, no number ${range.index}`);

  const columns = new Map<string, ArrayLike<unknown>[]>(COLUMNS.map((name) => [name, []]));
  await parquetRead({
    metadata: { ...metadata, num_rows: group.num_rows, row_groups: [group] },
    // hyparquet asks for offsets in the whole file; the answer comes from the part of it that this task was given.
    file: { byteLength: range.end, slice: (start, end = range.end) => copyOf(bytes.subarray(start - range.start, end - range.start)) },
    columns: COLUMNS,
    compressors: { ZSTD: (page, size) => decompress(page, new Uint8Array(size)) },
    // Dates are dictionary entries: turning each into its hour here costs once per distinct minute instead of once per row.
    parsers: { timestampFromMicroseconds: (micros: bigint) => Number(micros / MICROS_PER_HOUR) },
    onChunk: ({ columnName, columnData }) => columns.get(columnName)?.push(columnData),
  });

  const hours = columnOf(columns, 'date', range.rows);
  const delays = columnOf(columns, 'delay', range.rows);
  const origins = columnOf(columns, 'origin', range.rows);
  const destinations = columnOf(columns, 'destination', range.rows);
  const result = emptyDelays();
  for (let row = 0; row < range.rows; row++) {
    const delay = Number(delays[row]);
    const late = delay >= LATE_MINUTES ? 1 : 0;
    addTo(result.byOrigin, origins[row] as string, 1, delay, late);
    addTo(result.byDestination, destinations[row] as string, 1, delay, late);
    const hoursSince1970 = hours[row] as number;
    if (hoursSince1970 < result.firstHour) result.firstHour = hoursSince1970;
    if (hoursSince1970 > result.lastHour) result.lastHour = hoursSince1970;
    const hour = hoursSince1970 % HOURS;
    result.byHour.flights[hour]! += 1;
    result.byHour.delayMinutes[hour]! += delay;
    result.byHour.late[hour]! += late;
  }
  result.rows = range.rows;
  progress?.add(range.rows);
  return result;
}

/** Adds two results up; neither is changed. */
export function merge(a: Delays, b: Delays): Delays {
  const sum = emptyDelays();
  for (const part of [a, b]) {
    sum.rows += part.rows;
    sum.firstHour = Math.min(sum.firstHour, part.firstHour);
    sum.lastHour = Math.max(sum.lastHour, part.lastHour);
    for (const [code, t] of part.byOrigin) addTo(sum.byOrigin, code, t.flights, t.delayMinutes, t.late);
    for (const [code, t] of part.byDestination) addTo(sum.byDestination, code, t.flights, t.delayMinutes, t.late);
    for (const key of ['flights', 'delayMinutes', 'late'] as const) {
      for (let hour = 0; hour < HOURS; hour++) sum.byHour[key][hour]! += part.byHour[key][hour]!;
    }
  }
  return sum;
}

/** The actor that counts: every finished row group reports its rows here, whichever raylet it ran on. */
export class Progress {
  #rowGroups = 0;
  #rows = 0;

  add(rows: number): void {
    this.#rowGroups += 1;
    this.#rows += rows;
  }

  read(): { rowGroups: number; rows: number } {
    return { rowGroups: this.#rowGroups, rows: this.#rows };
  }
}

function emptyDelays(): Delays {
  const column = () => new Float64Array(HOURS);
  const byHour = { flights: column(), delayMinutes: column(), late: column() };
  return { rows: 0, firstHour: Infinity, lastHour: -Infinity, byOrigin: new Map(), byDestination: new Map(), byHour };
}

function addTo(tallies: Map<string, Tally>, code: string, flights: number, delayMinutes: number, late: number): void {
  let tally = tallies.get(code);
  if (tally === undefined) tallies.set(code, (tally = { flights: 0, delayMinutes: 0, late: 0 }));
  tally.flights += flights;
  tally.delayMinutes += delayMinutes;
  tally.late += late;
}

/** One column as one array; pages of one column usually arrive as one chunk. */
function columnOf(columns: Map<string, ArrayLike<unknown>[]>, name: string, rows: number): ArrayLike<unknown> {
  const chunks = columns.get(name) ?? [];
  const column = chunks.length === 1 ? chunks[0]! : chunks.flatMap((chunk) => Array.from(chunk));
  if (column.length !== rows) throw new TypeError(`column '${name}' has ${column.length} of ${rows} rows`);
  return column;
}

function copyOf(bytes: Uint8Array): ArrayBuffer {
  return bytes.slice().buffer as ArrayBuffer;
}
