/** Exchanges a join token for a node SVID, on the one listener that peers without an SVID may reach. Must never: tell unknown, used and expired tokens apart, or put a token's value anywhere. */
import { SVID_TTL_MS } from '../../base/limits.ts';
import { spiffeId } from '../../base/ids.ts';
import type { AttestRequest, AttestResponseSchema } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { HeadContext } from '../ports.ts';
import { issueFirst, joinTokenDigest } from './identities.ts';

/** Far above ours (43 characters). */
const MAX_TOKEN_CHARS = 256;

export function nodeAttestationService(context: HeadContext): { attest(call: unknown, request: AttestRequest): Promise<MessageInitShape<typeof AttestResponseSchema>> } {
  const { head, pki } = context;
  return {
    async attest(_call, request) {
      const digest = joinTokenDigest(request.joinToken.slice(0, MAX_TOKEN_CHARS));
      // The token first: who has none gets no signature checked. Then the request, so that a broken one does not use the token up.
      head.joinTokens.open(digest, head.clock.nowMs());
      pki.checkCsr(request.csr);
      const nodeId = await head.commit((nowMs, out) => {
        const token = head.joinTokens.open(digest, nowMs);
        head.joinTokens.step({ type: 'redeem', digest }, nowMs, out);
        head.nodes.step({ type: 'reserve', id: token.nodeId, by: token.by, most: token.most, mayHave: token.labels }, nowMs, out);
        return token.nodeId;
      });
      const issued = await issueFirst(context, spiffeId(pki.trustDomain, { kind: 'node', node: nodeId }), request.csr, SVID_TTL_MS);
      return { svidChain: issued.certificateChainPem, trustBundle: pki.trustBundlePem(), nodeId, nodeNumber: head.nodes.get(nodeId)?.number ?? 0, trustDomain: pki.trustDomain };
    },
  };
}
