/** What the tenants of the fault tests run: answers that tell whose they are, and an actor that keeps a book. Runs in isolates only. */
import { context } from 'bulkhead/runtime';

export function add(a: number, b: number): number {
  return a + b;
}

/** A while of waiting, so that something is in hand whenever a fault comes. */
export function addSlowly(a: number, b: number, ms: number): Promise<number> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(a + b), ms);
  });
}

export function tenantHere(): string | undefined {
  return context().tenant;
}

/** First octets of a large value, with its size: it has travelled whole. */
export function summary(data: Uint8Array): { size: number; first: number; last: number } {
  return { size: data.length, first: data[0] ?? -1, last: data[data.length - 1] ?? -1 };
}

/** Each entry once: what was acknowledged in a life of it is in the book of that life. */
export class Ledger {
  readonly #life = context().attempt;
  readonly #entries: number[] = [];

  note(entry: number): { life: number; length: number } {
    return { life: this.#life, length: this.#entries.push(entry) };
  }

  read(): { life: number; entries: number[] } {
    return { life: this.#life, entries: this.#entries };
  }
}
