/**
 * The head of the simulation: the tables of src/gcs/core with the commit rule of `HeadState` (decide, records on disk, rows in the store,
 * tables, pushes), and real policy files compiled by src/authz. It can lose power between any two of these steps.
 */
import { createHash } from 'node:crypto';
import { compilePolicies, defaultPolicy, parsePolicyFile, type PolicyDocument, type PolicySnapshot } from '../../src/authz/authz.ts';
import { ActorNames } from '../../src/gcs/core/actor-names.ts';
import { Checkpoints } from '../../src/gcs/core/checkpoints.ts';
import { Jobs } from '../../src/gcs/core/jobs.ts';
import { Nodes } from '../../src/gcs/core/nodes.ts';
import { PolicyVersions } from '../../src/gcs/core/policy-versions.ts';
import { Revocations } from '../../src/gcs/core/revocations.ts';
import type { Effect, Table } from '../../src/gcs/core/table.ts';
import { Tenants } from '../../src/gcs/core/tenants.ts';
import { LogFiles, SimLog, type LogBugs } from './disk-machine.ts';

export const TENANTS = ['acme', 'globex'] as const;

/** What a tenant's policy file can say; the model of what it permits is beside it. */
export interface Variant {
  readonly grants: boolean;
  readonly bobMay: boolean;
}

export const VARIANTS: readonly Variant[] = [{ grants: false, bobMay: true }, { grants: true, bobMay: true }, { grants: false, bobMay: false }];

function fileOf(tenant: string, { grants, bobMay }: Variant): string {
  const other = TENANTS.find((t) => t !== tenant) as string;
  return [
    'version: 1', `tenant: ${tenant}`, 'bindings:', `  - { role: developer, to: [${bobMay ? "'user/*'" : 'user/ana'}] }`,
    ...(grants ? ['grants:', `  - { to: tenant/${other}, action: [object.get, object.wait], resource: object, when: { label: { eq: published } }, until: 2040-01-01 }`] : []), '',
  ].join('\n');
}

function parsed(name: string, content: string): PolicyDocument {
  const { document, diagnostics } = parsePolicyFile(name, content);
  if (document === undefined) throw new Error(`the simulation's policy does not parse: ${JSON.stringify(diagnostics)}`);
  return document;
}

const compiled = new Map<string, PolicySnapshot>();

/** The same files give the same rules whatever the version: compiled once. */
function snapshotOf(variants: readonly number[], version: number): PolicySnapshot {
  const key = variants.join('/');
  let snapshot = compiled.get(key);
  if (snapshot === undefined) {
    const files = [{ name: 'defaults.yaml', document: parsed('defaults.yaml', defaultPolicy().content) }, ...TENANTS.map((tenant, i) => ({ name: `${tenant}.yaml`, document: parsed(`${tenant}.yaml`, fileOf(tenant, VARIANTS[variants[i] as number] as Variant)) }))];
    compiled.set(key, (snapshot = compilePolicies({ files, identityRoles: [], version: 1 })));
  }
  return { ...snapshot, version };
}

export interface HeadBugs {
  /** Rows are stored before the record of the decision behind them. */
  readonly rowsFirst?: boolean;
}

export class SimHead {
  tenants = new Tenants();
  nodes = new Nodes();
  jobs = new Jobs();
  names = new ActorNames();
  policies = new PolicyVersions();
  revocations = new Revocations();
  checkpoints = new Checkpoints();
  up = true;
  readonly #store = new Map<string, string>();
  readonly #files = new LogFiles();
  readonly #random: () => number;
  readonly #bugs: HeadBugs & LogBugs;
  #log: SimLog;
  /** Of every version that was ever in force: what each tenant's file said. The oracle for decisions. */
  readonly said = new Map<number, readonly number[]>();
  #variants: number[] = [0, 0];
  serial = 0;
  /** Between two steps of a commit the power may fail. */
  mayFail = false;

  constructor(random: () => number, bugs: HeadBugs & LogBugs) {
    this.#random = random;
    this.#bugs = bugs;
    this.#log = new SimLog(this.#files, bugs);
  }

