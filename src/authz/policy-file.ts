/**
 * Policy files: bytes to a typed document, or errors that name line and column. YAML 1.2 core, and of that only maps, lists, strings, numbers and
 * booleans: no anchor, alias, merge key, tag, directive or second document, because each of them has made two readers see two policies. The YAML
 * tree is read node by node and never turned into objects, so no key can reach a prototype. Must never: guess, coerce, or skip what it does not know.
 */
import { isAlias, isCollection, isMap, isPair, isScalar, isSeq, LineCounter, parseAllDocuments, type Node, type Pair, type Scalar as YamlScalar, type YAMLMap } from 'yaml';
import { ACTIONS, RESOURCE_KINDS, type Action, type ResourceKind } from '../base/decision.ts';
import { BulkheadError } from '../base/errors.ts';
import { parseLocalName, parseNodeId, parseTenantName, quote } from '../base/ids.ts';
import { MAX_POLICY_BYTES } from '../base/limits.ts';
import { parseMemory } from '../base/resources.ts';
import { hint } from './core/did-you-mean.ts';
import {
  SCOPES, type BindingDocument, type BindingTarget, type Condition, type Diagnostic, type GrantDocument, type Grantee, type PolicyDocument, type Position, type RoleDocument,
  type RuleDocument, type Scope, type TestDocument,
} from './core/policy-schema.ts';
import {
  ATTRIBUTE_NAMES, ATTRIBUTES_OF_KIND, BYTE_ATTRIBUTES, GRANTABLE_ACTIONS, KIND_OF_ACTION, OPERATORS, OPERATORS_OF_TYPE, TYPE_OF_ATTRIBUTE, type AttributeName, type Operator, type Scalar,
} from './core/vocabulary.ts';

/** Nesting that no policy needs; beyond it the file is refused before the YAML parser recurses. */
const MAX_DEPTH = 32;
const MAX_INDENT = 256;
/** Lines of one file: before the YAML parser spends a second on what has more rules than a tenant may have. */
const MAX_LINES = 25_000;
/** Values in one list, keys in one map. */
const MAX_ENTRIES = 10_000;
/** Each test costs the head a decision or more, and a tenant writes them. */
const MAX_TESTS = 500;
const MAX_STRING_CHARS = 1_024;
const MAX_DIAGNOSTICS = 100;
/** Keys that mean something to JavaScript objects; refused everywhere, although nothing here would obey them. */
const POISON = new Set(['__proto__', 'constructor', 'prototype']);

export interface ParsedPolicyFile {
  /** Undefined when there is an error. */
  readonly document: PolicyDocument | undefined;
  readonly diagnostics: readonly Diagnostic[];
}

class Refused extends Error {}

export function parsePolicyFile(file: string, content: string | Uint8Array): ParsedPolicyFile {
  const reader = new PolicyReader(file);
  let document: PolicyDocument | undefined;
  try {
    document = reader.read(content);
  } catch (thrown) {
    if (!(thrown instanceof Refused)) throw thrown;
  }
  return { document: reader.failed ? undefined : document, diagnostics: reader.diagnostics };
}

/** `{ key, value }` of a map, with the key's text. */
interface Entry {
  readonly key: string;
  readonly at: Position;
  readonly value: Node | null;
}

class PolicyReader {
  readonly diagnostics: Diagnostic[] = [];
  failed = false;
  readonly #file: string;
  readonly #lines = new LineCounter();

  constructor(file: string) {
    this.#file = file;
  }

  // --- findings -------------------------------------------------------------------------------------------------------

  #report(severity: 'error' | 'warning', at: Position, message: string): void {
    if (severity === 'error') this.failed = true;
    if (this.diagnostics.length < MAX_DIAGNOSTICS) this.diagnostics.push({ file: this.#file, line: at.line, column: at.column, severity, message });
  }

  #error(at: Position, message: string): undefined {
    this.#report('error', at, message);
    return undefined;
  }

