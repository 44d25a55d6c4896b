/** A real isolate with the real prelude, driven frame by frame: for tests of what tenant code can and cannot do inside. */
import IsolatedVm from 'isolated-vm';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { objectIdText } from '../../src/base/ids.ts';
import { decodeValue, encodeValue, type RefHooks } from '../../src/base/value.ts';
import { buildPrelude } from '../../src/sandbox/isolate/build-prelude.ts';
import { EMIT } from '../../src/sandbox/isolate/guest/executor.ts';
import { LOCKDOWN_SOURCE } from '../../src/sandbox/isolate/lockdown.ts';

const REFS_AS_TEXT: RefHooks = { describe: () => undefined, ref: objectIdText, actor: objectIdText };

export type Answer = { readonly value: unknown } | { readonly code: string; readonly message: string; readonly stack: string };
type Call = (...args: unknown[]) => Promise<unknown>;

export class GuestIsolate implements Disposable {
  readonly answers = new Map<number, Answer>();
  readonly logs: { exec: number; stream: number; text: string }[] = [];
  /** Frames of nested calls, as [op, parent]. */
  readonly calls: [op: number, parent: number][] = [];
  readonly staged = new Map<number, Uint8Array>();
  /** What calls that stream have yielded. */
  readonly items = new Map<number, unknown[]>();
  /** Sizes of what was emitted as frames. */
  readonly flushes: number[] = [];
  /** Rejections that tenant code did not handle. */
  readonly unhandled: string[] = [];
  #returned = false;
  readonly #isolate: IsolatedVm.Isolate;
  readonly #timers = new Map<number, NodeJS.Timeout>();
  #deliver: Call = async () => undefined;
  #load: Call = async () => undefined;
  #fire: Call = async () => undefined;
  #templates = 0;
  #execs = 0;

  constructor(isolate: IsolatedVm.Isolate) {
    this.#isolate = isolate;
  }

