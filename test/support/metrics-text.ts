/** A strict reader of Prometheus' text format 0.0.4, as `promtool check metrics` is: throws at what a scraper would refuse, and at what it only warns of. */

export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Family {
  readonly type: string;
  readonly help: string;
  readonly samples: readonly Sample[];
}

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(?:,|$)/y;

function labelsOf(text: string, line: string): Record<string, string> {
  const labels: Record<string, string> = {};
  LABEL.lastIndex = 0;
  while (LABEL.lastIndex < text.length) {
    const match = LABEL.exec(text);
    if (match?.[1] === undefined || match[2] === undefined) throw new Error(`labels of: ${line}`);
    if (match[1] in labels) throw new Error(`a label twice: ${line}`);
    labels[match[1]] = match[2].replace(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c));
  }
  return labels;
}

export function parseMetrics(text: string): Map<string, Family> {
  if (text !== '' && !text.endsWith('\n')) throw new Error('the last line does not end');
  const families = new Map<string, { type: string; help: string; samples: Sample[] }>();
  let current: { name: string; family: { type: string; help: string; samples: Sample[] } } | undefined;
  const seen = new Set<string>();
  let help: [string, string] | undefined;
  for (const line of text.split('\n').slice(0, -1)) {
    const comment = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line);
    if (comment !== null) {
      const [, what, name = '', rest = ''] = comment;
      if (what === 'HELP') {
        if (rest === '') throw new Error(`no help: ${line}`);
        help = [name, rest];
        continue;
      }
      if (families.has(name)) throw new Error(`the family ${name} stands twice`);
      if (help?.[0] !== name) throw new Error(`no help before the type of ${name}`);
      if (!['counter', 'gauge', 'histogram'].includes(rest)) throw new Error(`type: ${line}`);
      if ((rest === 'counter') !== name.endsWith('_total')) throw new Error(`a counter, and nothing else, ends in _total: ${line}`);
      current = { name, family: { type: rest, help: help[1], samples: [] } };
      families.set(name, current.family);
      continue;
    }
    const match = SAMPLE.exec(line);
    if (match === null) throw new Error(`not a sample: ${line}`);
    const [, name = '', inner = '', number = ''] = match;
    const value = number === '+Inf' ? Infinity : number === '-Inf' ? -Infinity : Number(number);
    if (Number.isNaN(value) || number === '') throw new Error(`value: ${line}`);
    const suffixes = current?.family.type === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
    if (current === undefined || !suffixes.some((suffix) => name === `${current?.name}${suffix}`)) throw new Error(`outside its family: ${line}`);
    const key = `${name}{${inner}}`;
    if (seen.has(key)) throw new Error(`twice: ${line}`);
    seen.add(key);
    current.family.samples.push({ name, labels: labelsOf(inner, line), value });
  }
  for (const [name, family] of families) {
    if (family.samples.length === 0) throw new Error(`${name} has no samples`);
    if (family.type === 'histogram') checkHistogram(name, family);
  }
  return families;
}

function checkHistogram(name: string, { samples }: Family): void {
  const series = new Map<string, Sample[]>();
  for (const sample of samples) {
    const { le: _, ...rest } = sample.labels;
    series.set(JSON.stringify(rest), [...(series.get(JSON.stringify(rest)) ?? []), sample]);
  }
  for (const of of series.values()) {
    const buckets = of.filter((s) => s.name === `${name}_bucket`);
    const bounds = buckets.map((b) => (b.labels['le'] === '+Inf' ? Infinity : Number(b.labels['le'])));
    if (bounds.at(-1) !== Infinity || bounds.some((b, i) => i > 0 && b <= (bounds[i - 1] ?? 0))) throw new Error(`bounds of ${name}`);
    if (buckets.some((b, i) => i > 0 && b.value < (buckets[i - 1]?.value ?? 0))) throw new Error(`${name} is not cumulative`);
    if (of.find((s) => s.name === `${name}_count`)?.value !== buckets.at(-1)?.value) throw new Error(`count of ${name}`);
    if (!of.some((s) => s.name === `${name}_sum`)) throw new Error(`sum of ${name}`);
  }
}
