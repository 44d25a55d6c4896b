/**
 * Composition root of the head. Order at start: store → audit → tables → keys and authority → policy → listeners; each needs the ones
 * before it. At stop the other way round. Must never: listen before the policy is in force, or answer before the audit log is open.
 */
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { AuditStore } from '../audit/audit-store.ts';
import { loadOrCreateCosigner, loadOrCreateSigner } from '../audit/checkpoint-signer.ts';
import { builtinMethods, defaultPolicy, LiveDecisionPoint, methodTable } from '../authz/authz.ts';
import type { AppendDurably } from '../base/audit-record.ts';
import { BulkheadError } from '../base/errors.ts';
import { parseTrustDomain, spiffeId, type JobId, type TrustDomain } from '../base/ids.ts';
import { QUOTA_LEASE_MS, SVID_TTL_MS } from '../base/limits.ts';
import { DEFAULT_PROJECT } from '../base/project-quota.ts';
import { amountOfLine, parseQuota, type TenantQuota } from '../base/tenant-quota.ts';
import { CertificateAuthority, EncryptedFileKeyManager, JwtAuthority, PeerVerifier, requestSvid, Revocations, ServerCertificate, SvidSource, writeProfile } from '../pki/pki.ts';
import { Audit, file_bulkhead_v1_raylet, Metrics } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { Cluster, file_bulkhead_v1_head, Identities, Jobs, NodeAttestation, NodeSync, Policies, Sessions, Tenants, Tokens } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { createAttestationServer, createMetricsListener, createServer, live, type MethodRow, type RpcLog } from '../rpc/rpc.ts';
import { auditReader, authorityStorage, checkpointReader, headPki, policyCompiler, recordIssued, systemClock, systemRandom, type CompiledSnapshot } from './adapters.ts';
import { Budgets } from './core/budgets.ts';
import { QuotaShares } from './core/quota-shares.ts';
import type { TenantRow } from './core/tenants.ts';
import { HeadClockwork } from './head-clockwork.ts';
import { readHeadConfig, type HeadConfig } from './head-config.ts';
import { HeadState } from './head-state.ts';
import { PolicyAdministrator } from './policy-administrator.ts';
import { AnnouncedGateway, type GatewayCall, type HeadContext } from './ports.ts';
import { auditService } from './services/audit.ts';
import { clusterService } from './services/cluster.ts';
import { HEAD_COMPONENT, identitiesService, PROFILE_TTL_MS } from './services/identities.ts';
import { jobsService } from './services/jobs.ts';
import { metricsService } from './services/metrics.ts';
import { nodeAttestationService } from './services/node-attestation.ts';
import { nodeSyncService } from './services/node-sync.ts';
import { policiesService } from './services/policies.ts';
import { sessionsService } from './services/sessions.ts';
import { finishDeletion, tenantsService } from './services/tenants.ts';
import { tokensService } from './services/tokens.ts';
import { SqliteStore } from './sqlite-store.ts';
import type { Store } from './store.ts';

const ADMIN_COMPONENT = 'admin';
/** What was chosen at the first start: it must not change under certificates and raylets. */
const CHOSEN_KEY = 'head/chosen';

interface Chosen {
  readonly trustDomain: string;
  /** Where the listeners were last, so that a restarted head is found again although any port was asked for. */
  readonly listen: string;
  readonly attestationListen: string;
}

export interface RunningHead {
  /** What clients connect to. */
  readonly address: string;
  readonly attestationAddress: string;
  /** Where Prometheus scrapes; undefined: nowhere. */
  readonly metricsAddress: string | undefined;
  readonly trustDomain: TrustDomain;
  stop(): Promise<void>;
}

export interface StartOptions {
  readonly log: RpcLog;
  /** The log or the store failed: the head must end. */
  readonly onFatal: (cause: unknown) => void;
}

async function readChosen(store: Store): Promise<Chosen | undefined> {
  const stored = await store.get(CHOSEN_KEY);
  return stored === undefined ? undefined : (JSON.parse(new TextDecoder().decode(stored.value)) as Chosen);
}

