/**
 * Reads the project's own source for `tidy.test.ts` and the documents' tests: files, imports, exports, syntax trees. Must never: run
 * what it reads.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse, type Comment, type Node, type Program } from 'acorn';
import { full } from 'acorn-walk';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Every file of the repository, relative: what git tracks, and what is new and not ignored; also where the clone is another user's. */
export const FILES: readonly string[] = execFileSync('git', ['-c', `safe.directory=${ROOT.replace(/\/$/, '')}`, 'ls-files', '--cached', '--others', '--exclude-standard'], { cwd: ROOT, encoding: 'utf8' })
  .split('\n')
  .filter((file) => file !== '' && existsSync(join(ROOT, file)) && statSync(join(ROOT, file)).isFile())
  .sort();

export function read(file: string): string {
  return readFileSync(join(ROOT, file), 'utf8');
}

export interface Import {
  /** As written. */
  readonly specifier: string;
  /** Relative to the root, when the target is a file of the repository. */
  readonly target: string | undefined;
  /** Nothing of it exists when the program runs. */
  readonly typeOnly: boolean;
  /** What of the target is used; `*` for all. */
  readonly names: readonly string[];
}

export interface SourceFile {
  readonly file: string;
  readonly text: string;
  /** `text` with comments and template texts blanked. */
  readonly code: string;
  readonly program: Program;
  readonly imports: readonly Import[];
  /** Files named by `new URL('…', import.meta.url)` or a string: programs and fixtures that are started, not imported. */
  readonly mentions: readonly string[];
  readonly exports: readonly string[];
}

const SELF: Readonly<Record<string, string>> = { bulkhead: 'src/sdk/sdk.ts', 'bulkhead/runtime': 'src/sdk/runtime.ts', 'bulkhead/actor-pool': 'src/sdk/actor-pool.ts', 'bulkhead/queue': 'src/sdk/queue.ts' };

function resolve(file: string, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return SELF[specifier];
  return normalize(join(dirname(file), specifier));
}

function namesIn(clause: string): string[] {
  if (clause.includes('*')) return ['*'];
  const braces = /\{([^}]*)\}/.exec(clause)?.[1] ?? '';
  const named = braces.split(',').map((part) => part.trim().replace(/^type\s+/, '').split(/\s+as\s+/)[0] ?? '').filter((name) => name !== '');
  return /^\s*(?:type\s+)?[A-Za-z_$]/.test(clause.replace(/^\s*type\s+(?=\{)/, '')) ? ['default', ...named] : named;
}

function exportsOf(code: string): string[] {
  const names: string[] = [];
  for (const [, name] of code.matchAll(/^export (?:declare )?(?:abstract )?(?:async )?(?:function\*?|class|const|let|interface|type|enum) (\w+)/gm)) names.push(name ?? '');
  for (const [, list] of code.matchAll(/^export (?:type )?\{([^}]*)\}/gm)) {
    for (const part of (list ?? '').split(',')) {
      const name = part.trim().replace(/^type\s+/, '').split(/\s+as\s+/).at(-1) ?? '';
      if (name !== '') names.push(name);
    }
  }
  return names;
}

export function parseSource(file: string): SourceFile {
  const text = read(file);
  const comments: Comment[] = [];
  // Types become spaces of the same length, so positions in the tree are positions in the text.
  const stripped = file.endsWith('.ts') ? stripTypeScriptTypes(text) : text;
  const program = parse(stripped, { ecmaVersion: 'latest', sourceType: 'module', allowHashBang: true, onComment: comments });
  const blanks: [number, number][] = comments.map((c) => [c.start, c.end]);
  const strings: string[] = [];
  full(program, (node: Node & { value?: unknown }) => {
    if (node.type === 'TemplateElement') blanks.push([node.start, node.end]);
    if (node.type === 'Literal' && typeof node.value === 'string') strings.push(node.value);
  });
  // UTF-16 units, as positions count them.
  const units = text.split('');
  for (const [start, end] of blanks) for (let i = start; i < end; i++) if (units[i] !== '\n') units[i] = ' ';
  const blanked = units.join('');

  const imports: Import[] = [];
  const add = (specifier: string, typeOnly: boolean, names: string[]): void => {
    imports.push({ specifier, target: resolve(file, specifier), typeOnly, names });
  };
  for (const [, keyword, clause, specifier] of blanked.matchAll(/(?:^|;)[ \t]*(import|export)\b([^'";]*?)\bfrom\s*['"]([^'"]+)['"]/gm)) {
    add(specifier ?? '', /^\s+type\b(?!\s+from)/.test(clause ?? ''), keyword === 'export' && !(clause ?? '').includes('{') ? ['*'] : namesIn(clause ?? ''));
  }
  for (const [, specifier] of blanked.matchAll(/(?:^|;)[ \t]*import\s*['"]([^'"]+)['"]/gm)) add(specifier ?? '', false, []);
  for (const [whole, kind, specifier] of blanked.matchAll(/(typeof )?import\(\s*['"]([^'"]+)['"]\s*\)/g)) add(specifier ?? '', kind !== undefined || stripped.indexOf(whole) < 0, ['*']);
  const mentions = strings.filter((s) => /^[\w./-]+\.(?:ts|js)$/.test(s)).flatMap((s) => [normalize(join(dirname(file), s)), normalize(s)]);
  return { file, text, code: blanked, program, imports, mentions, exports: exportsOf(blanked) };
}

export const CODE_FILES: readonly string[] = FILES.filter((file) => /\.[jt]s$/.test(file) && !file.includes('/generated/'));
const parsed = new Map<string, SourceFile>();

export function source(file: string): SourceFile {
  let known = parsed.get(file);
  if (known === undefined) parsed.set(file, (known = parseSource(file)));
  return known;
}

/** `file:line` of a position, for messages. */
export function place(from: SourceFile, position: number): string {
  return `${from.file}:${from.text.slice(0, position).split('\n').length}`;
}
