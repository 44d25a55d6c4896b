/** Draws what scheduling a task costs as an SVG: two panels with a logarithmic x, from zero up, so that flat looks flat. No measuring here. */
import type { SchedulingPoint, SchedulingResult } from './scheduling.ts';

const WIDTH = 860;
const PANEL = { width: 340, height: 200, top: 60 } as const;
const COLOUR = '#1f77b4';

function panel(left: number, title: string, points: readonly SchedulingPoint[], x: (point: SchedulingPoint) => number, most: number): string {
  const first = Math.log10(x(points[0] as SchedulingPoint));
  const decades = Math.max(1e-9, Math.log10(x(points.at(-1) as SchedulingPoint)) - first);
  const at = (point: SchedulingPoint): readonly [number, number] => [left + ((Math.log10(x(point)) - first) / decades) * PANEL.width, PANEL.top + PANEL.height * (1 - point.micros / most)];
  const marks = points.map((point) => {
    const [px, py] = at(point);
    return `<circle cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="3" fill="${COLOUR}"/><text x="${px.toFixed(1)}" y="${(py - 10).toFixed(1)}" text-anchor="middle">${point.micros.toFixed(1)}</text><text x="${px.toFixed(1)}" y="${PANEL.top + PANEL.height + 18}" text-anchor="middle">${x(point).toLocaleString('en-US')}</text>`;
  });
  return `<text x="${left}" y="${PANEL.top - 14}" font-weight="bold">${title}</text><rect x="${left}" y="${PANEL.top}" width="${PANEL.width}" height="${PANEL.height}" fill="none" stroke="#999"/><polyline points="${points.map((point) => at(point).map((v) => v.toFixed(1)).join(',')).join(' ')}" fill="none" stroke="${COLOUR}" stroke-width="1.5"/>${marks.join('')}`;
}

export function schedulingCurve({ byQueued, byNodes }: SchedulingResult): string {
  const most = Math.max(...[...byQueued, ...byNodes].map(({ micros }) => micros)) * 1.5;
  const height = PANEL.top + PANEL.height + 40;
  const title = `<text x="40" y="24" font-size="15">What the core of a raylet takes for a task, µs of one processor</text>`;
  const panels = `${panel(40, 'by tasks that wait (one node)', byQueued, (p) => p.queued, most)}${panel(470, `by nodes (${(byNodes[0]?.queued ?? 0).toLocaleString('en-US')} tasks wait)`, byNodes, (p) => p.nodes, most)}`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12"><rect width="${WIDTH}" height="${height}" fill="#fff"/>${title}${panels}</svg>\n`;
}
