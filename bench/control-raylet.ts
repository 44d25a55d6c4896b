/**
 * A raylet put together from the real parts for `--controls`: one control at a time is replaced by nothing, here and only here. The product
 * has no such switch. Parent and child talk over IPC; the channel listens on loopback for one driver of the bench.
 * Must never: be imported by anything outside of bench/, or serve anyone but the bench.
 */
import { createHash, randomBytes } from 'node:crypto';
import { spawn } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createSecureServer, createServer as createPlainServer, type Http2SecureServer, type Http2Server, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { AuditStore } from '../src/audit/audit-store.ts';
import { loadOrCreateSigner } from '../src/audit/checkpoint-signer.ts';
import { compilePolicies, createDecisionPoint, defaultPolicy, parsePolicyFile } from '../src/authz/authz.ts';
import type { AuditLog, AuditLogs } from '../src/base/audit-record.ts';
import type { PolicyDecisionPoint } from '../src/base/decision.ts';
import { parseJobId, parseTenantName, parseTrustDomain, parseWorkerId, spiffeId } from '../src/base/ids.ts';
import { principalFromSpiffeId } from '../src/base/principal.ts';
import { UNITS_PER_CPU } from '../src/base/resources.ts';
import { readProfile } from '../src/pki/pki.ts';
import { CHANNEL_KIND } from '../src/raylet/core/state.ts';
import { Raylet, type FoundActor } from '../src/raylet/raylet.ts';
import { buildPrelude } from '../src/sandbox/isolate/build-prelude.ts';
import { findNode } from '../src/sandbox/jail/image.ts';
import { WorkerPool, type AcquireRequest } from '../src/sandbox/worker-pool.ts';
import { WorkerProcess } from '../src/sandbox/worker-process.ts';
import { TENANTS } from './cluster.ts';
import { BatchFraming } from './plain-transport.ts';

export interface ControlRayletConfig {
  readonly tls: boolean;
  readonly policy: boolean;
  readonly audit: boolean;
  readonly jail: boolean;
  /** Profile whose identity serves TLS, and whose trust bundle checks the driver's. */
  readonly identity: string;
}

const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
const TRUST_DOMAIN = parseTrustDomain('bench.example');
const TENANT = parseTenantName(TENANTS[0]);
const USER = 'bench';
const quiet = { info: () => undefined, warn: (fields: object, text: string) => console.error(text, fields), error: (fields: object, text: string) => console.error(text, fields) };

/** Keeps nothing: every record counts as durable at once. */
class NoLogs implements AuditLogs {
  forTenant(): AuditLog {
    let next = 0;
    return { append: () => next++, durable: Number.MAX_SAFE_INTEGER, onDurable: undefined };
  }
}

function decisionPoint(real: boolean): PolicyDecisionPoint {
  if (!real) {
    const permit = { allow: true, rule: 'bench', policyVersion: 1 };
    return { version: 1, decide: () => permit };
  }
  const { name, content } = defaultPolicy();
  const { document } = parsePolicyFile(name, content);
  if (document === undefined) throw new Error('the default policy does not parse');
  return createDecisionPoint(compilePolicies({ files: [{ name, document }], identityRoles: [{ tenant: TENANT, kind: 'user', name: USER, role: 'tenant-admin' }], version: 1 }));
}

