/**
 * Draws the delays as one SVG: by hour of departure above, by airport below. Pure text, no library, no script inside the picture.
 * Colours follow the reader's light or dark mode; every text from the data is escaped.
 */
import type { Delays } from './flights.ts';
import { airportRows, clock, hourRows, isTypical, minutes, percent, period, whole, type AirportRow, type HourRow } from './report.ts';

const WIDTH = 960;
const HEIGHT = 866;
const LEFT = 64;
const RIGHT = 932;
/** The day of the axis starts where the flights do; the small hours belong to the evening before. */
const FIRST_HOUR = 5;
const ROWS_PER_LIST = 8;
/** Best and worst airports are picked among those with 1 in 300 of all departures, so that no airfield with a dozen flights wins. */
const RANKED_SHARE = 1 / 300;

const STYLE = `
  svg { --page: #ffffff; --ink: #1b2330; --soft: #5c6675; --line: #d9dee5; --bar: #2f6fb3; --early: #2a8f7a; --count: #aab4c1; }
  @media (prefers-color-scheme: dark) { svg { --page: #14181f; --ink: #e8ecf2; --soft: #9aa5b4; --line: #323a46; --bar: #6aa5e3; --early: #54c2a8; --count: #566273; } }
  text { font-family: system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif; font-size: 13px; fill: var(--ink); }
  .page { fill: var(--page); } .h1 { font-size: 22px; font-weight: 650; } .h2 { font-size: 15px; font-weight: 650; } .soft { fill: var(--soft); }
  .small { font-size: 12px; } .grid { stroke: var(--line); stroke-width: 1; } .zero { stroke: var(--soft); stroke-width: 1; }
  .bar { fill: var(--bar); } .early { fill: var(--early); } .count { fill: var(--count); } .end { text-anchor: end; } .mid { text-anchor: middle; }`;

export function flightsChart(delays: Delays, cities: ReadonlyMap<string, string> = new Map()): string {
  const hours = hourRows(delays);
  const airports = airportRows(delays, cities);
  const ranked = airports.filter((a) => a.departures >= delays.rows * RANKED_SHARE).sort((a, b) => b.outboundDelay - a.outboundDelay);
  const lists: [string, AirportRow[]][] = [
    ['Busiest', airports.slice(0, ROWS_PER_LIST)],
    ['Longest delays', ranked.slice(0, ROWS_PER_LIST)],
    ['Shortest delays', ranked.slice(-ROWS_PER_LIST).reverse()],
  ];
  const title = `${whole(delays.rows)} US flights: how late they arrived`;
  return `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-labelledby="title summary">
<title id="title">${escape(title)}</title>
<desc id="summary">Mean arrival delay in minutes by hour of departure and by airport of departure, ${escape(period(delays))}.</desc>
<style>${STYLE}
</style>
<rect class="page" width="${WIDTH}" height="${HEIGHT}"/>
${text(28, 44, title, 'h1')}
${text(28, 68, `${period(delays)}. Mean arrival delay in minutes; flights that came early count as negative.`, 'soft')}
${hourPanel(hours)}
${airportPanel(lists, Math.ceil(delays.rows * RANKED_SHARE))}
${text(28, HEIGHT - 18, 'Source: US Bureau of Transportation Statistics, On-Time Performance, sampled in npm vega-datasets (flights-3m.parquet).', 'soft small')}
</svg>
`;
}

