/** `bulkhead pki …`: the authority, revocation, join tokens. */
import { writeFileSync } from 'node:fs';
import { BulkheadError } from '../../base/errors.ts';
import { parseMemory, parseUnits } from '../../base/resources.ts';
import { Identities, type PkiStatus } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { durationText, timeText, UsageError, type Terminal } from '../terminal.ts';

function shown(terminal: Terminal, s: PkiStatus): void {
  const authorities = [...s.authorities].sort((a, b) => (a.kind < b.kind ? -1 : a.kind > b.kind ? 1 : Number(b.notAfterMs - a.notAfterMs) || (a.serial < b.serial ? -1 : 1)));
  terminal.answer({ trustDomain: s.trustDomain, keyManager: s.keyManager, issued: s.issued, revoked: s.revoked, authorities });
  terminal.say(`trust domain ${s.trustDomain}, keys in ${s.keyManager}, ${s.issued} SVIDs issued, ${s.revoked} revocations`);
  terminal.table(['AUTHORITY', 'SERIAL', 'FROM', 'UNTIL', 'ACTIVE'], authorities.map((a) => [a.kind, a.serial, timeText(Number(a.notBeforeMs)), timeText(Number(a.notAfterMs)), a.active ? 'yes' : 'no']));
}

export async function showPki(terminal: Terminal, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  shown(terminal, await session.to(Identities).showPki({}, { timeoutMs: CALL_TIMEOUT_MS }));
}

export async function rotateAuthority(terminal: Terminal, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  shown(terminal, await terminal.progress('rotating the authority', session.to(Identities).rotateAuthority({}, { timeoutMs: CALL_TIMEOUT_MS })));
}

/** `whom`: a SPIFFE ID, its path (`tenant/acme/user/ana`), or a serial number in hex. */
export async function revoke(terminal: Terminal, whom: string, reason: string, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const serial = /^[0-9a-fA-F]{2,64}$/.test(whom) ? whom.toLowerCase() : '';
  const spiffeId = serial !== '' ? '' : whom.startsWith('spiffe://') ? whom : `spiffe://${session.self.trustDomain}/${whom}`;
  const { revocationVersion } = await session.to(Identities).revoke({ spiffeId, serial, reason }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer({ spiffeId, serial, revocationVersion });
  terminal.say(`revoked ${serial === '' ? spiffeId : `serial ${serial}`} (revocation ${revocationVersion}); its connections and sessions end on every node within a second`);
}

/** `cpus`, `memory`, and custom resources by name. */
function wireMost(most: Readonly<Record<string, string>>): { cpuUnits: bigint; memoryBytes: bigint; custom: Record<string, bigint> } {
  const units = (name: string, amount: string): bigint => {
    if (!/^\d+(\.\d{1,4})?$/.test(amount)) throw new UsageError(`--most: the amount of ${name} is not a number`);
    return BigInt(parseUnits(name, Number(amount)));
  };
  const custom: Record<string, bigint> = {};
  for (const [name, amount] of Object.entries(most)) if (name !== 'cpus' && name !== 'memory') custom[name] = units(name, amount);
  return { cpuUnits: units('cpus', most['cpus'] ?? '0'), memoryBytes: BigInt(parseMemory(most['memory'] ?? 0)), custom };
}

/** The token goes to a file that only its owner can read, or to stdout where it is asked for. */
export async function joinToken(terminal: Terminal, { nodeId, most, labels, out }: { readonly nodeId: string; readonly most: Readonly<Record<string, string>> | undefined; readonly labels: Readonly<Record<string, string>>; readonly out: string | undefined }, profile: string | undefined): Promise<void> {
  const bound = most === undefined ? {} : { most: wireMost(most) };
  await using session = await CallerSession.open(profile);
  const { token, expiresMs, attestationAddress, trustBundle } = await session.to(Identities).createJoinToken({ nodeId, labels, ...bound }, { timeoutMs: CALL_TIMEOUT_MS });
  const join = { token, attestationAddress, trustBundle };
  if (out !== undefined) {
    try {
      writeFileSync(out, `${JSON.stringify(join)}\n`, { mode: 0o600, flag: 'wx' });
    } catch (cause) {
      throw new BulkheadError('INVALID_ARGUMENT', `${out} cannot be written (${(cause as NodeJS.ErrnoException).code}); give a new file with --out`, { cause });
    }
  }
  terminal.answer(out === undefined ? { ...join, expiresMs } : { file: out, expiresMs });
  if (!terminal.json && out === undefined) terminal.raw(`${token}\n`);
  terminal.note(`it lets one node join, once, until ${timeText(Number(expiresMs))} (${durationText(Number(expiresMs) - Date.now())}); ${out === undefined ? '--json also prints what else a raylet needs' : `put ${out} as 'join' into the raylet's configuration`}`);
}
