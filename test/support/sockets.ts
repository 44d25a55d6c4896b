/** Which sockets a process listens on, read from /proc, in whatever network namespace it is; and a peer that speaks to one and tells what came back. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';

export interface ListeningSocket {
  readonly pid: number;
  readonly kind: 'tcp' | 'tcp6' | 'udp' | 'udp6' | 'unix';
  /** `host:port`, or the path of a Unix socket. */
  readonly address: string;
  readonly port: number;
}

const TCP_LISTEN = '0A';
const UNIX_ACCEPTS = 0x1_0000;

function address(hex: string): { host: string; port: number } {
  const [ip = '', port = '0'] = hex.split(':');
  // Each group of four octets is in the machine's order.
  const octets = (ip.match(/.{8}/g) ?? []).flatMap((group) => (group.match(/../g) ?? []).reverse().map((b) => Number.parseInt(b, 16)));
  return { host: octets.length === 4 ? octets.join('.') : octets.map((b) => b.toString(16).padStart(2, '0')).join(''), port: Number.parseInt(port, 16) };
}

export function listeningSockets(pids: readonly number[]): ListeningSocket[] {
  const found: ListeningSocket[] = [];
  for (const pid of pids) {
    const inodes = new Set<string>();
    try {
      for (const fd of readdirSync(`/proc/${pid}/fd`)) {
        const inode = /^socket:\[(\d+)\]$/.exec(linkOf(`/proc/${pid}/fd/${fd}`))?.[1];
        if (inode !== undefined) inodes.add(inode);
      }
    } catch {
      continue;
    }
    for (const kind of ['tcp', 'tcp6', 'udp', 'udp6'] as const) {
      for (const line of linesOf(`/proc/${pid}/net/${kind}`)) {
        const [, local = '', , state = '', , , , , , inode = ''] = line.trim().split(/\s+/);
        if (!inodes.has(inode) || (kind.startsWith('tcp') && state !== TCP_LISTEN)) continue;
        const { host, port } = address(local);
        found.push({ pid, kind, address: `${host}:${port}`, port });
      }
    }
    for (const line of linesOf(`/proc/${pid}/net/unix`)) {
      const [, , , flags = '', , , inode = '', path = ''] = line.trim().split(/\s+/);
      if (inodes.has(inode) && (Number.parseInt(flags, 16) & UNIX_ACCEPTS) !== 0) found.push({ pid, kind: 'unix', address: path, port: 0 });
    }
  }
  return found;
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

function linesOf(path: string): string[] {
  try {
    return readFileSync(path, 'latin1').split('\n').slice(1).filter((line) => line !== '');
  } catch {
    return [];
  }
}

/** Sends octets over plain TCP, or inside TLS, and returns all that comes back until the server closes or `waitMs` is over. */
export function speak(port: number, payload: string | Uint8Array, options: { readonly tls?: tls.ConnectionOptions; readonly waitMs?: number } = {}): Promise<Buffer> {
  return new Promise((resolve) => {
    const parts: Buffer[] = [];
    const socket: net.Socket = options.tls === undefined ? net.connect({ port, host: '127.0.0.1' }) : tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, checkServerIdentity: () => undefined, ...options.tls });
    const end = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(Buffer.concat(parts));
    };
    const timer = setTimeout(end, options.waitMs ?? 2_000);
    socket.once(options.tls === undefined ? 'connect' : 'secureConnect', () => socket.write(payload));
    socket.on('data', (chunk: Buffer) => parts.push(chunk));
    socket.on('error', () => undefined);
    socket.on('close', end);
  });
}
