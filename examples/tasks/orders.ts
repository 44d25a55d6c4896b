/** Tasks that run on the cluster: a stream, one that reads a stream, one that fails at first, one that must not run twice. */
import { context, get, task } from 'bulkhead/runtime';

export interface Order {
  readonly number: number;
  readonly amount: number;
}

/** Each order is an object of its own and is there for its reader while the next ones are made. */
export async function* orders(count: number): AsyncGenerator<Order> {
  for (let number = 1; number <= count; number++) yield { number, amount: number * 10 };
}

export function withTax(order: Order): number {
  return order.amount * 1.25;
}

/** Reads a stream from within a task: the refs go on to other tasks, the values never come here. */
export async function total(count: number): Promise<number> {
  const taxed = [];
  for await (const order of task(orders)(count)) taxed.push(task(withTax)(order));
  return (await get(taxed)).reduce((sum, amount) => sum + amount, 0);
}

class NotYet extends Error {}

export function flaky(): string {
  const { attempt } = context();
  if (attempt < 2) throw new NotYet('try again');
  return `done at try ${attempt + 1}`;
}

export function charge(amount: number): string {
  return `${amount} charged by ${context().taskId.slice(-8)}`;
}
