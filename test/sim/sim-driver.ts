/**
 * A driver of the simulation: sends calls, keeps the books of what it was told, and of which refs it holds. A hostile one sends what no
 * honest program would; it keeps no books, since nothing that it is told is owed to it.
 */
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { idIndex, makeId } from '../../src/raylet/core/core.ts';
import { OBJECT_STATUS, type Channel } from '../../src/raylet/core/state.ts';
import { CODE, CODE_DIGEST, DO, type SimRaylet } from './raylet-machine.ts';

interface Request {
  readonly ids: readonly Uint8Array[];
  readonly answers: string[];
}

interface Own {
  readonly action: string;
  readonly prefixHex: string;
  readonly index: number;
  held: boolean;
  answered: string;
  /** It was inside something that was sent: with a value it may have come back, and be held again. */
  sent: boolean;
}

const TEMPLATE = { PLAIN: 1, PAIR: 2, LIMITED: 3, CLASS: 4, METHOD: 5, PUBLISHED: 6, RESTARTS: 7, TOO_LARGE: 8, RETRIED: 9, HALF: 10 } as const;

export class SimDriver {
  readonly raylet: SimRaylet;
  readonly channel: Channel;
  readonly user: string;
  readonly hostile: boolean;
  readonly requests = new Map<number, Request>();
  readonly own = new Map<number, Own>();
  readonly actors: { readonly seq: number; readonly id: Uint8Array }[] = [];
  /** Refs whose objects others may read, and all others: what hostile drivers try. */
  readonly published: Uint8Array[] = [];
  readonly codes = new Map<string, number>();
  closed = false;
  #nextSeq = 1;
  #nextRequest = 1;
  readonly #out = new FrameWriter();

  constructor(raylet: SimRaylet, channel: Channel, user: string, hostile: boolean) {
    this.raylet = raylet;
    this.channel = channel;
    this.user = user;
    this.hostile = hostile;
    this.#out.begin(OP.CODE).raw(CODE_DIGEST).u32(CODE.length).u32(0).raw(CODE).end();
    this.#define(TEMPLATE.PLAIN, CALL_KIND.TASK, { maxRetries: 2 });
    this.#define(TEMPLATE.PAIR, CALL_KIND.TASK, { cpus: 0.5, returns: 2 });
    this.#define(TEMPLATE.LIMITED, CALL_KIND.TASK, { timeoutMs: 40 });
    this.#define(TEMPLATE.CLASS, CALL_KIND.ACTOR_CLASS, {});
    this.#define(TEMPLATE.METHOD, CALL_KIND.ACTOR_METHOD, {});
    this.#define(TEMPLATE.PUBLISHED, CALL_KIND.TASK, { label: 'published' });
    this.#define(TEMPLATE.RESTARTS, CALL_KIND.ACTOR_CLASS, { maxRestarts: 2, maxTaskRetries: 1, cpus: 1 });
    this.#define(TEMPLATE.TOO_LARGE, CALL_KIND.TASK, { cpus: 64, queueTimeoutMs: 300 });
    this.#define(TEMPLATE.RETRIED, CALL_KIND.TASK, { maxRetries: 2, retryOn: ['TASK_FAILED'], retryDelayMs: 5 });
    this.#define(TEMPLATE.HALF, CALL_KIND.TASK, { cpus: 0.25, maxRetries: -1 });
  }

  get pending(): number {
    let n = 0;
    for (const { ids, answers } of this.requests.values()) for (let i = 0; i < ids.length; i++) if (answers[i] === undefined) n++;
    return n;
  }

