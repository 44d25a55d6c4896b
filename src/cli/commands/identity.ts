/** `bulkhead identity issue`, `bulkhead whoami`. The private key is made here and never leaves this machine. */
import { generateKeyPairSync } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { BulkheadError } from '../../base/errors.ts';
import { createCsr, svidMaterial, writeProfile } from '../../pki/pki.ts';
import { Identities, Sessions } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { durationText, timeText, type Terminal } from '../terminal.ts';

export interface IssueOptions {
  /** `component`: of the cluster, beside its own processes. */
  readonly kind: 'user' | 'service' | 'component';
  readonly name: string;
  readonly tenant: string | undefined;
  readonly roles: readonly string[];
  readonly out: string;
  readonly force: boolean;
}

export async function issueIdentity(terminal: Terminal, { kind, name, tenant: given, roles, out, force }: IssueOptions, profile: string | undefined): Promise<void> {
  if (!force && existsSync(out) && readdirSync(out).length > 0) throw new BulkheadError('INVALID_ARGUMENT', `${out} is not empty; choose a new directory with --out, or replace the profile in it with --force`);
  await using session = await CallerSession.open(profile);
  const tenant = kind === 'component' ? '' : (given ?? session.tenant);
  if (tenant === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'whose identity? give --tenant NAME (bulkhead tenant list shows them)');
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const issued = await terminal.progress('issuing the identity', session.to(Identities).issue({ tenant, kind, name, roles: [...roles], csr: createCsr(privateKey) }, { timeoutMs: CALL_TIMEOUT_MS }));
  const svid = svidMaterial({ trustDomain: session.self.trustDomain, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem: issued.svidChain, trustBundlePem: issued.trustBundle });
  await writeProfile(out, { address: session.head.address, gateway: session.head.gateway, svid });
  terminal.answer({ spiffeId: issued.spiffeId, tenant, roles, profile: out, notAfterMs: issued.notAfterMs });
  terminal.say(`${issued.spiffeId}\nprofile in ${out}, valid until ${timeText(Number(issued.notAfterMs))} (renewed while it is used)\nuse it with --profile ${out}, or BULKHEAD_PROFILE=${out}`);
  if (roles.length === 0 && kind !== 'component') terminal.warn('no role was given: until policy binds one to it, this identity may only ask who it is (--role developer, viewer, auditor or tenant-admin)');
}

export async function whoAmI(terminal: Terminal, token: boolean, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  if (token) {
    const opened = await session.to(Sessions).open({ jobName: 'bulkhead whoami --token' }, { timeoutMs: CALL_TIMEOUT_MS });
    terminal.answer({ token: opened.credential, expiresMs: opened.expiresMs, jobId: opened.jobId });
    if (!terminal.json) terminal.raw(`${opened.credential}\n`);
    terminal.note(`a JWT-SVID of this identity, for raylets and HTTP clients (Authorization: Bearer …), valid until ${timeText(Number(opened.expiresMs))}; whoever has it can act as you until then`);
    return;
  }
  const me = await session.to(Identities).whoAmI({}, { timeoutMs: CALL_TIMEOUT_MS });
  const roles = [...me.roles].sort();
  const expiresMs = Number(me.svidNotAfterMs);
  terminal.answer({ spiffeId: me.spiffeId, kind: me.kind, tenant: me.tenant, roles, notAfterMs: expiresMs, serial: me.serial, profile: session.head.profileDirectory, address: session.head.address });
  terminal.say([
    `SPIFFE ID  ${me.spiffeId}`, `tenant     ${me.tenant === '' ? 'none (the cluster itself)' : me.tenant}`, `roles      ${roles.length === 0 ? 'none' : roles.join(', ')}`,
    `expires    ${timeText(expiresMs)} (in ${durationText(expiresMs - Date.now())}; renewed while it is used)`, `profile    ${session.head.profileDirectory}, head ${session.head.address}`,
  ].join('\n'));
}
