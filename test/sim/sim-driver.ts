/**
 * A driver of the simulation: sends calls, keeps the books of what it was told, and of which refs it holds. A hostile one sends what no
 * honest program would; it keeps no books, since nothing that it is told is owed to it.
 */
import { CALL_KIND, FrameReader, FrameWriter, NO_ITEM, OP } from '../../src/base/frame.ts';
import { objectIdText } from '../../src/base/ids.ts';
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

const TEMPLATE = { PLAIN: 1, PAIR: 2, LIMITED: 3, CLASS: 4, METHOD: 5, PUBLISHED: 6, RESTARTS: 7, TOO_LARGE: 8, RETRIED: 9, HALF: 10, STREAM: 11, LASTING: 12 } as const;
/** Templates from here on are for placement groups, two for each: tasks and actors in it. */
const FIRST_OF_GROUPS = 100;

/** A call that streams, as its reader keeps the books of it. */
interface Streaming {
  readonly total: number;
  /** Indexes that were granted and have not come. */
  readonly granted: number[];
  came: number;
  untaken: number;
  end: string | undefined;
  /** Its ref was given back: nothing more is owed. */
  left: boolean;
}

interface Group {
  readonly seq: number;
  readonly id: Uint8Array;
  readonly template: number;
}

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
  readonly streams = new Map<number, Streaming>();
  readonly groups: Group[] = [];
  /** Also those that it asked to remove, which a policy may have denied. */
  readonly #madeGroups: Uint8Array[] = [];
  /** Actors that are to live on without it. */
  readonly lasting: { readonly seq: number; readonly id: Uint8Array }[] = [];
  #nextTemplate = FIRST_OF_GROUPS;
  /** What the head gave it last, and until when that is good. */
  credentialEndsMs: number;
  closed = false;
  #nextSeq = 1;
  #nextRequest = 1;
  readonly #out = new FrameWriter();

  constructor(raylet: SimRaylet, channel: Channel, user: string, hostile: boolean, forgetsDetached: boolean) {
    this.credentialEndsMs = channel.job.credentialEndsMs;
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
    this.#define(TEMPLATE.STREAM, CALL_KIND.TASK, { returns: 'streaming', maxRetries: 2, streamItems: 4 });
    this.#define(TEMPLATE.LASTING, CALL_KIND.ACTOR_CLASS, { maxRestarts: -1, maxTaskRetries: -1, name: `lasting-${channel.session.prefixHex.slice(16)}`, ...(forgetsDetached ? {} : { detached: true }) });
  }

  /** What it waits for, in words. */
  owed(): string[] {
    const owed: string[] = [];
    for (const { ids, answers } of this.requests.values()) ids.forEach((id, i) => void (answers[i] === undefined && owed.push(`object ${idIndex(id)}`)));
    for (const [seq, { end, left, came, total }] of this.streams) if (end === undefined && !left) owed.push(`stream ${seq}, of which ${came} of ${total} items came`);
    return owed;
  }

  get pending(): number {
    return this.owed().length;
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

  /** Calls what streams, and reads the first of it. */
  #stream(random: () => number): void {
    const seq = this.#nextSeq++;
    const total = Math.floor(random() * 9);
    this.#own(seq, 1, 'task.submit');
    this.#out.begin(OP.SUBMIT).u32(0).u32(seq).u32(TEMPLATE.STREAM).u16(0).refs([]).raw(Uint8Array.of(DO.STREAM, total)).end();
    this.streams.set(seq, { total, granted: [], came: 0, untaken: 0, end: undefined, left: false });
    this.#more(seq, 4);
  }

  #more(seq: number, count: number): void {
    const stream = this.streams.get(seq) as Streaming;
    const first = this.#nextSeq;
    this.#nextSeq += count;
    for (let i = 0; i < count; i++) stream.granted.push(first + i);
    this.#out.begin(OP.MORE).u32(0).u32(seq).u32(0).u32(NO_ITEM).u32(stream.untaken).u32(first).u32(count).end();
    stream.untaken = 0;
  }

  /** Takes what has come of its streams, and makes room for as much. */
  read(): void {
    for (const [seq, stream] of this.streams) if (stream.untaken > 0 && stream.end === undefined && !stream.left) this.#more(seq, stream.untaken);
  }

  #createGroup(random: () => number): void {
    const strategy = ['PACK', 'SPREAD', 'STRICT_PACK', 'STRICT_SPREAD'][Math.floor(random() * 4)] as string;
    this.#group(strategy, Array.from({ length: 1 + Math.floor(random() * 3) }, () => ({ cpus: random() < 0.7 ? 0.5 : 1 })));
  }

  /** A group with a small bundle on each node. */
  spread(nodes: number): void {
    this.#group('STRICT_SPREAD', Array.from({ length: nodes }, () => ({ cpus: 0.05 })));
  }

  #group(strategy: string, bundles: readonly object[]): void {
    const seq = this.#nextSeq++;
    this.#own(seq, 1, 'placement-group.create');
    this.#out.begin(OP.CREATE_GROUP).u32(0).u32(seq).text(JSON.stringify({ strategy, bundles })).end();
    this.#get([this.#id(seq)]);
    const group: Group = { seq, id: this.#id(seq), template: this.#nextTemplate };
    this.#nextTemplate += 2;
    const placementGroup = objectIdText(group.id);
    this.#define(group.template, CALL_KIND.TASK, { cpus: 0.5, maxRetries: 1, placementGroup });
    this.#define(group.template + 1, CALL_KIND.ACTOR_CLASS, { cpus: 0.25, maxRestarts: 1, placementGroup });
    this.groups.push(group);
    this.#madeGroups.push(group.id);
  }

  #removeGroup(id: Uint8Array): void {
    this.#out.begin(OP.REMOVE_GROUP).u32(0).u32(this.#nextRequest++).raw(id).end();
  }

  #createActor(template: number, deps: readonly Uint8Array[], what: number): number {
    const seq = this.#nextSeq++;
    this.#own(seq, 1, 'actor.create');
    this.#out.begin(OP.CREATE_ACTOR).u32(0).u32(seq).u32(template).u16(deps.length);
    for (const id of deps) this.#out.u16(0).raw(id);
    this.#out.refs([]).raw(Uint8Array.of(what, 0)).end();
    (template === TEMPLATE.LASTING ? this.lasting : this.actors).push({ seq, id: this.#id(seq) });
    return seq;
  }

  /** The credential that the head gave it in place of the last one. */
  renew(text: string, endsMs: number): void {
    this.credentialEndsMs = endsMs;
    this.#out.begin(OP.CREDENTIAL).text(text).end();
  }

  /** Ends actors of others that were to live on: its own tenant's. */
  kill(ids: readonly Uint8Array[]): void {
    for (const id of ids) this.#out.begin(OP.KILL).u32(0).u32(this.#nextRequest++).raw(id).u8(0).end();
  }

  /** One turn of an honest program. `others`: published objects of the other tenant. */
  act(random: () => number, others: readonly Uint8Array[]): void {
    const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(random() * list.length)];
    const held = this.#held();
    const ref = (chance: number): Uint8Array[] => {
      // What a stream's call itself returns is a count, and of no tenant.
      const seq = random() < chance ? pick(held.filter((s) => !this.streams.has(s))) : undefined;
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
      } else if (dice < 0.86) made.push(this.#createActor(random() < 0.5 ? TEMPLATE.CLASS : TEMPLATE.RESTARTS, ref(0.2), random() < 0.1 ? DO.THROW : DO.RETURN));
      else {
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
    if (random() < 0.1) this.#stream(random);
    if (random() < 0.02 && this.lasting.length === 0) made.push(this.#createActor(TEMPLATE.LASTING, [], DO.RETURN));
    if (random() < 0.07 && this.groups.length < 2) this.#createGroup(random);
    const group = pick(this.groups);
    if (group !== undefined && random() < 0.4) {
      if (random() < 0.8) made.push(this.#submit(group.template, pick([DO.RETURN, DO.RETURN, DO.LARGE, DO.DIE]) as number, ref(0.2), []));
      else made.push(this.#createActor(group.template + 1, [], DO.RETURN));
    }
    if (group !== undefined && random() < 0.03) this.#removeGroup(this.groups.splice(this.groups.indexOf(group), 1)[0]?.id as Uint8Array);
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
    for (const seq of given) {
      (this.own.get(seq) as Own).held = false;
      const stream = this.streams.get(seq);
      if (stream !== undefined) stream.left = true;
    }
    this.#out.begin(OP.RELEASE).refs(given.map((seq) => this.#id(seq))).end();
  }

  /** Makes room: what its actors and groups hold, others may wait for. */
  makeRoom(): void {
    this.groups.length = 0;
    for (const id of this.#madeGroups.splice(0)) this.#removeGroup(id);
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
      // A value is for ever, unless what it lay on is gone; the task that is run again for it may end otherwise. There may be no room for it at the moment.
      if (mine.answered === 'value' && (answer === 'RESOURCE_EXHAUSTED' || answer === 'QUOTA_EXCEEDED')) return;
      if (mine.answered === 'value' && answer !== 'value' && !(this.raylet.mayLose && (answer === 'OBJECT_LOST' || (mine.action === 'task.submit' && answer !== 'DENIED' && answer !== 'INTERNAL')))) throw new Error(`driver ${this.channel.number}: ref ${idIndex(id)} was a value and is now ${answer}`);
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
      } else if (r.op === OP.STREAM_ITEM) this.#item(r);
      else if (r.op === OP.STREAM_END) this.#ended(r);
      r.skipRest();
    }
  }

  #item(r: FrameReader): void {
    const seq = r.u32();
    const form = r.u8();
    const stream = this.streams.get(seq);
    const what = `driver ${this.channel.number}: item ${stream?.came} of stream ${seq}`;
    if (stream?.end !== undefined) throw new Error(`${what} comes after the end`);
    const index = stream?.granted.shift();
    if (stream === undefined || index === undefined) throw new Error(`${what} was not granted`);
    if (form === 0) {
      const [tag, number] = r.rest();
      if (tag !== this.channel.job.tenant.number || number !== stream.came) throw new Error(`${what} is item ${number} of tenant ${tag}`);
    }
    this.raylet.mayStream(this.channel, seq);
    stream.came++;
    stream.untaken++;
    this.own.set(index, { action: 'task.submit', prefixHex: this.channel.session.prefixHex, index: seq, held: true, answered: '', sent: false });
  }

  #ended(r: FrameReader): void {
    const seq = r.u32();
    const count = r.u32();
    const code = r.str();
    const stream = this.streams.get(seq);
    if (stream === undefined) throw new Error(`driver ${this.channel.number}: the end of a stream that it has not`);
    // It is told again whoever reads on; also of a stream that was left.
    if (!stream.left && stream.end === undefined && (count !== stream.came || (code === '' && count !== stream.total))) throw new Error(`driver ${this.channel.number}: stream ${seq} of ${stream.total} items ended${code} after ${count}, and ${stream.came} came`);
    if (stream.end !== undefined && stream.end !== code) throw new Error(`driver ${this.channel.number}: stream ${seq} ended with '${stream.end}', and now with '${code}'`);
    stream.end = code;
  }

  /** At rest: what it holds is there, what it gave back is not, unless something else holds it. */
  checkRefs(): void {
    const { objects } = this.channel.session;
    for (const [seq, own] of this.own) {
      const entry = objects.get(seq);
      if (own.held && own.answered === 'value' && (entry === undefined || entry.status === OBJECT_STATUS.PENDING)) throw new Error(`driver ${this.channel.number}: ref ${seq} is held, and its object is ${entry === undefined ? 'gone' : 'not there yet'}`);
      if (own.held && own.answered === 'value' && (entry?.failure?.code === 'RESOURCE_EXHAUSTED' || entry?.failure?.code === 'QUOTA_EXCEEDED')) throw new Error(`driver ${this.channel.number}: ref ${seq} was a value, and has failed with ${entry.failure?.code}`);
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
