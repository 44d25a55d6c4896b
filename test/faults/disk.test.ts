/**
 * Disks that are full, slow or change what was written, under the load of two tenants: calls are refused with a code or wait, what was acknowledged stays and
 * is on record, and when there is room again all goes on. Each kind of file has a small tmpfs of its own.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, closeSync, existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { TestCluster, until } from '../support/cluster.ts';
import { TestMounts } from '../support/mounts.ts';
import { errorsOf, underLoad, type TenantLoad } from '../support/tenant-load.ts';

const TEST_TIMEOUT_MS = 240_000;
vi.setConfig({ testTimeout: TEST_TIMEOUT_MS, hookTimeout: TEST_TIMEOUT_MS });
const SEED = Number(process.env['FAULTS_SEED'] ?? 9_000);
const CALLS = ['task', 'put', 'get', 'actor'];
const RAYLETS = ['raylet-1', 'raylet-2'];

/** What all see: the library, and its file; mount points. */
const places = mkdtempSync('/dev/shm/bulkhead-disks-');
const slow = join(places, 'slow');
type Kind = 'audit' | 'spill' | 'run';
let mounts: TestMounts;
let cluster: TestCluster;
/** Where the logs are is the raylet's data directory; the rest has a place here. */
const pathOf = (raylet: string, kind: Kind): string => (kind === 'audit' ? join(dataDirs.get(raylet) ?? '', kind) : join(places, `${raylet}-${kind}`));
const dataDirs = new Map<string, string>();
const of = (raylet: string, kind: Kind): string => mounts.seen(pathOf(raylet, kind));

beforeAll(async () => {
  chmodSync(places, 0o711);
  const library = join(places, 'slow-disk.so');
  execFileSync('gcc', ['-shared', '-fPIC', '-O1', '-o', library, join(import.meta.dirname, 'native', 'slow-disk.c'), '-ldl']);
  mounts = await TestMounts.create();
  cluster = await TestCluster.start({
    raylets: 2, cpus: 2, quota: { objectMemory: '1MiB' },
    launch: (name) => (name === 'head' ? {} : { through: mounts.through(), env: { LD_PRELOAD: library, SLOW_DISK: slow } }),
    configure: (name, config) => {
      if (name === 'head') return config;
      dataDirs.set(name, (config as { dataDir: string }).dataDir);
      mounts.tmpfs(pathOf(name, 'audit'), '24m', '700');
      mounts.tmpfs(pathOf(name, 'spill'), '24m', '700');
      mounts.tmpfs(pathOf(name, 'run'), '512m', '711');
      return { ...config, spillDir: pathOf(name, 'spill'), runDir: join(pathOf(name, 'run'), 'run') };
    },
  });
});
afterAll(async () => {
  try {
    await cluster?.stop();
  } finally {
    await mounts?.[Symbol.asyncDispose]();
    rmSync(places, { recursive: true, force: true });
  }
});

/** Takes all room but so many octets; returns what gives it back. */
function fill(path: string, leave: number): () => void {
  const filler = join(path, 'filler');
  const { bavail, bsize } = statfsSync(path);
  const fd = openSync(filler, 'w', 0o600);
  const zeros = Buffer.alloc(2 ** 20);
  try {
    for (let left = bavail * bsize - leave; left > 0; left -= zeros.length) writeSync(fd, zeros, 0, Math.min(left, zeros.length));
  } catch (thrown) {
    // Others took the last of it.
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOSPC') throw thrown;
  } finally {
    closeSync(fd);
  }
  return () => rmSync(filler);
}

const codes = (load: TenantLoad): string[] => CALLS.flatMap((what) => load.codesOf(what));
const onlyCodes = (both: readonly TenantLoad[], ...allowed: string[]): void => {
  for (const load of both) expect(codes(load).filter((code) => !allowed.includes(code)), errorsOf(load)).toEqual([]);
};