  static async start(source: string, config: object = { sessionPrefix: '01'.repeat(20), seed: '02'.repeat(32) }): Promise<GuestIsolate> {
    const isolate = new IsolatedVm.Isolate({ memoryLimit: 64 });
    const guest = new GuestIsolate(isolate);
    const context = await isolate.createContext();
    const script = await isolate.compileScript(await buildPrelude());
    const install = (await script.run(context, { reference: true })) as IsolatedVm.Reference;
    const emit = new IsolatedVm.Callback((kind: number, n: number, bytes: ArrayBuffer) => guest.#emitted(kind, n, bytes), { ignored: true });
    const done = new IsolatedVm.Callback(() => {
      guest.#returned = true;
    });
    // As the worker host does: what is returned is emitted, so that it stays in order, and an unhandled rejection of tenant code, which
    // isolated-vm throws at whoever entered the isolate, is told from a failure of the prelude.
    const bridge = await context.eval(`((install, emit, done, config) => {
      const guest = install(emit, config);
      const entry = (name) => (...args) => { const frames = guest[name](...args); if (frames !== undefined) emit(0, 0, frames); done(); };
      return { deliver: entry('deliver'), load: entry('load'), fireTimer: entry('fireTimer') };
    })`, { reference: true });
    const installed = (await bridge.apply(undefined, [install.derefInto(), emit, done, JSON.stringify(config)], { result: { reference: true } })) as IsolatedVm.Reference;
    const entry = async (name: string): Promise<Call> => {
      const reference = (await installed.get(name, { reference: true })) as IsolatedVm.Reference;
      return async (...args) => {
        guest.#returned = false;
        try {
          await reference.apply(undefined, args as never[]);
        } catch (thrown) {
          if (!guest.#returned) throw thrown;
          guest.unhandled.push(String(thrown));
        }
      };
    };
    [guest.#deliver, guest.#load, guest.#fire] = [await entry('deliver'), await entry('load'), await entry('fireTimer')];
    await context.eval(LOCKDOWN_SOURCE);
    const code = await isolate.compileScript(`(function(){"use strict";${source}\n;return __bulkhead_exports;})`);
    const factory = (await code.run(context, { reference: true })) as IsolatedVm.Reference;
    await guest.#load(1, factory.derefInto());
    return guest;
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    if (!this.#isolate.isDisposed) this.#isolate.dispose();
  }

  async send(writer: FrameWriter): Promise<void> {
    const batch = writer.take();
    await this.#deliver(new IsolatedVm.ExternalCopy(batch.buffer).copyInto());
  }

  template(writer: FrameWriter, name: string, options: { kind?: number; returns?: number; method?: string } = {}): number {
    const number = ++this.#templates;
    const { kind = 0, returns = 1, method = '' } = options;
    writer.begin(OP.TEMPLATE).u32(number).u8(kind).u32(1).str(name).str(method).u8(returns).text(JSON.stringify({ jobId: 'job-1', tenant: 'acme', name, code: 'ab'.repeat(32) })).end();
    return number;
  }

  exec(writer: FrameWriter, template: number, args: readonly unknown[], kind = 0): number {
    const exec = ++this.#execs;
    writer.begin(OP.EXEC).u32(exec).u8(kind).u32(template).u32(0).u32(exec).u16(0).raw(encodeValue(args).bytes).end();
    return exec;
  }

  /** Runs exported functions, all in one batch; answers in order. */
  async runAll(calls: readonly [name: string, ...args: unknown[]][]): Promise<Answer[]> {
    const writer = new FrameWriter();
    const execs = calls.map(([name, ...args]) => this.exec(writer, this.template(writer, name), args));
    await this.send(writer);
    return Promise.all(execs.map((exec) => this.answer(exec)));
  }

  async run(name: string, ...args: unknown[]): Promise<Answer> {
    return (await this.runAll([[name, ...args]]))[0] as Answer;
  }

  async value(name: string, ...args: unknown[]): Promise<unknown> {
    const answer = await this.run(name, ...args);
    if ('code' in answer) throw new Error(`${answer.code}: ${answer.message}\n${answer.stack}`);
    return answer.value;
  }

  async answer(exec: number): Promise<Answer> {
    for (let i = 0; i < 500; i++) {
      const found = this.answers.get(exec);
      if (found !== undefined) return found;
      await new Promise((done) => setTimeout(done, 2));
    }
    throw new Error(`no answer to exec ${exec}`);
  }

  /** The items of a call that streams, when there are at least so many. */
  async itemsOf(exec: number, least: number): Promise<unknown[]> {
    for (let i = 0; i < 500 && (this.items.get(exec)?.length ?? 0) < least; i++) await new Promise((done) => setTimeout(done, 2));
    return this.items.get(exec) ?? [];
  }

  #emitted(kind: number, n: number, bytes: ArrayBuffer): void {
    if (kind === EMIT.FRAMES) {
      this.flushes.push(bytes.byteLength);
      this.#frames(bytes);
    } else if (kind === EMIT.STAGED_FILE) this.staged.set(n, new Uint8Array(bytes));
    else if (kind === EMIT.SET_TIMER) this.#timers.set(n, setTimeout(() => void this.#fire(n), new DataView(bytes).getUint32(0, true)));
    else if (kind === EMIT.CLEAR_TIMER) clearTimeout(this.#timers.get(n));
    else throw new Error(`emit kind ${kind}`);
  }

  #frames(batch: ArrayBuffer): void {
    const reader = new FrameReader().reset(new Uint8Array(batch));
    while (reader.next()) {
      if (reader.op === OP.RESULT) {
        const exec = reader.u32();
        const values: unknown[] = [];
        for (let n = reader.u8(); n > 0; n--) {
          const form = reader.u8();
          for (let refs = reader.refCount(1e6); refs > 0; refs--) reader.id();
          if (form === 0) values.push(decodeValue(reader.bytes(1e9), REFS_AS_TEXT));
          else {
            values.push(decodeValue(this.staged.get(reader.u32()) as Uint8Array));
            reader.u64();
          }
        }
        reader.finish();
        this.#answered(exec, { value: values.length <= 1 ? values[0] : values });
      } else if (reader.op === OP.FAILURE) {
        const exec = reader.u32();
        const failure = { code: reader.str(), message: reader.text(1e6), stack: reader.text(1e6) };
        reader.finish();
        this.#answered(exec, failure);
      } else if (reader.op === OP.ITEM) {
        const exec = reader.u32();
        if (reader.u8() !== 0 || reader.refCount(0) !== 0) throw new Error('an item that is not small and plain');
        const items = this.items.get(exec) ?? [];
        this.items.set(exec, items);
        items.push(decodeValue(reader.rest()));
      } else if (reader.op === OP.LOG) this.logs.push({ exec: reader.u32(), stream: reader.u8(), text: new TextDecoder().decode(reader.rest()) });
      else if (reader.op !== OP.RELEASE) this.calls.push([reader.op, reader.op === OP.DEFINE ? 0 : reader.u32()]);
    }
  }

  #answered(exec: number, answer: Answer): void {
    if (this.answers.has(exec)) throw new Error(`exec ${exec} was answered twice`);
    this.answers.set(exec, answer);
  }
}
