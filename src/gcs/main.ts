/**
 * The head process: composes store, tables, pki, authz, audit and rpc, and runs until it is told to stop. Its configuration is one JSON
 * document on stdin (or on `--config-fd N`), since arguments and environment are readable by others; when ready it prints one JSON line.
 * Must never: start with a part missing, print a secret, or leave anything behind but its data directory.
 */
import { enableCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';

// Beside the code and writable by whoever can write the code: the default, a shared temporary directory, would run what another user put there.
enableCompileCache(fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url)));
// The head is no hot path: a young generation that stays small saves 20 MB.
setFlagsFromString('--semi-space-growth-factor=1');
const { runHead } = await import('./head-process.ts');
await runHead(process.argv.slice(2));