  #refuse(at: Position, message: string): never {
    this.#report('error', at, message);
    throw new Refused();
  }

  #at(node: Node | null | undefined, otherwise: Position): Position {
    if (node === null || node === undefined || node.range === undefined || node.range === null) return otherwise;
    return this.#offset(node.range[0]);
  }

  #offset(offset: number): Position {
    const { line, col } = this.#lines.linePos(offset);
    return line === 0 ? { line: 1, column: 1 } : { line, column: col };
  }

  // --- text to tree ---------------------------------------------------------------------------------------------------

  read(content: string | Uint8Array): PolicyDocument | undefined {
    const text = this.#decode(content);
    this.#scan(text);
    let documents: ReturnType<typeof parseAllDocuments>;
    try {
      // `uniqueKeys` compares each key with all before it, which takes hours for a hostile megabyte; duplicates are found by `#map`.
      documents = parseAllDocuments(text, { version: '1.2', schema: 'core', merge: false, uniqueKeys: false, strict: true, prettyErrors: false, stringKeys: false, logLevel: 'silent', lineCounter: this.#lines });
    } catch {
      return this.#refuse({ line: 1, column: 1 }, 'the file is nested too deep, or is not YAML');
    }
    const list = Array.isArray(documents) ? documents : [];
    const [document, second] = list;
    if (document === undefined) return this.#refuse({ line: 1, column: 1 }, "the file is empty; begin with 'version: 1' and 'tenant: NAME'");
    for (const e of [...document.errors, ...document.warnings]) this.#error(this.#offset(e.pos[0]), `not valid YAML: ${e.message.replace(/[^\x20-\x7e]+/g, ' ').slice(0, 120)}`);
    if (second !== undefined) this.#error(this.#at(second.contents as Node | null, this.#offset(second.range?.[0] ?? 0)), 'a second document begins here; a policy file holds one document');
    if (this.failed) throw new Refused();
    const root = document.contents as Node | null;
    if (!isMap(root)) return this.#refuse(this.#at(root, { line: 1, column: 1 }), "a policy file is a map; begin with 'version: 1' and 'tenant: NAME'");
    this.#plain(root, 0);
    if (this.failed) throw new Refused();
    return this.#document(root);
  }

  #decode(content: string | Uint8Array): string {
    const start = { line: 1, column: 1 };
    const tooLarge = `the file is larger than ${MAX_POLICY_BYTES} bytes; split it`;
    if (typeof content === 'string') return content.length > MAX_POLICY_BYTES ? this.#refuse(start, tooLarge) : content;
    if (content.length > MAX_POLICY_BYTES) return this.#refuse(start, tooLarge);
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: false });
    try {
      return decoder.decode(content);
    } catch {
      let line = 1;
      for (let from = 0; from < content.length; line++) {
        const end = content.indexOf(0x0a, from);
        try {
          decoder.decode(content.subarray(from, end < 0 ? content.length : end));
        } catch {
          break;
        }
        if (end < 0) break;
        from = end + 1;
      }
      return this.#refuse({ line, column: 1 }, 'this line is not valid UTF-8; save the file as UTF-8');
    }
  }

  /** What must be refused before a recursive parser sees it, and characters that show a reader something else than is there. */
  #scan(text: string): void {
    let depth = 0;
    const lines = text.split('\n');
    if (lines.length > MAX_LINES) this.#refuse({ line: MAX_LINES + 1, column: 1 }, `${lines.length} lines exceed the limit of ${MAX_LINES}; split the file`);
    lines.forEach((line, i) => {
      const at = (column: number): Position => ({ line: i + 1, column });
      // eslint-disable-next-line no-control-regex -- control characters are what is looked for
      const odd = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/.exec(line.replace(/\r$/, ''));
      if (odd !== null && !(i === 0 && odd.index === 0 && odd[0] === '\ufeff')) this.#refuse(at(odd.index + 1), `the character U+${odd[0].charCodeAt(0).toString(16).padStart(4, '0').toUpperCase()} is not allowed in a policy file`);
      if (line.startsWith('%')) this.#refuse(at(1), 'directives (%YAML, %TAG) are not allowed; remove this line');
      const indent = /^[ \t]*/.exec(line)?.[0].length ?? 0;
      if (indent > MAX_INDENT && line.trim() !== '') this.#refuse(at(indent + 1), 'the file is nested too deep');
      const blocks = /^(?:[-?:][ \t]+)*/.exec(line.slice(indent, indent + 4 * MAX_DEPTH))?.[0].length ?? 0;
      if (blocks > 2 * MAX_DEPTH) this.#refuse(at(indent + 1), 'the file is nested too deep');
      for (let c = 0; c < line.length; c++) {
        const ch = line.charCodeAt(c);
        if (ch === 0x5b || ch === 0x7b) {
          if (++depth > MAX_DEPTH) this.#refuse(at(c + 1), 'the file is nested too deep (or has brackets that are never closed)');
        } else if ((ch === 0x5d || ch === 0x7d) && depth > 0) depth--;
      }
    });
  }

  /** Walks the whole tree once and refuses every feature that policies do without. */
  #plain(node: unknown, depth: number): void {
    if (node === null || node === undefined) return;
    if (isPair(node)) {
      this.#plain(node.key, depth);
      this.#plain(node.value, depth);
      return;
    }
    const at = this.#at(node as Node, { line: 1, column: 1 });
    if (depth > MAX_DEPTH) return this.#refuse(at, 'the file is nested too deep');
    if (isAlias(node)) return void this.#error(at, `the alias '*${node.source.slice(0, 64)}' is not allowed; write the value out`);
    const { anchor, tag } = node as { anchor?: string; tag?: string };
    if (anchor !== undefined) this.#error(at, `the anchor '&${anchor.slice(0, 64)}' is not allowed; write the value out where it is needed`);
    if (isCollection(node)) {
      if (tag !== undefined) this.#error(at, 'tags are not allowed; write the plain value');
      if (node.items.length > MAX_ENTRIES) return this.#refuse(at, `${node.items.length} entries exceed the limit of ${MAX_ENTRIES}`);
      for (const item of node.items) this.#plain(item, depth + 1);
    } else if (isScalar(node) && tag !== undefined) this.#error(at, 'tags are not allowed; write the plain value, in quotes if it is text');
  }

  // --- tree to values -------------------------------------------------------------------------------------------------

  /** Entries of a map by key: no duplicates, no other key than those allowed (undefined: the caller checks the keys). */
  #map(node: Node | null, at: Position, what: string, allowed: readonly string[] | undefined, required: readonly string[] = []): Map<string, Entry> | undefined {
    if (!isMap(node)) return this.#error(this.#at(node, at), `${what} must be a map, not ${kindOfNode(node)}`);
    const entries = new Map<string, Entry>();
    for (const pair of (node as YAMLMap).items as Pair<Node | null, Node | null>[]) {
      const where = this.#at(pair.key, this.#at(node, at));
      const key = isScalar(pair.key) && typeof pair.key.value === 'string' ? pair.key.value : undefined;
      if (key === undefined) this.#error(where, `a key of ${what} must be text`);
      else if (POISON.has(key)) this.#error(where, `the key '${key}' is not allowed`);
      else if (key === '<<') this.#error(where, 'merge keys are not allowed; write the entries out');
      else if (entries.has(key)) this.#error(where, `the key ${quote(key)} is given twice; the first is on line ${entries.get(key)?.at.line}`);
      else if (allowed !== undefined && !allowed.includes(key)) this.#error(where, `${what} has no key ${quote(key)}${hint(key, allowed)}`);
      else entries.set(key, { key, at: where, value: pair.value });
    }
    for (const key of required) if (!entries.has(key)) this.#error(this.#at(node, at), `${what} needs the key '${key}'`);
    return entries;
  }

  /** Items of a list; undefined with an error when it is none, or empty where that can only be a mistake. */
  #list(entry: Entry, what: string, mayBeEmpty = false): { value: Node | null; at: Position }[] | undefined {
    const at = this.#at(entry.value, entry.at);
    if (!isSeq(entry.value)) return this.#error(at, `${what} must be a list, not ${kindOfNode(entry.value)}`);
    if (entry.value.items.length === 0 && !mayBeEmpty) return this.#error(at, `${what} is empty; remove the key or add an entry`);
    return entry.value.items.map((item) => ({ value: item as Node | null, at: this.#at(item as Node | null, at) }));
  }

  /** One item, or a list of them. */
  #oneOrMany(entry: Entry, what: string): { value: Node | null; at: Position }[] | undefined {
    if (isSeq(entry.value)) return this.#list(entry, what);
    return [{ value: entry.value, at: this.#at(entry.value, entry.at) }];
  }

  #text(value: Node | null, at: Position, what: string): string | undefined {
    if (!isScalar(value) || typeof value.value !== 'string') return this.#error(at, `${what} must be text, not ${kindOfNode(value)}${isScalar(value) && typeof value.value === 'number' ? '; put it in quotes' : ''}`);
    if (value.value === '' || value.value.length > MAX_STRING_CHARS) return this.#error(at, `${what} must have 1 to ${MAX_STRING_CHARS} characters`);
    return value.value;
  }

  #word<T extends string>(value: Node | null, at: Position, what: string, known: readonly T[]): T | undefined {
    const text = this.#text(value, at, what);
    if (text === undefined) return undefined;
    return (known as readonly string[]).includes(text) ? (text as T) : this.#error(at, `${what} ${quote(text)} does not exist${hint(text, known)}`);
  }

  #checked<T>(at: Position, parse: () => T): T | undefined {
    try {
      return parse();
    } catch (thrown) {
      if (thrown instanceof BulkheadError) return this.#error(at, thrown.safeMessage);
      throw thrown;
    }
  }

  #boolean(entry: Entry, what: string): boolean | undefined {
    if (isScalar(entry.value) && typeof entry.value.value === 'boolean') return entry.value.value;
    return this.#error(this.#at(entry.value, entry.at), `${what} must be true or false, not ${kindOfNode(entry.value)}`);
  }

  /** A value of an attribute's own type; bytes also as `64MiB`. */
  #scalar(value: Node | null, at: Position, attribute: AttributeName): Scalar | undefined {
    const type = TYPE_OF_ATTRIBUTE[attribute];
    const given = isScalar(value) ? value.value : undefined;
    if (BYTE_ATTRIBUTES.has(attribute) && typeof given === 'string') return this.#checked(at, () => parseMemory(given));
    if (typeof given !== type) {
      const advice = type === 'string' && typeof given === 'number' ? '; put it in quotes' : type === 'boolean' ? '; write true or false' : type === 'number' ? '; write a number without quotes' : '';
      return this.#error(at, `'${attribute}' is a ${type}, and this is ${kindOfNode(value)}${advice}`);
    }
    if (typeof given === 'number' && (!Number.isFinite(given) || (Number.isInteger(given) && !Number.isSafeInteger(given)))) return this.#error(at, `'${attribute}' must be a finite number below 2^53`);
    if (typeof given === 'string' && given.length > MAX_STRING_CHARS) return this.#error(at, `a value of '${attribute}' has more than ${MAX_STRING_CHARS} characters`);
    return given as Scalar;
  }

  /** `2027-01-01` (the moment it begins, UTC) or `2027-01-01T12:00:00Z`. */
  #time(entry: Entry, what: string): number | undefined {
    const at = this.#at(entry.value, entry.at);
    const text = this.#text(entry.value, at, what);
    if (text === undefined) return undefined;
    const ms = /^\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d)?Z)?$/.test(text) ? Date.parse(text) : Number.NaN;
    const exact = Number.isFinite(ms) && new Date(ms).toISOString().startsWith(text.slice(0, 10));
    return exact ? ms : this.#error(at, `${what} ${quote(text)} is not a date; write 2027-01-01 (00:00 UTC of that day) or 2027-01-01T12:00:00Z`);
  }

  // --- the document ---------------------------------------------------------------------------------------------------

  #document(root: YAMLMap): PolicyDocument | undefined {
    const top = { line: 1, column: 1 };
    const entries = this.#map(root, top, 'a policy file', ['version', 'tenant', 'platform', 'roles', 'bindings', 'grants', 'tests'], ['version']);
    if (entries === undefined) return undefined;
    const version = entries.get('version');
    if (version !== undefined && !(isScalar(version.value) && version.value.value === 1)) this.#error(this.#at(version.value, version.at), "'version' must be 1, the only version of the policy language");
    const tenant = this.#author(entries, top);
    if (tenant === undefined) return undefined;
    const roles = this.#each(entries.get('roles'), (e) => [...(this.#map(e.value, e.at, "'roles'", undefined)?.values() ?? [])].map((role) => this.#role(role, tenant)));
    const bindings = this.#each(entries.get('bindings'), (e) => this.#list(e, "'bindings'", true)?.map((item) => this.#binding(item.value, item.at, tenant)));
    const grants = this.#each(entries.get('grants'), (e) => (tenant === '' ? [this.#error(e.at, "a platform policy has no 'grants': only the tenant that owns a resource can open its wall")] : this.#list(e, "'grants'", true)?.map((item) => this.#grant(item.value, item.at))));
    const tests = this.#each(entries.get('tests'), (e) => isSeq(e.value) && e.value.items.length > MAX_TESTS ? [this.#error(e.at, `${e.value.items.length} tests exceed the limit of ${MAX_TESTS} of one file`)] : this.#list(e, "'tests'", true)?.map((item) => this.#test(item.value, item.at, tenant)));
    return { version: 1, tenant, roles, bindings, grants, tests };
  }

  #each<T>(entry: Entry | undefined, read: (entry: Entry) => (T | undefined)[] | undefined): T[] {
    return entry === undefined ? [] : (read(entry) ?? []).filter((item) => item !== undefined);
  }

  #author(entries: ReadonlyMap<string, Entry>, top: Position): string | undefined {
    const tenant = entries.get('tenant');
    const platform = entries.get('platform');
    if (tenant !== undefined && platform !== undefined) return this.#error(platform.at, "a policy file is of a tenant or of the platform: give 'tenant' or 'platform: true', not both");
    if (tenant !== undefined) {
      const at = this.#at(tenant.value, tenant.at);
      const name = this.#text(tenant.value, at, "'tenant'");
      if (name === 'platform') return this.#error(at, "the tenant name 'platform' is reserved; for a platform policy write 'platform: true'");
      return name === undefined ? undefined : this.#checked(at, () => parseTenantName(name));
    }
    if (platform === undefined) return this.#error(top, "a policy file needs the key 'tenant' (or 'platform: true')");
    const yes = this.#boolean(platform, "'platform'");
    if (yes === false) return this.#error(platform.at, "'platform' can only be true; a tenant's file says 'tenant: NAME'");
    return yes === undefined ? undefined : '';
  }

  #role(entry: Entry, tenant: string): RoleDocument | undefined {
    const name = this.#checked(entry.at, () => parseLocalName(entry.key));
    const parts = this.#map(entry.value, entry.at, `role ${quote(entry.key)}`, tenant === '' ? ['assignable', 'permit', 'forbid'] : ['permit', 'forbid']);
    if (parts === undefined || name === undefined) return undefined;
    const assignable = parts.get('assignable');
    const rules = (effect: 'permit' | 'forbid'): RuleDocument[] =>
      this.#each(parts.get(effect), (e) => this.#list(e, `'${effect}' of role '${name}'`, true)?.map((item) => this.#rule(item.value, item.at, effect, tenant)));
    const permit = rules('permit');
    const forbid = rules('forbid');
    if (!parts.has('permit') && !parts.has('forbid')) return this.#error(entry.at, `role '${name}' has neither 'permit' nor 'forbid'`);
    return { name, assignable: assignable !== undefined && this.#boolean(assignable, "'assignable'") === true, permit, forbid, at: entry.at };
  }

  #rule(node: Node | null, at: Position, effect: 'permit' | 'forbid', tenant: string): RuleDocument | undefined {
    const parts = this.#map(node, at, `a ${effect} rule`, tenant === '' ? ['action', 'resource', 'when', 'scope'] : ['action', 'resource', 'when'], ['action', 'resource']);
    if (parts === undefined) return undefined;
    const target = this.#target(parts, effect === 'forbid');
    const scope = parts.get('scope');
    const word = scope === undefined ? (effect === 'permit' ? 'tenant' : 'any') : this.#word<Scope>(scope.value, this.#at(scope.value, scope.at), 'scope', SCOPES);
    if (target === undefined || word === undefined) return undefined;
    return { ...target, scope: word, at };
  }

  /** `action`, `resource` and `when`, which belong together: conditions name attributes of the kinds. */
  #target(parts: ReadonlyMap<string, Entry>, mustAllReach: boolean): { actions: Action[]; kinds: ResourceKind[]; when: Condition[] } | undefined {
    const action = parts.get('action');
    const resource = parts.get('resource');
    if (action === undefined || resource === undefined) return undefined;
    const actions = (this.#oneOrMany(action, "'action'") ?? []).map((a) => ({ at: a.at, word: this.#word(a.value, a.at, 'action', ACTIONS) }));
    const kinds = (this.#oneOrMany(resource, "'resource'") ?? []).map((k) => this.#word(k.value, k.at, 'resource kind', RESOURCE_KINDS)).filter((k) => k !== undefined);
    const when = parts.get('when');
    const conditions = when === undefined || kinds.length === 0 ? [] : this.#conditions(when, kinds);
    if (kinds.length === 0 || actions.some((a) => a.word === undefined)) return undefined;
    for (const { at, word } of actions) {
      const kind = KIND_OF_ACTION.get(word as Action) as ResourceKind;
      if (kinds.includes(kind)) continue;
      // A permit that can never match gives nothing; a forbid that can never match protects nothing, and its author believes it does.
      this.#report(mustAllReach ? 'error' : 'warning', at, `'${word}' acts on resource '${kind}', not on ${kinds.map((k) => `'${k}'`).join(', ')}: this rule never applies to it; add '${kind}' to 'resource' or write a rule for it`);
    }
    return { actions: actions.map((a) => a.word as Action), kinds, when: conditions };
  }

  #conditions(entry: Entry, kinds: readonly ResourceKind[]): Condition[] {
    const attributes = this.#map(entry.value, entry.at, "'when'", undefined);
    if (attributes === undefined) return [];
    if (attributes.size === 0 && !this.failed) this.#error(this.#at(entry.value, entry.at), "'when' is empty; leave it out if the rule has no condition");
    const conditions: Condition[] = [];
    for (const a of attributes.values()) {
      const attribute = this.#attribute(a, kinds);
      if (attribute === undefined) continue;
      const allowed = OPERATORS_OF_TYPE[TYPE_OF_ATTRIBUTE[attribute]];
      if (!isMap(a.value)) {
        this.#error(this.#at(a.value, a.at), `write an operator: ${attribute}: { eq: … }; operators of a ${TYPE_OF_ATTRIBUTE[attribute]} are ${allowed.join(', ')}`);
        continue;
      }
      const operators = this.#map(a.value, a.at, `the condition on '${attribute}'`, undefined);
      if (operators?.size === 0 && !this.failed) this.#error(this.#at(a.value, a.at), `the condition on '${attribute}' is empty; write { eq: … }`);
      for (const o of operators?.values() ?? []) {
        if (!(OPERATORS as readonly string[]).includes(o.key)) this.#error(o.at, `operator ${quote(o.key)} does not exist${hint(o.key, OPERATORS)}`);
        else if (!(allowed as readonly string[]).includes(o.key)) this.#error(o.at, `'${attribute}' is a ${TYPE_OF_ATTRIBUTE[attribute]} and cannot be compared with '${o.key}'; its operators are ${allowed.join(', ')}`);
        else {
          const value = this.#operand(o, attribute, o.key as Operator);
          if (value !== undefined) conditions.push({ attribute, operator: o.key as Operator, value });
        }
      }
    }
    return conditions;
  }

  #attribute(entry: Entry, kinds: readonly ResourceKind[]): AttributeName | undefined {
    const shared = ATTRIBUTE_NAMES.filter((name) => kinds.every((kind) => ATTRIBUTES_OF_KIND[kind].includes(name)));
    if (!(ATTRIBUTE_NAMES as readonly string[]).includes(entry.key)) return this.#error(entry.at, `attribute ${quote(entry.key)} does not exist${hint(entry.key, shared)}`);
    const lacking = kinds.find((kind) => !ATTRIBUTES_OF_KIND[kind].includes(entry.key as AttributeName));
    if (lacking !== undefined) return this.#error(entry.at, `resource '${lacking}' has no attribute '${entry.key}'; it has ${ATTRIBUTES_OF_KIND[lacking].join(', ')}`);
    return entry.key as AttributeName;
  }

  #operand(entry: Entry, attribute: AttributeName, operator: Operator): Condition['value'] | undefined {
    const at = this.#at(entry.value, entry.at);
    if (operator === 'in' || operator === 'nin') {
      const items = this.#list(entry, `the operand of '${operator}'`);
      const values = items?.map((item) => this.#scalar(item.value, item.at, attribute));
      return values === undefined || values.includes(undefined) ? undefined : (values as Scalar[]);
    }
    if (isSeq(entry.value)) return this.#error(at, `'${operator}' takes one value; for several write '${operator === 'ne' ? 'nin' : 'in'}'`);
    return this.#scalar(entry.value, at, attribute);
  }

  #binding(node: Node | null, at: Position, tenant: string): BindingDocument | undefined {
    const parts = this.#map(node, at, 'a binding', ['role', 'to'], ['role', 'to']);
    const role = parts?.get('role');
    const to = parts?.get('to');
    if (role === undefined || to === undefined) return undefined;
    const name = this.#text(role.value, this.#at(role.value, role.at), "'role'");
    const targets = (this.#oneOrMany(to, "'to'") ?? []).map((item) => {
      const text = this.#text(item.value, item.at, "an entry of 'to'");
      return text === undefined ? undefined : this.#bindingTarget(text, item.at, tenant);
    });
    if (name === undefined || targets.length === 0 || targets.includes(undefined)) return undefined;
    return { role: name, to: targets as BindingTarget[], at };
  }

  #bindingTarget(text: string, at: Position, tenant: string): BindingTarget | undefined {
    const [kind, name, ...more] = text.split('/');
    const kinds = tenant === '' ? ['user', 'service', 'system', 'node'] : ['user', 'service'];
    const example = tenant === '' ? "'user/*', 'service/*', 'system/admin' or 'node/*'" : "'user/*', 'user/ana' or 'service/etl'";
    if (kind === 'job') return this.#error(at, 'a job cannot be bound: it has the roles of the user or service that submitted it');
    if (kind === 'tenant') return this.#error(at, "a binding reaches only its own tenant's principals; to let another tenant in, write a grant");
    if (kind === undefined || !kinds.includes(kind) || name === undefined || more.length > 0) return this.#error(at, `${quote(text)} names no principal that can be bound here; write ${example}`);
    if (name !== '*') {
      if (tenant === '' && (kind === 'user' || kind === 'service')) return this.#error(at, `a platform policy binds all ${kind}s of all tenants or none: write '${kind}/*'`);
      if (this.#checked(at, () => (kind === 'node' ? parseNodeId(name) : parseLocalName(name))) === undefined) return undefined;
    }
    return { kind: kind as BindingTarget['kind'], name };
  }

  #grant(node: Node | null, at: Position): GrantDocument | undefined {
    const parts = this.#map(node, at, 'a grant', ['to', 'action', 'resource', 'when', 'until'], ['to', 'action', 'resource', 'until']);
    const to = parts?.get('to');
    const until = parts?.get('until');
    if (parts === undefined || to === undefined || until === undefined) return undefined;
    const toAt = this.#at(to.value, to.at);
    const text = this.#text(to.value, toAt, "'to'");
    const grantee = text === undefined ? undefined : this.#grantee(text, toAt);
    const target = this.#target(parts, false);
    const untilMs = this.#time(until, "'until'");
    for (const action of target?.actions ?? []) {
      if (!GRANTABLE_ACTIONS.has(action)) this.#error(parts.get('action')?.at ?? at, `'${action}' cannot be granted to another tenant; grantable are ${[...GRANTABLE_ACTIONS].join(', ')}`);
      // No error: files that are in force must go on being read.
      else if (action === 'actor.call' || action === 'actor.find') this.#report('warning', parts.get('action')?.at ?? at, `'${action}' granted to another tenant gives nothing: a raylet looks for actors, by id and by name, among those of the caller's own tenant only; grant 'object.get' of what they return`);
    }
    if (grantee === undefined || target === undefined || untilMs === undefined) return undefined;
    return { to: grantee, ...target, untilMs, at };
  }

  #grantee(text: string, at: Position): Grantee | undefined {
    const [first, second, third, fourth, ...more] = text.split('/');
    const refuse = (): undefined => this.#error(at, `${quote(text)} names nobody that can be granted to; write 'tenant/globex', 'tenant/globex/user/ana', 'tenant/globex/service/etl' or 'system/admin'`);
    if (second === undefined || more.length > 0) return refuse();
    if (first === 'system' && third === undefined) {
      const name = this.#checked(at, () => parseLocalName(second));
      return name === undefined ? undefined : { tenant: '', kind: 'system', name };
    }
    if (first !== 'tenant') return refuse();
    const tenant = this.#checked(at, () => parseTenantName(second));
    if (tenant === undefined) return undefined;
    if (third === undefined) return { tenant, kind: 'any', name: '' };
    if ((third !== 'user' && third !== 'service') || fourth === undefined) return refuse();
    const name = this.#checked(at, () => parseLocalName(fourth));
    return name === undefined ? undefined : { tenant, kind: third, name };
  }

  #test(node: Node | null, at: Position, tenant: string): TestDocument | undefined {
    const parts = this.#map(node, at, 'a test', ['as', 'roles', 'do', 'on', 'expect', 'rule', 'at'], ['as', 'do', 'expect']);
    const [as, action, expect, on, rule, roles, time] = (['as', 'do', 'expect', 'on', 'rule', 'roles', 'at'] as const).map((key) => parts?.get(key));
    if (as === undefined || action === undefined || expect === undefined) return undefined;
    const asAt = this.#at(as.value, as.at);
    const asText = this.#text(as.value, asAt, "'as'");
    const who = asText === undefined ? undefined : this.#testPrincipal(asText, asAt, tenant);
    const word = this.#word(action.value, this.#at(action.value, action.at), 'action', ACTIONS);
    const expected = this.#word(expect.value, this.#at(expect.value, expect.at), 'expectation', ['permit', 'deny', 'forbid'] as const);
    const attributes: Partial<Record<AttributeName, Scalar>> = Object.create(null) as Partial<Record<AttributeName, Scalar>>;
    if (on !== undefined && word !== undefined) {
      for (const entry of this.#map(on.value, on.at, "'on'", undefined)?.values() ?? []) {
        const name = this.#attribute(entry, [KIND_OF_ACTION.get(word) as ResourceKind]);
        const value = name === undefined ? undefined : this.#scalar(entry.value, this.#at(entry.value, entry.at), name);
        if (name !== undefined && value !== undefined) attributes[name] = value;
      }
    }
    const ruleText = rule === undefined ? undefined : this.#text(rule.value, this.#at(rule.value, rule.at), "'rule'");
    const atMs = time === undefined ? undefined : this.#time(time, "'at'");
    const carried = roles === undefined ? [] : (this.#oneOrMany(roles, "'roles'") ?? []).map((item) => this.#text(item.value, item.at, "an entry of 'roles'")).filter((r) => r !== undefined);
    if (who === undefined || word === undefined || expected === undefined) return undefined;
    return { as: who, roles: carried, do: word, on: attributes as TestDocument['on'], expect: expected, rule: ruleText, atMs, at };
  }

  #testPrincipal(text: string, at: Position, tenant: string): TestDocument['as'] | undefined {
    const segments = text.split('/');
    const owner = segments[0] === 'tenant' ? segments.splice(0, 2)[1] : tenant;
    const [kind, name, ...more] = segments;
    const qualified = text.startsWith('tenant/');
    const cluster = kind === 'system' || kind === 'node';
    if (name === undefined || more.length > 0 || owner === undefined || (cluster ? qualified : kind !== 'user' && kind !== 'service') || (!cluster && owner === '')) {
      return this.#error(at, `${quote(text)} names no principal; write ${tenant === '' ? "'tenant/acme/user/ana', 'system/admin' or 'node/n1'" : "'user/ana', 'service/etl' or, of another tenant, 'tenant/globex/user/bob'"}`);
    }
    return this.#checked(at, () => ({ tenant: cluster ? '' : parseTenantName(owner), kind: kind as TestDocument['as']['kind'], name: kind === 'node' ? parseNodeId(name) : parseLocalName(name) }));
  }
}

function kindOfNode(node: unknown): string {
  if (isMap(node)) return 'a map';
  if (isSeq(node)) return 'a list';
  const value = isScalar(node) ? (node as YamlScalar).value : null;
  if (value === null || value === undefined) return 'nothing';
  return typeof value === 'string' ? `the text ${quote(value)}` : typeof value === 'number' ? `the number ${String(value)}` : typeof value === 'boolean' ? String(value) : `a ${typeof value}`;
}