function trustDomainOf(config: HeadConfig, chosen: Chosen | undefined): TrustDomain {
  if (chosen !== undefined) {
    if (config.trustDomain !== undefined && config.trustDomain !== chosen.trustDomain) throw new BulkheadError('INVALID_ARGUMENT', `this data directory is of the trust domain '${chosen.trustDomain}', not '${config.trustDomain}': leave trustDomain out, or use another directory`);
    return parseTrustDomain(chosen.trustDomain);
  }
  return config.trustDomain ?? parseTrustDomain(`bulkhead-${Buffer.from(systemRandom.bytes(4)).toString('hex')}`);
}

/** Rows for exactly the RPCs that exist; a missing or surplus one keeps the head from starting. Calls of channels are the raylets'. */
function methodRows(): { readonly methods: ReadonlyMap<string, MethodRow>; readonly gateway: ReadonlyMap<string, GatewayCall> } {
  const names = [...file_bulkhead_v1_head.services, ...file_bulkhead_v1_raylet.services].flatMap((s) => s.methods.map((m) => `${s.typeName}/${m.name}`));
  return methodTable(builtinMethods(), names);
}

/** Port 0 means any: then the last one is tried first. Returns `host:port` as clients write it. */
async function listenOn(server: { listen(address: string): Promise<{ address: string; port: number }> }, wanted: string, last: string | undefined): Promise<string> {
  const any = wanted.endsWith(':0');
  const bound = any && last !== undefined && last.slice(0, last.lastIndexOf(':')) === wanted.slice(0, -2) ? await server.listen(last).catch(() => server.listen(wanted)) : await server.listen(wanted);
  return `${wanted.slice(0, wanted.lastIndexOf(':'))}:${bound.port}`;
}

/** What clients are told: the advertised host; a listener on every interface is reached on this machine by loopback. */
function reachable(address: string, advertiseHost: string | undefined): string {
  const port = address.slice(address.lastIndexOf(':'));
  return advertiseHost === undefined ? address.replace(/^(?:0\.0\.0\.0|\[::\]):/, '127.0.0.1:') : `${advertiseHost}${port}`;
}

/** Every record of a cluster with weakened isolation says so. */
function stamped(append: AppendDurably): AppendDurably {
  return (tenant, record) => append(tenant, { ...record, detail: record.detail === '' ? 'insecure-dev' : `insecure-dev ${record.detail}` });
}

function openDataDirectory(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const { mode, uid } = statSync(path);
  if ((mode & 0o077) !== 0) throw new BulkheadError('INVALID_ARGUMENT', `the data directory is open to others (mode ${(mode & 0o777).toString(8)}); run: chmod 700 '${path}'`);
  if (uid !== process.getuid?.()) throw new BulkheadError('INVALID_ARGUMENT', `the data directory belongs to another user (uid ${uid}); start the head as that user, or use another directory`);
}

/** What tenants' quotas are, to be shared among the nodes. Those that have been here before may hold shares of an earlier life of the head. */
function quotaShares(head: HeadState): QuotaShares {
  const parsed = new WeakMap<TenantRow, TenantQuota>();
  return new QuotaShares({
    epoch: head.epoch, leaseMs: QUOTA_LEASE_MS, nowMs: head.steady.nowMs(), before: head.nodes.all().filter(({ instance }) => instance !== '').map(({ id }) => id),
    amountOf: (tenant, line) => {
      const row = head.tenants.get(tenant);
      if (row?.state !== 'active') return undefined;
      let quota = parsed.get(row);
      if (quota === undefined) parsed.set(row, (quota = parseQuota(row.quota)));
      return amountOfLine(quota, line, (id) => {
        const job = head.jobs.find(id as JobId);
        return job?.tenant === tenant ? (job.project ?? DEFAULT_PROJECT) : undefined;
      });
    },
  });
}

