/** Turns the sums into what people read: rows for tables and charts, and the two tables. Text in, text out; no IO. */
import type { Delays, Tally } from './flights.ts';

export interface AirportRow {
  readonly code: string;
  /** Code and city, or the code alone. */
  readonly label: string;
  readonly departures: number;
  /** Mean arrival delay in minutes of the flights that left here, and of those that came here. */
  readonly outboundDelay: number;
  readonly inboundDelay: number;
  /** Share of the departures that arrived 15 minutes late or more. */
  readonly lateShare: number;
}

export interface HourRow {
  readonly hour: number;
  readonly flights: number;
  readonly delay: number;
  readonly lateShare: number;
}

const NOTHING: Tally = { flights: 0, delayMinutes: 0, late: 0 };

/** Busiest first. */
export function airportRows(delays: Delays, cities: ReadonlyMap<string, string> = new Map()): AirportRow[] {
  const rows = Array.from(delays.byOrigin, ([code, out]): AirportRow => {
    const arrivals = delays.byDestination.get(code) ?? NOTHING;
    const city = cities.get(code);
    return {
      code, label: city === undefined ? code : `${code} ${city}`, departures: out.flights,
      outboundDelay: ratio(out.delayMinutes, out.flights), inboundDelay: ratio(arrivals.delayMinutes, arrivals.flights), lateShare: ratio(out.late, out.flights),
    };
  });
  return rows.sort((a, b) => b.departures - a.departures || (a.code < b.code ? -1 : 1));
}

export function hourRows({ byHour }: Delays): HourRow[] {
  return Array.from(byHour.flights, (flights, hour) => ({
    hour, flights, delay: ratio(byHour.delayMinutes[hour] ?? 0, flights), lateShare: ratio(byHour.late[hour] ?? 0, flights),
  }));
}

/** `1 January to 30 June 2001`, from the first and the last departure. */
export function period({ firstHour, lastHour }: Delays): string {
  if (!(firstHour <= lastHour)) return 'no flights';
  const [from, to] = [firstHour, lastHour].map((hour) => new Date(hour * 3_600_000));
  return new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' }).formatRange(from!, to!).replace(/\s?–\s?/, ' to ');
}

export function airportTable(rows: readonly AirportRow[], count = 10): string {
  const head = ['airport', 'departures', 'mean delay out', 'mean delay in', 'late ≥ 15 min'];
  const body = rows.slice(0, count).map((r) => [r.label, whole(r.departures), minutes(r.outboundDelay), minutes(r.inboundDelay), percent(r.lateShare)]);
  return table([head, ...body]);
}

/** 24 lines with a bar each. Hours with hardly any flight say so instead of drawing a bar that dwarfs the others. */
export function hourTable(rows: readonly HourRow[]): string {
  const drawn = rows.filter((r) => isTypical(r, rows));
  const longest = Math.max(1, ...drawn.map((r) => r.delay));
  const bar = (r: HourRow) => (!isTypical(r, rows) ? '(few flights)' : r.delay <= 0 ? '' : '█'.repeat(Math.max(1, Math.round((r.delay / longest) * 32))));
  const body = rows.map((r) => [`${clock(r.hour)}`, whole(r.flights), r.flights === 0 ? '' : minutes(r.delay), percent(r.lateShare), bar(r)]);
  return table([['left at', 'flights', 'mean delay', 'late ≥ 15 min', ''], ...body], 4);
}

/** Whether an hour has enough flights (1 in 1,000 of all) for its mean to say something about the hour rather than about a few flights. */
export function isTypical(row: HourRow, all: readonly HourRow[]): boolean {
  return row.flights > 0 && row.flights * 1_000 >= all.reduce((sum, r) => sum + r.flights, 0);
}

export const clock = (hour: number): string => `${String(hour).padStart(2, '0')}:00`;
export const whole = (n: number): string => Math.round(n).toLocaleString('en-US');
export const minutes = (n: number): string => `${n < 0 ? '−' : ''}${Math.abs(n).toFixed(1)} min`;
export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

function ratio(sum: number, count: number): number {
  return count === 0 ? 0 : sum / count;
}

/** First column and columns from `leftFrom` on are text and stand left, the others are numbers and stand right. */
function table(lines: readonly (readonly string[])[], leftFrom = Infinity): string {
  const widths = (lines[0] ?? []).map((_, i) => Math.max(...lines.map((line) => [...(line[i] ?? '')].length)));
  const cell = (text: string, i: number) => (i === 0 || i >= leftFrom ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0));
  const [head, ...body] = lines.map((line) => line.map(cell).join('  ').trimEnd());
  return [head, '─'.repeat(widths.reduce((a, b) => a + b + 2, -2)), ...body].join('\n');
}
