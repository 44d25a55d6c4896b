/**
 * Composition root of a raylet. Order at start: identity (join token at the first start, own SVID later) → audit → jail and warm workers →
 * stream to the head → listener. Must never: listen before a policy is in force, or start with an isolation layer missing.
 */
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { pino } from 'pino';
import { tail } from '../audit/audit-query.ts';
import { AuditStore } from '../audit/audit-store.ts';
import { loadOrCreateCosigner, loadOrCreateSigner } from '../audit/checkpoint-signer.ts';
import { builtinMethods, LiveDecisionPoint, methodTable, type MethodRow } from '../authz/authz.ts';
import { BulkheadError } from '../base/errors.ts';
import { parseJobId, parseNodeId, spiffeId } from '../base/ids.ts';
import { principalFromSpiffeId } from '../base/principal.ts';
import { DEFAULT_PROJECT, parseProjectName } from '../base/project-quota.ts';
import type { Clock, RandomSource } from '../base/time.ts';
import { USAGE_EVENT } from '../base/usage-record.ts';
import { authenticSession, createCsr, PeerVerifier, readProfile, Revocations, ServerCertificate, SvidSource, svidMaterial, TrustBundle, untimely, writeProfile, writeProfileSvid, type SvidMaterial } from '../pki/pki.ts';
import { file_bulkhead_v1_head, Identities, NodeAttestation } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, Calls, file_bulkhead_v1_raylet, Inspection, Metrics, Peers } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createChannel, createMetricsListener, createServer, live, type RpcChannel, type ServerSecurity } from '../rpc/rpc.ts';
import { probeLayers, WorkerPool } from '../sandbox/worker-pool.ts';
import { auditService } from './audit-service.ts';
import { callsService } from './driver-channels.ts';
import { HeadLink } from './head-link.ts';
import { inspectionService } from './inspection.ts';
import { metricsService } from './metrics.ts';
import { PeerClients, peersService, type PeerLinkOptions, type VerifiedCredential } from './peer-links.ts';
import { readRayletConfig, type RayletConfig } from './raylet-config.ts';
import { Raylet, type RayletLog } from './raylet.ts';
import { stampedAppend, stampedLogs } from './stamped-audit.ts';

const SESSION_AUDIENCE = 'raylet';
const JOIN_TIMEOUT_MS = 10_000;
const RENEW_TIMEOUT_MS = 10_000;
const FIRST_UPDATE_TIMEOUT_MS = 10_000;
const DEFAULT_ISOLATE_BYTES = 256 * 2 ** 20;

const systemClock: Clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
const systemRandom: RandomSource = { bytes: (length) => randomBytes(length) };

export interface RunningRaylet {
  readonly address: string;
  readonly nodeId: string;
  /** Where Prometheus scrapes; undefined: nowhere. */
  readonly metricsAddress: string | undefined;
  /** Renews the node's SVID before its time; streams move to new connections, calls go on. Throws what went wrong; the SVID in force stays. */
  renewIdentity(): Promise<void>;
  stop(): Promise<void>;
}

let rows: ReadonlyMap<string, MethodRow> | undefined;

function methodRows(): ReadonlyMap<string, MethodRow> {
  return (rows ??= readMethodRows());
}

function readMethodRows(): ReadonlyMap<string, MethodRow> {
  const names = [...file_bulkhead_v1_head.services, ...file_bulkhead_v1_raylet.services].flatMap((s) => s.methods.map((m) => `${s.typeName}/${m.name}`));
  return methodTable(builtinMethods(), names).methods;
}

