/** `bulkhead logs (job|task|actor) ID`: what tasks and actors printed, merged over all raylets by time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Jobs } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection, type Entity, type LogChunk } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { CALL_TIMEOUT_MS, CallerSession, type RayletConnection } from '../session.ts';
import { printable, UsageError, type Terminal } from '../terminal.ts';

const JOB_POLL_MS = 500;
/** Between the end of a job and the last of its output. */
const DRAIN_MS = 500;

interface Piece {
  readonly nodeId: string;
  readonly source: { readonly timeMs?: number; readonly task?: string; readonly actor?: string; readonly name?: string; readonly stream?: string };
  readonly text: string;
}

export async function logs(terminal: Terminal, kind: string, id: string, options: { readonly tenant: string | undefined; readonly follow: boolean }, profile: string | undefined): Promise<void> {
  if (kind !== 'job' && kind !== 'task' && kind !== 'actor') throw new UsageError(`logs of what? give job, task or actor, and its id; not '${printable(kind)}'`);
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant;
  if (tenant === undefined) throw new UsageError(`whose logs? you are ${session.self.id}, which is of no tenant: give --tenant NAME`);
  const stop = new AbortController();
  const interrupt = (): void => stop.abort();
  process.once('SIGINT', interrupt);
  const pieces: Piece[] = [];
  const print = ({ nodeId, source, text }: Piece): void => {
    if (terminal.json) return terminal.answer({ nodeId, ...source, text });
    const shown = process.stdout.isTTY ? printable(text, true) : text;
    const whole = shown.endsWith('\n') ? shown : `${shown}\n`;
    terminal.raw(kind === 'job' ? whole.replace(/^(?=[^])/gm, (_, at: number) => (at === whole.length ? '' : `(${printable(source.name ?? '')}) `)) : whole);
  };
  const take = (nodeId: string, chunk: LogChunk): void => {
    const piece: Piece = { nodeId, source: JSON.parse(chunk.source) as Piece['source'], text: new TextDecoder().decode(chunk.text) };
    if (options.follow) print(piece);
    else pieces.push(piece);
  };
  const raylets = await session.raylets();
  const read = (known: string) => session.ask(raylets, async (raylet) => {
    try {
      for await (const chunk of raylet.to(Inspection).readLog({ tenant, kind, id: known, follow: options.follow }, { signal: stop.signal })) take(raylet.nodeId, chunk);
    } catch (thrown) {
      if (!stop.signal.aborted) throw thrown;
    }
  });
  // What another node runs has an id of its own there, and prints under that.
  let elsewhere: ReturnType<typeof read> | undefined;
  const readElsewhere = (entity: Entity | undefined): void => {
    const remote = entity?.facts['remote'] ?? '';
    if (remote !== '') elsewhere ??= read(remote);
    elsewhere?.catch(() => undefined);
  };
  if (kind === 'job') {
    if (options.follow) void endWithJob(session, id, stop);
  } else {
    const found = await locate(raylets, kind, tenant, id);
    readElsewhere(found);
    if (options.follow && found !== undefined) void endWithCall(() => locate(raylets, kind, tenant, id), readElsewhere, stop);
  }
  const { unreachable } = await read(id);
  await elsewhere;
  process.removeListener('SIGINT', interrupt);
  pieces.sort((a, b) => (a.source.timeMs ?? 0) - (b.source.timeMs ?? 0) || (a.nodeId < b.nodeId ? -1 : 1));
  for (const piece of pieces) print(piece);
  for (const { nodeId, error } of unreachable) terminal.warn(printable(`node ${nodeId} did not answer, so its part is missing: ${error.safeMessage}`));
}

/** The task or actor as the node of its owner knows it; undefined when no node does any more, or the caller may read only logs. */
async function locate(raylets: readonly RayletConnection[], kind: 'task' | 'actor', tenant: string, id: string): Promise<Entity | undefined> {
  const answers = await Promise.all(raylets.map((raylet) => raylet.to(Inspection).get({ kind: `${kind}s`, tenant, id }, { timeoutMs: CALL_TIMEOUT_MS }).catch(() => undefined)));
  return answers.find((entity) => entity !== undefined);
}

const ENDED = ['FINISHED', 'FAILED', 'DEAD'];

/** Following a task or actor ends with it, or when nobody knows it any more. */
async function endWithCall(look: () => Promise<Entity | undefined>, onSeen: (entity: Entity) => void, stop: AbortController): Promise<void> {
  try {
    for (let entity = await look(); entity !== undefined && !ENDED.includes(entity.state); entity = await look()) {
      onSeen(entity);
      await sleep(JOB_POLL_MS, undefined, { signal: stop.signal });
    }
    await sleep(DRAIN_MS, undefined, { signal: stop.signal });
    stop.abort();
  } catch {
    // Interrupted.
  }
}

/** Following a job ends with the job. */
async function endWithJob(session: CallerSession, jobId: string, stop: AbortController): Promise<void> {
  try {
    while (!stop.signal.aborted && Number((await session.to(Jobs).get({ jobId }, { timeoutMs: CALL_TIMEOUT_MS })).endedMs) === 0) await sleep(JOB_POLL_MS, undefined, { signal: stop.signal });
    await sleep(DRAIN_MS, undefined, { signal: stop.signal });
    stop.abort();
  } catch {
    // Without the right to see the job, or interrupted: the log is followed until ^C.
  }
}
