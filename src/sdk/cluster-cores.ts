/** Which client core is behind a cluster, for what this project itself submits beside a program's calls. Must never: be reachable from the package's exports. */
import type { ClientCore } from './client-core.ts';

export const CLUSTER_CORES = new WeakMap<object, ClientCore>();
