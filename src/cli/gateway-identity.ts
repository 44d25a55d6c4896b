/** The identity of a gateway on this machine, asked for with the administrator's profile; kept and renewed by the gateway itself. The key is made here and never leaves the machine. */
import { generateKeyPairSync } from 'node:crypto';
import { createCsr, readProfile, svidMaterial, writeProfile } from '../pki/pki.ts';
import { Identities } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client } from '../rpc/rpc.ts';
import { openHead } from '../sdk/head-client.ts';

const ISSUE_TIMEOUT_MS = 15_000;
/** One that ends sooner is made anew. */
const LAST_DAY_MS = 24 * 3_600_000;
const COMPONENT = 'gateway';

/** Makes the profile where there is none of this cluster that lasts. */
export async function ensureGatewayIdentity(adminProfile: string, directory: string): Promise<void> {
  await using head = await openHead({ profile: adminProfile });
  const known = await readProfile(directory).catch(() => undefined);
  if (known !== undefined && known.svid.trustDomain === head.identity.trustDomain && known.svid.notAfterMs > Date.now() + LAST_DAY_MS) return;
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const issued = await client(Identities, head.channel).issue({ tenant: '', kind: 'component', name: COMPONENT, roles: [], csr: createCsr(privateKey) }, { timeoutMs: ISSUE_TIMEOUT_MS });
  const svid = svidMaterial({ trustDomain: head.identity.trustDomain, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem: issued.svidChain, trustBundlePem: issued.trustBundle });
  await writeProfile(directory, { address: head.address, gateway: undefined, svid });
}
