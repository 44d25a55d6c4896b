/**
 * A record as a leaf: compact, dictionary-coded, decodable from the log alone. Fields equal to the previous record's are
 * left out; a string is spelled where it is first used and is a number from then on. Every RESTART_INTERVAL records (and when
 * a process opens the log) both start afresh, so that reading can begin there.
 * Must never: half-encode. A record is checked as a whole before the first change of state, so a refused record leaves none.
 *
 * Leaf: flags u8 · changed u8 · [time] · [principal] · [action] · [resourceKind] · [resource] · [index] · [count] · [rule] · [policyVersion] · [detail]
 * Numbers are LEB128 (`time` and `index` zigzag differences); strings are a LEB128 token: 0 '', 1/2 spelled once (UTF-8 / UTF-16LE),
 * 3/4 spelled and defined, 5+n the n-th defined. UTF-16 carries strings with lone surrogates, so that nothing is altered.
 */
import type { AuditRecord } from '../../base/audit-record.ts';
import { BulkheadError } from '../../base/errors.ts';
import { readUtf8, writeUtf8 } from '../../base/frame.ts';
import { MAX_AUDIT_RECORD_BYTES } from '../../base/limits.ts';

/** Records between two fresh starts: bounds memory and how much must be decoded to reach one record. */
export const RESTART_INTERVAL = 4096;
/** Longer strings are spelled each time: they seldom repeat and would fill the dictionary. */
const MAX_DEFINED_CHARS = 512;
/** Characters of all defined strings together; past it strings are spelled each time until the next fresh start. */
const MAX_DICTIONARY_CHARS = 256 * 1024;
/** What a leaf needs beside its strings: flags, numbers, tokens, lengths. */
export const LEAF_OVERHEAD_BYTES = 96;

const FLAG = { LIFECYCLE: 1, ALLOW: 2, RESTART: 4, COUNT: 8, INDEX: 16 } as const;
const ALL_FLAGS = 31;
const CHANGED = { PRINCIPAL: 1, ACTION: 2, KIND: 4, RESOURCE: 8, RULE: 16, VERSION: 32, DETAIL: 64, TIME: 128 } as const;
const TOKEN = { EMPTY: 0, SPELLED_UTF8: 1, SPELLED_UTF16: 2, DEFINED_UTF8: 3, DEFINED_UTF16: 4, FIRST_REF: 5 } as const;

function spelledBytes(text: string): number {
  if (!text.isWellFormed()) return text.length * 2;
  let n = text.length;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    // A pair is two units of two bytes each; three for the rest of the plane.
    if (c >= 0x80) n += c < 0x800 || (c >= 0xd800 && c < 0xe000) ? 1 : 2;
  }
  return n;
}

function chars(r: AuditRecord): number {
  const own = r.type === 'decision' ? r.action.length + r.rule.length : r.event.length;
  return own + r.principal.length + r.resourceKind.length + r.resource.length + r.detail.length;
}

/** Upper bound of the bytes of a record's leaf. Throws INVALID_ARGUMENT when it cannot be a leaf or a number is out of range. */
export function leafBound(r: AuditRecord): number {
  let bound = chars(r) * 3 + LEAF_OVERHEAD_BYTES;
  if (bound > MAX_AUDIT_RECORD_BYTES) {
    const texts = r.type === 'decision' ? [r.action, r.rule] : [r.event];
    bound = LEAF_OVERHEAD_BYTES;
    for (const t of [...texts, r.principal, r.resourceKind, r.resource, r.detail]) bound += spelledBytes(t);
    if (bound > MAX_AUDIT_RECORD_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `an audit record of ${bound} bytes exceeds the limit of ${MAX_AUDIT_RECORD_BYTES}: shorten its texts`);
  }
  const decision = r.type === 'decision';
  if (!(r.timeMs >= 0 && r.timeMs < 2 ** 48 && Number.isInteger(r.timeMs)) || !(r.index >= -1 && r.index < 2 ** 48 && Number.isInteger(r.index)) ||
      (decision && (!(r.count >= 1 && r.count < 2 ** 32 && Number.isInteger(r.count)) || !(r.policyVersion >= 0 && r.policyVersion < 2 ** 48 && Number.isInteger(r.policyVersion))))) {
    throw new BulkheadError('INVALID_ARGUMENT', 'an audit record has a number out of range: timeMs, index ≥ -1, count ≥ 1 and policyVersion ≥ 0 are integers');
  }
  return bound;
}

/** What both sides remember of the record before. */
class Previous {
  timeMs = 0;
  principal = '';
  action = '';
  resourceKind = '';
  resource = '';
  /** Where a session's numbering would go on: the index after the last one covered, or -1. */
  nextIndex = -1;
  rule = '';
  policyVersion = 0;
  detail = '';
}

