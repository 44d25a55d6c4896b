/**
 * Where a call may run: by the labels of nodes, by the name of one, spread over them, or in a bundle of a placement group. Pure choices over what
 * this raylet knows of the nodes; labels come from the head, which lets a node have only those that its operator gave it. Must never: place
 * work where a hard condition does not hold, also when nothing else has room.
 */
import { BulkheadError } from '../../base/errors.ts';
import { hex, objectIdFromText, parseNodeId, quote } from '../../base/ids.ts';
import { describeSelector, meets, parseFallback, parseSelector, type Labels, type LabelSelector } from '../../base/labels.ts';
import { HEARTBEAT_MS, MAX_BUNDLES_PER_GROUP } from '../../base/limits.ts';
import { add, fits, subtract, type ResourceVector } from '../../base/resources.ts';
import type { Core } from './core.ts';
import type { RemoteNode, SchedulingClass } from './state.ts';

/** By then a node has reported what it was given, and the head has passed it on. */
const REPORTED_WITHIN_MS = 4 * HEARTBEAT_MS;

export interface Placement {
  /** In the order they are tried: the first that a living node meets counts. */
  readonly selectors: readonly LabelSelector[];
  /** Node id; '': any. */
  readonly node: string;
  /** Another node will do while that one is not there. */
  readonly soft: boolean;
  readonly spread: boolean;
  /** Placement group as 48 hex digits; '': none. */
  readonly group: string;
  /** -1: any of its bundles. */
  readonly bundle: number;
  /** The same for all that may run in the same places. */
  readonly key: string;
}

/** A node as a place for work. */
export interface Place {
  readonly nodeId: string;
  readonly number: number;
  readonly labels: Labels;
  readonly total: ResourceVector;
  readonly available: ResourceVector;
}

export interface PlacementFields {
  readonly labels?: unknown;
  readonly fallback?: unknown;
  readonly nodeAffinity?: unknown;
  readonly scheduling?: unknown;
  readonly placementGroup?: unknown;
  readonly bundleIndex?: unknown;
}

function refuse(what: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `options are not valid: ${what}`);
}

function parseAffinity(value: unknown): { readonly node: string; readonly soft: boolean } {
  if (value === undefined) return { node: '', soft: false };
  if (typeof value === 'string') return { node: parseNodeId(value), soft: false };
  if (typeof value !== 'object' || value === null || Object.keys(value).some((key) => key !== 'node' && key !== 'soft')) refuse("nodeAffinity must be the id of a node, or { node, soft }");
  const { node, soft = false } = value as { node?: unknown; soft?: unknown };
  if (typeof node !== 'string' || typeof soft !== 'boolean') refuse('nodeAffinity must be the id of a node, or { node, soft: true }');
  return { node: parseNodeId(node), soft };
}

/** Undefined when the options say nothing about places. Throws INVALID_ARGUMENT. */
export function parsePlacement(given: PlacementFields): Placement | undefined {
  const { labels, fallback, nodeAffinity, scheduling, placementGroup, bundleIndex } = given;
  if (scheduling !== undefined && scheduling !== 'default' && scheduling !== 'spread') refuse("scheduling must be 'default' or 'spread'");
  if (placementGroup !== undefined && typeof placementGroup !== 'string') refuse('placementGroup must be the id of a placement group');
  if (bundleIndex !== undefined && (typeof bundleIndex !== 'number' || !Number.isInteger(bundleIndex) || bundleIndex < -1 || bundleIndex >= MAX_BUNDLES_PER_GROUP)) refuse(`bundleIndex must be a whole number from -1 (any bundle) to ${MAX_BUNDLES_PER_GROUP - 1}`);
  const selectors = [...(labels === undefined ? [] : [parseSelector(labels)]), ...(fallback === undefined ? [] : parseFallback(fallback))];
  if (fallback !== undefined && labels === undefined) refuse('fallback goes with labels: it says what to do when no node has them');
  const { node, soft } = parseAffinity(nodeAffinity);
  const spread = scheduling === 'spread';
  if (placementGroup === undefined) {
    if (bundleIndex !== undefined) refuse('bundleIndex goes with placementGroup');
    if (selectors.length === 0 && node === '' && !spread) return undefined;
  } else if (selectors.length > 0 || node !== '' || spread) refuse('placementGroup says where a call runs: labels, nodeAffinity and spread are for the bundles of the group');
  const group = placementGroup === undefined ? '' : hex(objectIdFromText(placementGroup));
  const bundle = typeof bundleIndex === 'number' ? bundleIndex : -1;
  return { selectors, node, soft, spread, group, bundle, key: JSON.stringify([selectors, node, soft, spread, group, bundle]) };
}

