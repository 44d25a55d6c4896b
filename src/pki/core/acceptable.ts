/**
 * Whether a chain of parsed certificates is acceptable as an X.509-SVID of this trust domain now. Allow-lists throughout: what is
 * not known to be harmless is refused. Signatures are checked by the shell, before or after; both must pass.
 * Node's own TLS checks none of this: it took 11 of 12 bad certificates.
 */
import { BulkheadError } from '../../base/errors.ts';
import { parseSpiffeId, quote, type ParsedSpiffeId, type TrustDomain } from '../../base/ids.ts';
import { CLOCK_SKEW_MS } from '../../base/limits.ts';
import { KEY_USAGE, OID, refuseCertificate, type ParsedCertificate } from './certificate.ts';
import { bytesEqual } from './der.ts';

/** Leaf, two intermediates (one from an upstream authority), root. */
export const MAX_CHAIN = 4;
/** Longest life of a leaf: profiles of people, which renew themselves when used. Nodes and jobs get `SVID_TTL_MS`. */
export const MAX_SVID_TTL_MS = 30 * 24 * 3_600_000;

export interface AcceptedSvid extends ParsedSpiffeId {
  readonly serial: string;
  /** Of the intermediates and the root above it: a revoked authority takes everything below along. */
  readonly authoritySerials: readonly string[];
  readonly notBeforeMs: number;
  /** The earliest end in the chain: the connection ends then. */
  readonly notAfterMs: number;
}

function checkWindow(certificate: ParsedCertificate, nowMs: number, which: string): void {
  if (certificate.notAfterMs < certificate.notBeforeMs) refuseCertificate(`${which} ends before it begins`);
  // Only the beginning is tolerant of clock differences: SVIDs renew at half life, so a tolerant end would only help a thief.
  if (nowMs + CLOCK_SKEW_MS < certificate.notBeforeMs) refuseCertificate(`${which} is not valid before ${new Date(certificate.notBeforeMs).toISOString()}; compare the clocks of both machines`);
  if (nowMs > certificate.notAfterMs) refuseCertificate(`${which} expired at ${new Date(certificate.notAfterMs).toISOString()}; renew the identity`);
}

/** Name, policy and any-policy constraints: they narrow what an authority may sign, so ignoring them would widen it, critical or not. */
const CONSTRAINTS: ReadonlySet<string> = new Set(['2.5.29.30', '2.5.29.36', '2.5.29.54']);

function checkExtensions(certificate: ParsedCertificate, which: string): void {
  const constraint = certificate.unknown.find((e) => CONSTRAINTS.has(e.oid));
  if (constraint !== undefined) refuseCertificate(`${which} has the constraint ${constraint.oid}, which is not supported here`);
  const critical = certificate.unknown.find((e) => e.critical);
  if (critical !== undefined) refuseCertificate(`${which} has the critical extension ${critical.oid}, which is not known here`);
}

function checkAuthority(certificate: ParsedCertificate, trustDomain: TrustDomain, below: number, which: string): void {
  const { basicConstraints, keyUsage, extKeyUsage, alternativeNames } = certificate;
  if (basicConstraints === undefined || !basicConstraints.critical || !basicConstraints.ca) return refuseCertificate(`${which} is not a CA`);
  if (basicConstraints.pathLength !== undefined && basicConstraints.pathLength < below) refuseCertificate(`${which} allows ${basicConstraints.pathLength} intermediates below it, not ${below}`);
  if (keyUsage === undefined || !keyUsage.critical || !keyUsage.bits.includes(KEY_USAGE.keyCertSign)) refuseCertificate(`${which} may not sign certificates`);
  if (extKeyUsage !== undefined && !(extKeyUsage.includes(OID.serverAuth) && extKeyUsage.includes(OID.clientAuth))) refuseCertificate(`${which} is not for server and client authentication`);
  if (alternativeNames !== undefined && !(alternativeNames.length === 1 && alternativeNames[0]?.kind === 'uri' && alternativeNames[0].value === `spiffe://${trustDomain}`)) refuseCertificate(`${which} names something else than its trust domain`);
}

