/** Actors that run on the cluster, and a task that is handed a queue. */
import { exitActor, get, wait, type ActorHandle } from 'bulkhead/runtime';
import { Queue, type QueueActor } from 'bulkhead/queue';

export class Till {
  #sum = 0;
  readonly #currency: string;

  constructor(currency: string) {
    this.#currency = currency;
  }

  pay(amount: number): string {
    return `${(this.#sum += amount)} ${this.#currency}`;
  }

  close(): void {
    exitActor();
  }
}

export class Baker {
  async bake(loaf: string): Promise<string> {
    return `${loaf}, baked`;
  }
}

/** The queue came as the handle of its actor. */
export async function serve(counter: ActorHandle<QueueActor>, guests: number): Promise<string[]> {
  const queue = new Queue<string>(counter, { get, wait });
  const served: string[] = [];
  for (let i = 0; i < guests; i++) served.push(await queue.get());
  return served;
}
