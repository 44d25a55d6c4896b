/** Join tokens for raylets of this machine, asked for with the administrator's profile over mTLS. A token exists in memory only. */
import { Identities } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client } from '../rpc/rpc.ts';
import { openHead } from '../sdk/head-client.ts';

const TOKEN_TIMEOUT_MS = 15_000;

export interface Join {
  readonly token: string;
  readonly attestationAddress: string;
  readonly trustBundle: string;
}

/** One token for each raylet; an empty node id lets the head choose. */
export async function createJoins(adminProfile: string, raylets: readonly { readonly name: string; readonly nodeId: string }[]): Promise<Map<string, Join>> {
  await using head = await openHead({ profile: adminProfile });
  const identities = client(Identities, head.channel);
  const joins = await Promise.all(raylets.map(async ({ name, nodeId }) => {
    const { token, attestationAddress, trustBundle } = await identities.createJoinToken({ nodeId }, { timeoutMs: TOKEN_TIMEOUT_MS });
    return [name, { token, attestationAddress, trustBundle }] as const;
  }));
  return new Map(joins);
}
