/** What a soak found: which lines go on rising, and all of them drawn. Must never: judge the first third, in which caches and heaps fill. */

/** What a line may rise from the middle third to the last, beside a part of itself: heaps are collected when they please. */
const SLACK: Readonly<Record<Measure, { readonly part: number; readonly least: number }>> = {
  memoryMib: { part: 0.2, least: 24 }, descriptors: { part: 0.1, least: 12 }, groups: { part: 0.2, least: 4 }, tmpfsMib: { part: 0.3, least: 16 },
};
type Measure = 'memoryMib' | 'descriptors' | 'groups' | 'tmpfsMib';
const TITLES: Readonly<Record<Measure, string>> = { memoryMib: 'Memory (PSS), MiB', descriptors: 'File descriptors', groups: 'Control groups', tmpfsMib: 'tmpfs, MiB' };

export interface Sample {
  readonly seconds: number;
  /** By line: a process, or all workers together. */
  readonly memoryMib: Record<string, number>;
  readonly descriptors: Record<string, number>;
  readonly groups: Record<string, number>;
  readonly tmpfsMib: Record<string, number>;
  readonly rounds: Record<string, number>;
}

const mean = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0) / Math.max(1, numbers.length);

/** Lines that do not flatten: the last third lies above the middle one by more than chance. */
export function rising(samples: readonly Sample[]): string[] {
  const third = Math.floor(samples.length / 3);
  if (third < 3) return ['the run was too short to say anything: at least ten samples are needed'];
  return (Object.keys(TITLES) as Measure[]).flatMap((measure) => Object.keys(samples.at(-1)?.[measure] ?? {}).flatMap((line) => {
    const of = (some: readonly Sample[]): number => mean(some.map((s) => s[measure][line] ?? 0));
    const middle = of(samples.slice(third, 2 * third));
    const last = of(samples.slice(2 * third));
    const { part, least } = SLACK[measure];
    return last - middle > Math.max(least, middle * part) ? [`${TITLES[measure]} of ${line}: ${middle.toFixed(1)} in the middle third, ${last.toFixed(1)} in the last`] : [];
  }));
}

const COLOURS = ['#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e'];

export function graph(samples: readonly Sample[], title: string): string {
  const width = 860;
  const height = 190;
  const left = 60;
  const plot = { width: 640, height: 130 };
  const end = Math.max(1, samples.at(-1)?.seconds ?? 1);
  const parts = (Object.keys(TITLES) as Measure[]).map((measure, row) => {
    const top = 40 + row * height;
    const lines = [...new Set(samples.flatMap((s) => Object.keys(s[measure])))];
    const most = Math.max(1, ...samples.flatMap((s) => Object.values(s[measure]))) * 1.1;
    const paths = lines.map((line, i) => {
      const points = samples.map((s) => `${(left + (s.seconds / end) * plot.width).toFixed(1)},${(top + 20 + plot.height * (1 - (s[measure][line] ?? 0) / most)).toFixed(1)}`);
      return `<polyline points="${points.join(' ')}" fill="none" stroke="${COLOURS[i % COLOURS.length]}" stroke-width="1.5"/><text x="${left + plot.width + 12}" y="${top + 34 + i * 18}" fill="${COLOURS[i % COLOURS.length]}">${line}: ${(samples.at(-1)?.[measure][line] ?? 0).toFixed(0)}</text>`;
    });
    return `<text x="${left}" y="${top + 10}" font-weight="bold">${TITLES[measure]}</text><rect x="${left}" y="${top + 20}" width="${plot.width}" height="${plot.height}" fill="none" stroke="#999"/><text x="${left - 8}" y="${top + 28}" text-anchor="end">${most.toFixed(0)}</text><text x="${left - 8}" y="${top + 20 + plot.height}" text-anchor="end">0</text>${paths.join('')}`;
  });
  const total = 60 + parts.length * height;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${total}" font-family="sans-serif" font-size="12"><rect width="${width}" height="${total}" fill="#fff"/><text x="${left}" y="24" font-size="15">${title}</text>${parts.join('')}<text x="${left + plot.width}" y="${total - 12}" text-anchor="end">${(end / 60).toFixed(1)} minutes</text></svg>\n`;
}