/** The node's SVID: from disk after the first start, else by its join token. */
async function ownSvid(config: RayletConfig, revocations: Revocations): Promise<{ svid: SvidMaterial; nodeNumber: number }> {
  const identityDir = join(config.dataDir, 'identity');
  const numberFile = join(config.dataDir, 'node.json');
  if (existsSync(join(identityDir, 'profile.json')) && existsSync(numberFile)) {
    const { svid } = await readProfile(identityDir);
    // An SVID that ended while the node was down needs a new join token; anything else is renewed by the timer.
    if (svid.notAfterMs > systemClock.nowMs() || config.join === undefined) return { svid, nodeNumber: (JSON.parse(readFileSync(numberFile, 'utf8')) as { number: number }).number };
  }
  if (config.join === undefined) throw new BulkheadError('UNAUTHENTICATED', 'this node has no identity yet: give it a join token (bulkhead pki join-token)');
  const { token, attestationAddress, trustBundle } = config.join;
  const bundle = TrustBundle.fromPem(config.trustDomain, trustBundle);
  const channel = createChannel({
    identity: { trustBundlePem: trustBundle }, address: attestationAddress, expectedSpiffeId: spiffeId(config.trustDomain, { kind: 'system', component: 'head' }),
    peers: new PeerVerifier({ bundles: { bundle: () => bundle, onChange: () => () => undefined }, revocations, clock: systemClock }),
  });
  try {
    const answer = { nodeId: '', nodeNumber: 0 };
    const head = client(NodeAttestation, channel);
    // The id is the head's to say: it reserved it when it made the token.
    const key = await requestNodeSvid(config, async (csr) => {
      const attested = await head.attest({ joinToken: token, csr }, { timeoutMs: JOIN_TIMEOUT_MS });
      answer.nodeId = parseNodeId(attested.nodeId);
      answer.nodeNumber = attested.nodeNumber;
      return { certificateChainPem: attested.svidChain, trustBundlePem: attested.trustBundle };
    });
    await writeProfile(identityDir, { address: config.headAddress, gateway: undefined, svid: key });
    writeFileSync(numberFile, JSON.stringify({ id: answer.nodeId, number: answer.nodeNumber }), { mode: 0o600 });
    return { svid: key, nodeNumber: answer.nodeNumber };
  } finally {
    channel.close();
  }
}

async function requestNodeSvid(config: RayletConfig, request: (csr: Uint8Array) => Promise<{ certificateChainPem: string; trustBundlePem: string }>): Promise<SvidMaterial> {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const svid = svidMaterial({ trustDomain: config.trustDomain, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, ...(await request(createCsr(privateKey))) });
  if (principalFromSpiffeId(svid.spiffeId).kind !== 'node') throw new BulkheadError('UNAUTHENTICATED', 'the head answered with an SVID that is not a node’s');
  return svid;
}

