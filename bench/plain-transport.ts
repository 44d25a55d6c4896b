/**
 * The driver's way to a `control-raylet.ts`: HTTP/2 with or without mutual TLS, batches behind their length. The same code on both sides of the
 * comparison, so that the difference is TLS alone. For the bench only: the product's transport is src/sdk/grpc-transport.ts.
 */
import { once } from 'node:events';
import { connect } from 'node:http2';
import { readProfile } from '../src/pki/pki.ts';
import type { Transport } from '../src/sdk/sdk.ts';

const PREFIX_BYTES = 4;
const WINDOW_BYTES = 8 * 2 ** 20;

/** Takes octets as they come and gives whole batches. */
export class BatchFraming {
  readonly #batch: (batch: Uint8Array) => void;
  #parts: Buffer[] = [];
  #length = 0;

  constructor(batch: (batch: Uint8Array) => void) {
    this.#batch = batch;
  }

  /** With `tailBytes` the batch goes on after what is returned. */
  static frame(batch: Uint8Array, tailBytes = 0): Buffer {
    const framed = Buffer.allocUnsafe(PREFIX_BYTES + batch.length);
    framed.writeUInt32LE(batch.length + tailBytes);
    framed.set(batch, PREFIX_BYTES);
    return framed;
  }

  push(chunk: Buffer): void {
    this.#parts.push(chunk);
    this.#length += chunk.length;
    // Joined only when a batch is whole: a large one comes in many chunks.
    while (this.#length >= PREFIX_BYTES) {
      let first = this.#parts[0] as Buffer;
      if (first.length < PREFIX_BYTES) this.#parts = [(first = Buffer.concat(this.#parts))];
      const needed = PREFIX_BYTES + first.readUInt32LE(0);
      if (this.#length < needed) return;
      const all = this.#parts.length === 1 ? first : Buffer.concat(this.#parts);
      const rest = all.subarray(needed);
      this.#parts = rest.length === 0 ? [] : [rest];
      this.#length = rest.length;
      this.#batch(all.subarray(PREFIX_BYTES, needed));
    }
  }
}

/** `target`: `http://host:port` or `https://host:port`; with https, the profile's identity on both ends. */
export function plainTransport(target: string, profile: string): Transport {
  return {
    async open(handlers) {
      const { svid } = await readProfile(profile);
      const session = connect(target, {
        settings: { initialWindowSize: WINDOW_BYTES },
        // The SPIFFE ID is not what is measured here; the chain is checked all the same.
        ...(target.startsWith('https') ? { key: svid.privateKeyPem, cert: svid.certificateChainPem, ca: svid.trustBundlePem, minVersion: 'TLSv1.3', checkServerIdentity: () => undefined } : {}),
      });
      session.once('connect', () => session.setLocalWindowSize(WINDOW_BYTES));
      session.on('error', (error) => handlers.closed(error));
      const stream = session.request({ ':method': 'POST', ':path': '/' }, { endStream: false });
      const framing = new BatchFraming((batch) => handlers.batch(batch));
      stream.on('data', (chunk: Buffer) => framing.push(chunk));
      stream.on('error', (error) => handlers.closed(error));
      const ended = new Promise<void>((resolve) => stream.once('close', resolve));
      let waiting: Promise<void> | undefined;
      return {
        send(batch, tail) {
          let flowing = stream.write(BatchFraming.frame(batch, tail?.length ?? 0));
          if (tail !== undefined) flowing = stream.write(tail);
          return flowing ? undefined : (waiting ??= Promise.race([once(stream, 'drain'), ended]).then(() => void (waiting = undefined)));
        },
        async close() {
          stream.end();
          await ended;
          await new Promise<void>((resolve) => session.close(resolve));
        },
      };
    },
  };
}
