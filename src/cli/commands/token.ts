/** `bulkhead token …`: bearer tokens for HTTP clients of the gateway. Must never: write a token where others can read it, or anywhere but where it was asked for. */
import { writeFileSync } from 'node:fs';
import { Tokens } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { timeText, type Terminal, UsageError } from '../terminal.ts';

export async function createToken(terminal: Terminal, options: { readonly out: string | undefined; readonly name: string; readonly ttlSeconds: number }, profile: string | undefined): Promise<void> {
  if (options.out === undefined && process.stdout.isTTY) throw new UsageError('a token on a terminal stays in its history: give --out FILE (made readable for you alone), or pipe it to whoever needs it');
  await using session = await CallerSession.open(profile);
  const { token, info } = await session.to(Tokens).create({ name: options.name, ttlSeconds: options.ttlSeconds }, { timeoutMs: CALL_TIMEOUT_MS });
  if (options.out === undefined) return void process.stdout.write(`${token}\n`);
  writeFileSync(options.out, `${token}\n`, { mode: 0o600, flag: 'wx' });
  terminal.answer({ ...info, out: options.out });
  terminal.say(`token ${info?.tokenId} is in ${options.out}, in force until ${timeText(Number(info?.expiresMs))}`);
}

export async function listTokens(terminal: Terminal, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const { tokens } = await session.to(Tokens).list({}, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer({ tokens });
  terminal.table(['TOKEN', 'NAME', 'MADE', 'UNTIL'], tokens.map((t) => [t.tokenId, t.name, timeText(Number(t.createdMs)), timeText(Number(t.expiresMs))]));
}

export async function revokeToken(terminal: Terminal, tokenId: string, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  await session.to(Tokens).revoke({ tokenId }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer({ revoked: tokenId });
  terminal.say(`token ${tokenId} is revoked`);
}
