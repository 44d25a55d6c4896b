/** Work that says where it runs. */
import { context } from 'bulkhead/runtime';

export function square(x: number): number {
  return x * x;
}

export class Shard {
  readonly rows: number[] = [];

  add(row: number): number {
    this.rows.push(row);
    return this.rows.length;
  }

  where(): string {
    return context().nodeId;
  }
}
