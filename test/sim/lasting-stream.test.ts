/**
 * Streams that move between connections, against every order of events that a seed draws: batches on their way, moves, offers that die,
 * readers that pause, ends, lost connections. What arrives is what was sent, in order, once; or a beginning of it and an error.
 */
import { describe, expect, it, vi } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { LastingStream, MovableStream, MovableStreams, type BatchStream } from '../../src/rpc/rpc.ts';
import { seeded } from './world.ts';

type Sent = { readonly batch: Uint8Array } | { readonly end: BulkheadError | undefined };

const LOST = new BulkheadError('UNAVAILABLE', 'the connection was lost');

/** One end of a connection in memory: what it is sent waits until the test delivers it. */
class End implements BatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: BatchStream['onLarge'];
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  readonly inbox: Sent[] = [];
  readonly isServer: boolean;
  other: End | undefined;
  paused = false;
  /** What a paused client still hears: messages that came in one piece with the one before. */
  leaks = 0;
  readonly random: () => number;
  ownEnd = false;
  gone = false;

  constructor(isServer: boolean, random: () => number = () => 0) {
    this.isServer = isServer;
    this.random = random;
  }

  write(batch: Uint8Array): boolean {
    if (this.gone || this.ownEnd) return false;
    this.other?.inbox.push({ batch });
    return true;
  }

  pause(): void {
    this.paused = true;
    this.leaks = this.isServer ? 0 : Math.floor(this.random() * 3);
  }

  resume(): void {
    this.paused = false;
  }

  end(error?: BulkheadError): void {
    if (this.gone || this.ownEnd) return;
    this.ownEnd = true;
    if (error === undefined) {
      this.other?.inbox.push({ end: undefined });
      // A server's end is the status of the call: nothing comes after it.
      if (this.isServer) this.gone = true;
      return;
    }
    // A server's error is a status and arrives in order; a client that cuts leaves nothing to read.
    this.gone = true;
    this.inbox.length = 0;
    if (this.isServer) this.other?.inbox.push({ end: error });
    else this.other?.lost();
    this.onEnd?.(error);
  }

  lost(): void {
    if (this.gone) return;
    this.gone = true;
    this.inbox.length = 0;
    this.onEnd?.(LOST);
  }

  get deliverable(): boolean {
    return this.inbox.length > 0 && (!this.paused || this.leaks > 0);
  }

  deliver(): void {
    if (this.paused) this.leaks--;
    const next = this.inbox.shift() as Sent;
    if ('batch' in next) return this.onData?.(next.batch);
    if (!this.isServer || next.end !== undefined) this.gone = true;
    this.onEnd?.(next.end);
  }
}

const TOKEN = `${'a'.repeat(40)}:${'b'.repeat(64)}`;
const WELCOME = 0xffff_ffff;
const ACCEPTED = 0xffff_fffe;
const number = (n: number): Uint8Array => new Uint8Array(Uint32Array.of(n).buffer);
const read = (batch: Uint8Array): number => new Uint32Array(batch.slice().buffer)[0] as number;

class Run {
  readonly random: () => number;
  readonly ends: End[] = [];
  readonly clients: End[] = [];
  readonly toServer: number[] = [];
  readonly toClient: number[] = [];
  readonly client: LastingStream;
  readonly streams = new MovableStreams();
  server: MovableStream | undefined;
  clientEnd: { error: BulkheadError | undefined }[] = [];
  serverEnd: { error: BulkheadError | undefined }[] = [];
  sentByClient = 0;
  sentByServer = 0;
  moves = 0;

