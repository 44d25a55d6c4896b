/** Audit stores in a directory of their own, with generated keys and a clock that the test moves; removed after each test. */
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach } from 'vitest';
import { AuditStore, type AuditStoreOptions } from '../../src/audit/audit-store.ts';
import { ed25519Signer, mlDsa44Signer } from '../../src/audit/checkpoint-signer.ts';
import type { DecisionRecord, LifecycleRecord } from '../../src/base/audit-record.ts';

export const ORIGIN = 'cluster.example/node/n1';
export const START_MS = 1_700_000_000_000;

export function newSigner(name = ORIGIN) {
  return ed25519Signer(name, generateKeyPairSync('ed25519').privateKey);
}

export function newCosigner(name = `${ORIGIN}/ml-dsa-44`) {
  return mlDsa44Signer(name, (generateKeyPairSync as unknown as (type: string) => { privateKey: KeyObject })('ml-dsa-44').privateKey);
}

const directories: string[] = [];
const stores: AuditStore[] = [];

afterEach(async () => {
  for (const store of stores.splice(0)) await store.close().catch(() => undefined);
  for (const dir of directories.splice(0)) fs.rmSync(dir, { recursive: true, force: true });
});

export function newDirectory(): string {
  const dir = fs.mkdtempSync(join(tmpdir(), 'bulkhead-audit-'));
  directories.push(dir);
  return dir;
}

export const clock = { nowMs: () => START_MS, monotonicMs: () => 0 };

export const signer = newSigner();
export const cosigner = newCosigner();

export async function openStore(options: Partial<AuditStoreOptions> = {}): Promise<AuditStore> {
  const store = await AuditStore.open({ dir: join(newDirectory(), 'audit'), origin: ORIGIN, signer, cosigner, clock, ...options });
  stores.push(store);
  return store;
}

export function decision(i: number, rest: Partial<DecisionRecord> = {}): DecisionRecord {
  return {
    type: 'decision', timeMs: START_MS + i, principal: 'spiffe://cluster.example/tenant/acme/user/ana', action: i % 2 === 0 ? 'task.submit' : 'object.get', resourceKind: i % 2 === 0 ? 'task' : 'object',
    resource: '0123456789abcdef0123456789abcdef01234567', index: i >> 1, count: 1, allow: i % 5 !== 4, rule: i % 5 === 4 ? 'default-deny' : 'acme/analyst/permit/0', policyVersion: 3, detail: i % 2 === 0 ? `sha256:${'ab'.repeat(32)} f` : '', ...rest,
  };
}

export function lifecycle(event: string, rest: Partial<LifecycleRecord> = {}): LifecycleRecord {
  return { type: 'lifecycle', timeMs: START_MS, event, principal: 'spiffe://cluster.example/node/n1', resourceKind: 'worker', resource: 'worker-0123456789abcdef', index: -1, detail: '', ...rest };
}

/** Appends `count` decisions and waits until they are on disk. */
export async function fill(store: AuditStore, tenant: string, count: number, first = 0): Promise<void> {
  const log = store.forTenant(tenant);
  for (let i = first; i < first + count; i++) log.append(decision(i));
  if (count > 0) await log.whenDurable(first + count - 1);
}

/** Where the records on disk end in a log's `entries`; behind that is room. */
export function endOfEntries(store: AuditStore, dir: string, tenant: string): number {
  return ['index', 'state'].reduce((bytes, file) => bytes - fs.statSync(join(dir, tenant, file)).size, store.forTenant(tenant).diskBytes());
}