/** The worker host without jail, filters and group: a plain child process with the same program. */
class UnjailedPool {
  readonly #directory: string;
  readonly #workers = new Set<WorkerProcess>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  async prepare(): Promise<void> {
    mkdirSync(this.#directory, { recursive: true });
    const source = await build({
      entryPoints: [fileURLToPath(new URL('../src/sandbox/isolate/worker-host.ts', import.meta.url))], bundle: true, write: false, format: 'cjs', platform: 'node', target: 'node24', logLevel: 'silent',
    });
    let host = source.outputFiles[0]?.text ?? '';
    const replace = (from: string, to: string): void => {
      if (!host.includes(from)) throw new Error(`the worker host no longer contains ${from}: bench/control-raylet.ts must follow`);
      host = host.replaceAll(from, to);
    };
    const addon = fileURLToPath(new URL(`../node_modules/isolated-vm/prebuilds/linux-${process.arch}/isolated-vm.abi137.glibc.node`, import.meta.url));
    replace('"/app/isolated-vm.node"', JSON.stringify(addon));
    replace('"/app/prelude.js"', JSON.stringify(join(this.#directory, 'prelude.js')));
    replace('installFilter("/app/run-time.bpf");', '');
    for (const name of ['objects', 'code', 'staging']) replace(`\`/${name}/`, `\`\${process.cwd()}/${name}/`);
    writeFileSync(join(this.#directory, 'worker-host.cjs'), host);
    writeFileSync(join(this.#directory, 'prelude.js'), await buildPrelude());
  }

  async acquire({ tenant, memoryBytes, cpus }: AcquireRequest): Promise<WorkerProcess> {
    const id = parseWorkerId(`worker-${randomBytes(8).toString('hex')}`);
    const directory = join(this.#directory, id);
    for (const name of ['objects', 'code', 'staging']) mkdirSync(join(directory, name), { recursive: true });
    const child = spawn(findNode(), ['--no-node-snapshot', '--no-warnings', '--max-old-space-size=128', '--max-semi-space-size=8', join(this.#directory, 'worker-host.cjs')], { cwd: directory, env: { UV_THREADPOOL_SIZE: '2' }, stdio: ['ignore', 'pipe', 'pipe', 'pipe'] });
    const pid = child.pid ?? 0;
    const limits = { memoryBytes, cpus, pids: 128 };
    const worker = new WorkerProcess({
      id, pid, directory, monitor: child, channel: child.stdio[3] as Socket, stdout: child.stdout as unknown as Socket, stderr: child.stderr as unknown as Socket, onEnded: () => undefined, onGone: (gone) => void this.#workers.delete(gone),
      cgroup: { add: () => undefined, join: () => undefined, readTenantCpus: () => undefined, setLimits: () => undefined, readLimits: () => limits, memoryBytes: () => 0, cpuMicros: () => 0, oomKills: () => 0, pids: () => [pid], killAll: () => child.kill('SIGKILL'), remove: () => true },
    });
    this.#workers.add(worker);
    await worker.ready;
    worker.assign(tenant, limits);
    return worker;
  }

  waitMs(): number {
    return 0;
  }

  async close(): Promise<void> {
    for (const worker of this.#workers) worker.kill('KILLED', 'the bench ends');
    await Promise.all([...this.#workers].map((worker) => worker.gone));
  }
}

export async function startControlRaylet(config: ControlRayletConfig): Promise<{ port: number; workerStartMs: number; stop(): Promise<void> }> {
  const directory = mkdtempSync(join(tmpdir(), 'bulkhead-bench-control-'));
  const runDir = mkdtempSync('/dev/shm/bulkhead-bench-control-');
  chmodSync(runDir, 0o711);
  await using parts = new AsyncDisposableStack();
  parts.defer(() => {
    rmSync(directory, { recursive: true, force: true });
    rmSync(runDir, { recursive: true, force: true });
  });
  const name = createHash('sha256').update(runDir).digest('hex').slice(0, 12);
  let pool: { acquire(request: AcquireRequest): Promise<WorkerProcess>; close(): Promise<void> };
  if (config.jail) pool = await WorkerPool.start({ runDir, warm: 0, clusterName: 'bench-control', nodeName: name, clock, log: quiet });
  else {
    const unjailed = new UnjailedPool(join(runDir, 'unjailed'));
    await unjailed.prepare();
    pool = unjailed;
  }
  parts.defer(() => pool.close());
  // One start of a worker as a measure of its own.
  const begun = performance.now();
  const probe = await pool.acquire({ tenant: 'probe', memoryBytes: 64 * 2 ** 20, cpus: 1 });
  const workerStartMs = performance.now() - begun;
  probe.kill('KILLED', 'only measured');
  await probe.gone;

  let audit: AuditLogs = new NoLogs();
  if (config.audit) {
    const origin = `${TRUST_DOMAIN}/node/${name}`;
    audit = parts.use(await AuditStore.open({ dir: join(directory, 'audit'), origin, signer: loadOrCreateSigner(join(directory, 'audit-keys'), origin), clock }));
  }
  const names = new Map<string, FoundActor>();
  const raylet = parts.use(new Raylet({
    nodeId: 'node-1', nodeNumber: 1, total: { cpuUnits: 2 * UNITS_PER_CPU, memoryBytes: 8 * 2 ** 30, custom: undefined }, maxWorkers: 16, runDir, dataDir: directory, decisions: decisionPoint(config.policy), audit,
    pool: pool as unknown as WorkerPool, clock, random: { bytes: (n) => Uint8Array.from(randomBytes(n)) }, log: quiet, defaultIsolateBytes: 256 * 2 ** 20,
    names: {
      register: async (_c, _t, _n, actor, id, classInfo) => {
        names.set(actor, { id, classInfo, orphaned: false, seed: undefined });
        return false;
      },
      lookup: async (_c, _t, _n, actor) => names.get(actor), release: async (_t, _n, actor) => void names.delete(actor),
    },
    verifyCredential: () => Promise.reject(new Error('the bench renews nothing')),
  }));
  raylet.setTenant(TENANT, 1, {}, true);
  const tenant = raylet.core.state.tenants.get(1);
  if (tenant === undefined) throw new Error('the tenant was not taken');

  const submitter = principalFromSpiffeId(spiffeId(TRUST_DOMAIN, { kind: 'user', tenant: TENANT, name: USER }));
  const attach = (stream: ServerHttp2Stream): void => {
    stream.respond({ ':status': 200 });
    const jobId = parseJobId(`job-${randomBytes(12).toString('hex')}`);
    const jobPrincipal = principalFromSpiffeId(spiffeId(TRUST_DOMAIN, { kind: 'job', tenant: TENANT, name: jobId }), { kind: 'user', name: USER });
    const job = raylet.ensureJob(jobId, tenant, submitter, jobPrincipal, '', Date.now() + 3_600_000, Date.now());
    const framing = new BatchFraming((batch) => raylet.clientBatch(channel, batch));
    const channel = raylet.openChannel(CHANNEL_KIND.DRIVER, job, submitter, 0, {
      write: (batch) => stream.write(BatchFraming.frame(batch)), pause: () => void stream.pause(), resume: () => void stream.resume(),
      close: (error) => {
        if (error !== undefined) console.error(error);
        stream.end();
      },
    });
    stream.on('data', (chunk: Buffer) => framing.push(chunk));
    stream.on('drain', () => raylet.drained(channel));
    stream.on('end', () => raylet.closeChannel(channel, undefined));
    stream.on('error', () => raylet.closeChannel(channel, undefined));
  };
  let server: Http2Server | Http2SecureServer;
  const settings = { initialWindowSize: 8 * 2 ** 20 };
  if (config.tls) {
    const { svid } = await readProfile(config.identity);
    server = createSecureServer({ key: svid.privateKeyPem, cert: svid.certificateChainPem, ca: svid.trustBundlePem, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3', settings });
  } else server = createPlainServer({ settings });
  server.on('session', (session) => session.setLocalWindowSize(8 * 2 ** 20));
  server.on('stream', attach);
  server.on('sessionError', () => undefined);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  parts.defer(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const owned = parts.move();
  return { port, workerStartMs, stop: () => owned.disposeAsync() };
}

if (process.send !== undefined && process.argv[1] === fileURLToPath(import.meta.url)) {
  process.once('message', (config: ControlRayletConfig) => {
    startControlRaylet(config).then(
      ({ port, workerStartMs, stop }) => {
        const end = (): void => void stop().finally(() => process.exit(0));
        process.on('message', end);
        process.on('disconnect', end);
        process.send?.({ port, workerStartMs });
      },
      (thrown: unknown) => process.send?.({ error: thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown) }),
    );
  });
}

