/** HTTPS requests to a cluster's gateway, as Ray's client makes them, and its log over a WebSocket. Must never: skip the check of the gateway's certificate. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { request as httpsRequest } from 'node:https';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { crc32 } from 'node:zlib';
import { Tokens } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import type { TestCluster } from './cluster.ts';

const TIMEOUT_MS = 30_000;

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly text: string;
}

export function caFile(cluster: TestCluster, profile: string): string {
  return join(cluster.profile(profile), 'bundle.pem');
}

export async function tokenOf(cluster: TestCluster, profile: string): Promise<string> {
  return (await (await cluster.as(profile)).to(Tokens).create({ name: 'test', ttlSeconds: 0 })).token;
}

export function ask(cluster: TestCluster, method: string, path: string, options: { readonly token?: string; readonly body?: string | Uint8Array; readonly json?: unknown; readonly headers?: Readonly<Record<string, string>> } = {}): Promise<Answer> {
  const { hostname, port } = new URL(cluster.local.gatewayUrl ?? '');
  const body = options.json === undefined ? options.body : JSON.stringify(options.json);
  const headers = {
    ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }), ...(options.json === undefined ? {} : { 'content-type': 'application/json' }),
    ...(body === undefined ? (method === 'POST' ? { 'content-length': '0' } : {}) : { 'content-length': String(Buffer.byteLength(body)) }), ...options.headers,
  };
  return new Promise((resolve, reject) => {
    const request = httpsRequest({ host: '127.0.0.1', servername: hostname, port, method, path, headers: { host: `${hostname}:${port}`, ...headers }, ca: readFileSync(caFile(cluster, 'acme-ana')), agent: false, timeout: TIMEOUT_MS }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk)).on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text })).on('error', reject);
    });
    request.on('error', reject).on('timeout', () => request.destroy(new Error('no answer')));
    request.end(body);
  });
}

/** All that is sent until the other side closes, and its code; or the status line of a refusal. */
export function tail(cluster: TestCluster, path: string, token: string | undefined, more: readonly string[] = []): Promise<{ readonly text: string; readonly code: number; readonly refused: string }> {
  const { hostname, port } = new URL(cluster.local.gatewayUrl ?? '');
  return new Promise((resolve, reject) => {
    const socket = connectTls({ host: '127.0.0.1', servername: hostname, port: Number(port), ca: readFileSync(caFile(cluster, 'acme-ana')), ALPNProtocols: ['http/1.1'] });
    let held = Buffer.alloc(0);
    let upgraded = false;
    let text = '';
    let code = 0;
    let refused = '';
    socket.setTimeout(120_000, () => socket.destroy(new Error('nothing came')));
    socket.on('error', reject).on('close', () => resolve({ text, code, refused }));
    socket.on('data', (chunk: Buffer) => {
      held = Buffer.concat([held, chunk]);
      if (!upgraded) {
        const end = held.indexOf('\r\n\r\n');
        if (end < 0) return;
        const status = held.subarray(0, held.indexOf('\r\n')).toString('latin1');
        if (!status.includes('101')) {
          refused = status;
          return void socket.end();
        }
        upgraded = true;
        held = held.subarray(end + 4);
      }
      for (;;) {
        const [first, second] = held;
        if (first === undefined || second === undefined) return;
        const head = second < 126 ? 2 : second === 126 ? 4 : 10;
        if (held.length < head) return;
        const length = second < 126 ? second : second === 126 ? held.readUInt16BE(2) : Number(held.readBigUInt64BE(2));
        if (held.length < head + length) return;
        const payload = held.subarray(head, head + length);
        held = held.subarray(head + length);
        if (first === 0x88) {
          code = payload.readUInt16BE(0);
          // Masked, with a mask of zeros.
          socket.end(Buffer.concat([Buffer.from([0x88, 0x82, 0, 0, 0, 0]), payload.subarray(0, 2)]));
        } else text += payload.toString('utf8');
      }
    });
    socket.write([`GET ${path} HTTP/1.1`, `Host: ${hostname}:${port}`, 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13', `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}`, ...(token === undefined ? [] : [`Authorization: Bearer ${token}`]), ...more, '', ''].join('\r\n'));
  });
}

/** A stored archive of one entry for each file, as hostile as its fields are made. */
export function zipOf(files: readonly { readonly name: string; readonly bytes?: Uint8Array; readonly mode?: number; readonly unpacked?: number; readonly localName?: string; readonly at?: number; readonly method?: number; readonly flags?: number }[], end: { readonly entries?: number; readonly comment?: string } = {}): Buffer {
  const locals: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const { name, bytes = new Uint8Array(0), mode = 0o100644, unpacked = bytes.length, localName = name, at: from, method = 0, flags = 0 } of files) {
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(method, 8);
    local.writeUInt32LE(bytes.length, 18);
    local.writeUInt32LE(unpacked, 22);
    local.writeUInt16LE(Buffer.byteLength(localName), 26);
    const central = Buffer.alloc(46);
    central.writeUInt32LE(0x02014b50, 0);
    central.writeUInt16LE(0x0314, 4);
    central.writeUInt16LE(flags, 8);
    central.writeUInt16LE(method, 10);
    central.writeUInt32LE(crc32(bytes), 16);
    central.writeUInt32LE(bytes.length, 20);
    central.writeUInt32LE(unpacked, 24);
    central.writeUInt16LE(Buffer.byteLength(name), 28);
    central.writeUInt32LE(mode * 0x10000, 38);
    central.writeUInt32LE(from ?? at, 42);
    local.writeUInt32LE(crc32(bytes), 14);
    locals.push(local, Buffer.from(localName), Buffer.from(bytes));
    directory.push(central, Buffer.from(name));
    at += 30 + Buffer.byteLength(localName) + bytes.length;
  }
  const tables = Buffer.concat(directory);
  const last = Buffer.alloc(22);
  last.writeUInt32LE(0x06054b50, 0);
  last.writeUInt16LE(end.entries ?? files.length, 8);
  last.writeUInt16LE(end.entries ?? files.length, 10);
  last.writeUInt32LE(tables.length, 12);
  last.writeUInt32LE(at, 16);
  last.writeUInt16LE((end.comment ?? '').length, 20);
  return Buffer.concat([...locals, tables, last, Buffer.from(end.comment ?? '')]);
}
