/** PEM, strictly: only blocks of the wanted label, nothing but blank lines around them, canonical base64. Must never: skip text it does not know. */
import { BulkheadError } from '../base/errors.ts';

const BLOCK = /-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n([A-Za-z0-9+/=\r\n]{1,65536}?)\r?\n?-----END \1-----/g;

export type PemLabel = 'CERTIFICATE' | 'PRIVATE KEY' | 'CERTIFICATE REQUEST';

export function toPem(label: PemLabel, der: Uint8Array): string {
  const base64 = Buffer.from(der.buffer, der.byteOffset, der.length).toString('base64');
  let lines = '';
  for (let at = 0; at < base64.length; at += 64) lines += `${base64.slice(at, at + 64)}\n`;
  return `-----BEGIN ${label}-----\n${lines}-----END ${label}-----\n`;
}

/** All blocks in order; at least one, at most `limit`. `what` names the text in errors. */
export function fromPem(label: PemLabel, text: string, what: string, limit = 16): Uint8Array[] {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `${what} is not valid PEM: ${why}`);
  };
  if (text.length > 512 * 1024) refuse('larger than 512 KiB');
  const blocks: Uint8Array[] = [];
  const rest = text.replace(BLOCK, (_whole, found: string, body: string) => {
    const der = Buffer.from(body, 'base64');
    if (found !== label) refuse(`it holds a ${found} where only ${label} is allowed`);
    if (der.toString('base64') !== body.replace(/[\r\n]/g, '')) refuse('its base64 is not canonical');
    blocks.push(Uint8Array.from(der));
    return '';
  });
  if (rest.trim() !== '') refuse(`text outside the ${label} blocks`);
  if (blocks.length === 0 || blocks.length > limit) refuse(`it has ${blocks.length} ${label} blocks, and 1 to ${limit} are allowed`);
  return blocks;
}