export async function startRaylet(config: RayletConfig, log: RayletLog): Promise<RunningRaylet> {
  await using parts = new AsyncDisposableStack();
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  mkdirSync(config.runDir, { recursive: true, mode: 0o711 });
  parts.defer(() => rmSync(config.runDir, { recursive: true, force: true }));
  const revocations = new Revocations();
  const { trustDomain } = config;

  // The jail takes longest: it starts while the node joins.
  const clusterName = createHash('sha256').update(trustDomain).digest('hex').slice(0, 12);
  const poolName = createHash('sha256').update(config.dataDir).digest('hex').slice(0, 12);
  const starting = WorkerPool.start({ runDir: config.runDir, warm: config.warmWorkers, clusterName, nodeName: poolName, clock: systemClock, log, insecureDev: config.insecureDev, python: config.python, ...(config.pythonIndex === undefined ? {} : { packages: { directory: join(config.dataDir, 'environments'), index: config.pythonIndex } }) });
  starting.catch(() => undefined);
  parts.defer(async () => {
    await (await starting.catch(() => undefined))?.close();
  });
  const { svid, nodeNumber } = await ownSvid(config, revocations);
  const principal = principalFromSpiffeId(svid.spiffeId);
  const nodeId = principal.name;

  const headChannel = (): RpcChannel => createChannel({ identity, peers, address: config.headAddress, expectedSpiffeId: spiffeId(trustDomain, { kind: 'system', component: 'head' }) });
  const identity: SvidSource = parts.use(new SvidSource({
    initial: svid, clock: systemClock, random: systemRandom,
    renew: async (csr) => {
      const channel = headChannel();
      try {
        const renewed = await client(Identities, channel).renew({ csr }, { timeoutMs: RENEW_TIMEOUT_MS });
        return { certificateChainPem: renewed.svidChain, trustBundlePem: renewed.trustBundle };
      } finally {
        channel.close();
      }
    },
    save: (renewed) => writeProfileSvid(join(config.dataDir, 'identity'), renewed),
    onError: (error, attempt) => log.warn({ err: error, attempt }, 'the identity of this node could not be renewed'),
  }));
  const peers: PeerVerifier = new PeerVerifier({ bundles: identity, revocations, clock: systemClock });
  const decisions = new LiveDecisionPoint();

  const auditKeys = join(config.dataDir, 'audit-keys');
  const origin = `${trustDomain}/node/${nodeId}`;
  let raylet: Raylet | undefined = undefined;
  const audit = parts.use(await AuditStore.open({
    dir: join(config.dataDir, 'audit'), origin, signer: loadOrCreateSigner(auditKeys, origin), cosigner: loadOrCreateCosigner(auditKeys, `${origin}/witness`), clock: systemClock, bytesPerTenant: config.auditBytesPerTenant,
    alone: () => raylet?.alone() === true,
    onProblem: (tenant, error) => log.warn({ err: error, tenant }, 'a checkpoint could not be written'),
  }));
  const weakened = config.insecureDev.length > 0;
  const appendDurably = weakened ? stampedAppend(audit.appendDurably) : audit.appendDurably;
  const pool = await starting;

  /** All but its time. */
  const authenticate = async (credential: string): Promise<VerifiedCredential> => {
    const session = await authenticSession(credential, { audience: SESSION_AUDIENCE, bundle: identity.bundle() });
    if (revocations.isIdentityRevoked(session.principal.spiffeId, session.issuedAtMs)) throw new BulkheadError('UNAUTHENTICATED', 'the session credential is of a revoked identity');
    const { kind, name, tenant } = session.principal;
    if (tenant === undefined || (kind !== 'user' && kind !== 'service')) throw new BulkheadError('UNAUTHENTICATED', 'the session credential is not of a user or service of a tenant');
    const [job, sessionId = '', project = DEFAULT_PROJECT] = session.jti.split('_');
    const jobId = parseJobId(job);
    const jobPrincipal = principalFromSpiffeId(spiffeId(trustDomain, { kind: 'job', tenant, name: jobId }), { kind, name });
    return { principal: session.principal, jobPrincipal, jobId, sessionId, project: parseProjectName(project), tenantNumber: session.tenantNumber, issuedMs: session.issuedAtMs, expiresMs: session.expiresAtMs };
  };

  const verify = async (credential: string): Promise<VerifiedCredential> => {
    const verified = await authenticate(credential);
    const why = untimely(verified.issuedMs, verified.expiresMs, systemClock.nowMs());
    if (why !== undefined) throw new BulkheadError('UNAUTHENTICATED', why);
    return verified;
  };

  let address = '';
  const link = new HeadLink({
    channel: headChannel, raylet: () => raylet as Raylet, identity, decisions, revocations, nodeNumber, instance: randomBytes(8).toString('hex'), address: () => config.advertise ?? address,
    total: config.total, labels: config.labels, insecureDev: weakened, log,
  });
  const running: Raylet = (raylet = new Raylet({
    nodeId, nodeNumber, total: config.total, labels: config.labels, maxWorkers: config.maxWorkers, runDir: config.runDir, dataDir: config.dataDir, decisions, audit: weakened ? stampedLogs(audit) : audit, pool, names: link, clock: systemClock,
    random: systemRandom, log, defaultIsolateBytes: DEFAULT_ISOLATE_BYTES,
    verifyCredential: async (credential) => {
      const verified = await authenticate(credential);
      return { ...verified, untimely: untimely(verified.issuedMs, verified.expiresMs, systemClock.nowMs()) };
    },
    objectMemoryBytes: config.objectMemoryBytes, spillBytes: config.spillBytes, spillDir: config.spillDir, dataKey: (tenant) => link.dataKey(tenant),
    lastUsage: async (tenant) => {
      for await (const { record } of tail(audit, tenant, { action: USAGE_EVENT, limit: 1 })) return record.detail;
      return undefined;
    },
  }));
  parts.use(running);
  const peerOptions: PeerLinkOptions = {
    raylet: running, verify, audit: appendDurably, clock: systemClock, log,
    connect: (number) => {
      const node = running.core.state.nodes.get(number);
      return node === undefined ? undefined : createChannel({ identity, peers, address: node.address, expectedSpiffeId: node.spiffeId });
    },
  };
  const clients = new PeerClients(peerOptions);
  parts.defer(() => clients.closeAll());
  running.peers = clients;

  const tenantExists = (name: string): boolean => {
    for (const tenant of running.core.state.tenants.values()) if (tenant.name === name) return true;
    return false;
  };
  const security: ServerSecurity = { identity, peers, decisions, audit: appendDurably, methods: methodRows() };
  const server = createServer(security, { knowsTenant: tenantExists, clock: systemClock, log });
  parts.defer(() => server.close());
  server.add(Calls, callsService({ raylet: running, verify, audit: appendDurably, clock: systemClock, onStreamEnded: (jobId, sessionId, how) => link.streamEnded(jobId, sessionId, how) }));
  server.add(Peers, peersService(peerOptions));
  server.add(Inspection, inspectionService({ raylet: running, nodeId, insecureDev: weakened, layers: () => probeLayers({ clock: systemClock }) }));
  server.add(Audit, auditService(audit, nodeId, tenantExists));
  const metrics = metricsService({ raylet: running, nodeId, version: packageVersion(), connections: () => server.connectionCount, audit: () => audit.counts() });
  server.add(Metrics, metrics);
  const bound = await server.listen(config.listen);
  address = `${config.listen.slice(0, config.listen.lastIndexOf(':'))}:${bound.port}`;

  parts.use(link);
  link.start();
  await withTimeout(link.ready, FIRST_UPDATE_TIMEOUT_MS, 'the head did not answer: is it running, and was this node removed?');
  let metricsAddress: string | undefined;
  if (config.metricsListen !== undefined) {
    const certificate = parts.use(await ServerCertificate.open({
      identity, onError: (error) => log.warn({ err: error }, 'the certificate of the metrics listener could not be renewed; it is tried again'),
      certify: async (csr) => {
        const channel = headChannel();
        try {
          return (await client(Identities, channel).certifyServer({ csr }, { timeoutMs: RENEW_TIMEOUT_MS })).chain;
        } finally {
          channel.close();
        }
      },
    }));
    const scraped = createMetricsListener(security, { certificate, knowsTenant: tenantExists, clock: systemClock, log }, metrics);
    parts.defer(() => scraped.close());
    const { port } = await scraped.listen(config.metricsListen);
    metricsAddress = `${config.metricsListen.slice(0, config.metricsListen.lastIndexOf(':'))}:${port}`;
  }
  const stack = parts.move();
  return {
    address, nodeId, metricsAddress, stop: () => stack.disposeAsync(),
    async renewIdentity() {
      const renewed = await identity.renewNow();
      log.info({ until: new Date(renewed.notAfterMs).toISOString() }, 'the identity of this node was renewed');
    },
  };
}

