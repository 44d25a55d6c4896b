/** One client of the bench: a process of its own with one connection, that prepares rows and measures slices as its parent says (over IPC). */
import { connect } from '../src/sdk/sdk.ts';
import { latencies, sliceRate, type Latencies } from './measure.ts';
import { plainTransport } from './plain-transport.ts';
import { rowNamed, type Step } from './rows.ts';
import type { ActorHandle, ObjectRef } from '../src/sdk/sdk.ts';

export type DriverCommand =
  | { readonly do: 'prepare'; readonly row: string; readonly index: number; readonly key: string }
  | { readonly do: 'run'; readonly seconds: number }
  | { readonly do: 'lone-calls'; readonly seconds: number }
  | { readonly do: 'create-actors'; readonly count: number }
  | { readonly do: 'queue'; readonly count: number; readonly blockers: number; readonly ms: number }
  | { readonly do: 'drain' }
  | { readonly do: 'stop' };
export type DriverAnswer = { readonly ok: true; readonly rate?: number; readonly latencies?: Latencies } | { readonly error: string };

const PARENT_GONE_EXIT = 1;
process.on('disconnect', () => process.exit(PARENT_GONE_EXIT));

/** Set for `--controls` only: a raylet of the bench's own instead of the profile's cluster. */
const target = process.env['BENCH_TARGET'];
const cluster = await connect(target === undefined ? {} : { transport: plainTransport(target, process.env['BULKHEAD_PROFILE'] ?? '') });
const module = await cluster.module<typeof import('./workload.ts')>(new URL('./workload.ts', import.meta.url));
let step: Step | undefined;
const blockers: ObjectRef[] = [];
const queued: ObjectRef[] = [];
const kept: ActorHandle<{ ping(): Uint8Array }>[] = [];

async function perform(command: DriverCommand): Promise<DriverAnswer> {
  switch (command.do) {
    case 'prepare':
      step = await rowNamed(command.row).prepare?.({ cluster, module, index: command.index, key: command.key });
      return { ok: true };
    case 'run':
      if (step === undefined) throw new Error('no row is prepared');
      return { ok: true, rate: await sliceRate(step, command.seconds) };
    case 'lone-calls':
      if (step === undefined) throw new Error('no row is prepared');
      return { ok: true, latencies: await latencies(step, command.seconds) };
    case 'create-actors': {
      const start = performance.now();
      const actors = await Promise.all(Array.from({ length: command.count }, () => module.Idle.create()));
      await cluster.get(actors.map((actor) => actor.ping()));
      kept.push(...actors);
      return { ok: true, rate: (command.count / (performance.now() - start)) * 1_000 };
    }
    case 'queue': {
      if (command.blockers > 0) blockers.splice(0);
      blockers.push(...Array.from({ length: command.blockers }, () => module.block(command.ms)));
      queued.push(...Array.from({ length: command.count }, () => module.smallValue()));
      // Answered in order: by then the raylet has them all.
      await cluster.wait([await cluster.put(0)]);
      return { ok: true };
    }
    case 'drain': {
      if ((await cluster.wait([...blockers], { count: 1, timeoutMs: 0 })).ready.length > 0) throw new Error('the cpus were free before the queue was measured');
      const start = performance.now();
      await cluster.get([...blockers]);
      for (let i = 0; i < queued.length; i += 1_000) await cluster.get(queued.slice(i, i + 1_000));
      return { ok: true, rate: (queued.length / (performance.now() - start)) * 1_000 };
    }
    case 'stop':
      await cluster.close();
      return { ok: true };
  }
}

process.on('message', (command: DriverCommand) => {
  perform(command).then(
    (answer) => {
      process.send?.(answer, () => {
        if (command.do === 'stop') process.exit(0);
      });
    },
    (thrown: unknown) => process.send?.({ error: thrown instanceof Error ? `${(thrown as { code?: string }).code ?? ''} ${thrown.message}` : String(thrown) }),
  );
});
process.send?.({ ok: true } satisfies DriverAnswer);
