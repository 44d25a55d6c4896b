/**
 * Who a bearer token is, asked of the head for each request; and that principal's own connections, under an SVID of an hour that the head issues for it. So the gateway acts as whoever
 * asks and has no right of its own. Must never: answer for a token by what an earlier request with it got, or keep a token longer than its request.
 */
import { createHash, generateKeyPairSync } from 'node:crypto';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseSpiffeId, type SpiffeId, type TrustDomain } from '../base/ids.ts';
import { createCsr, svidMaterial } from '../pki/pki.ts';
import { Cluster, Tokens, type AdmittedToken } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, createChannel, type Client, type RpcChannel } from '../rpc/rpc.ts';
import { headConnection, type HeadConnection } from '../sdk/head-client.ts';
import type { LogSource } from '../sdk/job-log.ts';

const CALL_TIMEOUT_MS = 15_000;
const IDLE_MS = 10 * 60_000;
const SWEEP_MS = 60_000;
const MAX_PEOPLE = 1_000;
const MAX_KNOWN_TOKENS = 10_000;
const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };

/** Those whose SVID ended close when nobody uses them any more; so many of them at most wait for that. */
export const MAX_LEAVING = 100;

/** A principal, and its connections while somebody uses them. */
export class Person {
  readonly spiffeId: SpiffeId;
  readonly tenant: string;
  readonly head: HeadConnection;
  readonly #raylets = new Map<string, RpcChannel>();
  #uses = 0;
  #lastMs = clock.monotonicMs();

  constructor(id: SpiffeId, tenant: string, head: HeadConnection) {
    this.spiffeId = id;
    this.tenant = tenant;
    this.head = head;
  }

  /** Until the result is disposed of, the connections stay. */
  use(): Disposable {
    this.#uses++;
    let over = false;
    return {
      [Symbol.dispose]: () => {
        if (over) return;
        over = true;
        this.#uses--;
        this.#lastMs = clock.monotonicMs();
      },
    };
  }

  get ended(): boolean {
    return this.head.identity.current().notAfterMs <= clock.nowMs();
  }

  get unused(): boolean {
    return this.#uses === 0;
  }

  get idle(): boolean {
    return this.unused && clock.monotonicMs() - this.#lastMs > IDLE_MS;
  }

  to<S extends Parameters<typeof client>[0]>(service: S): Client<S> {
    return client(service, this.head.channel);
  }

  async raylets(): Promise<LogSource[]> {
    const { nodes } = await this.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS });
    return nodes.filter((n) => n.state === 'alive').map(({ nodeId, address, spiffeId: expected }) => {
      const key = `${expected} ${address}`;
      let channel = this.#raylets.get(key);
      if (channel === undefined) this.#raylets.set(key, (channel = createChannel({ identity: this.head.identity, peers: this.head.peers, address, expectedSpiffeId: expected })));
      const opened = channel;
      return { nodeId, to: (service) => client(service, opened) };
    });
  }

  async close(): Promise<void> {
    for (const channel of this.#raylets.values()) channel.close();
    this.#raylets.clear();
    await this.head.close();
  }
}

export interface Admitted {
  readonly person: Person;
  readonly expiresMs: number;
}

export interface CallersOptions {
  readonly trustDomain: TrustDomain;
  readonly headAddress: string;
  /** The gateway's own connection to the head. */
  readonly head: RpcChannel;
}

export class Callers implements AsyncDisposable {
  readonly #options: CallersOptions;
  readonly #people = new Map<string, Person>();
  /** Whose SVID ended, while requests and jobs that began before still hold them. Oldest first. */
  readonly #leaving = new Set<Person>();
  /** Whose a token was: only to know whether its principal has connections already. By digest. */
  readonly #known = new Map<string, string>();
  readonly #sweep: NodeJS.Timeout;

  constructor(options: CallersOptions) {
    this.#options = options;
    this.#sweep = setInterval(() => this.#closeIdle(), SWEEP_MS);
    this.#sweep.unref();
  }