function packageVersion(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version;
}

async function withTimeout(work: Promise<void>, ms: number, what: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  try {
    await Promise.race([work, new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new BulkheadError('UNAVAILABLE', what)), ms);
    })]);
  } finally {
    clearTimeout(timer);
  }
}

/** The process: configuration in on stdin, one ready line out, until SIGTERM or SIGINT. SIGHUP renews its identity now (`kill -HUP`, an operator's tool). Exit codes: 0 stopped, 1 failed, 2 wrong configuration, 4 a layer is missing. */
export async function runRaylet(): Promise<void> {
  const log = pino({ name: 'raylet', base: {}, serializers: { err: pino.stdSerializers.err } }, pino.destination({ dest: 2, sync: true }));
  let renew = async (): Promise<void> => undefined;
  process.on('SIGHUP', () => void renew().catch((error: unknown) => log.error({ err: error }, 'the identity of this node could not be renewed; the one in force stays')));
  await live({
    fatal: (error, message) => log.fatal({ err: error }, message), exitCodes: { INVALID_ARGUMENT: 2, LAYER_MISSING: 4 },
    start: async () => {
      // Whoever starts a cluster starts its raylets at once and configures them when the head is there: until then there is this to do.
      methodRows();
      await WorkerPool.prepare();
      const raylet = await startRaylet(readRayletConfig(), log);
      renew = () => raylet.renewIdentity();
      // From here on it may grow with the work (main.ts).
      setFlagsFromString('--semi-space-growth-factor=2');
      return { ready: { address: raylet.address, nodeId: raylet.nodeId, metricsAddress: raylet.metricsAddress }, stop: () => raylet.stop() };
    },
  });
}
