#!/usr/bin/env node
// Starts the command line under Node 24: under this node when it is new enough, else under the binary that the npm package `node` brings.
// Plain JavaScript, so that an old node can still read it. Must never: decide anything itself.
import { createRequire } from 'node:module';
import { spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const main = new URL('../src/cli/main.ts', import.meta.url);

if (Number.parseInt(process.versions.node, 10) >= 24) {
  await import(main.href);
} else {
  let node;
  try {
    node = join(dirname(createRequire(import.meta.url).resolve('node/package.json')), 'bin', 'node');
  } catch {
    process.stderr.write(`bulkhead: it needs Node 24, this is ${process.version}, and the npm package 'node' that brings it is not installed; run npm ci (npm 11: npm ci with allowScripts for 'node'), or start it with Node 24\n`);
    process.exit(1);
  }
  const args = [fileURLToPath(main), ...process.argv.slice(2)];
  if (typeof process.execve === 'function') {
    // Replaces this process: signals, exit code and memory are the program's own.
    process.removeAllListeners('warning');
    try {
      process.execve(node, [node, ...args], process.env);
    } catch {
      // Not on this system: a child does.
    }
  }
  const child = spawn(node, args, { stdio: 'inherit' });
  for (const signal of ['SIGTERM', 'SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGUSR2']) process.on(signal, () => child.kill(signal));
  child.on('error', (error) => {
    process.stderr.write(`bulkhead: ${node} cannot be started (${error.code}); run npm rebuild node\n`);
    process.exit(1);
  });
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}