  #define(number: number, kind: number, options: object): void {
    const method = kind === CALL_KIND.ACTOR_METHOD;
    this.#out.begin(OP.DEFINE).u32(number).u8(kind).raw(CODE_DIGEST).str(method ? '' : 'f').str(method ? 'm' : '').text(JSON.stringify(options)).end();
  }

  #id(seq: number): Uint8Array {
    return makeId(this.channel.session.prefix, seq);
  }

  #own(seq: number, count: number, action: string, of?: { readonly prefixHex: string; readonly index: number }): void {
    for (let i = 0; i < count; i++) this.own.set(seq + i, { action, prefixHex: of?.prefixHex ?? this.channel.session.prefixHex, index: of?.index ?? seq, held: true, answered: '', sent: false });
  }

  #submit(template: number, what: number, deps: readonly Uint8Array[], contained: readonly Uint8Array[], key?: string): number {
    const count = template === TEMPLATE.PAIR ? 2 : 1;
    const seq = this.#nextSeq;
    this.#nextSeq += count;
    this.#out.begin(key === undefined ? OP.SUBMIT : OP.SUBMIT_ONCE).u32(0).u32(seq).u32(template);
    if (key !== undefined) this.#out.str(key);
    this.#out.u16(deps.length);
    deps.forEach((id, i) => this.#out.u16(i).raw(id));
    this.#out.refs(contained).raw(Uint8Array.of(what, seq & 0xff)).end();
    this.#own(seq, count, 'task.submit');
    // Under a key it may be another name of an object that was sent by its first one.
    if (key !== undefined) (this.own.get(seq) as Own).sent = true;
    if (template === TEMPLATE.PUBLISHED) this.published.push(this.#id(seq));
    return seq;
  }

  #get(ids: readonly Uint8Array[]): void {
    if (ids.length === 0) return;
    const request = this.#nextRequest++;
    this.requests.set(request, { ids, answers: [] });
    this.#out.begin(OP.GET).u32(0).u32(request).refs(ids).end();
  }

  #held(): number[] {
    return [...this.own].filter(([, o]) => o.held).map(([seq]) => seq);
  }

  /** One turn of an honest program. `others`: published objects of the other tenant. */
  act(random: () => number, others: readonly Uint8Array[]): void {
    const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(random() * list.length)];
    const held = this.#held();
    const ref = (chance: number): Uint8Array[] => {
      const seq = random() < chance ? pick(held) : undefined;
      return seq === undefined ? [] : [this.#id(seq)];
    };
    const inside = (chance: number): Uint8Array[] => {
      const ids = ref(chance);
      for (const id of ids) (this.own.get(idIndex(id)) as Own).sent = true;
      return ids;
    };
    const made: number[] = [];
    for (let n = Math.floor(random() * 5); n >= 0; n--) {
      const dice = random();
      if (dice < 0.3) made.push(this.#submit(TEMPLATE.PLAIN, pick([DO.RETURN, DO.RETURN, DO.LARGE, DO.THROW, DO.DIE, DO.NEST, DO.PUT, DO.BORROW, DO.LIE]) as number, ref(0.4), inside(0.3)));
      else if (dice < 0.4) made.push(this.#submit(TEMPLATE.PAIR, pick([DO.RETURN, DO.LARGE]) as number, ref(0.4), []));
      else if (dice < 0.46) made.push(this.#submit(TEMPLATE.LIMITED, pick([DO.RETURN, DO.HANG]) as number, ref(0.2), []));
      else if (dice < 0.54) made.push(this.#submit(TEMPLATE.PUBLISHED, pick([DO.RETURN, DO.LARGE]) as number, [], []));
      else if (dice < 0.57) made.push(this.#submit(TEMPLATE.TOO_LARGE, DO.RETURN, [], []));
      else if (dice < 0.62) made.push(this.#submit(TEMPLATE.RETRIED, pick([DO.RETURN, DO.THROW]) as number, ref(0.3), []));
      else if (dice < 0.68) made.push(this.#submit(TEMPLATE.HALF, pick([DO.RETURN, DO.RETURN, DO.LARGE, DO.NEST]) as number, ref(0.3), inside(0.2)));
      else if (dice < 0.72) made.push(this.#submit(TEMPLATE.PLAIN, DO.RETURN, [], [], `key ${Math.floor(random() * 4)}`));
      else if (dice < 0.78) {
        const seq = this.#nextSeq++;
        this.#own(seq, 1, 'object.put');
        this.#out.begin(OP.PUT).u32(0).u32(seq).refs(inside(0.3)).raw(Uint8Array.of(this.channel.job.tenant.number, 2)).end();
        made.push(seq);
      } else if (dice < 0.86) {
        const seq = this.#nextSeq++;
        this.#own(seq, 1, 'actor.create');
        const deps = ref(0.2);
        this.#out.begin(OP.CREATE_ACTOR).u32(0).u32(seq).u32(random() < 0.5 ? TEMPLATE.CLASS : TEMPLATE.RESTARTS).u16(deps.length);
        for (const id of deps) this.#out.u16(0).raw(id);
        this.#out.refs([]).raw(Uint8Array.of(random() < 0.1 ? DO.THROW : DO.RETURN, 0)).end();
        this.actors.push({ seq, id: this.#id(seq) });
        made.push(seq);
      } else {
        const actor = pick(this.actors.filter((a) => this.own.get(a.seq)?.held === true));
        if (actor === undefined) continue;
        const seq = this.#nextSeq++;
        this.#own(seq, 1, 'actor.call', { prefixHex: this.channel.session.prefixHex, index: actor.seq });
        const deps = ref(0.3);
        const contained = inside(0.2);
        this.#out.begin(OP.CALL_ACTOR).u32(0).u32(seq).u32(TEMPLATE.METHOD).raw(actor.id).u16(deps.length);
        for (const id of deps) this.#out.u16(0).raw(id);
        this.#out.refs(contained).raw(Uint8Array.of(pick([DO.RETURN, DO.RETURN, DO.LARGE, DO.DIE, DO.EXIT, DO.THROW]) as number, 0)).end();
        made.push(seq);
      }
    }
    if (random() < 0.8) this.#get(made.map((seq) => this.#id(seq)));
    const foreign = pick(others);
    if (foreign !== undefined && random() < 0.4) {
      if (random() < 0.6) this.#get([foreign]);
      else this.#submit(TEMPLATE.PLAIN, DO.RETURN, [foreign], []);
    }
    if (random() < 0.25) this.#release(held.filter(() => random() < 0.3));
    const victim = pick(held);
    if (victim !== undefined && random() < 0.08) this.#out.begin(OP.CANCEL).u32(0).u32(this.#nextRequest++).raw(this.#id(victim)).u8(random() < 0.5 ? 1 : 0).end();
    const actor = pick(this.actors);
    if (actor !== undefined && random() < 0.05) this.#out.begin(OP.KILL).u32(0).u32(this.#nextRequest++).raw(actor.id).u8(random() < 0.3 ? 1 : 0).end();
    if (held.length > 0 && random() < 0.1) this.#out.begin(OP.WAIT).u32(0).u32(this.#nextRequest++).u32(1).u32(random() < 0.5 ? 20 : 0).refs(held.slice(-4).map((seq) => this.#id(seq))).end();
  }

  /** Own refs are waited for only by name: a ref whose answer is due is not given back. */
  #release(seqs: readonly number[]): void {
    const waited = new Set([...this.requests.values()].flatMap(({ ids, answers }) => ids.filter((_, i) => answers[i] === undefined).map(idIndex)));
    const given = seqs.filter((seq) => !waited.has(seq));
    if (given.length === 0) return;
    for (const seq of given) (this.own.get(seq) as Own).held = false;
    this.#out.begin(OP.RELEASE).refs(given.map((seq) => this.#id(seq))).end();
  }

  /** Makes room: what its actors hold, others may wait for. */
  killActors(): void {
    for (const { id } of this.actors.splice(0)) this.#out.begin(OP.KILL).u32(0).u32(this.#nextRequest++).raw(id).u8(0).end();
  }

  /** Everything it still holds, again. */
  getAll(): void {
    this.#get(this.#held().map((seq) => this.#id(seq)));
  }

  /** What no honest program sends. `targets`: ids of others. */
  attack(random: () => number, targets: readonly Uint8Array[]): void {
    const target = targets[Math.floor(random() * targets.length)] ?? this.#id(77);
    const made = makeId(this.channel.session.prefix, Math.floor(random() * 50));
    // Of its own tenant, on a node or in a session that may not exist.
    const guessed = target.slice();
    guessed[Math.floor(random() * 24)] = Math.floor(random() * 256);
    const id = [target, target, made, guessed][Math.floor(random() * 4)] as Uint8Array;
    const out = this.#out;
    switch (Math.floor(random() * 9)) {
      case 0: return void out.begin(OP.GET).u32(Math.floor(random() * 3)).u32(this.#nextRequest++).refs([id, target]).end();
      case 1: return void out.begin(OP.SUBMIT).u32(0).u32(this.#nextSeq++).u32(TEMPLATE.PLAIN).u16(1).u16(0).raw(id).refs([target]).raw(Uint8Array.of(DO.BORROW, 0)).end();
      case 2: return void out.begin(OP.RELEASE).refs([id, target]).end();
      case 3: return void out.begin(OP.CANCEL).u32(0).u32(this.#nextRequest++).raw(id).u8(1).end();
      case 4: return void out.begin(OP.KILL).u32(0).u32(this.#nextRequest++).raw(id).u8(0).end();
      case 5: return void out.begin(OP.CALL_ACTOR).u32(0).u32(this.#nextSeq++).u32(TEMPLATE.METHOD).raw(id).u16(0).refs([]).raw(Uint8Array.of(DO.RETURN, 0)).end();
      case 6:
        for (let i = 0; i < 60; i++) out.begin(OP.SUBMIT).u32(0).u32(this.#nextSeq++).u32(TEMPLATE.HALF).u16(0).refs([id]).raw(Uint8Array.of(DO.RETURN, 0)).end();
        return;
      case 7: return void out.begin(OP.PUT).u32(0).u32(this.#nextSeq++).refs([id, target]).raw(Uint8Array.of(this.channel.job.tenant.number)).end();
      default: return void out.begin(Math.floor(random() * 0x60)).raw(Uint8Array.from({ length: Math.floor(random() * 40) }, () => Math.floor(random() * 256))).end();
    }
  }

  /** Takes what is to be sent. */
  take(): Uint8Array | undefined {
    return this.#out.length === 0 ? undefined : this.#out.take();
  }

  /** Throws when it is told what it may not be. */
  receive(batch: Uint8Array): void {
    if (this.hostile) return;
    const r = new FrameReader().reset(batch);
    const settle = (answer: string, done: boolean): void => {
      const number = r.u32();
      const request = this.requests.get(number);
      const position = r.u32();
      const id = request?.ids[position];
      if (request === undefined || id === undefined) throw new Error(`driver ${this.channel.number}: an answer to nothing`);
      if (!done) return;
      if (request.answers[position] !== undefined) throw new Error(`driver ${this.channel.number}: request ${number} is answered twice at ${position}: ${request.answers[position]} and ${answer}`);
      request.answers[position] = answer;
      const mine = isOf(id, this.channel.session.prefix) ? this.own.get(idIndex(id)) : undefined;
      this.raylet.mayAnswer(this.channel, id, answer === 'value', mine);
      if (mine === undefined) return;
      // A value is for ever, unless what it lay on is gone.
      if (mine.answered === 'value' && answer !== 'value' && !(answer === 'OBJECT_LOST' && this.raylet.mayLose)) throw new Error(`driver ${this.channel.number}: ref ${idIndex(id)} was a value and is now ${answer}`);
      mine.answered = answer;
    };
    while (r.next()) {
      if (r.op === OP.VALUE) settle('value', true);
      else if (r.op === OP.VALUE_CHUNK) {
        // Whole in two parts: the second one answers.
        const at = new DataView(batch.buffer, batch.byteOffset + r.position + 16, 8);
        settle('value', at.getUint32(0, true) > 0);
      } else if (r.op === OP.VALUE_FAILED) {
        const code = new FrameReader().reset(batch.slice(r.position - 5, r.frameEnd));
        code.next();
        code.u32();
        code.u32();
        const text = code.str();
        this.codes.set(text, (this.codes.get(text) ?? 0) + 1);
        settle(text, true);
      }
      r.skipRest();
    }
  }

  /** At rest: what it holds is there, what it gave back is not, unless something else holds it. */
  checkRefs(): void {
    const { objects } = this.channel.session;
    for (const [seq, own] of this.own) {
      const entry = objects.get(seq);
      if (own.held && own.answered === 'value' && (entry === undefined || entry.status === OBJECT_STATUS.PENDING)) throw new Error(`driver ${this.channel.number}: ref ${seq} is held, and its object is ${entry === undefined ? 'gone' : 'not there yet'}`);
      // A denied release lets nothing go, and policies take bob's rights away.
      if (this.user === 'bob') continue;
      const alias = this.channel.session.aliases?.get(seq);
      if (!own.held && !own.sent && entry !== undefined && (alias === undefined ? entry.handles > 0 : alias.held)) throw new Error(`driver ${this.channel.number}: ref ${seq} (${own.action}) was given back, and its object is held for it`);
    }
  }
}

function isOf(id: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.every((octet, i) => id[i] === octet);
}
