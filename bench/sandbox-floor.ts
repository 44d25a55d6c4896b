/**
 * `node bench/sandbox-floor.ts`: how fast one message can go into a sandbox and back at all. A Python program that only echoes what comes, started with the
 * very description of a Python worker, beside the same program without gVisor: what is between this and a lone call is ours, what is below it is not.
 * Must never: take part in the rows, or leave a process behind.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { findRunsc } from '../src/sandbox/gvisor/runsc.ts';
import { pythonEnvironment } from '../src/sandbox/gvisor/python-environment.ts';
import { startSandbox } from '../src/sandbox/gvisor/sandbox.ts';

const ECHO = 'import socket\nof = socket.socket(fileno=3)\nhere = memoryview(bytearray(65536))\nwhile size := of.recv_into(here): of.sendall(here[:size])';
const MESSAGES = 2_000;
/** As far apart as the lone calls of a client that does something else in between. */
const GAP_MS = 1;
/** As root the sandbox gets a user of the host of its own, as a worker does. */
const HOST_UID = process.getuid?.() === 0 ? 2_000_000_001 : undefined;
const VENV = fileURLToPath(new URL('../scripts/python-venv.ts', import.meta.url));

/** Microseconds, sorted. */
async function roundTrips(channel: Socket, gapMs: number): Promise<number[]> {
  const took: number[] = [];
  const message = Buffer.alloc(64);
  for (let i = 0; i < MESSAGES; i++) {
    if (gapMs > 0) await sleep(gapMs);
    const begun = performance.now();
    const answered = new Promise((resolve) => channel.once('data', resolve));
    channel.write(message);
    await answered;
    took.push((performance.now() - begun) * 1_000);
  }
  return took.sort((a, b) => a - b);
}

async function show(name: string, channel: Socket): Promise<void> {
  await roundTrips(channel, 0);
  for (const [how, gapMs] of [['one after the other', 0], [`${GAP_MS} ms apart`, GAP_MS]] as const) {
    const took = await roundTrips(channel, gapMs);
    const at = (share: number): string => (took[Math.floor(share * took.length)] ?? Number.NaN).toFixed(0);
    process.stdout.write(`${name}, ${how}: median ${at(0.5)} µs, fastest tenth ${at(0.1)} µs, slowest tenth ${at(0.9)} µs\n`);
  }
}

const interpreter = execFileSync(process.execPath, [VENV, 'numpy'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
const directory = mkdtempSync(join(tmpdir(), 'bulkhead-floor-'));
chmodSync(directory, 0o711);
const ended = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode === null && child.signalCode === null) await new Promise((resolve) => child.once('exit', resolve));
};
try {
  const bare = spawn(interpreter, ['-I', '-c', ECHO], { stdio: ['ignore', 'inherit', 'inherit', 'pipe'] });
  const bareChannel = bare.stdio[3] as Socket;
  await show('a process', bareChannel);
  bareChannel.end();
  await ended(bare);

  const environment = { ...pythonEnvironment(interpreter), args: ['-I', '-c', ECHO] };
  const binds = ['objects', 'code', 'staging'].map((name) => ({ source: join(directory, name), target: `/${name}` }));
  for (const { source } of binds) mkdirSync(source);
  const sandbox = startSandbox({
    runsc: findRunsc().path, unshare: 'unshare', setpriv: 'setpriv', prlimit: 'prlimit', directory, name: 'floor', environment, hostUid: HOST_UID, readOnly: binds.slice(0, 2), readWrite: binds.slice(2),
  });
  sandbox.stderr.on('data', (text: Buffer) => void process.stderr.write(text));
  sandbox.release();
  await show('gVisor', sandbox.channel);
  sandbox.channel.end();
  await Promise.race([ended(sandbox.monitor), sleep(5_000)]);
  sandbox.monitor.kill('SIGKILL');
  await ended(sandbox.monitor);
} finally {
  rmSync(directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}
process.exit();
