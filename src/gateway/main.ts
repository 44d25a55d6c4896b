/** The gateway process: reads its configuration from stdin and runs until it is told to stop. */
import { enableCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';

enableCompileCache(fileURLToPath(new URL('../../node_modules/.cache/bulkhead', import.meta.url)));
const { runGateway } = await import('./gateway-process.ts');
await runGateway();
