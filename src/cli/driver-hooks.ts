/** Loaded before a driver program: where its own directory has no package `bulkhead`, the one that runs it is used. */
import { registerHooks } from 'node:module';

const OURS: ReadonlyMap<string, string> = new Map([
  ['bulkhead', new URL('../sdk/sdk.ts', import.meta.url).href],
  ['bulkhead/runtime', new URL('../sdk/runtime.ts', import.meta.url).href],
]);

registerHooks({
  resolve(specifier, context, next) {
    const ours = OURS.get(specifier);
    if (ours === undefined) return next(specifier, context);
    try {
      return next(specifier, context);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
      return { url: ours, shortCircuit: true };
    }
  },
});