/** The SPIFFE ID that a leaf states, with every rule of X509-SVID §2 to §5 that can be read from the leaf alone. */
export function spiffeIdOfLeaf(leaf: ParsedCertificate, trustDomain: TrustDomain): ParsedSpiffeId {
  if (leaf.basicConstraints?.ca) refuseCertificate('the leaf is a CA');
  const { keyUsage, extKeyUsage, alternativeNames } = leaf;
  if (keyUsage === undefined || !keyUsage.critical) return refuseCertificate('the leaf has no critical key usage');
  if (!keyUsage.bits.includes(KEY_USAGE.digitalSignature)) refuseCertificate('the leaf lacks the key usage digitalSignature');
  if (keyUsage.bits.includes(KEY_USAGE.keyCertSign) || keyUsage.bits.includes(KEY_USAGE.cRLSign)) refuseCertificate('the leaf may sign certificates or revocation lists');
  if (extKeyUsage === undefined || extKeyUsage.length !== 2 || !extKeyUsage.includes(OID.serverAuth) || !extKeyUsage.includes(OID.clientAuth)) refuseCertificate('the leaf is not for exactly server and client authentication');
  if (alternativeNames === undefined) return refuseCertificate('the leaf has no URI name');
  const [name] = alternativeNames;
  if (alternativeNames.length !== 1 || name?.kind !== 'uri') return refuseCertificate(`the leaf has ${alternativeNames.length} alternative names where exactly one URI is allowed`);
  let parsed: ParsedSpiffeId;
  try {
    parsed = parseSpiffeId(name.value);
  } catch (error) {
    return refuseCertificate(error instanceof BulkheadError ? error.safeMessage : 'its SPIFFE ID is not valid');
  }
  if (parsed.trustDomain !== trustDomain) refuseCertificate(`its trust domain is ${quote(parsed.trustDomain)}, not ours`);
  if (leaf.notAfterMs - leaf.notBeforeMs > MAX_SVID_TTL_MS + CLOCK_SKEW_MS) refuseCertificate('the leaf lives longer than any SVID may');
  return parsed;
}

/** `chain` is leaf, intermediates, root, each issued by the next (see `pathCandidates`). Throws UNAUTHENTICATED with the reason. */
export function acceptChain(chain: readonly ParsedCertificate[], trustDomain: TrustDomain, nowMs: number): AcceptedSvid {
  const leaf = chain[0];
  if (leaf === undefined || chain.length < 2 || chain.length > MAX_CHAIN) return refuseCertificate(`a chain has 2 to ${MAX_CHAIN} certificates, not ${chain.length}`);
  const parsed = spiffeIdOfLeaf(leaf, trustDomain);
  let notAfterMs = Number.POSITIVE_INFINITY;
  chain.forEach((certificate, depth) => {
    const which = depth === 0 ? 'the leaf' : depth === chain.length - 1 ? 'the root' : `intermediate ${depth}`;
    checkWindow(certificate, nowMs, which);
    checkExtensions(certificate, which);
    if (depth > 0) checkAuthority(certificate, trustDomain, depth - 1, which);
    const issuer = chain[Math.min(depth + 1, chain.length - 1)];
    if (issuer === undefined || !isNamedIssuer(certificate, issuer)) refuseCertificate(`${which} does not name the next certificate as its issuer`);
    notAfterMs = Math.min(notAfterMs, certificate.notAfterMs);
  });
  return { ...parsed, serial: leaf.serial, authoritySerials: chain.slice(1).map((c) => c.serial), notBeforeMs: leaf.notBeforeMs, notAfterMs };
}

/** By names and key ids only; the signature decides, in the shell. */
export function isNamedIssuer(certificate: ParsedCertificate, issuer: ParsedCertificate): boolean {
  if (!bytesEqual(certificate.issuerDer, issuer.subjectDer)) return false;
  return certificate.authorityKeyId === undefined || (issuer.subjectKeyId !== undefined && bytesEqual(certificate.authorityKeyId, issuer.subjectKeyId));
}

/**
 * Every path leaf → intermediates → root by names and key ids, at most `MAX_CHAIN` long and at most 16 of them, so that a
 * peer's pile of look-alike intermediates costs a bounded number of signature checks.
 */
export function pathCandidates(leaf: ParsedCertificate, intermediates: readonly ParsedCertificate[], roots: readonly ParsedCertificate[]): ParsedCertificate[][] {
  const found: ParsedCertificate[][] = [];
  const extend = (path: ParsedCertificate[]): void => {
    const last = path[path.length - 1];
    if (last === undefined || path.length >= MAX_CHAIN) return;
    for (const root of roots) if (found.length < 16 && isNamedIssuer(last, root)) found.push([...path, root]);
    for (const next of intermediates) if (found.length < 16 && !path.includes(next) && isNamedIssuer(last, next)) extend([...path, next]);
  };
  extend([leaf]);
  return found;
}