  #all(): readonly Table<never>[] {
    return [this.tenants, this.nodes, this.jobs, this.names, this.policies, this.revocations, this.checkpoints];
  }

  /** Decides and executes; false when the head died of it. What the tables refuse throws and changes nothing. */
  commit(nowMs: number, decide: (out: Effect[]) => void): boolean {
    const out: Effect[] = [];
    decide(out);
    const rows = (): void => {
      for (const e of out) {
        if (e.type === 'put') this.#store.set(e.key, JSON.stringify(e.row));
        else if (e.type === 'delete') this.#store.delete(e.key);
      }
    };
    if (this.#bugs.rowsFirst === true) rows();
    for (const e of out) if (e.type === 'record') this.#log.append({ type: 'lifecycle', timeMs: nowMs, event: e.event, principal: e.principal, resourceKind: e.kind, resource: e.resource, index: -1, detail: e.detail });
    if (this.#dies()) return false;
    while (!this.#log.idle) this.#log.work(false);
    if (this.#dies()) return false;
    rows();
    for (const e of out) {
      if (e.type === 'put') this.#all().find((t) => e.key.startsWith(t.prefix))?.absorb(e.key, JSON.parse(this.#store.get(e.key) as string));
      else if (e.type === 'delete') this.#all().find((t) => e.key.startsWith(t.prefix))?.absorb(e.key, undefined);
    }
    this.serial++;
    return true;
  }

  #dies(): boolean {
    if (!this.mayFail || this.#random() >= 0.08) return false;
    this.crash();
    return true;
  }

  crash(): void {
    this.up = false;
    this.#files.entries.crash(this.#random);
  }

  restart(): void {
    this.up = true;
    this.tenants = new Tenants();
    this.nodes = new Nodes();
    this.jobs = new Jobs();
    this.names = new ActorNames();
    this.policies = new PolicyVersions();
    this.revocations = new Revocations();
    this.checkpoints = new Checkpoints();
    for (const [key, row] of this.#store) this.#all().find((t) => key.startsWith(t.prefix))?.absorb(key, JSON.parse(row));
    this.#log = new SimLog(this.#files, this.#bugs);
    this.serial += 1_000;
    this.#checkRows();
    this.#variants = [...(this.said.get(this.policies.version) ?? this.#variants)];
  }

  /** No row without the record of the decision behind it. */
  #checkRows(): void {
    const records = new Set(this.#files.records.map((r) => (r.type === 'lifecycle' ? `${r.event} ${r.resource} ${r.detail}` : '')));
    const has = (text: string): boolean => [...records].some((r) => r.startsWith(text));
    for (const v of this.policies.inForce()) if (!has(`policy.applied ${v.fileName} version ${v.version} `)) throw new Error(`head: policy version ${v.version} is in the store and not on record`);
    for (const r of this.revocations.all()) if (!has(`identity.revoked ${r.spiffeId || r.serial} `)) throw new Error(`head: a revocation of ${r.spiffeId || r.serial} is in the store and not on record`);
    for (const tenant of TENANTS) for (const job of this.jobs.ofTenant(tenant)) if (!has(`job.started ${job.jobId} `)) throw new Error(`head: job ${job.jobId} is in the store and not on record`);
  }

  /** Another policy file of a tenant comes into force. */
  apply(tenant: number, variant: number, nowMs: number): void {
    const name = TENANTS[tenant] as string;
    const content = fileOf(name, VARIANTS[variant] as Variant);
    const variants = [...this.#variants];
    variants[tenant] = variant;
    this.said.set(this.policies.version + 1, variants);
    const digest = createHash('sha256').update(content).digest('hex');
    if (this.commit(nowMs, (out) => this.policies.step({ type: 'apply', tenant: name, fileName: `${name}.yaml`, digest, content, by: 'spiffe://sim/system/admin', change: 'apply' }, nowMs, out))) this.#variants = variants;
  }

  snapshot(): PolicySnapshot {
    return snapshotOf(this.#variants, this.policies.version);
  }

  /** A node's word on its log; throws when it contradicts what was seen. */
  sawCheckpoint(nodeId: string, tenant: string, treeSize: number, rootHash: string, nowMs: number): void {
    // Reports come late and twice: an older size says nothing new, the same size must have the same root.
    const before = this.checkpoints.get(nodeId, tenant);
    if (before !== undefined && treeSize < before.treeSize) return;
    if (!this.checkpoints.agrees({ nodeId, tenant, treeSize, rootHash })) throw new Error(`audit: ${nodeId} tells two stories of the log of ${tenant} at size ${treeSize}`);
    this.commit(nowMs, (out) => this.checkpoints.step({ type: 'seen', nodeId, tenant, treeSize, rootHash }, nowMs, out));
  }
}
