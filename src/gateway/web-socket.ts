/**
 * The server's half of a WebSocket (RFC 6455) that only sends text: the log of a job, as it grows. Must never: read more of a client than pings and its goodbye, or send to one that
 * does not read faster than it reads.
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const MAX_CONTROL_BYTES = 125;
/** A client that pings and does not read has no answers kept for it; RFC 6455 §5.5.3 lets older pings go unanswered. */
const MAX_UNREAD_BYTES = 65_536;
const TEXT = 0x81;
const CLOSE = 0x88;
const PONG = 0x8a;
/** A goodbye that is not answered. */
const CLOSE_TIMEOUT_MS = 2_000;

/** The key of a request that may become a WebSocket; undefined for every other. */
export function webSocketKey({ headers, method }: IncomingMessage): string | undefined {
  const key = headers['sec-websocket-key'];
  const upgrades = method === 'GET' && headers.upgrade?.toLowerCase() === 'websocket' && headers['sec-websocket-version'] === '13';
  return upgrades && key !== undefined && /^[A-Za-z0-9+/]{22}==$/.test(key) ? key : undefined;
}

function frame(first: number, payload: Buffer): Buffer {
  const { length } = payload;
  const head = length < 126 ? Buffer.from([first, length]) : length < 65_536 ? Buffer.from([first, 126, length >> 8, length & 0xff]) : Buffer.alloc(10);
  if (length >= 65_536) {
    head[0] = first;
    head[1] = 127;
    head.writeBigUInt64BE(BigInt(length), 2);
  }
  return Buffer.concat([head, payload]);
}

export class WebSocket {
  readonly #socket: Duplex;
  readonly #gone = new AbortController();
  #held: Buffer;
  #closing = false;

  constructor(socket: Duplex, head: Buffer, key: string) {
    this.#socket = socket;
    this.#held = Buffer.alloc(0);
    socket.write(['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade', `Sec-WebSocket-Accept: ${createHash('sha1').update(key + GUID).digest('base64')}`, 'Cache-Control: no-store', '', ''].join('\r\n'));
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', () => socket.destroy());
    socket.once('close', () => this.#gone.abort());
    socket.once('end', () => socket.end());
    if (head.length > 0) this.#receive(head);
  }

  /** Aborted when the client has gone. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Resolves when the client may be sent more. */
  async send(text: string): Promise<void> {
    if (this.#closing || this.#gone.signal.aborted) return;
    if (this.#socket.write(frame(TEXT, Buffer.from(text, 'utf8')))) return;
    await new Promise<void>((resolve) => {
      const go = (): void => {
        this.#socket.removeListener('drain', go);
        this.#gone.signal.removeEventListener('abort', go);
        resolve();
      };
      this.#socket.once('drain', go);
      this.#gone.signal.addEventListener('abort', go);
    });
  }

  /** 1000: done; 1008: no longer permitted; 1011: it failed here. */
  close(code: number): void {
    if (this.#closing) return;
    this.#closing = true;
    const payload = Buffer.alloc(2);
    payload.writeUInt16BE(code);
    this.#socket.write(frame(CLOSE, payload));
    const timer = setTimeout(() => this.#socket.destroy(), CLOSE_TIMEOUT_MS);
    timer.unref();
    this.#gone.signal.addEventListener('abort', () => clearTimeout(timer));
  }

  /** Frames of a client are masked and, here, control frames; everything else ends it. */
  #receive(chunk: Buffer): void {
    this.#held = Buffer.concat([this.#held, chunk]);
    for (;;) {
      const [first, second] = this.#held;
      if (first === undefined || second === undefined) return;
      const length = second & 0x7f;
      if ((second & 0x80) === 0 || (first & 0xf8) !== 0x88 || length > MAX_CONTROL_BYTES) return void this.#socket.destroy();
      if (this.#held.length < 6 + length) return;
      const mask = this.#held.subarray(2, 6);
      const payload = Buffer.from(this.#held.subarray(6, 6 + length).map((octet, i) => octet ^ (mask[i & 3] as number)));
      this.#held = this.#held.subarray(6 + length);
      if (first === CLOSE) {
        if (!this.#closing) this.#socket.write(frame(CLOSE, payload.subarray(0, 2)));
        return void this.#socket.end();
      }
      if (first === 0x89 && !this.#closing && this.#socket.writableLength < MAX_UNREAD_BYTES) this.#socket.write(frame(PONG, payload));
    }
  }
}