it('the disk under the audit logs has only its reserve left: calls are refused and on record, and go on when there is room', async () => {
  const { both } = await underLoad(cluster, SEED, async ({ both }) => {
    // The reserve is a twentieth.
    const empty = RAYLETS.map((raylet) => fill(of(raylet, 'audit'), 800_000));
    await until('both tenants are refused', () => both.every((load) => codes(load).includes('RESOURCE_EXHAUSTED')), 60_000);
    for (const give of empty) give();
    await Promise.all(both.map((load) => load.served(2)));
  });
  onlyCodes(both, 'RESOURCE_EXHAUSTED');
});

it('the disk under spilled objects is full: what cannot leave memory is refused, and nothing that is there is lost', async () => {
  const { both } = await underLoad(cluster, SEED + 1, async ({ both }) => {
    await until('objects are spilled', () => RAYLETS.some((raylet) => readdirSync(of(raylet, 'spill')).some((tenant) => readdirSync(join(of(raylet, 'spill'), tenant)).length > 0)), 60_000);
    const empty = RAYLETS.map((raylet) => fill(of(raylet, 'spill'), 0));
    await sleep(6_000);
    for (const give of empty) give();
    await Promise.all(both.map((load) => load.served(2)));
  });
  onlyCodes(both, 'RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED');
});

it('the memory under objects and workers is full: typed errors, and it goes on when there is room', async () => {
  const { both } = await underLoad(cluster, SEED + 2, async ({ both }) => {
    const empty = RAYLETS.map((raylet) => fill(of(raylet, 'run'), 0));
    await sleep(5_000);
    for (const give of empty) give();
    await Promise.all(both.map((load) => load.served(2)));
  });
  onlyCodes(both, 'RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED', 'WORKER_DIED', 'ACTOR_UNAVAILABLE', 'ACTOR_DIED', 'OBJECT_LOST', 'UNAVAILABLE', 'TASK_FAILED');
});

it('files of spilled objects are changed: what cannot be computed again is OBJECT_LOST, and nobody reads anything else than what was put', async () => {
  let damaged = 0;
  const { both } = await underLoad(cluster, SEED + 3, async ({ both }) => {
    // Until something was on disk to be damaged: how soon that is depends on the machine.
    for (let i = 0; i < 5 || (damaged === 0 && i < 60); i++) {
      for (const raylet of RAYLETS) {
        for (const tenant of readdirSync(of(raylet, 'spill'))) {
          for (const name of readdirSync(join(of(raylet, 'spill'), tenant))) {
            const path = join(of(raylet, 'spill'), tenant, name);
            try {
              const bytes = readFileSync(path);
              const at = Math.floor(bytes.length / 2);
              bytes[at] = (bytes[at] ?? 0) ^ 1;
              if (existsSync(path)) writeFileSync(path, bytes, { flag: 'r+' });
              damaged++;
            } catch {
              // Let go meanwhile.
            }
          }
        }
      }
      await Promise.race([Promise.all(both.map((load) => load.served(1))).catch(() => undefined), sleep(2_000)]);
    }
  });
  expect(damaged).toBeGreaterThan(0);
  onlyCodes(both, 'OBJECT_LOST');
});

it('a disk that takes a second for each sync: calls wait for their records, and none is lost', async () => {
  const { both } = await underLoad(cluster, SEED + 4, async ({ both }) => {
    writeFileSync(slow, '1000');
    await sleep(3_000);
    await Promise.all(both.map((load) => load.served(1)));
    writeFileSync(slow, '0');
  });
  onlyCodes(both);
});

it('the disk under the audit logs is full to its last octet: no answer without its record; after making room and a restart all is there', async () => {
  const { both } = await underLoad(cluster, SEED + 5, async ({ both }) => {
    const empty = RAYLETS.map((raylet) => fill(of(raylet, 'audit'), 0));
    await until('both tenants are refused', () => both.every((load) => codes(load).some((code) => code === 'UNAVAILABLE' || code === 'RESOURCE_EXHAUSTED')), 60_000);
    await sleep(2_000);
    for (const give of empty) give();
    for (const raylet of RAYLETS) {
      await cluster.kill(raylet, 'SIGKILL');
      await cluster.restart(raylet);
    }
    await cluster.settled();
  });
  onlyCodes(both, 'UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'WORKER_DIED', 'OBJECT_LOST', 'ACTOR_UNAVAILABLE', 'ACTOR_DIED');
});
