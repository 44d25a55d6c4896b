/**
 * Encodes DER trees with `forge.asn1`: the only use of node-forge. It cannot read or sign EC keys, and its CVEs are all in
 * verification, so this file must never import its `pki`, and nothing in it reads what a peer sent.
 */
import forge from 'node-forge';
import type { DerTree } from './core/der.ts';

const constants = new WeakMap<DerTree, string>();

function encode(tree: DerTree): string {
  if ('constant' in tree) {
    let encoded = constants.get(tree);
    if (encoded === undefined) constants.set(tree, (encoded = encode({ tag: tree.tag, content: tree.content })));
    return encoded;
  }
  if ('der' in tree) return Buffer.from(tree.der.buffer, tree.der.byteOffset, tree.der.length).toString('latin1');
  const content = tree.content instanceof Uint8Array ? encode({ der: tree.content }) : (tree.content as readonly DerTree[]).map(encode).join('');
  // The constructed bit stays inside the type, so that forge takes encoded children as they are.
  return forge.asn1.toDer(forge.asn1.create((tree.tag & 0xc0) as forge.asn1.Class, tree.tag & 0x3f, false, content)).getBytes();
}

export function encodeDer(tree: DerTree): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(Buffer.from(encode(tree), 'latin1'));
}
