/**
 * The driver's side of the data: finds the files of the npm package `vega-datasets`, hands out byte ranges, knows airports' cities.
 * It must not decode flights: that is the tasks' work.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const PARQUET_TRAILER_BYTES = 8;

export interface FlightsFile {
  readonly path: string;
  /** The end of the file: metadata and trailer, about 5 KB. */
  readonly footer: Uint8Array;
  bytes(start: number, end: number): Uint8Array;
}

export function openFlights(path = join(dataFolder(), 'flights-3m.parquet')): FlightsFile {
  const file = new Uint8Array(readFileSync(path));
  const trailer = new DataView(file.buffer, Math.max(0, file.length - PARQUET_TRAILER_BYTES));
  const metadataBytes = trailer.byteLength === PARQUET_TRAILER_BYTES ? trailer.getUint32(0, true) : Infinity;
  if (metadataBytes + PARQUET_TRAILER_BYTES > file.length) throw new Error(`${path} is not a Parquet file; 'npm ci' brings it with the package vega-datasets`);
  return { path, footer: file.slice(file.length - PARQUET_TRAILER_BYTES - metadataBytes), bytes: (start, end) => file.slice(start, end) };
}

/** City by airport code. Airports that closed since 2001 are missing; callers show the code alone. */
export function airportCities(path = join(dataFolder(), 'airports.csv')): Map<string, string> {
  const cities = new Map<string, string>();
  const [header, ...lines] = readFileSync(path, 'utf8').trim().split(/\r?\n/);
  const columns = cells(header ?? '');
  const code = columns.indexOf('iata');
  const city = columns.indexOf('city');
  for (const line of lines) {
    const row = cells(line);
    const name = row[city];
    if (row[code] !== undefined && name !== undefined && name !== 'NA') cities.set(row[code], name);
  }
  return cities;
}

/** One line of CSV; a cell in double quotes may hold commas. */
function cells(line: string): string[] {
  return Array.from(line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g), (m) => m[1]?.replaceAll('""', '"') ?? m[2] ?? '');
}

function dataFolder(): string {
  const entry = createRequire(import.meta.url).resolve('vega-datasets');
  return join(dirname(entry), '..', 'data');
}
