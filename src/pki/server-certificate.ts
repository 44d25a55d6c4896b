/**
 * The certificate by which clients that know no SPIFFE IDs verify this process as a server: names of DNS, a key of its own, renewed with the
 * process's SVID. Must never: be used as an identity, or outlive the SVID by more than a renewal that fails.
 */
import { generateKeyPairSync } from 'node:crypto';
import { createCsr } from './signature.ts';
import type { SvidSource } from './svid-source.ts';

/** Until a failed renewal is tried again. */
const RETRY_MS = 30_000;

export interface ServerCertificateOptions {
  readonly identity: SvidSource;
  /** Sends a CSR (DER) to the authority; the answer is a PEM chain. */
  readonly certify: (csrDer: Uint8Array) => Promise<string>;
  readonly onError: (error: unknown) => void;
}

export class ServerCertificate implements Disposable {
  readonly #options: ServerCertificateOptions;
  readonly #listeners = new Set<() => void>();
  readonly #stop: () => void;
  #current: { readonly privateKeyPem: string; readonly certificateChainPem: string };
  #serial: string;
  #renewing = false;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(options: ServerCertificateOptions, first: { readonly privateKeyPem: string; readonly certificateChainPem: string }) {
    this.#options = options;
    this.#current = first;
    this.#serial = options.identity.current().serial;
    this.#stop = options.identity.onChange(() => this.#identityChanged());
  }

  /** Throws what the authority throws. */
  static async open(options: ServerCertificateOptions): Promise<ServerCertificate> {
    return new ServerCertificate(options, await request(options));
  }

  /** With the roots by which its clients' SVIDs are verified. */
  current(): { readonly privateKeyPem: string; readonly certificateChainPem: string; readonly trustBundlePem: string } {
    return { ...this.#current, trustBundlePem: this.#options.identity.current().trustBundlePem };
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  #identityChanged(): void {
    for (const listener of [...this.#listeners]) listener();
    if (this.#options.identity.current().serial !== this.#serial) void this.#renew();
  }

  async #renew(): Promise<void> {
    if (this.#renewing || this.#closed) return;
    this.#renewing = true;
    clearTimeout(this.#timer);
    const { serial } = this.#options.identity.current();
    try {
      this.#current = await request(this.#options);
      this.#serial = serial;
      for (const listener of [...this.#listeners]) listener();
    } catch (error) {
      this.#options.onError(error);
    } finally {
      this.#renewing = false;
    }
    if (this.#closed || this.#options.identity.current().serial === this.#serial) return;
    this.#timer = setTimeout(() => void this.#renew(), RETRY_MS);
    this.#timer.unref();
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#stop();
    this.#listeners.clear();
  }
}

async function request({ certify }: ServerCertificateOptions): Promise<{ privateKeyPem: string; certificateChainPem: string }> {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const certificateChainPem = await certify(createCsr(privateKey));
  return { privateKeyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem };
}
