/** Starts real head processes and talks to them as real clients do: by a profile, over mTLS. Whoever starts one stops it. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { DescService } from '@bufbuild/protobuf';
import { generateKeyPairSync } from 'node:crypto';
import { createCsr, PeerVerifier, readProfile, Revocations, svidMaterial, TrustBundle, type SvidMaterial } from '../../src/pki/pki.ts';
import { client, createChannel, type Client, type RpcChannel } from '../../src/rpc/rpc.ts';
import { Identities, NodeAttestation } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';

const MAIN = fileURLToPath(new URL('../../src/gcs/main.ts', import.meta.url));
const NODE = fileURLToPath(new URL('../../node_modules/.bin/node', import.meta.url));
const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };

export interface HeadProcess {
  readonly child: ChildProcess;
  readonly address: string;
  readonly attestationAddress: string;
  readonly trustDomain: string;
  readonly readyMs: number;
  /** What it wrote to stderr so far. */
  stderr(): string;
  kill(signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null>;
}

export async function startHeadProcess(dataDir: string, more: object = {}): Promise<HeadProcess> {
  const startedMs = performance.now();
  const child = spawn(NODE, [MAIN], { stdio: ['pipe', 'pipe', 'pipe'] });
  // A test that is cut off leaves no head behind.
  const killed = (): void => void child.kill('SIGKILL');
  process.once('exit', killed);
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString('utf8')));
  child.stdin.end(JSON.stringify({ dataDir, ...more }));
  const exited = once(child, 'exit').then(() => void process.off('exit', killed));
  const line = await Promise.race([once(createInterface({ input: child.stdout }), 'line').then(([text]) => text as string), exited]);
  if (line === undefined) throw new Error(`the head ended before it was ready (exit ${child.exitCode}): ${stderr}`);
  const ready = JSON.parse(line) as { ready: true; address: string; attestationAddress: string; trustDomain: string };
  return {
    ...ready, child, readyMs: performance.now() - startedMs, stderr: () => stderr,
    async kill(signal) {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal);
      await exited;
      return child.exitCode;
    },
  };
}

/** A directory that is removed with the returned function. */
export async function temporaryDirectory(): Promise<{ path: string; [Symbol.asyncDispose](): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), 'bulkhead-head-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** What a caller shows; need not fit together, so that attacks can be made of parts. */
export type CallerSvid = Pick<SvidMaterial, 'spiffeId' | 'trustDomain' | 'serial' | 'notAfterMs' | 'privateKeyPem' | 'certificateChainPem' | 'trustBundlePem'>;

export class Caller implements Disposable {
  readonly svid: CallerSvid;
  readonly channel: RpcChannel;

  constructor(svid: CallerSvid, address: string, server: string = 'system/head') {
    this.svid = svid;
    const bundle = TrustBundle.fromPem(svid.trustDomain, svid.trustBundlePem);
    this.channel = createChannel({
      identity: { current: () => svid, onChange: () => () => undefined }, address, expectedSpiffeId: `spiffe://${svid.trustDomain}/${server}`, clock,
      peers: new PeerVerifier({ bundles: { bundle: () => bundle, onChange: () => () => undefined }, revocations: new Revocations(), clock }),
    });
  }

  to<S extends DescService>(service: S): Client<S> {
    return client(service, this.channel);
  }

  [Symbol.dispose](): void {
    this.channel.close();
  }
}

export async function adminOf(dataDir: string): Promise<Caller> {
  const { svid, address } = await readProfile(join(dataDir, 'admin'));
  return new Caller(svid, address);
}

export function freshKey(): { csr: Uint8Array<ArrayBuffer>; keyPem: string } {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { csr: createCsr(privateKey), keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string };
}

/** An identity of a tenant, issued by `issuer`. */
export async function issued(issuer: Caller, address: string, request: { tenant: string; kind?: 'user' | 'service'; name: string; roles?: string[] }): Promise<Caller> {
  const { csr, keyPem } = freshKey();
  const answer = await issuer.to(Identities).issue({ tenant: request.tenant, kind: request.kind ?? 'user', name: request.name, roles: request.roles ?? [], csr });
  return new Caller(svidMaterial({ trustDomain: issuer.svid.trustDomain, keyPem, certificateChainPem: answer.svidChain, trustBundlePem: answer.trustBundle }), address);
}

/** A node that joins by a token of the administrator's. */
export async function joined(admin: Caller, head: Pick<HeadProcess, 'address' | 'attestationAddress'>, nodeId: string, most?: { cpuUnits: bigint; memoryBytes: bigint; custom: Record<string, bigint> }): Promise<Caller & { readonly nodeNumber: number }> {
  const { token } = await admin.to(Identities).createJoinToken({ nodeId, ...(most === undefined ? {} : { most }) });
  const { csr, keyPem } = freshKey();
  const bundle = TrustBundle.fromPem(admin.svid.trustDomain, admin.svid.trustBundlePem);
  const channel = createChannel({
    identity: { trustBundlePem: admin.svid.trustBundlePem }, address: head.attestationAddress, expectedSpiffeId: `spiffe://${admin.svid.trustDomain}/system/head`, clock,
    peers: new PeerVerifier({ bundles: { bundle: () => bundle, onChange: () => () => undefined }, revocations: new Revocations(), clock }),
  });
  try {
    const answer = await client(NodeAttestation, channel).attest({ joinToken: token, csr });
    const svid = svidMaterial({ trustDomain: admin.svid.trustDomain, keyPem, certificateChainPem: answer.svidChain, trustBundlePem: answer.trustBundle });
    return Object.assign(new Caller(svid, head.address), { nodeNumber: answer.nodeNumber });
  } finally {
    channel.close();
  }
}
