/**
 * Which node each bundle of a placement group goes to: a pure choice over what is known of the nodes. Must never: plan less than all of
 * them, or place one where its labels do not hold.
 */
import { meets, type LabelSelector } from '../../base/labels.ts';
import { fits, subtract, type ResourceVector } from '../../base/resources.ts';
import type { Place } from './placement.ts';

export const STRATEGIES = ['PACK', 'SPREAD', 'STRICT_PACK', 'STRICT_SPREAD'] as const;
export type Strategy = (typeof STRATEGIES)[number];

export interface WantedBundle {
  readonly index: number;
  readonly resources: ResourceVector;
  readonly labels: LabelSelector;
}

class Room {
  readonly place: Place;
  left: ResourceVector;
  /** Bundles of the group that are there or planned to be. */
  bundles: number;

  constructor(place: Place, bundles: number) {
    this.place = place;
    this.left = place.available;
    this.bundles = bundles;
  }

  takes(bundle: WantedBundle): boolean {
    return fits(bundle.resources, this.left) && meets(this.place.labels, bundle.labels);
  }

  take(bundle: WantedBundle): void {
    this.left = subtract(this.left, bundle.resources);
    this.bundles++;
  }
}

function weight({ resources: { cpuUnits, memoryBytes, custom } }: WantedBundle): number {
  // Custom resources are the rare ones: bundles with them choose first.
  return (custom === undefined ? 0 : 1e9) + cpuUnits + memoryBytes / 2 ** 20;
}

/** Each bundle on a node of its own, if that can be at all (augmenting paths over who fits where). */
function distinct(bundles: readonly WantedBundle[], rooms: readonly Room[]): Map<number, number> | undefined {
  const holder = new Map<Room, WantedBundle>();
  const seat = (bundle: WantedBundle, tried: Set<Room>): boolean => {
    for (const room of rooms) {
      if (tried.has(room) || room.bundles > 0 || !room.takes(bundle)) continue;
      tried.add(room);
      const before = holder.get(room);
      if (before !== undefined && !seat(before, tried)) continue;
      holder.set(room, bundle);
      return true;
    }
    return false;
  };
  for (const bundle of bundles) if (!seat(bundle, new Set())) return undefined;
  return new Map([...holder].map(([room, bundle]) => [bundle.index, room.place.number]));
}

/**
 * Which node each bundle goes to, by index; undefined: not all of them find room. `placed`: how many bundles of the group are on a node already.
 * PACK and SPREAD are as close and as far as greedy choices get (largest bundle first); the strict ones are exact.
 */
export function planBundles(strategy: Strategy, bundles: readonly WantedBundle[], places: readonly Place[], placed: ReadonlyMap<number, number>): Map<number, number> | undefined {
  const rooms = places.map((place) => new Room(place, placed.get(place.number) ?? 0));
  const sorted = [...bundles].sort((a, b) => weight(b) - weight(a) || a.index - b.index);
  if (strategy === 'STRICT_SPREAD') return distinct(sorted, rooms);
  if (strategy === 'STRICT_PACK' || strategy === 'PACK') {
    // What is placed already says where the rest belongs.
    const anchored = rooms.filter((room) => room.bundles > 0);
    for (const room of [...anchored, ...(strategy === 'STRICT_PACK' && anchored.length > 0 ? [] : rooms)]) {
      const trial = new Room({ ...room.place, available: room.left }, 0);
      if (sorted.every((bundle) => trial.takes(bundle) && (trial.take(bundle), true))) return new Map(sorted.map(({ index }) => [index, room.place.number]));
    }
    if (strategy === 'STRICT_PACK') return undefined;
  }
  const plan = new Map<number, number>();
  for (const bundle of sorted) {
    let best: Room | undefined;
    for (const room of rooms) {
      if (!room.takes(bundle)) continue;
      if (best === undefined || (strategy === 'PACK' ? room.bundles > best.bundles : room.bundles < best.bundles)) best = room;
    }
    if (best === undefined) return undefined;
    best.take(bundle);
    plan.set(bundle.index, best.place.number);
  }
  return plan;
}