  /** Whether it was in force when it was last asked about. */
  knows(token: string): boolean {
    return this.#known.has(createHash('sha256').update(token).digest('hex'));
  }

  /** Throws UNAUTHENTICATED for a token that is not in force, DENIED where policy does not permit; both are on record when it does. */
  async admit(token: string, call: string, name: string, remote: string): Promise<Admitted> {
    const digest = createHash('sha256').update(token).digest('hex');
    const tokens = client(Tokens, this.#options.head);
    let known = this.#people.get(this.#known.get(digest) ?? '');
    // Its renewals failed for an hour, or it was revoked: a new one from here on.
    if (known?.ended === true) {
      this.#leave(known);
      known = undefined;
    }
    const keys = known === undefined ? generateKeyPairSync('ec', { namedCurve: 'P-256' }) : undefined;
    const asked = tokens.admit({ token, call, name, remote, csr: keys === undefined ? new Uint8Array(0) : createCsr(keys.privateKey) }, { timeoutMs: CALL_TIMEOUT_MS });
    const answer = await asked.catch((thrown: unknown) => {
      if (toSafeError(thrown).code === 'UNAUTHENTICATED') this.#known.delete(digest);
      throw thrown;
    });
    if (this.#known.size >= MAX_KNOWN_TOKENS) this.#known.clear();
    this.#known.set(digest, answer.spiffeId);
    const person = known ?? this.#inForce(answer.spiffeId) ?? this.#connect(answer, keys?.privateKey.export({ format: 'pem', type: 'pkcs8' }) as string);
    if (person.spiffeId !== answer.spiffeId) throw new BulkheadError('INTERNAL', 'a token changed its principal');
    return { person, expiresMs: Number(answer.expiresMs) };
  }

  /** The same principal may have come by another token meanwhile, or by one whose SVID has ended. */
  #inForce(id: string): Person | undefined {
    const found = this.#people.get(id);
    if (found?.ended !== true) return found;
    this.#leave(found);
    return undefined;
  }

  #leave(person: Person): void {
    // Another request may have put a new one in its place.
    if (this.#people.get(person.spiffeId) === person) this.#people.delete(person.spiffeId);
    this.#leaving.add(person);
    this.#closeLeaving();
  }

  #closeLeaving(): void {
    for (const person of this.#leaving) {
      if (!person.unused && this.#leaving.size <= MAX_LEAVING) continue;
      this.#leaving.delete(person);
      void person.close().catch(() => undefined);
    }
  }

  /** Connections that are open here: at most MAX_PEOPLE, and MAX_LEAVING that end. */
  get open(): { readonly people: number; readonly leaving: number } {
    return { people: this.#people.size, leaving: this.#leaving.size };
  }

  #connect(answer: AdmittedToken, keyPem: string): Person {
    if (this.#people.size >= MAX_PEOPLE) throw new BulkheadError('RESOURCE_EXHAUSTED', 'the gateway serves as many people as it can; try again in some minutes');
    const { trustDomain, headAddress } = this.#options;
    const { id } = parseSpiffeId(answer.spiffeId);
    const svid = svidMaterial({ trustDomain, keyPem, certificateChainPem: answer.svidChain, trustBundlePem: answer.trustBundle });
    if (svid.spiffeId !== id) throw new BulkheadError('INTERNAL', 'the head answered with an SVID of another identity');
    const person = new Person(id, answer.tenant, headConnection({ svid, address: headAddress }));
    this.#people.set(id, person);
    return person;
  }

  #closeIdle(): void {
    this.#closeLeaving();
    for (const [id, person] of this.#people) {
      if (person.ended) this.#leave(person);
      else if (person.idle) {
        this.#people.delete(id);
        void person.close().catch(() => undefined);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#sweep);
    await Promise.all([...this.#people.values(), ...this.#leaving].map((person) => person.close().catch(() => undefined)));
  }
}
