/** The raylet process: reads its configuration from stdin and runs until it is told to stop. */
import { enableCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';

enableCompileCache(fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url)));
const { runRaylet } = await import('./raylet-process.ts');
await runRaylet();