function hourPanel(hours: readonly HourRow[]): string {
  const [top, bottom, countTop, countBottom] = [128, 366, 418, 464];
  const drawn = hours.filter((h) => isTypical(h, hours));
  const { low, high, step } = axis(drawn.map((h) => h.delay));
  const y = (delay: number) => bottom - ((delay - low) / (high - low)) * (bottom - top);
  const slot = (RIGHT - LEFT) / hours.length;
  const x = (hour: number) => LEFT + ((hour - FIRST_HOUR + hours.length) % hours.length) * slot;
  const most = Math.max(1, ...hours.map((h) => h.flights));
  const parts = [text(28, 104, 'By hour of departure (local time)', 'h2')];
  for (let tick = low; tick <= high + step / 2; tick += step) {
    parts.push(line(LEFT, y(tick), RIGHT, y(tick), 'grid'), text(LEFT - 8, y(tick) + 4, `${tick < 0 ? '−' : ''}${Math.abs(tick)}${tick + step > high + step / 2 ? ' min' : ''}`, 'soft small end'));
  }
  for (const h of hours) {
    const middle = x(h.hour) + slot / 2;
    const tip = `${clock(h.hour)}: ${minutes(h.delay)} on average, ${percent(h.lateShare)} 15 minutes late or more, ${whole(h.flights)} flights`;
    if (isTypical(h, hours)) {
      const [from, to] = [Math.min(y(0), y(h.delay)), Math.max(y(0), y(h.delay))];
      parts.push(bar(x(h.hour) + 4, from, slot - 8, Math.max(1, to - from), h.delay < 0 ? 'early' : 'bar', tip));
      parts.push(text(middle, h.delay < 0 ? to + 14 : from - 5, signed(h.delay), 'small mid'));
    } else {
      parts.push(text(middle, y(0) - 5, '·', 'soft mid'));
    }
    const height = (h.flights / most) * (countBottom - countTop);
    if (h.flights > 0) parts.push(bar(x(h.hour) + 4, countBottom - height, slot - 8, Math.max(0.5, height), 'count', tip));
    parts.push(text(middle, bottom + 20, String(h.hour).padStart(2, '0'), 'small mid'));
  }
  const skipped = hours.filter((h) => !isTypical(h, hours)).map((h) => String(h.hour).padStart(2, '0'));
  parts.push(line(LEFT, y(0), RIGHT, y(0), 'zero'), line(LEFT, countBottom, RIGHT, countBottom, 'zero'));
  parts.push(text(LEFT, countTop - 8, `Flights in each hour, at most ${whole(most)}`, 'soft small'));
  if (skipped.length > 0) parts.push(text(RIGHT, countTop - 8, `· no mean for hour ${skipped.join(', ')}: fewer than 1 in 1,000 flights left then`, 'soft small end'));
  return parts.join('\n');
}

function airportPanel(lists: readonly (readonly [string, readonly AirportRow[]])[], leastDepartures: number): string {
  const top = 510;
  const gap = 34;
  const width = (RIGHT - 28 - gap * (lists.length - 1)) / lists.length;
  const widest = Math.max(1, ...lists.flatMap(([, rows]) => rows.map((r) => Math.abs(r.outboundDelay))));
  // Bars share one scale in all lists; a list with early airports starts its bars a little to the right.
  const lowest = Math.min(0, ...lists.flatMap(([, rows]) => rows.map((r) => r.outboundDelay)));
  const perMinute = (width - 44) / (widest - lowest);
  const ranking = `longest and shortest delays among airports with at least ${whole(leastDepartures)} departures`;
  const parts = [text(28, top, 'By airport of departure', 'h2'), text(RIGHT, top, ranking, 'soft small end')];
  lists.forEach(([name, rows], column) => {
    const x = 28 + column * (width + gap);
    const zero = x - lowest * perMinute;
    parts.push(text(x, top + 30, name, 'soft'));
    rows.forEach((row, i) => {
      const y = top + 42 + i * 34;
      const length = Math.max(1, Math.abs(row.outboundDelay) * perMinute);
      const tip = `${row.label}: ${whole(row.departures)} departures, ${minutes(row.outboundDelay)} on average, ${percent(row.lateShare)} 15 minutes late or more`;
      parts.push(text(x, y + 11, row.label, 'small'), text(x + width, y + 11, `${whole(row.departures)} flights`, 'soft small end'));
      parts.push(bar(row.outboundDelay < 0 ? zero - length : zero, y + 16, length, 8, row.outboundDelay < 0 ? 'early' : 'bar', tip));
      parts.push(text(row.outboundDelay < 0 ? zero + 6 : zero + length + 6, y + 24, signed(row.outboundDelay), 'small'));
    });
  });
  return parts.join('\n');
}

/** Round ends and step of an axis that holds zero and all values, with four to eight steps. */
function axis(values: readonly number[]): { low: number; high: number; step: number } {
  const [min, max] = [Math.min(0, ...values), Math.max(1, ...values)];
  const rough = (max - min) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  return { low: Math.floor(min / step) * step, high: Math.ceil(max / step) * step, step };
}

const signed = (value: number): string => `${value < 0 ? '−' : ''}${Math.abs(value).toFixed(1)}`;
const n = (value: number): string => String(Math.round(value * 100) / 100);
const escape = (value: string): string => value.replace(/[^\t\n\x20-\uD7FF\uE000-\uFFFD]/g, '').replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const text = (x: number, y: number, value: string, style: string): string => `<text x="${n(x)}" y="${n(y)}" class="${style}">${escape(value)}</text>`;
const line = (x1: number, y1: number, x2: number, y2: number, style: string): string => `<line x1="${n(x1)}" y1="${n(y1)}" x2="${n(x2)}" y2="${n(y2)}" class="${style}"/>`;
const bar = (x: number, y: number, width: number, height: number, style: string, tip: string): string =>
  `<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" rx="1.5" class="${style}"><title>${escape(tip)}</title></rect>`;
