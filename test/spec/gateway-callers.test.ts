/** Connections of the gateway: one for each principal, closed when its SVID ended or nobody uses it, never more than so many. */
import { afterEach, expect, it, vi } from 'vitest';
import { Callers, MAX_LEAVING, Person } from '../../src/gateway/callers.ts';
import { publicKeyFromCsr } from '../../src/pki/pki.ts';
import type { RpcChannel } from '../../src/rpc/rpc.ts';
import { id, testCluster, trustDomain } from './pki-cluster.ts';

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

/** A gateway whose head issues SVIDs of a minute; the tenant's user is the token's name. */
async function gateway() {
  vi.useFakeTimers({ toFake: ['Date'] });
  const closed: string[] = [];
  const cluster = await testCluster();
  // Each is closed once at most: nothing is given away twice.
  const close = vi.spyOn(Person.prototype, 'close').mockImplementation(async function close(this: Person) {
    closed.push(this.spiffeId);
    await this.head.close();
  });
  const head = {
    unary: async (_method: unknown, { token, csr }: { token: string; csr: Uint8Array }) => {
      const spiffeId = id(`tenant/acme/user/${token}`);
      if (csr.length === 0) return { spiffeId, tenant: 'acme', svidChain: '', trustBundle: '', expiresMs: 0n };
      const issued = await cluster.ca.issueX509Svid({ spiffeId, publicKeySpkiDer: publicKeyFromCsr(csr), ttlMs: 60_000 });
      return { spiffeId, tenant: 'acme', svidChain: issued.certificateChainPem, trustBundle: cluster.ca.trustBundlePem(), expiresMs: 0n };
    },
  } as unknown as RpcChannel;
  const callers = new Callers({ trustDomain, headAddress: '127.0.0.1:1', head });
  const minutes = (n: number): void => {
    vi.setSystemTime(Date.now() + n * 60_000);
    cluster.clock.set(Date.now());
  };
  return { callers, close, closed, minutes, admit: async (token: string) => (await callers.admit(token, 'version', '', '')).person };
}

it('a principal whose SVID ended has a new connection, and the old one is closed', async () => {
  const { callers, closed, minutes, admit } = await gateway();
  const first = await admit('ana');
  expect(await admit('ana')).toBe(first);
  minutes(5);
  const second = await admit('ana');
  expect([second === first, closed, callers.open]).toEqual([false, [first.spiffeId], { people: 1, leaving: 0 }]);
  await callers[Symbol.asyncDispose]();
  expect(closed).toEqual([first.spiffeId, second.spiffeId]);
});

it('what is in use stays until it is not, so many at most, and none is left when the gateway ends', async () => {
  const { callers, closed, minutes, admit } = await gateway();
  const first = await admit('ana');
  const use = first.use();
  minutes(5);
  const second = await admit('ana');
  expect([closed, callers.open]).toEqual([[], { people: 1, leaving: 1 }]);
  use[Symbol.dispose]();
  minutes(5);
  const held = [second.use()];
  const third = await admit('ana');
  expect([closed, callers.open]).toEqual([[first.spiffeId], { people: 1, leaving: 1 }]);
  for (let n = 0, last = third; n < MAX_LEAVING + 5; n++) {
    held.push(last.use());
    minutes(5);
    last = await admit('ana');
  }
  expect(callers.open).toEqual({ people: 1, leaving: MAX_LEAVING });
  await callers[Symbol.asyncDispose]();
  expect(closed).toHaveLength(MAX_LEAVING + 8);
});
