/** A driver program that ends in the way that its first argument names, after one call. Prints its job's id as the first line. */
import { connect, type Cluster } from '../../src/sdk/sdk.ts';

const how = process.argv[2] ?? '';

async function begin(): Promise<Cluster> {
  const cluster = await connect();
  const twice = cluster.task((x: number) => x * 2);
  if ((await cluster.get(twice(21))) !== 42) throw new Error('the task is wrong');
  process.stdout.write(`${cluster.jobId}\n`);
  return cluster;
}

async function disposing(fail?: () => void): Promise<void> {
  await using _cluster = await begin();
  fail?.();
}

switch (how) {
  case 'well': {
    await disposing();
    break;
  }
  case 'well-then-exit': {
    await disposing();
    process.exit(0);
    break;
  }
  case 'throw': {
    await disposing(() => {
      throw new RangeError('thrown inside\nwith a second line');
    });
    break;
  }
  case 'reject': {
    await begin();
    void Promise.reject(new TypeError('nobody caught this'));
    break;
  }
  case 'caught': {
    await disposing(() => {
      throw new Error('known');
    }).catch(() => process.exit(5));
    break;
  }
  case 'exit-3': {
    await begin();
    process.exit(3);
    break;
  }
  case 'code-4': {
    process.exitCode = 4;
    const cluster = await begin();
    await cluster.close();
    break;
  }
  case 'handled': {
    // The program goes on after an error that it handles.
    process.on('uncaughtException', () => undefined);
    const cluster = await begin();
    setTimeout(() => {
      throw new Error('handled');
    });
    setTimeout(() => void cluster.close(), 50);
    break;
  }
  case 'wait': {
    await begin();
    setInterval(() => undefined, 60_000);
    break;
  }
  case 'wait-detached': {
    const cluster = await connect();
    const work = await cluster.module<typeof import('./work.ts')>(new URL('./work.ts', import.meta.url));
    const lasting = await work.Counter.options({ name: 'outlives', detached: true }).create(7);
    await cluster.get(lasting.add(1));
    process.stdout.write(`${cluster.jobId}\n`);
    setInterval(() => undefined, 60_000);
    break;
  }
  case 'wait-for-interrupt': {
    // Listening before the first line is printed, which is what the interrupt waits for.
    const interrupted = new Promise((resolve) => process.once('SIGINT', resolve));
    const cluster = await begin();
    const timer = setInterval(() => undefined, 60_000);
    await interrupted;
    clearInterval(timer);
    await cluster.close();
    break;
  }
  default: throw new Error(`no such end: ${how}`);
}
