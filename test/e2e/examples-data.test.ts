/**
 * The flights example without a cluster: its code gives the same sums as a straightforward second computation, runs in a bare
 * isolate with nothing but TextEncoder and TextDecoder, and its chart is well-formed XML that escapes what comes from the data.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { decompress } from 'fzstd';
import { parquetReadObjects } from 'hyparquet';
import { describe, expect, test } from 'vitest';
import { flightsChart } from '../../examples/flights/chart.ts';
import { airportCities, openFlights } from '../../examples/flights/data.ts';
import { delaysOfRowGroup, merge, Progress, rowGroupsOf, type Delays } from '../../examples/flights/flights.ts';
import { airportRows, airportTable, hourRows, hourTable, period } from '../../examples/flights/report.ts';
import { addCounts, countWords, split } from '../../examples/words/counting.ts';

const file = openFlights();
const ranges = rowGroupsOf(file.footer);
const progress = new Progress();
const parts: Delays[] = [];
for (const range of ranges) parts.push(await delaysOfRowGroup(file.bytes(range.start, range.end), file.footer, range, progress));
const total = parts.reduce(merge);

describe('flights', () => {
  test('eleven row groups hold three million flights, and the actor counted them', () => {
    expect(ranges).toHaveLength(11);
    expect(total.rows).toBe(3_000_000);
    expect(progress.read()).toEqual({ rowGroups: 11, rows: 3_000_000 });
    expect(sum(total.byHour.flights)).toBe(3_000_000);
    expect(sumOf(total.byOrigin, 'flights')).toBe(3_000_000);
    expect(sumOf(total.byDestination, 'flights')).toBe(3_000_000);
    expect(sumOf(total.byOrigin, 'delayMinutes')).toBe(sum(total.byHour.delayMinutes));
    expect(sumOf(total.byDestination, 'late')).toBe(sum(total.byHour.late));
  });

  // An own path to the same numbers: the whole file, default parsers (Dates, BigInts), row objects, no shared code.
  test('a slice of one row group, as row objects of the library, sums to what the task says of it', async () => {
    const range = ranges[3]!;
    const before = ranges.slice(0, 3).reduce((n, r) => n + r.rows, 0);
    const whole = file.bytes(0, 2 ** 31);
    const rows = await parquetReadObjects({
      file: { byteLength: whole.length, slice: (start, end) => whole.slice(start, end).buffer },
      compressors: { ZSTD: (page) => decompress(page) }, rowStart: before, rowEnd: before + range.rows,
    }) as { date: Date; delay: bigint; origin: string; destination: string }[];
    const naive = { rows: rows.length, byHour: { flights: new Float64Array(24), delayMinutes: new Float64Array(24), late: new Float64Array(24) } };
    for (const row of rows) {
      const hour = row.date.getUTCHours();
      naive.byHour.flights[hour]!++;
      naive.byHour.delayMinutes[hour]! += Number(row.delay);
      naive.byHour.late[hour]! += Number(row.delay >= 15n);
    }
    const part = parts[3]!;
    expect(part.rows).toBe(naive.rows);
    expect(part.byHour).toEqual(naive.byHour);
    for (const [tallies, column] of [[part.byOrigin, 'origin'], [part.byDestination, 'destination']] as const) {
      const groups = Map.groupBy(rows, (row) => row[column]);
      expect([...tallies.keys()].sort()).toEqual([...groups.keys()].sort());
      for (const [code, flights] of groups) {
        expect(tallies.get(code), code).toEqual({ flights: flights.length, delayMinutes: flights.reduce((n, f) => n + Number(f.delay), 0), late: flights.filter((f) => f.delay >= 15n).length });
      }
    }
    expect(Math.min(...rowsHours(rows))).toBe(part.firstHour);
  });

  test('merging is associative and leaves its arguments alone', () => {
    const [a, b, c] = [parts[0]!, parts[1]!, parts[2]!];
    const snapshot = structuredClone(a);
    expect(merge(merge(a, b), c)).toEqual(merge(a, merge(b, c)));
    expect(a).toEqual(snapshot);
  });

  test('bytes of another range, a missing row group, damaged bytes and a file that is no Parquet file are refused', async () => {
    const range = ranges[0]!;
    const bytes = file.bytes(range.start, range.end);
    await expect(delaysOfRowGroup(bytes.subarray(1), file.footer, range)).rejects.toThrow(RangeError);
    await expect(delaysOfRowGroup(bytes, file.footer, { ...range, index: 11 })).rejects.toThrow(/no number 11/);
    await expect(delaysOfRowGroup(new Uint8Array(bytes.length), file.footer, range)).rejects.toThrow();
    expect(() => openFlights(fileURLToPath(import.meta.url))).toThrow(/not a Parquet file/);
  });

  test('bundled, it runs in a bare 64 MiB isolate with only TextEncoder and TextDecoder added', async () => {
    const script = fileURLToPath(new URL('./examples-data-isolate.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, ['--no-node-snapshot', script], { timeout: 60_000 });
    const outside = parts.at(-1)!;
    expect(JSON.parse(stdout)).toEqual({ rows: 272_730, delayByHour: Array.from(outside.byHour.delayMinutes), origins: Array.from(outside.byOrigin) });
  });
});

describe('report and chart', () => {
  test('tables name the busiest airport and all 24 hours', () => {
    expect(period(total)).toBe('1 January to 1 July 2001');
    const table = airportTable(airportRows(total, airportCities())).split('\n');
    expect(table).toHaveLength(12);
    expect(table[2]).toMatch(/^ORD Chicago +166,341 +9\.3 min +8\.9 min +25\.5 %$/);
    const hours = hourTable(hourRows(total)).split('\n');
    expect(hours).toHaveLength(26);
    expect(hours.filter((line) => line.includes('(few flights)')).map((line) => line.slice(0, 5))).toEqual(['02:00', '03:00', '04:00']);
  });

  test('the chart is well-formed XML, and text from the data is escaped in it', () => {
    const svg = flightsChart(total, new Map([...airportCities(), ['ORD', 'a<script>&"\'\u0000\u001b']]));
    const elements = wellFormed(svg);
    expect(elements.get('svg')).toBe(1);
    expect(elements.get('script')).toBeUndefined();
    expect(elements.get('rect'), 'page, hours with a mean, flights of 24 hours, three lists of airports').toBe(1 + 21 + 24 + 3 * 8);
    expect(svg).not.toMatch(/NaN|Infinity|undefined|[\u0000\u001b]/);
  });

  test('no flights at all still make a chart without NaN', () => {
    const nothing: Delays = { rows: 0, firstHour: Infinity, lastHour: -Infinity, byOrigin: new Map(), byDestination: new Map(), byHour: { flights: new Float64Array(24), delayMinutes: new Float64Array(24), late: new Float64Array(24) } };
    const svg = flightsChart(nothing);
    wellFormed(svg);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  });
});

test('words: counts add up and split in two', () => {
  const counts = addCounts(['The cat and the dog', "the dog’s day, l'été"].map(countWords));
  expect(counts.get('the')).toBe(3);
  expect(split(counts)).toEqual([['and', 'cat', 'day', 'dog', 'dog’s', "l'été"], [['the', 3]]]);
});

const sum = (values: Float64Array): number => values.reduce((a, b) => a + b, 0);
const sumOf = (tallies: Delays['byOrigin'], key: 'flights' | 'delayMinutes' | 'late'): number => Array.from(tallies.values()).reduce((n, t) => n + t[key], 0);
/** First and last suffice: the file is sorted by date, and spreading a million numbers into Math.min overflows the stack. */
const rowsHours = (rows: readonly { date: Date }[]): number[] => [rows[0]!, rows.at(-1)!].map((row) => Math.floor(row.date.getTime() / 3_600_000));

/** A strict little reader for the XML that a chart uses: every tag closed in order, attributes quoted, only known references. Counts elements by name. */
function wellFormed(xml: string): Map<string, number> {
  const counts = new Map<string, number>();
  const open: string[] = [];
  const body = xml.replace(/^<\?xml version="1\.0" encoding="UTF-8"\?>\n/, '');
  expect(body.length).toBeLessThan(xml.length);
  const token = /<(\/?)([a-z]+)((?: [a-zA-Z][a-zA-Z0-9:-]*="[^"<]*")*)(\/?)>|([^<>]+)/gy;
  let end = 0;
  for (const [all, close, name, attributes, empty, characters] of body.matchAll(token)) {
    end += all.length;
    expect((characters ?? attributes ?? '').replace(/&#\d+;/g, '')).not.toContain('&');
    if (name === undefined) continue;
    if (close === '/') expect(name).toBe(open.pop());
    else {
      counts.set(name, (counts.get(name) ?? 0) + 1);
      if (empty !== '/') open.push(name);
    }
  }
  expect(body.slice(end, end + 40)).toBe('');
  expect(open).toEqual([]);
  return counts;
}
