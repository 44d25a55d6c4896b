/** How the tests run: real processes, so few at a time. Must never: hide a failure by a retry. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real clusters, jails and servers: generous for slow machines, since no test asserts a duration.
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    // Each file may start processes of its own; two at a time keep a two-core machine responsive.
    maxWorkers: 2,
    // Some tests ask for a collection of garbage: what a program no longer holds is let go on the cluster.
    execArgv: ['--no-node-snapshot'],
    reporters: ['default'],
  },
});
