/**
 * Assume breach: a worker's isolate is wholly the attacker's. Inside a real jail a hostile prelude sends whatever frames it likes into a
 * real raylet; and a real worker of a real cluster is searched, from outside and with every right, for anything that opens a door.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, closeSync, existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, readSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createHash, randomBytes } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FrameWriter, OP } from '../../src/base/frame.ts';
import { parseJobId } from '../../src/base/ids.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { CHANNEL_KIND, type Channel, type Worker } from '../../src/raylet/core/state.ts';
import { Raylet } from '../../src/raylet/raylet.ts';
import { WorkerPool } from '../../src/sandbox/worker-pool.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';
import { batch, failureIn, RawDriver, splitFrames, u32, type Frame } from '../support/raw-driver.ts';
import { SimLog } from '../sim/world.ts';

type Body = (w: FrameWriter) => unknown;

/**
 * Answers an EXEC with the octets of its argument, as they are: whoever submits writes what the "isolate" says. `EE EE EE EE` becomes the
 * exec number. What it is told besides is said again as a log line, so that the test sees what reached the attacker.
 */
const HOSTILE_PRELUDE = `(function () {
  return function install() {
    const u32 = (b, at) => (b[at] | (b[at + 1] << 8) | (b[at + 2] << 16) | (b[at + 3] << 24)) >>> 0;
    return {
      deliver: (buffer) => {
        const b = new Uint8Array(buffer); const out = [];
        for (let at = 0; at + 5 <= b.length;) {
          const end = at + 4 + u32(b, at);
          if (b[at + 4] === 0x60) {
            let rest = at + 5 + 4 + 1 + 4 + 4 + 4; const d = b[rest] | (b[rest + 1] << 8); rest += 2;
            if (d === 0) { for (let i = rest; i < end; i++) { if (u32(b, i) === 0xeeeeeeee && i + 4 <= end) { out.push(b[at + 5], b[at + 6], b[at + 7], b[at + 8]); i += 3; } else out.push(b[i]); } }
          } else if (b[at + 4] >= 0x41 && b[at + 4] <= 0x4a) {
            const text = 'told ' + b[at + 4].toString(16) + ' '; const said = [];
            for (let i = 0; i < text.length; i++) said.push(text.charCodeAt(i));
            for (let i = at + 5; i < end && i < at + 200; i++) said.push(b[i] >= 32 && b[i] < 127 ? b[i] : 46);
            said.push(10);
            const length = 1 + 4 + 1 + said.length;
            out.push(length & 255, (length >> 8) & 255, 0, 0, 0x22, 0, 0, 0, 0, 1, ...said);
          }
          at = end;
        }
        return new Uint8Array(out).buffer;
      },
      attach: () => {}, fireTimer: () => {}, load: () => {},
    };
  };
})()`;

