/** The command line's process: arguments in, exit code out. Each command's code is loaded only when it runs. */
import { enableCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';

// Beside the code and writable by whoever can write the code: the default, a shared temporary directory, would run what another user put there.
enableCompileCache(fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url)));
const { runCommandLine } = await import('./program.ts');
// Not process.exit: what was written to a pipe must leave first.
process.exitCode = await runCommandLine(process.argv.slice(2));
