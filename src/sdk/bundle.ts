/**
 * Turns a module of the user's, with its npm dependencies, into one script for isolates, addressed by its SHA-256. Runs in the driver.
 * The same sources give the same text: no absolute path, time or order of files may get in. Must never execute what it bundles.
 */
import { createHash } from 'node:crypto';
import { builtinModules } from 'node:module';
import { basename, dirname, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse, type ClassDeclaration, type ClassExpression, type Program } from 'acorn';
import { build, transform, type BuildFailure, type Metafile, type Plugin } from 'esbuild';
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { MAX_CODE_BYTES, MAX_STREAMING_METHODS } from '../base/limits.ts';
import { RUNTIME_EXPORTS, RUNTIME_GLOBAL } from './runtime.ts';

/** The variable that a bundle leaves its exports in; the worker host wraps the text in a function that returns it. */
const EXPORTS_NAME = '__bulkhead_exports';
const BUILTINS: ReadonlySet<string> = new Set([...builtinModules, ...builtinModules.map((name) => `node:${name}`)]);

/** `unknown`: a value that only running the module would show, such as a wrapped function. */
export type ExportKind = 'function' | 'class' | 'generator' | 'value' | 'unknown';

export interface Bundle {
  /** UTF-8. */
  readonly source: Uint8Array;
  /** SHA-256 of `source`, 64 hex digits. */
  readonly digest: string;
  readonly exports: ReadonlyMap<string, ExportKind>;
  /** Of exported classes: their methods that are generators. */
  readonly streams: ReadonlyMap<string, readonly string[]>;
}

export function sealBundle(text: string, exports: ReadonlyMap<string, ExportKind>, what: string, streams: ReadonlyMap<string, readonly string[]> = new Map()): Bundle {
  const source = new TextEncoder().encode(text);
  if (source.length > MAX_CODE_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `${what} bundles to ${source.length} bytes; the limit is ${MAX_CODE_BYTES}: put large data into objects with put()`);
  return { source, digest: createHash('sha256').update(source).digest('hex'), exports, streams };
}

/** `bulkhead/runtime` becomes the object that the prelude keeps; the driver's SDK has no business inside an isolate. */
const runtimePlugin: Plugin = {
  name: 'bulkhead-runtime',
  setup(setup) {
    setup.onResolve({ filter: /^bulkhead\/runtime$/ }, () => ({ path: 'bulkhead/runtime', namespace: 'bulkhead-runtime' }));
    setup.onLoad({ filter: /.*/, namespace: 'bulkhead-runtime' }, () => ({
      contents: `const runtime = globalThis.${RUNTIME_GLOBAL};\n${RUNTIME_EXPORTS.map((name) => `export const ${name} = runtime.${name};`).join('\n')}\n`,
    }));
    setup.onResolve({ filter: /^bulkhead$/ }, () => ({ errors: [{ text: "code that runs on the cluster imports from 'bulkhead/runtime', not from 'bulkhead' (types may come from either, with `import type`)" }] }));
  },
};

/** The imports that lead from the entry to each use of a Node module. */
function builtinChain(metafile: Metafile, entry: string): string | undefined {
  const from = new Map<string, string>();
  const queue = [entry];
  from.set(entry, '');
  for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
    for (const imported of metafile.inputs[file]?.imports ?? []) {
      if (imported.external === true) {
        if (!BUILTINS.has(imported.path)) continue;
        const chain = [imported.path];
        for (let at: string | undefined = file; at !== undefined && at !== ''; at = from.get(at)) chain.unshift(at);
        return chain.join(' → ');
      }
      if (!from.has(imported.path)) {
        from.set(imported.path, file);
        queue.push(imported.path);
      }
    }
  }
  return undefined;
}

/** The methods of a class that are generators, inherited ones of the same bundle too. */
function streamingMethods(node: AnyClassNode, classes: ReadonlyMap<string, AnyClassNode>, depth = 0): string[] {
  const { superClass } = node;
  const parent = superClass?.type === 'Identifier' ? classes.get(superClass.name) : undefined;
  const found = new Set(parent === undefined || depth > 32 ? [] : streamingMethods(parent, classes, depth + 1));
  for (const member of node.body.body) {
    if (member.type !== 'MethodDefinition' || member.static || member.computed || member.kind !== 'method' || member.key.type !== 'Identifier') continue;
    if (member.value.generator) found.add(member.key.name);
    else found.delete(member.key.name);
  }
  return [...found].slice(0, MAX_STREAMING_METHODS);
}

type AnyClassNode = ClassDeclaration | ClassExpression;
type Declared = { readonly type: string; readonly generator?: boolean };

function kindOf(node: Declared | null | undefined): ExportKind {
  switch (node?.type) {
    case 'FunctionDeclaration':
    case 'FunctionExpression':
    case 'ArrowFunctionExpression':
      return node.generator === true ? 'generator' : 'function';
    case 'ClassDeclaration':
    case 'ClassExpression':
      return 'class';
    case 'Literal':
    case 'ObjectExpression':
    case 'ArrayExpression':
    case 'TemplateLiteral':
      return 'value';
    default:
      return 'unknown';
  }
}

