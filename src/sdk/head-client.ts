/**
 * The way from a profile to the cluster's head: the identity from the profile's directory, renewed there while it is used, and a
 * channel that speaks only to the head of the profile's own trust domain. Must never: send a credential to anything else.
 */
import { randomBytes } from 'node:crypto';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import { spiffeId, type SpiffeId } from '../base/ids.ts';
import { PeerVerifier, readProfile, Revocations, SvidSource, writeProfileSvid, type SvidMaterial } from '../pki/pki.ts';
import { Identities } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, createChannel, type RpcChannel } from '../rpc/rpc.ts';

/** Set by `bulkhead run`: the job that it opened and will close by the program's end. An id grants nothing: to join takes the identity that opened it. */
export const JOB_VARIABLE = 'BULKHEAD_JOB_ID';
/** The head's component name in its SPIFFE ID, `/system/head`. */
const HEAD = 'head';
const RENEW_TIMEOUT_MS = 10_000;

export interface HeadTarget {
  /** Directory; default BULKHEAD_PROFILE, then ~/.bulkhead/default. */
  readonly profile?: string | undefined;
  /** `host:port` instead of the profile's. */
  readonly address?: string | undefined;
}

export interface HeadConnection extends AsyncDisposable {
  readonly channel: RpcChannel;
  readonly address: string;
  readonly gateway: string | undefined;
  readonly profileDirectory: string;
  readonly spiffeId: SpiffeId;
  readonly identity: SvidSource;
  /** Accepts SVIDs of the profile's cluster; for channels to its raylets. */
  readonly peers: PeerVerifier;
  close(): Promise<void>;
}

export function profileDirectory(given: string | undefined): string {
  const named = given ?? process.env['BULKHEAD_PROFILE'];
  return named === undefined || named === '' ? join(homedir(), '.bulkhead', 'default') : named;
}

const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };

/** Opens the head of a profile; connects with the first call. Throws INVALID_ARGUMENT for a damaged profile, UNAUTHENTICATED for an expired one. */
export async function openHead(target: HeadTarget = {}): Promise<HeadConnection> {
  const directory = profileDirectory(target.profile);
  const { address: profileAddress, gateway, svid } = await readProfile(directory);
  const address = target.address ?? profileAddress;
  if (svid.notAfterMs <= clock.nowMs()) {
    throw new BulkheadError('UNAUTHENTICATED', `the identity in profile ${directory} ended at ${new Date(svid.notAfterMs).toISOString()}; ask your administrator for a new one (bulkhead identity issue)`);
  }
  return headConnection({ svid, address, gateway, profileDirectory: directory, save: (fresh) => writeProfileSvid(directory, fresh) });
}

interface HeadIdentity {
  readonly svid: SvidMaterial;
  readonly address: string;
  readonly gateway?: string | undefined;
  /** '': the identity is in no profile. */
  readonly profileDirectory?: string;
  /** Keeps what was renewed. */
  readonly save?: (fresh: SvidMaterial) => Promise<void>;
}

/** To the head as this identity, which is renewed there while the connection lasts. Connects with the first call. */
export function headConnection({ svid, address, gateway, profileDirectory = '', save }: HeadIdentity): HeadConnection {
  let channel: RpcChannel | undefined;
  const identity = new SvidSource({
    initial: svid, clock, random: { bytes: (length) => Uint8Array.from(randomBytes(length)) },
    async renew(csr) {
      if (channel === undefined) throw new BulkheadError('UNAVAILABLE', 'the head is not connected yet');
      const renewed = await client(Identities, channel).renew({ csr }, { timeoutMs: RENEW_TIMEOUT_MS });
      return { certificateChainPem: renewed.svidChain, trustBundlePem: renewed.trustBundle };
    },
    ...(save === undefined ? {} : { save }),
  });
  const peers = new PeerVerifier({ bundles: identity, revocations: new Revocations(), clock });
  channel = createChannel({ identity, peers, address, expectedSpiffeId: spiffeId(svid.trustDomain, { kind: 'system', component: HEAD }) });
  const opened = channel;
  const close = async (): Promise<void> => {
    opened.close();
    await identity[Symbol.asyncDispose]();
  };
  return { channel: opened, address, gateway, profileDirectory, spiffeId: svid.spiffeId, identity, peers, close, [Symbol.asyncDispose]: close };
}
