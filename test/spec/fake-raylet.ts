/**
 * A raylet in memory, for tests of the client's side: it speaks the frame protocol, keeps objects in a map, and runs functions through
 * the real guest prelude (without an isolate). No identity, policy, limits or scheduling: those are the real raylet's.
 */
import { createHash, randomBytes } from 'node:crypto';
import { CALL_KIND, FrameReader, FrameWriter, NO_TIMEOUT, OP, STREAMS } from '../../src/base/frame.ts';
import { objectIdText } from '../../src/base/ids.ts';
import { CHUNK_BYTES, MAX_INLINE_BYTES, MAX_PUSHED_BYTES } from '../../src/base/limits.ts';
import { EMIT } from '../../src/sandbox/isolate/guest/executor.ts';
import { installInto, type Guest } from '../../src/sandbox/isolate/guest/prelude.ts';
import type { Connection, Transport, TransportHandlers } from '../../src/sdk/transport.ts';

interface Failure { code: string; message: string; stack: string }
type Outcome = { bytes: Uint8Array } | { failure: Failure };
interface Stored { outcome: Outcome | undefined; waiters: (() => void)[] }
interface Template { number: number; kind: number; digest: string; exportName: string; method: string; options: { returns?: number | 'streaming'; name?: string; streams?: string[] } }
interface Client { prefix: Uint8Array; templates: Map<number, Template>; send(writer: FrameWriter): void; attach?(bytes: Uint8Array): number }
interface Running { ids: string[]; done(): void }
/** What a reader has granted and what came: everything in it is the reader's. */
interface FakeStream { readonly client: Client; readonly seq: number; readonly indexes: number[]; granted: number; items: number; pull?(upTo: number): void }

/** One isolate's worth of guest, driven as the worker host would. */
class FakeSlot {
  readonly client: Client;
  readonly #guest: Guest;
  readonly #raylet: FakeRaylet;
  readonly #templates = new Map<string, number>();
  readonly #codes = new Map<string, number>();
  readonly #running = new Map<number, Running>();
  readonly #streams = new Map<number, FakeStream>();
  readonly #staged = new Map<number, Uint8Array>();
  readonly #timers = new Map<number, NodeJS.Timeout>();
  readonly global: Record<string, unknown> = {};
  #nextExec = 1;
  #nextAttachment = 1;
  dead = false;

  constructor(raylet: FakeRaylet) {
    this.#raylet = raylet;
    const prefix = randomBytes(20);
    this.#guest = installInto({ global: this.global, isolated: false }, (kind, n, bytes) => this.#emitted(kind, n, bytes), JSON.stringify({ sessionPrefix: [...prefix], seed: [...randomBytes(32)] }));
    this.client = { prefix, templates: new Map(), send: (writer) => setImmediate(() => this.deliver(writer.take())), attach: (bytes) => this.#attach(bytes) };
  }

  #attach(bytes: Uint8Array): number {
    const attachment = this.#nextAttachment++;
    this.#guest.attach(attachment, new Uint8Array(bytes).buffer);
    return attachment;
  }

  deliver(batch: Uint8Array<ArrayBuffer>): void {
    const out = this.#guest.deliver(batch.buffer);
    if (out !== undefined) this.#frames(out);
  }

  #emitted(kind: number, n: number, bytes: ArrayBuffer | undefined): void {
    if (kind === EMIT.FRAMES) this.#frames(bytes as ArrayBuffer);
    else if (kind === EMIT.STAGED_FILE) this.#staged.set(n, new Uint8Array(bytes as ArrayBuffer));
    else if (kind === EMIT.SET_TIMER) this.#timers.set(n, setTimeout(() => this.#guest.fireTimer(n), new DataView(bytes as ArrayBuffer).getUint32(0, true)));
    else clearTimeout(this.#timers.get(n));
  }

  stop(): void {
    this.dead = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    for (const running of this.#running.values()) {
      for (const id of running.ids) this.#raylet.settle(id, { failure: { code: 'ACTOR_DIED', message: 'the actor is dead', stack: '' } });
    }
  }