export class RecordEncoder {
  #previous = new Previous();
  readonly #numbers = new Map<string, number>();
  #definedChars = 0;
  #restart = true;
  #into: Uint8Array = new Uint8Array(0);
  #at = 0;

  #number(value: number): void {
    let v = value;
    const into = this.#into;
    while (v >= 0x80) {
      into[this.#at++] = (v % 0x80) + 0x80;
      v = Math.floor(v / 0x80);
    }
    into[this.#at++] = v;
  }

  #signed(value: number): void {
    this.#number(value >= 0 ? value * 2 : -value * 2 - 1);
  }

  #text(text: string): void {
    if (text === '') {
      this.#into[this.#at++] = TOKEN.EMPTY;
      return;
    }
    const known = this.#numbers.get(text);
    if (known !== undefined) return this.#number(TOKEN.FIRST_REF + known);
    const define = text.length <= MAX_DEFINED_CHARS && this.#definedChars + text.length <= MAX_DICTIONARY_CHARS;
    if (define) {
      this.#numbers.set(text, this.#numbers.size);
      this.#definedChars += text.length;
    }
    const wellFormed = text.isWellFormed();
    this.#into[this.#at++] = define ? (wellFormed ? TOKEN.DEFINED_UTF8 : TOKEN.DEFINED_UTF16) : wellFormed ? TOKEN.SPELLED_UTF8 : TOKEN.SPELLED_UTF16;
    this.#number(spelledBytes(text));
    if (wellFormed) this.#at += writeUtf8(text, this.#into, this.#at);
    else {
      for (let i = 0; i < text.length; i++) {
        const c = text.charCodeAt(i);
        this.#into[this.#at++] = c & 0xff;
        this.#into[this.#at++] = c >> 8;
      }
    }
  }

  /** Writes the leaf of record number `seq` and returns its length. `into` has room for `leafBound(r)`, which has been asked before. */
  encode(r: AuditRecord, seq: number, into: Uint8Array, at: number): number {
    const restart = this.#restart || seq % RESTART_INTERVAL === 0;
    if (restart) {
      this.#restart = false;
      this.#previous = new Previous();
      this.#numbers.clear();
      this.#definedChars = 0;
    }
    const p = this.#previous;
    this.#into = into;
    this.#at = at + 2;
    let flags = restart ? FLAG.RESTART : 0;
    let changed = 0;
    const decision = r.type === 'decision';
    const action = decision ? r.action : r.event;
    const count = decision ? r.count : 1;
    if (r.timeMs !== p.timeMs) {
      changed |= CHANGED.TIME;
      this.#signed(r.timeMs - p.timeMs);
      p.timeMs = r.timeMs;
    }
    if (r.principal !== p.principal) {
      changed |= CHANGED.PRINCIPAL;
      this.#text(r.principal);
      p.principal = r.principal;
    }
    if (action !== p.action) {
      changed |= CHANGED.ACTION;
      this.#text(action);
      p.action = action;
    }
    if (r.resourceKind !== p.resourceKind) {
      changed |= CHANGED.KIND;
      this.#text(r.resourceKind);
      p.resourceKind = r.resourceKind;
    }
    if (r.resource !== p.resource) {
      changed |= CHANGED.RESOURCE;
      this.#text(r.resource);
      p.resource = r.resource;
    }
    if (r.index !== p.nextIndex) {
      flags |= FLAG.INDEX;
      this.#signed(r.index - p.nextIndex);
    }
    if (count !== 1) {
      flags |= FLAG.COUNT;
      this.#number(count);
    }
    p.nextIndex = r.index < 0 ? -1 : r.index + count;
    if (decision) {
      if (r.allow) flags |= FLAG.ALLOW;
      if (r.rule !== p.rule) {
        changed |= CHANGED.RULE;
        this.#text(r.rule);
        p.rule = r.rule;
      }
      if (r.policyVersion !== p.policyVersion) {
        changed |= CHANGED.VERSION;
        this.#number(r.policyVersion);
        p.policyVersion = r.policyVersion;
      }
    } else flags |= FLAG.LIFECYCLE;
    if (r.detail !== p.detail) {
      changed |= CHANGED.DETAIL;
      this.#text(r.detail);
      p.detail = r.detail;
    }
    into[at] = flags;
    into[at + 1] = changed;
    return this.#at - at;
  }
}

/** Reads leaves in order, from one that starts afresh. Leaves come from disks and exports: what is malformed throws INVALID_ARGUMENT. */
export class RecordDecoder {
  #previous = new Previous();
  readonly #texts: string[] = [];
  #started = false;
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;
  #end = 0;

