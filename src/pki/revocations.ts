/**
 * What is revoked, as last heard from the head: single SVIDs by serial, whole identities by "issued before". Replaced as a
 * whole by version, so that a lost message cannot leave a gap. Must never: go back to an older version.
 */
import { BulkheadError } from '../base/errors.ts';
import { parseSpiffeId, type SpiffeId } from '../base/ids.ts';

export interface RevocationList {
  /** Serials as in `ParsedCertificate.serial`: lower-case hex. */
  readonly serials: readonly string[];
  /** Every SVID and session of this identity that was issued before this time is void. */
  readonly identities: readonly { readonly spiffeId: string; readonly revokedBeforeMs: number }[];
}

export class Revocations {
  #version = -1;
  #serials: ReadonlySet<string> = new Set();
  #identities: ReadonlyMap<string, number> = new Map();
  readonly #listeners = new Set<() => void>();

  /** -1 until the first list arrived. */
  get version(): number {
    return this.#version;
  }

  /** Puts a newer list in force and tells listeners before it returns; false when `version` is not newer. Throws INVALID_ARGUMENT for a malformed list, which changes nothing. */
  apply(list: RevocationList, version: number): boolean {
    if (!Number.isSafeInteger(version) || version < 0) throw new BulkheadError('INVALID_ARGUMENT', 'the revocation list has no valid version');
    if (version <= this.#version) return false;
    const serials = new Set<string>();
    for (const serial of list.serials) {
      if (!/^(?:[0-9a-f]{2}){1,20}$/.test(serial)) throw new BulkheadError('INVALID_ARGUMENT', 'a revoked serial is not lower-case hex of 1 to 20 bytes');
      serials.add(serial);
    }
    const identities = new Map<string, number>();
    for (const { spiffeId, revokedBeforeMs } of list.identities) {
      if (!Number.isFinite(revokedBeforeMs)) throw new BulkheadError('INVALID_ARGUMENT', 'a revoked identity has no time');
      const { id } = parseSpiffeId(spiffeId);
      identities.set(id, Math.max(revokedBeforeMs, identities.get(id) ?? Number.NEGATIVE_INFINITY));
    }
    this.#version = version;
    this.#serials = serials;
    this.#identities = identities;
    for (const listener of [...this.#listeners]) listener();
    return true;
  }

  isSerialRevoked(serial: string): boolean {
    return this.#serials.has(serial);
  }

  /** For session credentials, which have no serial. Times in whole seconds, as below. */
  isIdentityRevoked(spiffeId: SpiffeId, issuedAtMs: number): boolean {
    const before = this.#identities.get(spiffeId);
    return before !== undefined && issuedAtMs < before;
  }

  /** `issuedAtMs` has a certificate's precision of a second, cut off: an SVID issued in the very second of the revocation counts as revoked. */
  isRevoked(serial: string, spiffeId: SpiffeId, issuedAtMs: number): boolean {
    return this.#serials.has(serial) || this.isIdentityRevoked(spiffeId, issuedAtMs);
  }

  /** Called after every change: whoever holds connections checks each again and cuts the revoked. Returns the way to stop. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }
}