const EXEC = Buffer.alloc(4, 0xee);
const ONE = Buffer.from([0x01]);
const SOURCE = Buffer.from('var __bulkhead_exports = { run: () => 1 };');
const DIGEST = createHash('sha256').update(SOURCE).digest();
const result: Body = (w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(0).u32(0).bytes(ONE);

/** A driver of one tenant, inside this process. */
class Driver {
  readonly channel: Channel;
  readonly frames: Frame[] = [];
  closed: Error | undefined;
  readonly #raylet: Raylet;
  #seq = 1;
  #request = 1;

  constructor(raylet: Raylet, tenant: string, number: number, job: string) {
    this.#raylet = raylet;
    const user = principalFromSpiffeId(`spiffe://test.example/tenant/${tenant}/user/ana`);
    const principal = principalFromSpiffeId(`spiffe://test.example/tenant/${tenant}/job/${job}`, { kind: 'user', name: 'ana' });
    const state = raylet.core.state.tenants.get(number);
    if (state === undefined) throw new Error('no such tenant');
    this.channel = raylet.openChannel(CHANNEL_KIND.DRIVER, raylet.ensureJob(parseJobId(job), state, user, principal, 'x', Date.now() + 300_000, Date.now()), user, 0, {
      write: (octets, tail) => {
        this.frames.push(...splitFrames(tail === undefined ? octets : Buffer.concat([octets, tail])));
        return true;
      },
      pause: () => undefined, resume: () => undefined,
      close: (error) => {
        this.closed = error ?? new Error('closed');
      },
    });
    this.send((w) => w.begin(OP.CODE).raw(DIGEST).u32(SOURCE.length).u32(0).raw(SOURCE), (w) => w.begin(OP.DEFINE).u32(1).u8(0).raw(DIGEST).str('run').str('').text('{"maxRetries":0}'));
  }

  send(...bodies: Body[]): void {
    this.#raylet.clientBatch(this.channel, batch(...bodies));
  }

  id(seq: number): Buffer {
    const index = Buffer.alloc(4);
    index.writeUInt32LE(seq);
    return Buffer.concat([this.channel.session.prefix, index]);
  }

  /** Runs a "function" that says these octets; resolves with the answer to its ref. */
  async run(octets: Uint8Array): Promise<{ seq: number; answer: Frame }> {
    const seq = this.#seq++;
    this.send((w) => w.begin(OP.SUBMIT).u32(0).u32(seq).u32(1).u16(0).u32(0).raw(octets));
    return { seq, answer: await this.get(seq) };
  }

  async get(seq: number): Promise<Frame> {
    const request = this.#request++;
    this.send((w) => w.begin(OP.GET).u32(0).u32(request).refs([this.id(seq)]));
    let found: Frame | undefined;
    await until('the call is answered', () => (found = this.frames.find((f) => f.op >= OP.VALUE && f.op <= OP.VALUE_FAILED && u32(f.body) === request)) !== undefined);
    return found as Frame;
  }

  put(value: Uint8Array): number {
    const seq = this.#seq++;
    this.send((w) => w.begin(OP.PUT).u32(0).u32(seq).u32(0).raw(value));
    return seq;
  }
}

const outcome = (frame: Frame): string => (frame.op === OP.VALUE_FAILED ? failureIn(frame.body, 8).code : `value ${frame.body.subarray(8).toString('hex')}`);

describe('frames of a worker that is the attacker’s', () => {
  let directory: string;
  let runDir: string;
  let pool: WorkerPool;
  let raylet: Raylet;
  let acme: Driver;
  let globex: Driver;
  const logs = new Map<string, SimLog>();
  const sounds: string[] = [];

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'bulkhead-breach-'));
    runDir = mkdtempSync('/dev/shm/bulkhead-breach-');
    chmodSync(runDir, 0o711);
    const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };
    // Deaths are what this is about: the breaker is another suite's.
    pool = await WorkerPool.start({ runDir, warm: 1, clusterName: 'breach', nodeName: `n${process.pid}`, clock, prelude: HOSTILE_PRELUDE, limits: { crashLoop: { deaths: 10_000, windowMs: 1, firstWaitMs: 1, longestWaitMs: 1 } } });
    raylet = new Raylet({
      nodeId: 'node-1', nodeNumber: 1, total: { cpuUnits: 40_000, memoryBytes: 2 ** 32, custom: undefined }, maxWorkers: 8, runDir, dataDir: directory, pool, clock,
      decisions: { version: 1, decide: (r) => ({ allow: r.resource.attributes.tenant === r.principal.tenant, rule: 'wall', policyVersion: 1 }) },
      audit: {
        forTenant: (tenant) => {
          const log = new SimLog();
          logs.set(tenant, log);
          return log;
        },
      },
      names: { register: async () => false, lookup: async () => undefined, release: async () => undefined },
      random: { bytes: (n) => randomBytes(n) },
      log: { info: () => undefined, warn: (_, message) => sounds.push(message), error: (fields, message) => sounds.push(`${message} ${JSON.stringify(fields)}`) },
      verifyCredential: () => Promise.reject(new Error('a worker renewed a credential')), defaultIsolateBytes: 64 * 2 ** 20,
    });
    for (const [i, name] of ['acme', 'globex'].entries()) raylet.setTenant(name, i + 1, {}, true);
    // A disk that is always done at once.
    const timer = setInterval(() => {
      for (const log of logs.values()) if (log.durable < log.records.length) log.commit();
    }, 2);
    timer.unref();
    acme = new Driver(raylet, 'acme', 1, 'job-aaaaaaaaaaaaaaaaaaaaaaaa');
    globex = new Driver(raylet, 'globex', 2, 'job-bbbbbbbbbbbbbbbbbbbbbbbb');
  });
  afterAll(async () => {
    await raylet?.[Symbol.asyncDispose]();
    await pool?.close();
    for (const dir of [directory, runDir]) rmSync(dir, { recursive: true, force: true });
    expect(existsSync(runDir)).toBe(false);
  });
  beforeEach(async () => {
    // Both tenants have a worker that behaves, and go on having one.
    for (const driver of [acme, globex]) expect(outcome((await driver.run(batch(result))).answer)).toBe('value 01');
  });

  const workersOf = (tenant: string): Worker[] => [...raylet.core.state.workers.values()].filter((w) => w.tenant.name === tenant && w.state === 'ALIVE');

  it('a result for a call that is not there is nobody’s; the real one stands', async () => {
    const other = (exec: number): Body => (w) => w.begin(OP.RESULT).u32(exec).u8(1).u8(0).u32(0).bytes(Buffer.from([0x02]));
    const frames = [0, 77, 0xffff_ffff].map(other);
    expect(outcome((await globex.run(batch(...frames, result))).answer)).toBe('value 01');
    // Twice for the same call: the second is nobody’s.
    expect(outcome((await globex.run(batch(result, (w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(0).u32(0).bytes(Buffer.from([0x02]))))).answer)).toBe('value 01');
  });

  it('a failure says what the tenant’s code says, under a code that exists, cut to size', async () => {
    const said = (await globex.run(batch((w) => w.begin(OP.FAILURE).raw(EXEC).str('ROOT').text('x'.repeat(30_000)).text('y'.repeat(60_000))))).answer;
    const { code, message } = failureIn(said.body, 8);
    expect([code, message.length <= 8_192]).toEqual(['TASK_FAILED', true]);
  });

  const secretless = (): string => {
    const path = join(directory, 'logs', 'globex', 'job-bbbbbbbbbbbbbbbbbbbbbbbb.jsonl');
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  };

  it('another tenant’s ids are refused to it as to everybody', async () => {
    const secret = acme.put(Buffer.from([0x66, 0x73, 0x65, 0x63, 0x72, 0x65, 0x74]));
    const theirs = acme.id(secret);
    await acme.get(secret);
    await globex.run(batch(
      (w) => w.begin(OP.GET).raw(EXEC).u32(1).refs([theirs]), (w) => w.begin(OP.WAIT).raw(EXEC).u32(2).u32(1).u32(0).refs([theirs]), (w) => w.begin(OP.CANCEL).raw(EXEC).u32(3).raw(theirs).u8(1),
      (w) => w.begin(OP.KILL).raw(EXEC).u32(4).raw(theirs).u8(0), (w) => w.begin(OP.RELEASE).refs([theirs]), result,
    ));
    await until('it was told', () => (secretless().match(/told/g) ?? []).length >= 4);
    expect(secretless().match(/told (44|48)/g)?.length).toBeGreaterThanOrEqual(4);
    expect(secretless()).toContain('DENIED');
    expect(secretless()).not.toContain('fsecret');
    expect(outcome(await acme.get(secret))).toBe('value 66736563726574');
    const tried = logs.get('acme')?.records.filter((r) => r.type === 'decision' && !r.allow && r.principal.includes('/tenant/globex/job/'));
    expect(tried?.length).toBeGreaterThan(0);
  });

  /** Says something that costs the worker its life: the call fails, the other tenant's worker is the same as before. */
  async function fatal(octets: Uint8Array): Promise<void> {
    const [mine, neighbours] = [workersOf('globex').map((w) => w.pid), workersOf('acme').map((w) => w.pid)];
    const { answer } = await globex.run(octets);
    expect(['WORKER_DIED', 'OBJECT_LOST']).toContain(outcome(answer));
    await until('the worker is dead', () => !workersOf('globex').some((w) => mine.includes(w.pid)));
    expect(workersOf('acme').map((w) => w.pid)).toEqual(neighbours);
    expect(globex.closed).toBe(undefined);
  }

  it.each<[string, () => Uint8Array]>([
    ['a frame that is cut off', () => Buffer.from([1, 2, 3])],
    ['a frame of 4 GiB', () => Buffer.from([0xff, 0xff, 0xff, 0xff, OP.RESULT])],
    ['an op that nobody knows', () => batch((w) => w.begin(0xee))],
    ['a credential', () => batch((w) => w.begin(OP.CREDENTIAL).text('x'))],
    ['what raylets say to each other', () => batch((w) => w.begin(OP.RESOLVE).raw(EXEC).u32(1).refs([]))],
    ['what raylets say to clients', () => batch((w) => w.begin(OP.WELCOME).raw(Buffer.alloc(20)).text('{}'))],
    ['the end of an actor that it is not', () => batch((w) => w.begin(OP.EXIT).raw(EXEC))],
    ['a call to itself', () => batch((w) => w.begin(OP.EXEC).u32(1).u8(0).u32(1).u32(0).u16(0))],
    ['a failure with a megabyte of text', () => batch((w) => w.begin(OP.FAILURE).raw(EXEC).str('TASK_FAILED').text('x'.repeat(2 ** 20)).text(''))],
    ['a result of a form that is none', () => batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(9).u32(0))],
    ['a result of 2^32 - 1 refs', () => batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(0).u32(0xffff_ffff))],
    ['a staged result of 2^53 octets', () => batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(1).u32(0).u32(1).u64(2 ** 52))],
    ['an index used twice', () => batch((w) => w.begin(OP.PUT).raw(EXEC).u32(1).u32(0).raw(ONE), (w) => w.begin(OP.PUT).raw(EXEC).u32(1).u32(0).raw(ONE))],
    ['a staged file that is not there', () => batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(1).u32(0).u32(99).u64(8))],
    ['a put of a staged file that is not there', () => batch((w) => w.begin(OP.PUT_STAGED).raw(EXEC).u32(9).u32(98).u64(8).u32(0))],
  ])('%s kills the worker, and nobody else’s', async (_what, octets) => fatal(octets()));

  describe('staged files', () => {
    const secretFile = (): string => join(directory, 'host-secret');
    const staged = (worker: Worker, n: number): string => join(raylet.processes.get(worker)?.stagingDir ?? '/nowhere', `${[...worker.slots.keys()][0]}-${n}`);
    const tricks: readonly [string, (path: string) => number][] = [
      ['a symbolic link to a file of the host', (path) => {
        symlinkSync(secretFile(), path);
        return lstatSync(secretFile()).size;
      }],
      ['a symbolic link with the size of the link', (path) => {
        symlinkSync(secretFile(), path);
        return lstatSync(path).size;
      }],
      ['a file with a second name', (path) => {
        writeFileSync(path, 'mine for ever');
        linkSync(path, `${path}-again`);
        return 13;
      }],
      ['a pipe', (path) => {
        execFileSync('mkfifo', [path]);
        return 0;
      }],
      ['a directory', (path) => {
        mkdirSync(path);
        return lstatSync(path).size;
      }],
      ['a file shorter than announced', (path) => {
        writeFileSync(path, 'short');
        return 5_000;
      }],
      ['a file longer than announced', (path) => {
        writeFileSync(path, 'x'.repeat(5_000));
        return 5;
      }],
    ];
    it.each(tricks)('%s is not taken', async (_what, make) => {
      writeFileSync(secretFile(), 'the secret of the host');
      const [worker] = workersOf('globex');
      const size = make(staged(worker as Worker, 7));
      const before = readdirSync(join(runDir, 'objects', 'globex'));
      await fatal(batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(1).u32(0).u32(7).u64(size)));
      expect(readdirSync(join(runDir, 'objects', 'globex'))).toEqual(before);
      expect(readFileSync(secretFile(), 'utf8')).toBe('the secret of the host');
    });

    it('an honest one is, once', async () => {
      const [worker] = workersOf('globex');
      writeFileSync(staged(worker as Worker, 8), 'x'.repeat(300_000));
      const { answer } = await globex.run(batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(1).u32(0).u32(8).u64(300_000)));
      expect(answer.op).toBe(OP.VALUE_CHUNK);
      await fatal(batch((w) => w.begin(OP.RESULT).raw(EXEC).u8(1).u8(1).u32(0).u32(8).u64(300_000)));
    });
  });

  it('a flood of log lines is cut, and is only its own', async () => {
    const line: Body = (w) => w.begin(OP.LOG).raw(EXEC).u8(1).raw(Buffer.alloc(60_000, 0x61));
    for (let i = 0; i < 3; i++) await globex.run(batch(...Array.from({ length: 60 }, () => line), result));
    expect(secretless().length).toBeLessThan(3 * 1.3 * 2 ** 20 + 200_000);
    expect(readdirSync(join(directory, 'logs'))).not.toContain('acme');
  });

  it('in the end only expected things were said', () => {
    expect(sounds.filter((s) => !/malformed frames from a worker|an effect failed/.test(s))).toEqual([]);
  });
});