export async function startHead(config: HeadConfig, { log, onFatal }: StartOptions): Promise<RunningHead> {
  const startedMs = systemClock.nowMs();
  await using parts = new AsyncDisposableStack();
  const { dataDir } = config;
  openDataDirectory(dataDir);
  const store = SqliteStore.open(join(dataDir, 'head.sqlite'));
  parts.defer(() => store.close());
  const chosen = await readChosen(store);
  const trustDomain = trustDomainOf(config, chosen);

  const keysDir = join(dataDir, 'keys');
  const auditKeysDir = join(dataDir, 'audit-keys');
  const origin = `${trustDomain}/head`;
  const signer = loadOrCreateSigner(auditKeysDir, origin);
  const logs = parts.use(await AuditStore.open({
    dir: join(dataDir, 'audit'), origin, signer, cosigner: loadOrCreateCosigner(auditKeysDir, `${origin}/witness`), clock: systemClock, bytesPerTenant: config.auditBytesPerTenant,
    onProblem: (tenant, error) => log.warn({ error, tenant }, 'a checkpoint could not be written'),
  }));
  const appendAudit = config.insecureDev ? stamped(logs.appendDurably) : logs.appendDurably;
  let fatal = false;
  const head = await HeadState.load({
    store, clock: systemClock, appendAudit,
    onFatal: (cause) => {
      fatal = true;
      onFatal(cause);
    },
  });
  parts.defer(() => head.settled());

  const keyManager = await EncryptedFileKeyManager.open(keysDir);
  // Keys wait for the disk while the policy compiles.
  const opening = CertificateAuthority.open({ trustDomain, keyManager, storage: authorityStorage(store), clock: systemClock, random: systemRandom, onIssued: recordIssued(head) });
  opening.catch(() => undefined);
  const decisions = new LiveDecisionPoint();
  const policies = new PolicyAdministrator({ head, compiler: policyCompiler(systemClock), activate: (compiled) => void decisions.swap((compiled as CompiledSnapshot).snapshot) });
  policies.start();
  if (head.policies.version === 0) {
    const { name, content } = defaultPolicy();
    await policies.applyDefault({ tenant: '', fileName: name, content });
  }
  const authority = await opening;
  const pki = headPki({ authority, sessions: new JwtAuthority({ signer: authority, clock: systemClock }), keyManager, keyManagerName: 'encrypted-file', clock: systemClock });

  const revocations = new Revocations();
  const applyRevocations = (): void => {
    const rows = head.revocations.all();
    revocations.apply({ serials: rows.filter((r) => r.serial !== '').map((r) => r.serial), identities: rows.filter((r) => r.spiffeId !== '').map((r) => ({ spiffeId: r.spiffeId, revokedBeforeMs: r.issuedBeforeMs })) }, head.revocations.version);
  };
  applyRevocations();
  parts.defer(head.onPush((changed) => {
    if (changed.has('revocations')) applyRevocations();
  }));
  const peers = new PeerVerifier({ bundles: authority, revocations, clock: systemClock });

  const selfIssue = async (component: string, ttlMs: number, csrDer: Uint8Array): Promise<{ certificateChainPem: string; trustBundlePem: string }> => {
    const { certificateChainPem } = await pki.issue(spiffeId(trustDomain, { kind: 'system', component }), csrDer, ttlMs);
    return { certificateChainPem, trustBundlePem: pki.trustBundlePem() };
  };
  const ownSvid = (component: string, ttlMs: number) => requestSvid({ trustDomain, spiffeId: spiffeId(trustDomain, { kind: 'system', component }), request: (csr) => selfIssue(component, ttlMs, csr) });
  const identity = parts.use(new SvidSource({
    initial: await ownSvid(HEAD_COMPONENT, SVID_TTL_MS), renew: (csr) => selfIssue(HEAD_COMPONENT, SVID_TTL_MS, csr), clock: systemClock, random: systemRandom,
    onError: (error, attempt) => log.warn({ error, attempt }, 'the own identity could not be renewed'),
  }));
  parts.defer(authority.onChange((bundle) => {
    identity.updateBundle(bundle);
    head.announce('trustBundle');
  }));

  const addresses = { main: '', attestation: '' };
  const { methods, gateway: gatewayCalls } = methodRows();
  const context: HeadContext = {
    head, pki, policies, budgets: new Budgets(), shares: quotaShares(head), appendAudit, decisions, gateway: new AnnouncedGateway(), gatewayCalls, gatewayNames: config.gatewayNames, statements: { verifierKey: signer.publicKeyLine, sign: (statement) => signer.sign(statement) }, audit: auditReader(logs), checkpoints: checkpointReader(signer, systemClock),
    random: systemRandom, nodeMost: config.nodeMost, addresses, insecureDev: config.insecureDev, version: packageVersion(), startedMs,
  };
  // What a killed head left half done.
  for (const tenant of head.tenants.all()) {
    if (tenant.state === 'active') await pki.createTenantKey(tenant.name);
    else await finishDeletion(context, tenant.name, identity.spiffeId);
  }

  const security = { identity, peers, decisions, audit: appendAudit, methods };
  const server = createServer(security, { knowsTenant: (tenant) => head.tenants.get(tenant) !== undefined, clock: systemClock, log });
  parts.defer(() => server.close());
  server.add(Identities, identitiesService(context));
  server.add(Sessions, sessionsService(context));
  server.add(Tenants, tenantsService(context));
  server.add(Policies, policiesService(context));
  server.add(Jobs, jobsService(context));
  server.add(Tokens, tokensService(context));
  server.add(Cluster, clusterService(context));
  server.add(NodeSync, nodeSyncService(context));
  server.add(Audit, auditService(context));
  const metrics = metricsService(context, () => server.connectionCount);
  server.add(Metrics, metrics);
  const attestation = createAttestationServer(security, { clock: systemClock, log });
  parts.defer(() => attestation.close());
  attestation.add(NodeAttestation, nodeAttestationService(context));

  const now: Chosen = { trustDomain, listen: await listenOn(server, config.listen, chosen?.listen), attestationListen: await listenOn(attestation, config.attestationListen, chosen?.attestationListen) };
  let metricsAddress: string | undefined;
  if (config.metricsListen !== undefined) {
    const certificate = parts.use(await ServerCertificate.open({
      identity, certify: async (csr) => (await pki.certifyServer(identity.spiffeId, csr, SVID_TTL_MS)).certificateChainPem, onError: (error) => log.warn({ error }, 'the certificate of the metrics listener could not be renewed; it is tried again'),
    }));
    const scraped = createMetricsListener(security, { certificate, knowsTenant: (tenant) => head.tenants.get(tenant) !== undefined, clock: systemClock, log }, metrics);
    parts.defer(() => scraped.close());
    metricsAddress = await listenOn(scraped, config.metricsListen, undefined);
  }
  addresses.main = reachable(now.listen, config.advertiseHost);
  addresses.attestation = reachable(now.attestationListen, config.advertiseHost);
  await store.put(CHOSEN_KEY, new TextEncoder().encode(JSON.stringify(now)));
  await writeProfile(join(dataDir, 'admin'), { address: addresses.main, gateway: undefined, svid: await ownSvid(ADMIN_COMPONENT, PROFILE_TTL_MS) });

  parts.use(new HeadClockwork({
    head, shares: context.shares, longestTtlMs: PROFILE_TTL_MS, rotateIfDue: () => authority.rotateIfDue(),
    onProblem: (what, error) => {
      if (!fatal) log.warn({ error, what }, 'a periodic job failed; it is tried again');
    },
  }));
  const running = parts.move();
  return { address: addresses.main, attestationAddress: addresses.attestation, metricsAddress, trustDomain, stop: () => running.disposeAsync() };
}

function packageVersion(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version;
}

/** The process: configuration in, one ready line out, until SIGTERM or SIGINT. Exit codes: 0 stopped, 1 failed, 2 wrong usage. */
export async function runHead(args: readonly string[]): Promise<void> {
  const log = pino({ name: 'head', base: {}, serializers: { error: pino.stdSerializers.err } }, pino.destination({ dest: 2, sync: true }));
  await live({
    fatal: (error, message) => log.fatal({ error }, message), exitCodes: { INVALID_ARGUMENT: 2 },
    start: async (onFatal) => {
      const { address, attestationAddress, metricsAddress, trustDomain, stop } = await startHead(readHeadConfig(args), { log, onFatal });
      return { ready: { address, attestationAddress, metricsAddress, trustDomain }, stop };
    },
  });
}
