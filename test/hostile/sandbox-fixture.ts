/** A prelude for tests of the jail and the bridge: it runs the text of each batch as code in the context, which the real one never does. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { WorkerPool, type WorkerPoolOptions } from '../../src/sandbox/worker-pool.ts';
import type { WorkerProcess } from '../../src/sandbox/worker-process.ts';

/** `run:` evaluates; the answer is `ok:<value>` or `error:<name>: <message>`. The guest gets `emit` itself, to attack the host with. */
export const TEST_PRELUDE = `(function () {
  'use strict';
  const { fromCharCode } = String;
  const utf8 = (text) => { const bytes = new Uint8Array(text.length); for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i); return bytes.buffer; };
  const text = (buffer) => { const bytes = new Uint8Array(buffer); let out = ''; for (let i = 0; i < bytes.length; i++) out += fromCharCode(bytes[i]); return out; };
  const codes = new Map(); const attachments = new Map(); const timers = new Map();
  return function install(emit, config) {
    globalThis.__bulkhead_runtime = { emit, config, codes, attachments, timers, utf8, say: (value) => emit(0, 0, utf8('say:' + value)) };
    return {
      deliver: (batch) => {
        try { const value = (0, eval)(text(batch)); return utf8('ok:' + String(value)); } catch (error) { let shown = 'thrown'; try { shown = error.name + ': ' + error.message; } catch {} return utf8('error:' + shown); }
      },
      attach: (n, bytes) => { attachments.set(n, bytes); },
      fireTimer: (id) => { const f = timers.get(id); if (f) f(); },
      load: (n, factory) => { codes.set(n, factory); },
    };
  };
})()`;

export const SESSION_PREFIX = new Uint8Array(20);
let counter = 0;

export async function startTestPool(options: Partial<WorkerPoolOptions> = {}): Promise<WorkerPool & { readonly testRunDir: string }> {
  const runDir = mkdtempSync('/dev/shm/bulkhead-test-');
  chmodSync(runDir, 0o711);
  const nodeName = `n${process.pid}-${counter++}`;
  const pool = await WorkerPool.start({ runDir, warm: 0, clusterName: 'test', nodeName, clock: { nowMs: Date.now, monotonicMs: () => performance.now() }, prelude: TEST_PRELUDE, ...options });
  const close = pool.close.bind(pool);
  return Object.assign(pool, { testRunDir: runDir, close: async () => {
      await close();
      rmSync(runDir, { recursive: true, force: true });
      const groups = execFileSync('find', ['/sys/fs/cgroup', '-name', nodeName], { encoding: 'utf8' });
      if (groups !== '') throw new Error(`control groups are left: ${groups}`);
      if (readFileSync('/proc/self/mountinfo', 'latin1').includes(runDir)) throw new Error('mounts are left');
      for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
        let group = '';
        try {
          group = readFileSync(`/proc/${pid}/cgroup`, 'latin1');
        } catch {
          continue;
        }
        if (group.includes(`/test/${nodeName}/`)) throw new Error(`process ${pid} is left`);
      }
    },
  });
}

/** One slot's answers in order, with a wait for the next. */
export class SlotProbe {
  readonly worker: WorkerProcess;
  readonly slot: number;
  readonly #answers: string[] = [];
  #waiting: ((answer: string) => void) | undefined;

  constructor(worker: WorkerProcess, slot: number) {
    this.worker = worker;
    this.slot = slot;
  }

  take(answer: string): void {
    if (this.#waiting !== undefined) {
      const waiting = this.#waiting;
      this.#waiting = undefined;
      waiting(answer);
    } else this.#answers.push(answer);
  }

  next(timeoutMs = 15_000): Promise<string> {
    const ready = this.#answers.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`slot ${this.slot} did not answer`)), timeoutMs);
      this.#waiting = (answer) => {
        clearTimeout(timer);
        resolve(answer);
      };
    });
  }

  send(code: string): void {
    this.worker.send(this.slot, Buffer.from(code, 'latin1'));
  }

  run(code: string): Promise<string> {
    this.send(code);
    return this.next();
  }
}

/** Opens slots 1…n and routes what the worker says: `ok:…`, `failed:<CODE>:…`, `code-failed:…`, and `exit:<REASON>:…` to all. */
export function openProbes(worker: WorkerProcess, count: number, memoryMiB = 64): SlotProbe[] {
  const probes = Array.from({ length: count }, (_, i) => new SlotProbe(worker, i + 1));
  worker.onBatch = (slot, batch) => probes[slot - 1]?.take(Buffer.from(batch).toString('latin1'));
  worker.onSlotFailed = (slot, code, message) => probes[slot - 1]?.take(`failed:${code}:${message}`);
  worker.onCodeFailed = (slot, codeNumber, message) => probes[slot - 1]?.take(`code-failed:${codeNumber}:${message}`);
  worker.onExit = (exit) => probes.forEach((probe) => probe.take(`exit:${exit.reason}:${exit.detail}`));
  for (const probe of probes) worker.openSlot(probe.slot, { memoryMiB, sessionPrefix: SESSION_PREFIX });
  return probes;
}