describe('a real worker holds nothing that opens a door', () => {
  let cluster: TestCluster;
  let driver: RawDriver;
  let credential: string;
  let pids: number[];

  beforeAll(async () => {
    cluster = await TestCluster.start({ raylets: 1 });
    const caller = await cluster.as('acme-ana');
    ({ credential } = await RawDriver.session(caller));
    driver = await RawDriver.attach(caller, 'raylet-1', credential);
    const source = Buffer.from('var __bulkhead_exports = { nap: () => new Promise((r) => setTimeout(() => r(1), 600000)) };');
    const digest = createHash('sha256').update(source).digest();
    driver.send(batch((w) => w.begin(OP.CODE).raw(digest).u32(source.length).u32(0).raw(source), (w) => w.begin(OP.DEFINE).u32(1).u8(0).raw(digest).str('nap').str('').text('{}'), (w) => w.begin(OP.SUBMIT).u32(0).u32(1).u32(1).u16(0).u32(0).raw(Buffer.from([0x80]))));
    await until('a worker runs it', () => (pids = cluster.workerPids('raylet-1').filter((pid) => cluster.jailOf(pid).length > 0)).length > 0);
  });
  afterAll(() => cluster?.stop());

  const SECRETS = /-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{60}|eyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}/;

  it('in its environment and arguments', () => {
    for (const pid of pids) {
      const environ = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').filter((e) => e !== '');
      expect(environ.map((e) => e.split('=')[0]).filter((name) => !/^(PATH|HOME|LANG|TZ|NODE_OPTIONS|PWD|TMPDIR|UV_THREADPOOL_SIZE|UV_USE_IO_URING)$/.test(name ?? ''))).toEqual([]);
      expect(environ.join('\n') + readFileSync(`/proc/${pid}/cmdline`, 'latin1')).not.toMatch(SECRETS);
      expect(environ.join('\n') + readFileSync(`/proc/${pid}/cmdline`, 'latin1')).not.toContain(cluster.directory);
    }
  });

  it('in any file that its jail shows it', () => {
    const seen: string[] = [];
    const walk = (root: string, dir: string): void => {
      for (const entry of readdirSync(join(root, dir), { withFileTypes: true })) {
        const path = join(dir, entry.name);
        if (['/proc', '/dev', '/sys'].includes(path) || entry.isSymbolicLink()) continue;
        if (entry.isDirectory()) walk(root, path);
        else if (entry.isFile()) {
          seen.push(path);
          expect(readFileSync(join(root, path)).toString('latin1').match(SECRETS)?.[0], path).toBe(undefined);
          expect(path).not.toMatch(/key\.pem|svid\.pem|profile\.json|node\.json|token/);
        }
      }
    };
    for (const pid of pids.slice(0, 1)) walk(`/proc/${pid}/root`, '/');
    expect(seen.length).toBeGreaterThan(1);
  });

  it('in its descriptors: a channel, pipes, no files of others, no listening or connected socket of the network', () => {
    for (const pid of pids) {
      const inodes = new Set(readdirSync(`/proc/${pid}/fd`).map((fd) => {
        try {
          return /^socket:\[(\d+)\]$/.exec(execFileSync('readlink', [`/proc/${pid}/fd/${fd}`], { encoding: 'utf8' }).trim())?.[1];
        } catch {
          return undefined;
        }
      }).filter((inode) => inode !== undefined));
      // Its channel, and what it prints to.
      expect(inodes.size).toBeLessThanOrEqual(3);
      for (const table of ['tcp', 'tcp6', 'udp', 'udp6']) expect(readFileSync(`/proc/${pid}/net/${table}`, 'latin1').trim().split('\n').length, table).toBe(1);
      expect(readFileSync(`/proc/${pid}/net/dev`, 'latin1').trim().split('\n').slice(2).map((l) => l.trim().split(':')[0])).toEqual(['lo']);
    }
  });

  it('in its memory: not the session’s credential, not the node’s key, not a user’s key', async () => {
    const pem = (path: string): string => readFileSync(path, 'latin1').split('\n').filter((l) => !l.startsWith('-')).join('').slice(30, 94);
    const secrets = {
      credential: credential.split('.')[2]?.slice(0, 40) ?? '', 'credential claims': credential.split('.')[1]?.slice(0, 60) ?? '',
      'node key': pem(join(cluster.dataDir, 'raylet-1', 'identity', 'key.pem')), 'user key': pem(join(cluster.profile('acme-ana'), 'key.pem')), 'administrator’s key': pem(join(cluster.profile('admin'), 'key.pem')),
    };
    for (const [what, text] of Object.entries(secrets)) expect(text.length, what).toBeGreaterThan(30);
    const holds = (pid: number): string[] => {
      const found = new Set<string>();
      const fd = openSync(`/proc/${pid}/mem`, 'r');
      try {
        for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
          const [, from, to, mode, inode] = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)/.exec(line) ?? [];
          // Files are looked at elsewhere; what was written is in memory of nobody's file.
          if (from === undefined || to === undefined || !mode?.startsWith('rw') || inode !== '0') continue;
          const [start, end] = [Number.parseInt(from, 16), Number.parseInt(to, 16)];
          const chunk = Buffer.alloc(Math.min(end - start, 16 * 2 ** 20) + 128);
          for (let at = start; at < end; at += 16 * 2 ** 20) {
            let n = 0;
            try {
              n = readSync(fd, chunk, 0, Math.min(chunk.length, end - at), at);
            } catch {
              continue;
            }
            for (const [what, text] of Object.entries(secrets)) if (chunk.subarray(0, n).includes(text, 0, 'latin1')) found.add(what);
          }
        }
      } finally {
        closeSync(fd);
      }
      return [...found];
    };
    for (const pid of pids) expect(holds(pid)).toEqual([]);
    // The search finds what is there: the raylet holds the session's credential, to go to other nodes with.
    expect(holds(cluster.node('raylet-1').pid)).toContain('credential');
  });

  it('and tenant code finds no way to any of it', async () => {
    const sdk = await cluster.connect('acme-dev');
    const found = await sdk.get(sdk.task(() => {
      const tries: Record<string, () => unknown> = {
        process: () => (globalThis as Record<string, unknown>)['process'],
        require: () => (globalThis as Record<string, unknown>)['require'],
        fetch: () => (globalThis as Record<string, unknown>)['fetch'],
        WebSocket: () => (globalThis as Record<string, unknown>)['WebSocket'],
        WebAssembly: () => (globalThis as Record<string, unknown>)['WebAssembly'],
        SharedArrayBuffer: () => (globalThis as Record<string, unknown>)['SharedArrayBuffer'],
        constructor: () => ({}).constructor.constructor('return typeof process')() === 'undefined' ? undefined : 'a process',
        stack: () => {
          (Error as unknown as { prepareStackTrace: unknown }).prepareStackTrace = (_: unknown, sites: { getThis?: () => unknown }[]) => sites.map((s) => [undefined, globalThis].includes(s.getThis?.() as undefined));
          const stack = new Error('x').stack as unknown;
          // The functions that called this one keep what they hold to themselves.
          return Array.isArray(stack) && stack.length > 1 && stack.every((own) => own === true) ? undefined : stack;
        },
      };
      const out: string[] = [];
      for (const [name, attempt] of Object.entries(tries)) {
        try {
          const value = attempt();
          if (value !== undefined) out.push(name);
        } catch {
          // Refused, which is as good as not there.
        }
      }
      return out;
    })());
    expect(found).toEqual([]);
    const error = await failure(sdk.actor('x'));
    expect(error.code).toBe('DENIED');
    expect(cluster.faults()).toEqual([]);
  });
});
