/** What the bench has started and must end, also when it is interrupted: every process and directory has an entry here while it lives. */
const live = new Set<() => Promise<void>>();
let interrupted = false;

/** Remembers how to end something; the returned function forgets it again. */
export function owned(stop: () => Promise<void>): () => void {
  live.add(stop);
  return () => void live.delete(stop);
}

/** After SIGINT or SIGTERM: everything ends, newest first, then the process. */
export function endOnSignals(): void {
  for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143]] as const) {
    process.on(signal, () => {
      if (interrupted) return;
      interrupted = true;
      void (async () => {
        for (const stop of [...live].reverse()) await stop().catch(() => undefined);
        process.exit(code);
      })();
    });
  }
}