  #refuse(why: string): never {
    this.#started = false;
    throw new BulkheadError('INVALID_ARGUMENT', `the leaf is not a record: ${why}`);
  }

  #byte(): number {
    if (this.#at >= this.#end) this.#refuse('it ends too early');
    return this.#bytes[this.#at++] as number;
  }

  #number(): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < 8; i++) {
      const b = this.#byte();
      value += (b & 0x7f) * scale;
      if (b < 0x80) {
        if (!Number.isSafeInteger(value)) this.#refuse('a number is too large');
        return value;
      }
      scale *= 0x80;
    }
    return this.#refuse('a number is too long');
  }

  #signed(): number {
    const v = this.#number();
    return v % 2 === 0 ? v / 2 : -(v + 1) / 2;
  }

  #text(): string {
    const token = this.#number();
    if (token === TOKEN.EMPTY) return '';
    if (token >= TOKEN.FIRST_REF) return this.#texts[token - TOKEN.FIRST_REF] ?? this.#refuse('it uses a string that was never defined');
    const length = this.#number();
    const from = this.#at;
    if (length > this.#end - from) this.#refuse('a string runs past its end');
    this.#at = from + length;
    let text = '';
    if (token === TOKEN.SPELLED_UTF8 || token === TOKEN.DEFINED_UTF8) text = readUtf8(this.#bytes, from, this.#at);
    else {
      if (length % 2 !== 0) this.#refuse('a UTF-16 string has an odd length');
      for (let i = from; i < this.#at; i += 2) text += String.fromCharCode((this.#bytes[i] as number) | ((this.#bytes[i + 1] as number) << 8));
    }
    if (token >= TOKEN.DEFINED_UTF8) {
      if (this.#texts.length >= RESTART_INTERVAL * 6) this.#refuse('it defines too many strings');
      this.#texts.push(text);
    }
    return text;
  }

  /** Record number `seq` from `bytes[from, to)`; its predecessors back to a fresh start must have been decoded. */
  decode(bytes: Uint8Array, from: number, to: number, seq: number): AuditRecord {
    this.#bytes = bytes;
    this.#at = from;
    this.#end = to;
    const flags = this.#byte();
    const changed = this.#byte();
    if (flags > ALL_FLAGS) this.#refuse('it has unknown flags');
    if ((flags & FLAG.RESTART) !== 0) {
      this.#previous = new Previous();
      this.#texts.length = 0;
      this.#started = true;
    } else if (!this.#started || seq % RESTART_INTERVAL === 0) this.#refuse('it continues a record that is not there');
    const p = this.#previous;
    if ((changed & CHANGED.TIME) !== 0) p.timeMs += this.#signed();
    if ((changed & CHANGED.PRINCIPAL) !== 0) p.principal = this.#text();
    if ((changed & CHANGED.ACTION) !== 0) p.action = this.#text();
    if ((changed & CHANGED.KIND) !== 0) p.resourceKind = this.#text();
    if ((changed & CHANGED.RESOURCE) !== 0) p.resource = this.#text();
    const index = p.nextIndex + ((flags & FLAG.INDEX) !== 0 ? this.#signed() : 0);
    const count = (flags & FLAG.COUNT) !== 0 ? this.#number() : 1;
    p.nextIndex = index < 0 ? -1 : index + count;
    const lifecycle = (flags & FLAG.LIFECYCLE) !== 0;
    if (lifecycle && ((flags & (FLAG.ALLOW | FLAG.COUNT)) !== 0 || (changed & (CHANGED.RULE | CHANGED.VERSION)) !== 0)) this.#refuse('a lifecycle record carries a decision');
    if ((changed & CHANGED.RULE) !== 0) p.rule = this.#text();
    if ((changed & CHANGED.VERSION) !== 0) p.policyVersion = this.#number();
    if ((changed & CHANGED.DETAIL) !== 0) p.detail = this.#text();
    if (this.#at !== this.#end) this.#refuse(`${this.#end - this.#at} bytes are left over`);
    if (!(p.timeMs >= 0 && p.timeMs < 2 ** 48) || index < -1 || count < 1) this.#refuse('a number is out of range');
    const { timeMs, principal, action, resourceKind, resource, detail } = p;
    if (lifecycle) return { type: 'lifecycle', timeMs, event: action, principal, resourceKind, resource, index, detail };
    return { type: 'decision', timeMs, principal, action, resourceKind, resource, index, count, allow: (flags & FLAG.ALLOW) !== 0, rule: p.rule, policyVersion: p.policyVersion, detail };
  }
}
