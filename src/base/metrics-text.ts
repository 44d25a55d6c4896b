/**
 * The text format that Prometheus scrapes (exposition format 0.0.4), written by hand: a page of code instead of a dependency, and samples come
 * from state when they are asked for, so that nothing is counted twice. Must never: let a name or a label of a tenant's end a line.
 */

export type Labels = Readonly<Record<string, string>>;
type Type = 'counter' | 'gauge' | 'histogram';

const NAME = /^[a-zA-Z_][a-zA-Z0-9_]*$/;

/** Content type of what `text` returns. */
export const METRICS_CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

function value(n: number): string {
  return n === Number.POSITIVE_INFINITY ? '+Inf' : n === Number.NEGATIVE_INFINITY ? '-Inf' : String(n);
}

function labelText(labels: Labels): string {
  const pairs = Object.keys(labels).map((name) => {
    if (!NAME.test(name)) throw new RangeError(`${name} is not the name of a label`);
    return `${name}="${(labels[name] ?? '').replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n')}"`;
  });
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}

export class MetricsText {
  readonly #families = new Map<string, { readonly type: Type; readonly help: string; readonly lines: string[] }>();

  /** Lines of one family must stand together, whatever the order they come in. */
  #family(name: string, type: Type, help: string): string[] {
    let family = this.#families.get(name);
    if (family === undefined) {
      if (!NAME.test(name)) throw new RangeError(`${name} is not the name of a metric`);
      this.#families.set(name, (family = { type, help, lines: [] }));
    }
    if (family.type !== type) throw new RangeError(`${name} is a ${family.type} already`);
    return family.lines;
  }

  /** Only ever grows, and its name ends in `_total`; a restart of the process may begin it anew. */
  counter(name: string, help: string, n: number, labels: Labels = {}): void {
    if (!name.endsWith('_total')) throw new RangeError(`${name} is a counter: its name must end in _total`);
    this.#family(name, 'counter', help).push(`${name}${labelText(labels)} ${value(n)}`);
  }

  gauge(name: string, help: string, n: number, labels: Labels = {}): void {
    this.#family(name, 'gauge', help).push(`${name}${labelText(labels)} ${value(n)}`);
  }

  /** `counts[i]`: how many were at most `bounds[i]`, and not at most the bound before; one more for those beyond all bounds. */
  histogram(name: string, help: string, bounds: readonly number[], counts: ArrayLike<number>, sum: number, labels: Labels = {}): void {
    const lines = this.#family(name, 'histogram', help);
    let total = 0;
    for (let i = 0; i <= bounds.length; i++) {
      total += counts[i] ?? 0;
      lines.push(`${name}_bucket${labelText({ ...labels, le: value(bounds[i] ?? Number.POSITIVE_INFINITY) })} ${total}`);
    }
    lines.push(`${name}_sum${labelText(labels)} ${value(sum)}`, `${name}_count${labelText(labels)} ${total}`);
  }

  text(): string {
    let out = '';
    for (const [name, { type, help, lines }] of this.#families) out += `# HELP ${name} ${help.replace(/\\/g, '\\\\').replace(/\n/g, '\\n')}\n# TYPE ${name} ${type}\n${lines.join('\n')}\n`;
    return out;
  }
}