  #code(digest: string): number {
    let number = this.#codes.get(digest);
    if (number === undefined) {
      number = this.#codes.size + 1;
      this.#codes.set(digest, number);
      const source = this.#raylet.code.get(digest) ?? '';
      const names = Object.keys(Object.getOwnPropertyDescriptors(this.global));
      const factory = new Function('globalThis', ...names, `"use strict";${source}\n;return __bulkhead_exports;`) as (...args: unknown[]) => unknown;
      this.#guest.load(number, () => factory(this.global, ...names.map((name) => this.global[name])));
    }
    return number;
  }

  run(kind: number, template: Template, dependencies: readonly (readonly [position: number, bytes: Uint8Array])[], args: Uint8Array, ids: string[], stream: FakeStream | undefined): void {
    const key = `${kind} ${template.digest} ${template.exportName} ${template.method} ${template.options.returns ?? 1}`;
    const writer = new FrameWriter();
    let number = this.#templates.get(key);
    if (number === undefined) {
      number = this.#templates.size + 1;
      this.#templates.set(key, number);
      const context = JSON.stringify({ jobId: 'job-fake', tenant: 'acme', name: template.exportName, code: `sha256:${template.digest}` });
      writer.begin(OP.TEMPLATE).u32(number).u8(kind).u32(this.#code(template.digest)).str(template.exportName).str(template.method).u8(template.options.returns === 'streaming' ? STREAMS : (template.options.returns ?? 1)).text(context).end();
    }
    const exec = this.#nextExec++;
    this.#running.set(exec, { ids, done: () => undefined });
    writer.begin(OP.EXEC).u32(exec).u8(kind).u32(number).u32(0).u32(1).u16(dependencies.length);
    for (const [position, bytes] of dependencies) {
      writer.u16(position);
      if (bytes.length <= MAX_INLINE_BYTES) writer.u8(0).bytes(bytes);
      else writer.u8(1).u32(this.#attach(bytes));
    }
    writer.raw(args).end();
    this.deliver(writer.take());
    if (stream === undefined) return;
    this.#streams.set(exec, stream);
    stream.pull = (upTo) => {
      writer.begin(OP.PULL).u32(exec).u32(0).u32(upTo).u64(2 ** 40).end();
      this.deliver(writer.take());
    };
    stream.pull(stream.granted);
  }

  cancel(id: string): void {
    for (const [exec, { ids }] of this.#running) {
      if (!ids.includes(id)) continue;
      const writer = new FrameWriter();
      writer.begin(OP.CANCEL_EXEC).u32(exec).end();
      this.deliver(writer.take());
    }
  }

  #frames(batch: ArrayBuffer): void {
    if (this.dead) return;
    const reader = new FrameReader().reset(new Uint8Array(batch));
    while (reader.next()) {
      if (reader.op === OP.RESULT) {
        const running = this.#running.get(reader.u32()) as Running;
        const n = reader.u8();
        for (let i = 0; i < n; i++) {
          const form = reader.u8();
          for (let refs = reader.refCount(1e6); refs > 0; refs--) reader.id();
          const bytes = form === 0 ? reader.bytes(1e9).slice() : (this.#staged.get(reader.u32()) as Uint8Array);
          if (form === 1 && reader.u64() !== bytes.length) throw new Error('a staged result has another size than its file');
          this.#raylet.settle(running.ids[i] as string, { bytes });
        }
        reader.finish();
        if (n === 0) for (const id of running.ids) this.#raylet.settle(id, { bytes: new Uint8Array([0xf6]) });
        running.done();
      } else if (reader.op === OP.FAILURE) {
        const running = this.#running.get(reader.u32()) as Running;
        const failure = { code: reader.str(), message: reader.text(1e6), stack: reader.text(1e6) };
        reader.finish();
        for (const id of running.ids) this.#raylet.settle(id, { failure });
      } else if (reader.op === OP.ITEM) {
        const stream = this.#streams.get(reader.u32()) as FakeStream;
        const form = reader.u8();
        for (let refs = reader.refCount(1e6); refs > 0; refs--) reader.id();
        this.#raylet.streamItem(stream, form === 0 ? reader.rest().slice() : (this.#staged.get(reader.u32()) as Uint8Array));
        if (form === 1) reader.u64();
      } else if (reader.op === OP.LOG) {
        reader.u32();
        this.#raylet.logs.push(`${reader.u8()}:${new TextDecoder().decode(reader.rest())}`);
      } else if (reader.op === OP.PUT_STAGED) {
        reader.u32();
        const id = this.#raylet.id(this.client, reader.u32());
        this.#raylet.settle(id, { bytes: this.#staged.get(reader.u32()) as Uint8Array });
      } else this.#raylet.call(this.client, reader);
    }
  }
}

export class FakeRaylet implements Transport {
  readonly code = new Map<string, string>();
  readonly logs: string[] = [];
  readonly released: string[] = [];
  readonly objects = new Map<string, Stored>();
  readonly streams = new Map<string, FakeStream>();
  readonly #parts = new Map<string, Uint8Array>();
  readonly #actors = new Map<string, { slot: FakeSlot; template: Template }>();
  readonly #names = new Map<string, string>();
  readonly #tasks = new FakeSlot(this);
  readonly #uploads = new Map<string, Uint8Array>();
  handlers: TransportHandlers | undefined;
  batches = 0;

  async open(handlers: TransportHandlers): Promise<Connection> {
    this.handlers = handlers;
    const prefix = randomBytes(20);
    const client: Client = { prefix, templates: new Map(), send: (writer) => setImmediate(() => handlers.batch(writer.take())) };
    const welcome = new FrameWriter();
    welcome.begin(OP.WELCOME).raw(prefix).text(JSON.stringify({ job: 'job-fake', node: 'node-1', tenant: 'acme', limits: {} })).end();
    client.send(welcome);
    return {
      send: (batch, tail) => {
        this.batches++;
        const whole = tail === undefined ? batch : Buffer.concat([batch, tail]);
        setImmediate(() => {
          const reader = new FrameReader().reset(whole);
          while (reader.next()) this.call(client, reader);
        });
      },
      close: async () => {
        this.#tasks.stop();
        for (const { slot } of this.#actors.values()) slot.stop();
      },
    };
  }

  id(client: Client, index: number): string {
    const id = new Uint8Array(24);
    id.set(client.prefix);
    new DataView(id.buffer).setUint32(20, index, true);
    return objectIdText(id);
  }

  streamItem(stream: FakeStream, bytes: Uint8Array): void {
    const index = stream.indexes.shift();
    if (index === undefined) throw new Error('an item beyond what was granted');
    stream.items++;
    this.settle(this.id(stream.client, index), { bytes });
    this.#reply(stream.client, OP.STREAM_ITEM, (w) => (bytes.length <= MAX_PUSHED_BYTES ? w.u32(stream.seq).u8(0).raw(bytes) : w.u32(stream.seq).u8(1).u64(bytes.length)));
  }

  #stored(id: string): Stored {
    let stored = this.objects.get(id);
    if (stored === undefined) this.objects.set(id, (stored = { outcome: undefined, waiters: [] }));
    return stored;
  }

  settle(id: string, outcome: Outcome): void {
    const stored = this.#stored(id);
    if (stored.outcome !== undefined) return;
    stored.outcome = outcome;
    for (const waiter of stored.waiters.splice(0)) waiter();
  }

  /** Runs `then` when all are settled. */
  #when(ids: readonly string[], then: () => void): void {
    const next = ids.find((id) => this.#stored(id).outcome === undefined);
    if (next === undefined) then();
    else this.#stored(next).waiters.push(() => this.#when(ids, then));
  }

  #reply(client: Client, op: number, body: (writer: FrameWriter) => void): void {
    const writer = new FrameWriter();
    body(writer.begin(op));
    writer.end();
    client.send(writer);
  }

  call(client: Client, reader: FrameReader): void {
    const { op } = reader;
    if (op === OP.DEFINE) {
      const number = reader.u32();
      const template = { number, kind: reader.u8(), digest: Buffer.from(reader.raw(32)).toString('hex'), exportName: reader.str(), method: reader.str(), options: JSON.parse(reader.text(1e6)) as Template['options'] };
      client.templates.set(number, template);
      return reader.finish();
    }
    if (op === OP.CODE) {
      const digest = Buffer.from(reader.raw(32)).toString('hex');
      const total = reader.u32();
      const upload = this.#uploads.get(digest) ?? new Uint8Array(total);
      this.#uploads.set(digest, upload);
      const offset = reader.u32();
      const part = reader.rest();
      upload.set(part, offset);
      if (offset + part.length < total) return;
      if (createHash('sha256').update(upload).digest('hex') !== digest) throw new Error('code does not match its digest');
      this.code.set(digest, Buffer.from(upload).toString('utf8'));
      return;
    }
    if (op === OP.RELEASE) {
      for (let n = reader.refCount(1e6); n > 0; n--) {
        const id = objectIdText(reader.id());
        this.released.push(id);
        // A call that streams ends with its ref.
        if (this.streams.has(id)) for (const slot of [this.#tasks, ...[...this.#actors.values()].map((a) => a.slot)]) slot.cancel(id);
      }
      return reader.finish();
    }
    reader.u32();
    if (op === OP.SUBMIT || op === OP.CREATE_ACTOR || op === OP.CALL_ACTOR) return this.#start(client, op, reader);
    if (op === OP.PUT) {
      const id = this.id(client, reader.u32());
      for (let n = reader.refCount(1e6); n > 0; n--) reader.id();
      return this.settle(id, { bytes: reader.rest().slice() });
    }
    if (op === OP.PUT_CHUNK) {
      const id = this.id(client, reader.u32());
      const total = reader.u64();
      const offset = reader.u64();
      const parts = this.#parts.get(id) ?? new Uint8Array(total);
      this.#parts.set(id, parts);
      const part = reader.rest();
      parts.set(part, offset);
      if (offset + part.length === total) this.settle(id, { bytes: parts });
      return;
    }
    if (op === OP.MORE) {
      const stream = this.streams.get(this.id(client, reader.u32()));
      reader.skip(12);
      const first = reader.u32();
      const count = reader.u32();
      reader.finish();
      if (stream === undefined) return;
      for (let i = 0; i < count; i++) stream.indexes.push(first + i);
      stream.granted += count;
      return stream.pull?.(stream.granted);
    }
    const request = reader.u32();
    if (op === OP.GET) return this.#get(client, request, this.#ids(reader));
    if (op === OP.WAIT) return this.#wait(client, request, reader.u32(), reader.u32(), this.#ids(reader));
    if (op === OP.CANCEL) {
      const id = objectIdText(reader.id());
      this.#tasks.cancel(id);
      for (const { slot } of this.#actors.values()) slot.cancel(id);
      return this.#reply(client, OP.DONE, (w) => w.u32(request).text('{}'));
    }
    if (op === OP.KILL) {
      this.#actors.get(objectIdText(reader.id()))?.slot.stop();
      return this.#reply(client, OP.DONE, (w) => w.u32(request).text('{}'));
    }
    if (op === OP.LOOKUP_ACTOR) {
      const id = this.#names.get(reader.str());
      const actor = id === undefined ? undefined : this.#actors.get(id);
      if (id === undefined || actor === undefined) return this.#reply(client, OP.FAILED, (w) => w.u32(request).str('DENIED').text('no such actor, or not yours'));
      return this.#reply(client, OP.ACTOR, (w) => w.u32(request).raw(Buffer.from(id.slice(4), 'hex')).text(JSON.stringify({ digest: actor.template.digest, export: actor.template.exportName, streams: actor.template.options.streams })));
    }
    throw new Error(`the fake raylet does not know op 0x${op.toString(16)}`);
  }

  #ids(reader: FrameReader): string[] {
    const ids: string[] = [];
    for (let n = reader.refCount(1e6); n > 0; n--) ids.push(objectIdText(reader.id()));
    reader.finish();
    return ids;
  }

  #start(client: Client, op: number, reader: FrameReader): void {
    const seq = reader.u32();
    const template = client.templates.get(reader.u32()) as Template;
    const actorId = op === OP.CALL_ACTOR ? objectIdText(reader.id()) : this.id(client, seq);
    const positions: number[] = [];
    const ids: string[] = [];
    for (let n = reader.u16(); n > 0; n--) {
      positions.push(reader.u16());
      ids.push(objectIdText(reader.id()));
    }
    for (let n = reader.refCount(1e6); n > 0; n--) reader.id();
    const args = reader.rest().slice();
    const streams = template.options.returns === 'streaming';
    const results = Array.from({ length: streams ? 1 : ((template.options.returns as number | undefined) ?? 1) }, (_, i) => this.id(client, seq + i));
    const stream: FakeStream | undefined = streams ? { client, seq, indexes: [], granted: 0, items: 0 } : undefined;
    if (stream !== undefined) {
      const [end = ''] = results;
      this.streams.set(end, stream);
      this.#when([end], () => {
        const outcome = this.#stored(end).outcome as Outcome;
        const { code, message, stack } = 'failure' in outcome ? outcome.failure : { code: '', message: '', stack: '' };
        this.#reply(client, OP.STREAM_END, (w) => w.u32(seq).u32(stream.items).str(code).text(message).text(stack));
      });
    }
    if (op === OP.CREATE_ACTOR) {
      if (template.options.name !== undefined && !this.#names.has(template.options.name)) this.#names.set(template.options.name, actorId);
      this.#actors.set(actorId, { slot: new FakeSlot(this), template });
    }
    this.#when(ids, () => {
      const outcomes = ids.map((id) => this.#stored(id).outcome as Outcome);
      const failed = outcomes.find((outcome) => 'failure' in outcome);
      const slot = op === OP.SUBMIT ? this.#tasks : this.#actors.get(actorId)?.slot;
      const dead: Outcome | undefined = slot === undefined || slot.dead ? { failure: { code: 'ACTOR_DIED', message: 'the actor is dead', stack: '' } } : undefined;
      const refused = failed ?? dead;
      if (refused !== undefined) for (const id of results) this.settle(id, refused);
      else {
        const kind = op === OP.SUBMIT ? CALL_KIND.TASK : op === OP.CREATE_ACTOR ? CALL_KIND.ACTOR_CLASS : CALL_KIND.ACTOR_METHOD;
        (slot as FakeSlot).run(kind, template, positions.map((position, i) => [position, (outcomes[i] as { bytes: Uint8Array }).bytes] as const), args, results, stream);
      }
    });
  }

  #get(client: Client, request: number, ids: readonly string[]): void {
    ids.forEach((id, position) => {
      this.#when([id], () => {
        const outcome = this.#stored(id).outcome as Outcome;
        if ('failure' in outcome) return this.#reply(client, OP.VALUE_FAILED, (w) => w.u32(request).u32(position).str(outcome.failure.code).text(outcome.failure.message).text(outcome.failure.stack));
        const { bytes } = outcome;
        if (bytes.length <= MAX_INLINE_BYTES) return this.#reply(client, OP.VALUE, (w) => w.u32(request).u32(position).raw(bytes));
        const attachment = client.attach?.(bytes);
        if (attachment !== undefined) return this.#reply(client, OP.VALUE_ATTACHED, (w) => w.u32(request).u32(position).u32(attachment));
        for (let offset = 0; offset < bytes.length; offset += CHUNK_BYTES) {
          this.#reply(client, OP.VALUE_CHUNK, (w) => w.u32(request).u32(position).u64(bytes.length).u64(offset).raw(bytes.subarray(offset, offset + CHUNK_BYTES)));
        }
      });
    });
  }

  #wait(client: Client, request: number, count: number, timeoutMs: number, ids: readonly string[]): void {
    let answered = false;
    const ready = (): number[] => ids.flatMap((id, i) => (this.#stored(id).outcome === undefined ? [] : [i]));
    const answer = (): void => {
      if (answered) return;
      answered = true;
      clearTimeout(timer);
      const positions = ready().slice(0, count);
      this.#reply(client, OP.READY, (w) => {
        w.u32(request).u32(positions.length);
        for (const position of positions) w.u32(position);
      });
    };
    const timer = timeoutMs === NO_TIMEOUT ? undefined : setTimeout(answer, timeoutMs);
    const check = (): void => {
      if (ready().length >= count) answer();
    };
    for (const id of ids) this.#when([id], check);
    check();
  }
}
