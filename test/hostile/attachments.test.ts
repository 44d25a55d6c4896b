/** A client that frees objects costs work where they were attached, and not in every worker of every tenant. */
import { expect, it } from 'vitest';
import { Attachments } from '../../src/raylet/attachments.ts';

class Worker {
  readonly detached: string[] = [];
  detach(fileName: string): void {
    this.detached.push(fileName);
  }
}

it('a freed object is taken from the workers that got it, once, and from no other', () => {
  const attachments = new Attachments<Worker>();
  const [a, b, neighbour] = [new Worker(), new Worker(), new Worker()];
  attachments.add('x', a);
  attachments.add('x', a);
  attachments.add('x', b);
  attachments.add('y', neighbour);
  for (let i = 0; i < 1_000; i++) attachments.detach(`never-attached-${i}`);
  attachments.detach('x');
  attachments.detach('x');
  expect([a.detached, b.detached, neighbour.detached]).toEqual([['x'], ['x'], []]);
  attachments.detach('y');
  expect([neighbour.detached, attachments.size]).toEqual([['y'], 0]);
});

it('a worker that is gone is not kept by the objects it had', () => {
  const attachments = new Attachments<Worker>();
  const [gone, alive] = [new Worker(), new Worker()];
  for (const worker of [gone, alive]) for (const name of ['x', 'y']) attachments.add(name, worker);
  attachments.forget(gone);
  attachments.detach('x');
  expect([gone.detached, alive.detached]).toEqual([[], ['x']]);
  attachments.forget(alive);
  expect(attachments.size).toBe(0);
});
