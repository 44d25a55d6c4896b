/** What the tests of placement run on the cluster. Runs in isolates only. */
import { context, get, placementGroup, task } from 'bulkhead/runtime';

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

/** Makes a group, runs in it, and lets it go with the job. */
export async function inGroup(): Promise<string> {
  const group = placementGroup([{ cpus: 0.5 }]);
  await get(group.ready());
  const [node] = await get([task(where, { placementGroup: group, cpus: 0.5 })()]);
  await group.remove();
  return node === '' ? 'nowhere' : 'in a group';
}
