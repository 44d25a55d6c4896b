/** The face of the area: identities of a cluster. What is not exported here is nobody else's business. */
export { CertificateAuthority, fileStorage, type AuthorityOptions, type AuthorityStorage, type IssuedCertificate, type IssuedSvid } from './certificate-authority.ts';
export { EncryptedFileKeyManager } from './encrypted-file-key-manager.ts';
export { authenticSession, JwtAuthority, untimely, verifySession, type JwtSigner, type SessionRequest, type VerifiedSession } from './jwt-svid.ts';
export type { KeyManager } from './key-manager.ts';
export { MemoryKeyManager } from './memory-key-manager.ts';
export { PeerVerifier, type VerifiedPeer } from './peer-verifier.ts';
export { openPrivateDirectory } from './private-file.ts';
export { readProfile, writeProfile, writeProfileSvid, type Profile } from './profile.ts';
export { Revocations, type RevocationList } from './revocations.ts';
export { createCsr, publicKeyFromCsr, type ProvenPublicKey } from './signature.ts';
export { ServerCertificate, type ServerCertificateOptions } from './server-certificate.ts';
export { svidMaterial, type SvidMaterial, type SvidParts } from './svid-material.ts';
export { SvidSource, requestSvid, type RenewSvid, type SvidSourceOptions } from './svid-source.ts';
export { TrustBundle, type TrustBundleSource } from './trust-bundle.ts';
