/**
 * The caller's connections: to the head by a profile, and to raylets by the SPIFFE IDs that the head names. Must never: talk to a raylet
 * that the head did not name, or let one raylet that is away hide what the others say.
 */
import { existsSync } from 'node:fs';
import type { DescService } from '@bufbuild/protobuf';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseSpiffeId, type ParsedSpiffeId } from '../base/ids.ts';
import { Cluster } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, createChannel, type Client, type RpcChannel } from '../rpc/rpc.ts';
import { openHead, profileDirectory, type HeadConnection } from '../sdk/head-client.ts';

export const CALL_TIMEOUT_MS = 15_000;

export interface RayletConnection {
  readonly nodeId: string;
  to<S extends DescService>(service: S): Client<S>;
}

export interface Unreachable {
  readonly nodeId: string;
  readonly error: BulkheadError;
}

export class CallerSession implements AsyncDisposable {
  readonly head: HeadConnection;
  readonly self: ParsedSpiffeId;
  readonly #channels: RpcChannel[] = [];

  private constructor(head: HeadConnection) {
    this.head = head;
    this.self = parseSpiffeId(head.spiffeId);
  }

  static async open(profile: string | undefined): Promise<CallerSession> {
    const directory = profileDirectory(profile);
    if (profile === undefined && (process.env['BULKHEAD_PROFILE'] ?? '') === '' && !existsSync(directory)) {
      throw new BulkheadError('INVALID_ARGUMENT', `there is no profile yet: start a cluster with 'bulkhead up' (its administrator becomes ${directory}), or name a profile with --profile DIR`);
    }
    return new CallerSession(await openHead({ profile }));
  }

  /** The caller's own tenant; undefined for the administrator. */
  get tenant(): string | undefined {
    const { path } = this.self;
    return 'tenant' in path ? path.tenant : undefined;
  }

  to<S extends DescService>(service: S): Client<S> {
    return client(service, this.head.channel);
  }

  /** Raylets that live, by node id. */
  async raylets(): Promise<RayletConnection[]> {
    const { nodes } = await this.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS });
    return nodes
      .filter((n) => n.state === 'alive')
      .sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1))
      .map(({ nodeId, address, spiffeId }) => {
        const channel = createChannel({ identity: this.head.identity, peers: this.head.peers, address, expectedSpiffeId: spiffeId });
        this.#channels.push(channel);
        return { nodeId, to: (service) => client(service, channel) };
      });
  }

  /** Asks every raylet at once. Throws when one refuses or none answers; those that cannot be reached are told beside the answers. */
  async ask<T>(raylets: readonly RayletConnection[], question: (raylet: RayletConnection) => Promise<T>): Promise<{ answers: T[]; unreachable: Unreachable[] }> {
    const answers: T[] = [];
    const unreachable: Unreachable[] = [];
    await Promise.all(raylets.map(async (raylet) => {
      try {
        answers.push(await question(raylet));
      } catch (thrown) {
        const error = toSafeError(thrown);
        if (error.code !== 'UNAVAILABLE' && error.code !== 'TIMEOUT') throw error;
        unreachable.push({ nodeId: raylet.nodeId, error });
      }
    }));
    const [first] = unreachable;
    if (answers.length === 0) throw first?.error ?? new BulkheadError('UNAVAILABLE', "no raylet lives: nothing runs and nothing can be shown; 'bulkhead status' (administrator) shows the nodes");
    return { answers, unreachable };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const channel of this.#channels) channel.close();
    await this.head.close();
  }
}
