/** The cluster at a glance. Must never: tell a tenant how many others there are, or how busy they keep the nodes. */
import { spiffeId, type TrustDomain } from '../../base/ids.ts';
import type { ResourceVector } from '../../base/resources.ts';
import type { Cluster } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import type { NodeState } from '../core/nodes.ts';
import type { HeadContext } from '../ports.ts';
import { isSystem } from './access.ts';

export function shownResources(r: ResourceVector) {
  return { cpuUnits: BigInt(r.cpuUnits), memoryBytes: BigInt(r.memoryBytes), custom: Object.fromEntries(Object.entries(r.custom ?? {}).map(([name, units]) => [name, BigInt(units)])) };
}

/** `whole`: with what the node's load says about its tenants; `wallAheadMs`: of the clock by which nodes are seen. */
export function shownNode(node: NodeState, trustDomain: TrustDomain, whole: boolean, wallAheadMs: number) {
  return {
    nodeId: node.id, nodeNumber: node.number, address: node.address, spiffeId: spiffeId(trustDomain, { kind: 'node', node: node.id }), state: node.state, total: shownResources(node.total),
    policyVersion: node.policyVersion, lastSeenMs: BigInt(node.lastSeenMs === 0 ? 0 : node.lastSeenMs + wallAheadMs), insecureDev: node.insecureDev, labels: { ...node.labels },
    ...(whole ? { available: shownResources(node.available), queuedTasks: node.queuedTasks } : {}),
  };
}

export function clusterService({ head, pki, policies, gateway, insecureDev, version, startedMs }: HeadContext): Implementation<typeof Cluster> {
  const nodes = (whole: boolean) => head.nodes.all().map((n) => shownNode(n, pki.trustDomain, whole, head.clock.nowMs() - head.steady.nowMs()));
  return {
    async status({ principal }) {
      const whole = isSystem(principal);
      return {
        trustDomain: pki.trustDomain, version, nodes: nodes(whole), tenants: whole ? head.tenants.all().filter((t) => t.state === 'active').length : 1,
        policyVersion: policies.current?.version ?? 0, gateway: gateway.url(head.clock.nowMs()), insecureDev, startedMs: BigInt(startedMs),
      };
    },
    async listNodes({ principal }) {
      return { nodes: nodes(isSystem(principal)) };
    },
  };
}