/** What each export is, and what its classes stream, read off the bundled ES module without running it. */
function exportKinds(program: Program): { readonly kinds: Map<string, ExportKind>; readonly streams: Map<string, readonly string[]> } {
  const declared = new Map<string, ExportKind>();
  const kinds = new Map<string, ExportKind>();
  const classes = new Map<string, AnyClassNode>();
  const streams = new Map<string, readonly string[]>();
  const exportClass = (exported: string, node: AnyClassNode | undefined): void => {
    const methods = node === undefined ? [] : streamingMethods(node, classes);
    if (methods.length > 0) streams.set(exported, methods);
  };
  for (const statement of program.body) {
    if (statement.type === 'FunctionDeclaration' || statement.type === 'ClassDeclaration') {
      declared.set(statement.id.name, kindOf(statement));
      if (statement.type === 'ClassDeclaration') classes.set(statement.id.name, statement);
    }
    if (statement.type === 'VariableDeclaration') {
      for (const { id, init } of statement.declarations) {
        if (id.type !== 'Identifier') continue;
        // With names kept, esbuild wraps: `var f = /* @__PURE__ */ __name(() => …, "f")`.
        const value = init?.type === 'CallExpression' && init.callee.type === 'Identifier' && init.callee.name.startsWith('__name') ? init.arguments[0] : init;
        declared.set(id.name, kindOf(value));
        if (value?.type === 'ClassExpression') classes.set(id.name, value);
      }
    } else if (statement.type === 'ExportNamedDeclaration') {
      for (const { local, exported } of statement.specifiers) {
        if (local.type !== 'Identifier' || exported.type !== 'Identifier') continue;
        kinds.set(exported.name, declared.get(local.name) ?? 'unknown');
        exportClass(exported.name, classes.get(local.name));
      }
    } else if (statement.type === 'ExportDefaultDeclaration') {
      const { declaration } = statement;
      kinds.set('default', kindOf(declaration));
      if (declaration.type === 'ClassDeclaration' || declaration.type === 'ClassExpression') exportClass('default', declaration as AnyClassNode);
    }
  }
  return { kinds, streams };
}

function explain(thrown: unknown, file: string): BulkheadError {
  const errors = (thrown as Partial<BuildFailure>).errors;
  if (!Array.isArray(errors)) return new BulkheadError('INVALID_ARGUMENT', `${quote(file)} cannot be bundled`, { cause: thrown });
  const lines = errors.slice(0, 5).map(({ text, location }) => `${location === null || location === undefined ? '' : `${location.file}:${location.line}:${location.column}: `}${text}`);
  return new BulkheadError('INVALID_ARGUMENT', `${quote(file)} cannot be bundled: ${lines.join('; ')}`, { cause: thrown });
}

/** Bundles the module in `file` (absolute path or file URL). Throws INVALID_ARGUMENT saying what is in the way and where. */
export async function bundleModule(file: string | URL): Promise<Bundle> {
  const path = typeof file === 'string' ? resolve(file) : fileURLToPath(file);
  const shown = relative(process.cwd(), path) || path;
  const shared = { target: 'es2024', charset: 'utf8', keepNames: true, legalComments: 'none', logLevel: 'silent' } as const;
  let text: string;
  let kinds: Map<string, ExportKind>;
  let streams: Map<string, readonly string[]>;
  try {
    const result = await build({
      ...shared, entryPoints: [path], absWorkingDir: dirname(path), bundle: true, write: false, metafile: true, format: 'esm', platform: 'neutral', sourcemap: false, treeShaking: true,
      mainFields: ['browser', 'module', 'main'], conditions: ['browser', 'module', 'import'], external: [...BUILTINS], plugins: [runtimePlugin], define: { 'process.env.NODE_ENV': '"production"' },
    });
    const chain = builtinChain(result.metafile, basename(path));
    if (chain !== undefined) throw new BulkheadError('INVALID_ARGUMENT', `${quote(shown)} needs a module of Node, which code on the cluster does not have: ${chain}`);
    const [output] = result.outputFiles;
    const bundled = output?.text ?? '';
    ({ kinds, streams } = exportKinds(parse(bundled, { ecmaVersion: 'latest', sourceType: 'module' })));
    ({ code: text } = await transform(bundled, { ...shared, keepNames: false, format: 'iife', globalName: EXPORTS_NAME }));
  } catch (thrown) {
    throw thrown instanceof BulkheadError ? thrown : explain(thrown, shown);
  }
  if (kinds.size === 0) throw new BulkheadError('INVALID_ARGUMENT', `${quote(shown)} exports nothing: export the functions that are to be tasks and the classes that are to be actors`);
  return sealBundle(text, kinds, quote(shown), streams);
}

/** A bundle whose default export is one expression. */
export function expressionBundle(prefix: string, expression: string, what: string, kind: ExportKind): Bundle {
  return sealBundle(`${prefix}var ${EXPORTS_NAME} = { default: (\n${expression}\n) };\n`, new Map([['default', kind]]), what);
}
