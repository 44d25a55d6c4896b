/**
 * Turns values into text for console and errors: bounded in depth, width and length, and it runs no getter of the tenant's.
 * A proxy's traps do run; what they throw is caught, and how long they take is the watchdog's business.
 */

const MAX_CHARS = 16_384;
const MAX_ITEMS = 100;
const MAX_DEPTH = 3;

function quoted(text: string): string {
  return text.includes("'") ? JSON.stringify(text) : `'${text.replaceAll('\n', '\\n')}'`;
}

class Inspector {
  #left = MAX_CHARS;
  readonly #above: object[] = [];

  text(value: unknown, depth: number): string {
    if (this.#left <= 0) return '…';
    let text: string;
    switch (typeof value) {
      case 'string':
        text = quoted(value.length > this.#left ? `${value.slice(0, this.#left)}…` : value);
        break;
      case 'bigint':
        text = `${value}n`;
        break;
      case 'number':
        text = Object.is(value, -0) ? '-0' : String(value);
        break;
      case 'symbol':
        text = String(value);
        break;
      case 'function': {
        const name = Object.getOwnPropertyDescriptor(value, 'name')?.value as unknown;
        text = `[Function ${typeof name === 'string' && name !== '' ? name.slice(0, 100) : '(anonymous)'}]`;
        break;
      }
      case 'object':
        return value === null ? 'null' : this.#object(value, depth);
      default:
        text = String(value);
    }
    this.#left -= text.length;
    return text;
  }

  #object(object: object, depth: number): string {
    if (this.#above.includes(object)) return '[Circular]';
    if (object instanceof Error) {
      const stack = Object.getOwnPropertyDescriptor(object, 'stack')?.value as unknown;
      const text = typeof stack === 'string' && stack !== '' ? stack.slice(0, MAX_CHARS) : errorLine(object);
      this.#left -= text.length;
      return text;
    }
    if (object instanceof Date) return Number.isNaN(Date.prototype.getTime.call(object)) ? 'Invalid Date' : Date.prototype.toISOString.call(object);
    if (object instanceof RegExp) return String(object);
    const prototype = Object.getPrototypeOf(object) as { constructor?: unknown } | null;
    const constructor = prototype === null ? undefined : Object.getOwnPropertyDescriptor(prototype, 'constructor');
    const named: unknown = constructor?.value ?? (prototype === Object.prototype ? Object : undefined);
    const name = prototype === null ? '[Object: null prototype]' : typeof named === 'function' ? named.name : 'Object';
    if (depth > MAX_DEPTH) return `[${Array.isArray(object) ? 'Array' : name}]`;
    this.#above.push(object);
    try {
      return this.#inside(object, name, depth);
    } finally {
      this.#above.pop();
    }
  }

  #inside(object: object, name: string, depth: number): string {
    const next = (value: unknown): string => this.text(value, depth + 1);
    const items: string[] = [];
    const more = (total: number): void => {
      if (total > items.length) items.push(`… ${total - items.length} more`);
    };
    if (Array.isArray(object) || ArrayBuffer.isView(object)) {
      if (object instanceof DataView) return `DataView(${object.byteLength})`;
      const list = object as unknown as ArrayLike<unknown>;
      for (let i = 0; i < Math.min(list.length, MAX_ITEMS); i++) items.push(next(Object.getOwnPropertyDescriptor(list, i)?.value));
      more(list.length);
      return `${Array.isArray(object) && name === 'Array' ? '' : `${name}(${list.length}) `}[${items.length === 0 ? '' : ` ${items.join(', ')} `}]`;
    }
    if (object instanceof Map) {
      for (const [key, value] of object) if (items.push(`${next(key)} => ${next(value)}`) >= MAX_ITEMS) break;
      more(object.size);
      return `Map(${object.size}) {${items.length === 0 ? '' : ` ${items.join(', ')} `}}`;
    }
    if (object instanceof Set) {
      for (const value of object) if (items.push(next(value)) >= MAX_ITEMS) break;
      more(object.size);
      return `Set(${object.size}) {${items.length === 0 ? '' : ` ${items.join(', ')} `}}`;
    }
    const keys = Object.keys(object);
    for (const key of keys.slice(0, MAX_ITEMS)) {
      const property = Object.getOwnPropertyDescriptor(object, key);
      items.push(`${/^[A-Za-z_$][\w$]*$/.test(key) ? key : quoted(key.slice(0, 1_000))}: ${property !== undefined && 'value' in property ? next(property.value) : '[Getter]'}`);
    }
    more(keys.length);
    return `${name === 'Object' ? '' : `${name} `}{${items.length === 0 ? '' : ` ${items.join(', ')} `}}`;
  }
}

export function inspect(value: unknown): string {
  try {
    return new Inspector().text(value, 0).slice(0, MAX_CHARS);
  } catch {
    return '[a value that cannot be shown]';
  }
}

function errorLine(error: object): string {
  const read = (key: string): string => {
    const value = (error as Record<string, unknown>)[key];
    return typeof value === 'string' ? value : '';
  };
  const name = read('name') || 'Error';
  const message = read('message');
  return message === '' ? name : name === 'Error' ? message : `${name}: ${message}`;
}

/** What travels of a thrown value: texts only, read once each, bounded. */
export function describeThrown(thrown: unknown, maxMessage: number, maxStack: number): { message: string; stack: string } {
  let message = '';
  let stack = '';
  try {
    if (typeof thrown === 'object' && thrown !== null) {
      try {
        const found = (thrown as { stack?: unknown }).stack;
        if (typeof found === 'string') stack = found.slice(0, maxStack);
      } catch {
        // A getter that throws leaves no stack.
      }
      message = thrown instanceof Error || typeof (thrown as { message?: unknown }).message === 'string' ? errorLine(thrown) : `thrown: ${inspect(thrown)}`;
    } else message = typeof thrown === 'string' ? thrown : `thrown: ${inspect(thrown)}`;
  } catch {
    message = 'the thrown value cannot be shown';
  }
  return { message: message.slice(0, maxMessage), stack };
}

/** The text of one console call, with the format directives of the Console standard. */
export function format(args: readonly unknown[]): string {
  const [first, ...rest] = args;
  const parts: string[] = [];
  let used = 0;
  if (typeof first === 'string') {
    parts.push(
      first.replace(/%[sdifjoOc%]/g, (directive) => {
        if (directive === '%%') return rest.length > 0 ? '%' : '%%';
        if (used >= rest.length) return directive;
        const value = rest[used++];
        if (directive === '%c') return '';
        if (directive === '%s') return typeof value === 'string' ? value : inspect(value);
        if (directive === '%d') return typeof value === 'bigint' ? `${value}n` : typeof value === 'object' ? 'NaN' : typeof value === 'symbol' ? 'NaN' : String(Number(value));
        if (directive === '%i') return typeof value === 'object' || typeof value === 'symbol' ? 'NaN' : String(Number.parseInt(String(value), 10));
        if (directive === '%f') return typeof value === 'object' || typeof value === 'symbol' ? 'NaN' : String(Number.parseFloat(String(value)));
        return inspect(value);
      }),
    );
  } else if (args.length > 0) parts.push(inspect(first));
  for (const value of rest.slice(used)) parts.push(typeof value === 'string' ? value : inspect(value));
  return parts.join(' ');
}