export function ownPlace(core: Core): Place {
  const { nodeId, nodeNumber, labels, total } = core.config;
  return { nodeId, number: nodeNumber, labels, total, available: core.available };
}

/** This node, then the others that can be reached. */
export function placesOf(core: Core): Place[] {
  const places = [ownPlace(core)];
  for (const node of core.nodes.values()) if (core.reachable(node.number)) places.push(node);
  return places;
}

/** It may have room again, for either. */
export function openNode(c: SchedulingClass, number: number): void {
  if (c.placement !== undefined && !c.positions.has(number)) return;
  c.open[0]?.add(number);
  c.open[1]?.add(number);
}

/** What is forwarded to a node is counted there at once, before its next report can. */
export function takeOn(core: Core, node: RemoteNode, resources: ResourceVector): void {
  node.available = subtract(node.available, resources);
  node.takenMs = core.nowMs;
}

/** The other way: until it reports again a node has what it says it was given back. */
export function giveBackOn(core: Core, node: RemoteNode, resources: ResourceVector): void {
  const sum = add(node.available, resources);
  node.available = fits(sum, node.total) ? sum : node.total;
  node.takenMs = core.nowMs;
  for (const c of core.classes) openNode(c, node.number);
  core.roomFreed = true;
}

/** The head passes on only what changed: a node that has not said anything since has what it said, whatever was forwarded meanwhile came and went. */
export function believeReports(core: Core): void {
  for (const node of core.nodes.values()) {
    if (core.nowMs - node.takenMs < REPORTED_WITHIN_MS) continue;
    node.available = node.reported;
    node.takenMs = Number.POSITIVE_INFINITY;
    for (const c of core.classes) openNode(c, node.number);
  }
}

function firstMet(places: readonly Place[], selectors: readonly LabelSelector[], wanted: ResourceVector): Place[] {
  const able = places.filter((place) => fits(wanted, place.total));
  if (selectors.length === 0) return able;
  for (const selector of selectors) {
    const met = able.filter(({ labels }) => meets(labels, selector));
    if (met.length > 0) return met;
  }
  return [];
}

/** Where a call may run at all, whether there is room now or not; this node first. */
export function allowedPlaces(core: Core, placement: Placement, wanted: ResourceVector): Place[] {
  const places = placesOf(core);
  if (placement.node !== '') {
    const named = firstMet(places.filter(({ nodeId }) => nodeId === placement.node), placement.selectors, wanted);
    if (named.length > 0 || !placement.soft) return named;
  }
  return firstMet(places, placement.selectors, wanted);
}

/** Why there is no place at all, in words that name no more than was asked for; undefined: there is one. */
export function nowhere(core: Core, placement: Placement, wanted: ResourceVector, wantedText: string): string | undefined {
  if (allowedPlaces(core, placement, wanted).length > 0) return undefined;
  const { node, soft, selectors } = placement;
  const places = placesOf(core);
  if (node !== '' && !soft && !places.some(({ nodeId }) => nodeId === node)) return `node ${quote(node)} is not alive`;
  const asked = selectors.map((selector) => (selector.length === 0 ? 'any node' : describeSelector(selector))).join(', nor ');
  const among = node === '' || soft ? places : places.filter(({ nodeId }) => nodeId === node);
  if (!selectors.some((selector) => among.some(({ labels }) => meets(labels, selector))) && selectors.length > 0) return node === '' || soft ? `no node has label ${asked}` : `node ${quote(node)} has not label ${asked}`;
  return `infeasible: no node${asked === '' ? '' : ` with label ${asked}`}${node === '' || soft ? '' : ` called ${quote(node)}`} has ${wantedText}`;
}
