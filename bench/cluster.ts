/**
 * A cluster of its own for the bench: one head and N raylets as real processes, two tenants with a profile each, everything on. It lives in a
 * temporary directory and a tmpfs directory that go when it stops. Must never: give up a layer, or leave a process or file behind.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { makeRunDirectory, removeRunDirectory } from '../src/cli/leftovers.ts';
import { createCsr, PeerVerifier, readProfile, Revocations, svidMaterial, TrustBundle, writeProfile } from '../src/pki/pki.ts';
import { Identities, Tenants } from '../src/rpc/generated/bulkhead/v1/head_pb.js';
import { client, createChannel } from '../src/rpc/rpc.ts';
import { owned } from './lifetimes.ts';

export const TENANTS = ['acme', 'globex'] as const;
const TRUST_DOMAIN = 'bench.example';
const SOURCES = fileURLToPath(new URL('../src', import.meta.url));
const READY_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 10_000;

export interface ClusterOptions {
  readonly raylets?: number;
  /** CPUs that each raylet offers. */
  readonly cpus?: number;
  /** Options of the node binary for head and raylets: profiling. */
  readonly nodeArgs?: readonly string[];
  /** Interpreter of Python sandboxes. */
  readonly python?: string;
  /** Besides the two: tenants with a profile each that have done nothing yet. */
  readonly fresh?: number;
}

export interface BenchCluster extends AsyncDisposable {
  readonly headPid: number;
  readonly rayletPids: readonly number[];
  /** Directory of a profile for each tenant. */
  readonly profiles: Readonly<Record<(typeof TENANTS)[number], string>>;
  readonly freshProfiles: readonly string[];
  /** From the first process to the last one that said it is ready, ms. */
  readonly readyMs: number;
  readonly directory: string;
  readonly runDirectory: string;
  stop(): Promise<void>;
}

interface Started {
  readonly process: ChildProcess;
  /** Sends the configuration; resolves with the ready line. */
  configure(config: object): Promise<Record<string, string>>;
}

/** The process loads its modules while its configuration is not there yet. */
function launch(main: string, log: string, nodeArgs: readonly string[]): Started {
  const descriptor = openSync(log, 'w', 0o600);
  const child = spawn(process.execPath, [...nodeArgs, main], { cwd: SOURCES, stdio: ['pipe', 'pipe', descriptor] });
  closeSync(descriptor);
  child.stdin?.on('error', () => undefined);
  const ready = new Promise<Record<string, string>>((resolve, reject) => {
    const failed = (why: string): void => reject(new Error(`${main} ${why}: ${readFileSync(log, 'utf8').slice(-2_000)}`));
    const timer = setTimeout(() => failed(`was not ready in ${READY_TIMEOUT_MS / 1_000} s`), READY_TIMEOUT_MS);
    child.once('exit', (code) => failed(`exited with ${code}`));
    createInterface(child.stdout as NodeJS.ReadableStream).once('line', (line) => {
      clearTimeout(timer);
      resolve(JSON.parse(line) as Record<string, string>);
    });
  });
  ready.catch(() => undefined);
  return {
    process: child,
    configure(config) {
      child.stdin?.end(JSON.stringify(config));
      return ready;
    },
  };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await gone;
  clearTimeout(timer);
}

export async function startCluster(options: ClusterOptions = {}): Promise<BenchCluster> {
  const { raylets: count = 1, cpus = 2, nodeArgs = [], python, fresh = 0 } = options;
  const directory = mkdtempSync(join(tmpdir(), 'bulkhead-bench-'));
  const runDirectory = makeRunDirectory(directory);
  const children: ChildProcess[] = [];
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> =>
    (stopping ??= (async () => {
      forget();
      const [head, ...raylets] = children;
      await Promise.all(raylets.map(end));
      if (head !== undefined) await end(head);
      removeRunDirectory(directory);
      rmSync(directory, { recursive: true, force: true });
    })());
  const forget = owned(stop);
  try {
    const begun = performance.now();
    const head = launch('gcs/main.ts', join(directory, 'head.log'), nodeArgs);
    children.push(head.process);
    const started = Array.from({ length: count }, (_, i) => launch('raylet/main.ts', join(directory, `raylet-${i}.log`), nodeArgs));
    children.push(...started.map((s) => s.process));
    const { address = '' } = await head.configure({ dataDir: join(directory, 'head'), trustDomain: TRUST_DOMAIN });
    const admin = await readProfile(join(directory, 'head', 'admin'));
    const bundle = TrustBundle.fromPem(admin.svid.trustDomain, admin.svid.trustBundlePem);
    const channel = createChannel({
      identity: { current: () => admin.svid, onChange: () => () => undefined }, address, expectedSpiffeId: `spiffe://${TRUST_DOMAIN}/system/head`,
      peers: new PeerVerifier({ bundles: { bundle: () => bundle, onChange: () => () => undefined }, revocations: new Revocations(), clock: { nowMs: () => Date.now() } }),
    });
    try {
      const identities = client(Identities, channel);
      await Promise.all(started.map(async (raylet, i) => {
        const { token, attestationAddress, trustBundle } = await identities.createJoinToken({ nodeId: `node-${i + 1}` });
        await raylet.configure({
          dataDir: join(directory, `raylet-${i}`), runDir: join(runDirectory, `raylet-${i}`), trustDomain: TRUST_DOMAIN, headAddress: address, cpus, ...(python === undefined ? {} : { python }),
          join: { token, attestationAddress, trustBundle },
        });
      }));
      const readyMs = performance.now() - begun;
      const tenants = client(Tenants, channel);
      const profileOf = async (tenant: string): Promise<string> => {
        await tenants.create({ name: tenant, quota: {} });
        const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
        const issued = await identities.issue({ tenant, kind: 'user', name: 'bench', roles: ['tenant-admin'], csr: createCsr(privateKey) });
        const svid = svidMaterial({ trustDomain: admin.svid.trustDomain, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem: issued.svidChain, trustBundlePem: issued.trustBundle });
        const profile = join(directory, `profile-${tenant}`);
        await writeProfile(profile, { address, gateway: undefined, svid });
        return profile;
      };
      const profiles = {} as Record<(typeof TENANTS)[number], string>;
      for (const tenant of TENANTS) profiles[tenant] = await profileOf(tenant);
      const freshProfiles: string[] = [];
      for (let i = 1; i <= fresh; i++) freshProfiles.push(await profileOf(`fresh-${i}`));
      return { headPid: head.process.pid ?? 0, rayletPids: started.map((s) => s.process.pid ?? 0), profiles, freshProfiles, readyMs, directory, runDirectory, stop, [Symbol.asyncDispose]: stop };
    } finally {
      channel.close();
    }
  } catch (thrown) {
    await stop();
    throw thrown;
  }
}
