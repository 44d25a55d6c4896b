/** What the tests of placement run on the cluster. Runs in isolates only. */
import { context } from 'bulkhead/runtime';

export function where(): string {
  return context().nodeId;
}

export function nap(ms: number): Promise<string> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(context().nodeId), ms);
  });
}

export class Place {
  where(): string {
    return context().nodeId;
  }
}