  constructor(seed: number) {
    this.random = seeded(seed);
    this.client = new LastingStream({ open: (token) => this.#connect(token), token: (first) => (read(first) === WELCOME ? TOKEN : undefined), accepted: (first) => read(first) === ACCEPTED });
    this.client.onData = (batch) => this.toClient.push(read(batch));
    this.client.onEnd = (error) => this.clientEnd.push({ error });
  }

  #connect(token: string | undefined): BatchStream {
    const client = new End(false, this.random);
    const server = new End(true);
    client.other = server;
    server.other = client;
    this.ends.push(client, server);
    this.clients.push(client);
    if (token === undefined) {
      const stream = new MovableStream(server);
      this.server = stream;
      stream.onData = (batch) => this.toServer.push(read(batch));
      stream.onEnd = (error) => {
        this.serverEnd.push({ error });
        if (error === undefined) stream.end();
      };
      this.streams.add('a'.repeat(40), 'b'.repeat(64), 'owner', stream);
      stream.write(number(WELCOME));
    } else {
      server.pause();
      this.moves++;
      try {
        this.streams.find(token, 'owner').offer(server, number(ACCEPTED));
      } catch (error) {
        server.end(error as BulkheadError);
      }
    }
    return client;
  }

  get clientClosed(): boolean {
    return this.clientEnd.length > 0;
  }

  deliverOne(): boolean {
    const ready = this.ends.filter((e) => e.deliverable);
    if (ready.length === 0) return false;
    (ready[Math.floor(this.random() * ready.length)] as End).deliver();
    return true;
  }

  step(): void {
    const r = this.random();
    if (r < 0.25) {
      if (this.client.write(number(this.sentByClient))) this.sentByClient++;
    } else if (r < 0.5) {
      if (this.server?.write(number(this.sentByServer)) === true) this.sentByServer++;
    } else if (r < 0.54) this.clients.at(-1)?.onStale?.();
    else if (r < 0.56) this.client.pause();
    else if (r < 0.6) this.client.resume();
    else if (r < 0.62) this.server?.pause();
    else if (r < 0.66) this.server?.resume();
    else this.deliverOne();
  }

  drain(): void {
    this.client.resume();
    this.server?.resume();
    while (this.deliverOne());
  }

  checkPrefixes(): void {
    expect(this.toServer).toEqual(this.toServer.map((_, i) => i));
    expect(this.toClient).toEqual([WELCOME, ...this.toClient.slice(1).map((_, i) => i)].slice(0, this.toClient.length));
    expect(this.clientEnd.length).toBeLessThanOrEqual(1);
  }
}

const SEEDS = Array.from({ length: 300 }, (_, i) => i + 1);

describe('a stream that moves', () => {
  it('brings everything in order, whatever the order of events, and ends clean', () => {
    let moves = 0;
    for (const seed of SEEDS) {
      const run = new Run(seed);
      for (let i = 0; i < 400; i++) run.step();
      run.client.end();
      run.drain();
      run.checkPrefixes();
      expect([seed, run.toServer.length, run.toClient.length - 1]).toEqual([seed, run.sentByClient, run.sentByServer]);
      expect([seed, run.clientEnd, run.serverEnd]).toEqual([seed, [{ error: undefined }], [{ error: undefined }]]);
      expect(run.ends.filter((e) => e.isServer && !e.gone)).toEqual([]);
      moves += run.moves;
    }
    expect(moves).toBeGreaterThan(SEEDS.length * 2);
  });

  it('is not hurt by an offer that dies before it is accepted', () => {
    for (const seed of SEEDS.slice(0, 100)) {
      const run = new Run(seed);
      while (run.toClient.length === 0) run.deliverOne();
      run.clients[0]?.onStale?.();
      expect(run.clients).toHaveLength(2);
      const [first, offered] = run.clients as [End, End];
      // Lost on both sides, in either order, with "accepted" still on its way.
      if (run.random() < 0.5) {
        offered.lost();
        offered.other?.lost();
      } else {
        offered.other?.lost();
        offered.lost();
      }
      for (let i = 0; i < 100; i++) run.step();
      expect(first.gone).toBe(false);
      run.client.end();
      run.drain();
      run.checkPrefixes();
      expect([run.toServer.length, run.toClient.length - 1]).toEqual([run.sentByClient, run.sentByServer]);
      expect(run.clientEnd).toEqual([{ error: undefined }]);
    }
  });

  it('ends with an error, after a beginning of what was sent, when a connection in use is lost', () => {
    for (const seed of SEEDS) {
      const run = new Run(seed);
      while (run.toClient.length === 0) run.deliverOne();
      for (let i = 0; i < 200; i++) run.step();
      const used = run.ends.filter((e) => !e.gone && !e.isServer);
      for (const end of used) {
        end.lost();
        end.other?.lost();
      }
      run.drain();
      run.checkPrefixes();
      expect([seed, run.clientEnd.map((e) => e.error?.code)]).toEqual([seed, ['UNAVAILABLE']]);
      expect([seed, run.serverEnd.map((e) => e.error?.code)]).toEqual([seed, ['UNAVAILABLE']]);
      expect(run.client.write(number(0))).toBe(false);
      expect(run.server?.write(number(0))).toBe(false);
    }
  });

  it('ends with an error when the older of two connections is lost before all of it was read', () => {
    for (const seed of SEEDS) {
      const run = new Run(seed);
      while (run.toClient.length === 0) run.deliverOne();
      for (let i = 0; i < 40; i++) run.step();
      if (run.clients.length < 2) run.clients[0]?.onStale?.();
      const [old, next] = run.clients as [End, End];
      run.client.resume();
      while (!old.ownEnd) expect(run.deliverOne()).toBe(true);
      if (old.gone) continue;
      expect(next.paused).toBe(true);
      old.lost();
      old.other?.lost();
      run.drain();
      run.checkPrefixes();
      expect([seed, run.clientEnd.map((e) => e.error?.code), run.serverEnd.map((e) => e.error?.code)]).toEqual([seed, ['UNAVAILABLE'], ['UNAVAILABLE']]);
      expect(run.ends.filter((e) => !e.gone)).toEqual([]);
    }
  });

  it('leaves no connection when either side ends it with an error in the middle of a move', () => {
    const why = new BulkheadError('CANCELLED', 'enough');
    for (const seed of SEEDS) {
      const run = new Run(seed);
      while (run.toClient.length === 0) run.deliverOne();
      for (let i = 0; i < 150; i++) run.step();
      if (seed % 2 === 0) run.server?.end(why);
      else run.client.end(why);
      run.drain();
      run.checkPrefixes();
      expect([seed, run.clientEnd.map((e) => e.error?.code)]).toEqual([seed, ['CANCELLED']]);
      expect([seed, run.ends.filter((e) => !e.gone).length]).toEqual([seed, 0]);
    }
  });

  it('moves when it is told before it may, and again when the new connection ages before it is taken', () => {
    const run = new Run(3);
    run.clients[0]?.onStale?.();
    expect(run.moves).toBe(0);
    run.clients[0]?.deliver();
    expect(run.moves).toBe(1);
    run.clients[1]?.onStale?.();
    while (run.deliverOne());
    expect([run.moves, run.clients.map((c) => c.ownEnd)]).toEqual([2, [true, true, false]]);
  });

  it('tries again later when an offer was lost, and not when it was denied', () => {
    vi.useFakeTimers();
    try {
      const run = new Run(4);
      while (run.deliverOne());
      run.clients[0]?.onStale?.();
      for (let i = 1; i < 4; i++) {
        run.clients[i]?.lost();
        expect(run.moves).toBe(i);
        vi.advanceTimersByTime(10_000);
        expect(run.moves).toBe(i + 1);
      }
      // No answer is a failure too.
      vi.advanceTimersByTime(15_000 + 10_000);
      expect(run.moves).toBe(5);
      run.streams.delete('a'.repeat(40));
      run.clients[5]?.lost();
      vi.advanceTimersByTime(10_000);
      while (run.deliverOne());
      vi.advanceTimersByTime(600_000);
      expect([run.moves, run.clientClosed]).toEqual([6, false]);
      run.client.end();
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('says why it could not move when its connection ends at last', () => {
    const run = new Run(1);
    while (run.deliverOne());
    run.streams.delete('a'.repeat(40));
    run.clients[0]?.onStale?.();
    while (run.deliverOne());
    expect(run.clientClosed).toBe(false);
    run.clients[0]?.lost();
    expect(run.clientEnd[0]?.error?.message).toMatch(/the connection was lost; it could not be replaced before: there is no such stream of this caller/);
  });

  it('tells an offer apart from an answer that is none', () => {
    const run = new Run(2);
    while (run.deliverOne());
    run.clients[0]?.onStale?.();
    const offered = run.clients[1] as End;
    offered.inbox.length = 0;
    offered.inbox.push({ batch: number(7) });
    expect(() => offered.deliver()).toThrow(/did not say that it accepts/);
    expect(run.clientClosed).toBe(false);
    expect(run.toClient).toEqual([WELCOME]);
  });
});

describe('the streams of a server', () => {
  it('are found by their token and owner, and by nothing less', () => {
    const streams = new MovableStreams();
    const stream = new MovableStream(new End(true));
    const id = '0123456789'.repeat(4);
    const secret = MovableStreams.newSecret();
    expect(secret).toMatch(/^[0-9a-f]{64}$/);
    streams.add(id, secret, 'ana job-1', stream);
    expect(streams.find(`${id}:${secret}`, 'ana job-1')).toBe(stream);
    const wrong: readonly (readonly [token: string, owner: string])[] = [
      [`${id}:${secret}`, 'ana job-2'], [`${id}:${secret}`, 'bob job-1'], [`${id}:${'0'.repeat(64)}`, 'ana job-1'], [`${id}:${secret}0`, 'ana job-1'], [`${id}:${secret.slice(1)}`, 'ana job-1'],
      [`${'f'.repeat(40)}:${secret}`, 'ana job-1'], [`${'f'.repeat(40)}:${'0'.repeat(64)}`, 'ana job-1'], [secret, 'ana job-1'], ['', 'ana job-1'], [` ${id}:${secret}`, 'ana job-1'],
    ];
    for (const [token, owner] of wrong) expect(() => streams.find(token, owner)).toThrow('there is no such stream of this caller');
    stream.end();
    expect(() => streams.find(`${id}:${secret}`, 'ana job-1')).toThrow('there is no such stream');
    expect(MovableStreams.idIn(`${id}:${secret}`)).toBe(id);
    expect(MovableStreams.idIn(`${id}:short`)).toBe('');
  });
});
