/** A soak fails when a line goes on rising, and only then. */
import { expect, it } from 'vitest';
import { graph, rising, type Sample } from '../support/soak-samples.ts';

const samples = (of: (i: number) => Partial<Sample>): Sample[] => Array.from({ length: 60 }, (_, i) => ({ seconds: 4 * i, memoryMib: { head: 90 }, descriptors: { head: 40 }, groups: { all: 9 }, tmpfsMib: { 'raylet-1': 20 }, rounds: {}, ...of(i) }));

it('lines that are flat, that fill up at first, and that go up and down pass', () => {
  expect(rising(samples(() => ({})))).toEqual([]);
  expect(rising(samples((i) => ({ memoryMib: { head: 60 + 100 * Math.min(1, i / 20) }, descriptors: { head: 40 + (i % 7) } })))).toEqual([]);
});

it.each([
  ['memory', (i: number) => ({ memoryMib: { head: 80, 'raylet-1': 80 + 3 * i } }), /^Memory.* of raylet-1: \d+\.\d in the middle third, \d+/],
  ['descriptors', (i: number) => ({ descriptors: { workers: 40 + i } }), /^File descriptors of workers/],
  ['control groups', (i: number) => ({ groups: { all: 9 + i } }), /^Control groups of all/],
  ['tmpfs', (i: number) => ({ tmpfsMib: { 'raylet-2': 5 + i } }), /^tmpfs.* of raylet-2/],
] as const)('%s that go on rising are told', (_what, of, told) => {
  expect(rising(samples(of))).toEqual([expect.stringMatching(told)]);
});

it('a run that is too short proves nothing', () => {
  expect(rising(samples(() => ({})).slice(0, 6))).toEqual([expect.stringMatching(/too short/)]);
});

it('the graph has every line, inside its frame', () => {
  const svg = graph(samples((i) => ({ memoryMib: { head: i, workers: 2 * i } })), 'a run');
  expect(svg.match(/<polyline/g)?.length).toBe(5);
  for (const [, x, y] of svg.matchAll(/([\d.]+),([\d.]+)[ "]/g)) expect(Number(x) <= 700 && Number(y) <= 800).toBe(true);
  expect(svg).not.toMatch(/NaN|undefined/);
});
