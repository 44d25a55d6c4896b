/** Code that runs on the cluster, in an isolate of your tenant: functions are tasks, classes are actors. */
export function square(n: number): number {
  return n * n;
}

export class Counter {
  #value = 0;

  add(n: number): number {
    return (this.#value += n);
  }
}
