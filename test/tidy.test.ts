/**
 * The repository's own rules as a test: who may import whom, what a core may use, no cycles, nothing dead, names, comments, pinned
 * dependencies, generated code. Where a rule has exceptions, they are data here with their reason. Must never: be weakened to let one
 * change through; change the code, or the rule for everyone.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import type { Node } from 'acorn';
import { full } from 'acorn-walk';
import { describe, expect, test } from 'vitest';
import { CODE_FILES, FILES, place, read, ROOT, source, type Import } from './source-tree.ts';

const SOURCES = CODE_FILES.map(source);
const SRC = SOURCES.filter((s) => s.file.startsWith('src/'));

// --- who may import whom --------------------------------------------------------------------------------------------

/** The files of an area that others may import. What is not here is the area's own business. */
const FACES: Readonly<Record<string, readonly string[]>> = {
  base: ['*'],
  // The messages are the protocol itself, so whoever may speak it may name them.
  rpc: ['rpc.ts', 'service-types.ts', 'streams.ts', 'generated/'],
  pki: ['pki.ts'],
  authz: ['authz.ts'],
  audit: ['audit-store.ts', 'audit-query.ts', 'audit-usage.ts', 'audit-export.ts', 'audit-verify.ts', 'checkpoint-signer.ts', 'core/note.ts', 'core/record-lines.ts'],
  objects: ['object-files.ts', 'spill-files.ts'],
  sandbox: ['worker-pool.ts', 'worker-process.ts', 'jail/layers.ts', 'jail/cgroup.ts', 'gvisor/runsc.ts', 'gvisor/python-environment.ts', 'packages/package-index.ts'],
  sdk: ['sdk.ts', 'runtime.ts', 'actor-pool.ts', 'queue.ts', 'head-client.ts', 'remote-types.ts', 'python-program.ts', 'owned-job.ts', 'job-log.ts', 'grpc-transport.ts', 'bundle.ts'],
  // Processes: they are started, and meet the others in proto/.
  gcs: [],
  raylet: [],
  gateway: [],
  cli: [],
};

/** What isolates and drivers share: ECMAScript only. */
const SHARED_WITH_ISOLATES = ['client-core', 'calls', 'object-ref', 'object-stream', 'remote-error', 'actor-handle', 'placement-group', 'python-name', 'options', 'remote-types', 'runtime', 'actor-pool', 'queue', 'queue-actor'].map((name) => `src/sdk/${name}.ts`);

interface ImportRule {
  /** Files this rule is for: a path or a folder with `/` at its end. The first rule that fits counts. */
  readonly files: readonly string[];
  /** Areas whose faces may be imported, beside the own area. */
  readonly may: readonly string[];
  /** Single files beyond faces. */
  readonly also?: readonly string[];
  /** The own area is not free: only these folders of it. */
  readonly ownOnly?: readonly string[];
  /** Any file of the areas named, not only their faces. */
  readonly deep?: true;
}

const IMPORT_RULES: readonly ImportRule[] = [
  { files: ['src/base/'], may: [] },
  // A core decides about its own area's things, in the vocabulary of base.
  ...['audit', 'authz', 'gateway', 'gcs', 'pki', 'raylet', 'sandbox'].map((area) => ({ files: [`src/${area}/core/`], may: ['base'], ownOnly: [`src/${area}/core/`] })),
  // These meet rpc through the ports of src/base and src/rpc/ports.ts, whose shapes they have without importing them.
  { files: ['src/rpc/', 'src/pki/', 'src/authz/', 'src/audit/', 'src/objects/'], may: ['base'] },
  // The prelude is the guest's half of the SDK; nothing of the host gets in.
  { files: ['src/sandbox/isolate/guest/'], may: ['base'], also: SHARED_WITH_ISOLATES, ownOnly: ['src/sandbox/isolate/guest/'] },
  { files: ['src/sandbox/'], may: ['base'] },
  // Composition of the head: everything else of src/gcs knows pki, authz and audit only as its own ports.
  { files: ['src/gcs/adapters.ts', 'src/gcs/policy-check.ts', 'src/gcs/head-process.ts', 'src/gcs/main.ts'], may: ['base', 'rpc', 'pki', 'authz', 'audit'] },
  { files: ['src/gcs/'], may: ['base', 'rpc'] },
  // Composition of a raylet: its process, what follows the head, and what serves the node's audit logs.
  { files: ['src/raylet/raylet-process.ts', 'src/raylet/main.ts', 'src/raylet/head-link.ts', 'src/raylet/audit-service.ts'], may: ['base', 'rpc', 'pki', 'authz', 'audit', 'sandbox', 'objects'] },
  { files: ['src/raylet/'], may: ['base', 'rpc', 'sandbox', 'objects'] },
  { files: SHARED_WITH_ISOLATES, may: ['base'], ownOnly: SHARED_WITH_ISOLATES },
  { files: ['src/sdk/'], may: ['base', 'rpc', 'pki'] },
  // A client of head and raylets like any other, with a socket of its own.
  { files: ['src/gateway/'], may: ['base', 'rpc', 'pki', 'sdk'] },
  // Verifies exports, checks policies and reads layers on this machine, so it knows more than the protocol; never a process's inside.
  { files: ['src/cli/'], may: ['base', 'rpc', 'pki', 'authz', 'audit', 'sandbox', 'sdk'] },
  // A user's programs see what a user sees.
  { files: ['examples/'], may: ['sdk'] },
  { files: ['scripts/'], may: [] },
  // Puts a raylet together with single controls left out, to show what each costs; so it knows the parts.
  { files: ['bench/scheduling.ts'], may: ['base', 'raylet'], deep: true },
  { files: ['bench/control-raylet.ts'], may: ['base', 'rpc', 'pki', 'authz', 'audit', 'sandbox', 'objects', 'raylet'], deep: true },
  // Starts a sandbox by itself, as a worker's is described.
  { files: ['bench/sandbox-floor.ts'], may: ['sandbox'], deep: true },
  // Its processes get the directory in memory that `bulkhead up` makes.
  { files: ['bench/cluster.ts'], may: ['base', 'rpc', 'pki', 'cli'], deep: true },
  // It installs Ray where `doctor` looks for it.
  { files: ['bench/ray.ts'], may: ['cli'], deep: true },
  { files: ['bench/'], may: ['base', 'rpc', 'pki', 'authz', 'audit', 'sandbox', 'sdk'] },
];

/** npm packages, and the only places that may know them. Replacing a library must touch these files and no others. */
const PACKAGE_HOMES: Readonly<Record<string, readonly string[]>> = {
  // The hostile suite shows each trap of CASL on CASL itself.
  '@casl/ability': ['src/authz/casl-adapter.ts', 'test/hostile/policy-casl.test.ts'],
  'node-forge': ['src/pki/forge-der.ts'],
  'isolated-vm': ['src/sandbox/isolate/worker-host.ts', 'test/'],
  '@grpc/grpc-js': ['src/rpc/', 'test/'],
  '@bufbuild/protobuf': ['src/rpc/', 'src/gcs/services/', 'src/raylet/', 'src/cli/', 'bench/', 'test/'],
  yaml: ['src/authz/policy-file.ts', 'src/authz/methods.ts', 'test/'],
  jose: ['src/pki/', 'test/'],
  zod: ['src/', 'test/'],
  pino: ['src/gcs/', 'src/raylet/', 'src/gateway/'],
  commander: ['src/cli/program.ts', 'bench/'],
  esbuild: ['src/sdk/bundle.ts', 'src/sandbox/bundle-cache.ts', 'scripts/', 'bench/control-raylet.ts', 'test/'],
  acorn: ['src/sdk/', 'test/'],
  'acorn-walk': ['src/sdk/', 'test/'],
  hyparquet: ['examples/', 'test/'],
  fzstd: ['examples/', 'test/'],
  vitest: ['test/', 'vitest.config.ts'],
};
/** The runtime itself; and an addon whose native file `jail/image.ts` puts into the jail, where the worker host loads it by path. */
const USED_WITHOUT_IMPORT = ['node', 'koffi'];
const TEST_ONLY_PACKAGES = ['@peculiar/x509', 'cbor-x', 'fast-check', 'reflect-metadata', 'vega-datasets'];

const inside = (file: string, places: readonly string[]): boolean => places.some((p) => (p.endsWith('/') ? file.startsWith(p) : file === p));
const areaOf = (file: string): string | undefined => /^src\/([^/]+)\//.exec(file)?.[1];
const packageOf = (specifier: string): string => specifier.split('/').slice(0, specifier.startsWith('@') ? 2 : 1).join('/');

function importViolations(): string[] {
  const found: string[] = [];
  for (const { file, imports } of SOURCES) {
    if (file.startsWith('test/') || !file.includes('/')) continue;
    const rule = IMPORT_RULES.find((r) => inside(file, r.files));
    for (const { target, specifier } of imports) {
      if (target === undefined) continue;
      const area = areaOf(target);
      const own = area === undefined ? dirname(target).split('/')[0] === file.split('/')[0] : area === areaOf(file);
      if (rule === undefined) found.push(`${file}: no rule says what it may import`);
      else if (rule.also?.includes(target) === true) continue;
      else if (own) {
        if (rule.ownOnly !== undefined && !inside(target, rule.ownOnly)) found.push(`${file} imports '${specifier}': only ${rule.ownOnly.join(', ')} of its area`);
      } else if (area === undefined || !rule.may.includes(area)) found.push(`${file} imports '${specifier}': it may import ${rule.may.join(', ') || 'nothing'}`);
      else if (rule.deep !== true && !(FACES[area] ?? []).some((face) => face === '*' || (face.endsWith('/') ? target.startsWith(`src/${area}/${face}`) : target === `src/${area}/${face}`))) found.push(`${file} imports '${specifier}': not a face of ${area}`);
    }
  }
  return found;
}

// --- what a core may use --------------------------------------------------------------------------------------------

const HOST_GLOBALS = new Set([
  'process', 'Buffer', 'performance', 'crypto', 'fetch', 'console', 'setTimeout', 'setInterval', 'setImmediate', 'queueMicrotask', 'require', '__dirname', 'eval', 'Function',
  'Promise', 'WeakRef', 'FinalizationRegistry', 'Atomics', 'SharedArrayBuffer', 'WebAssembly', 'Intl', 'navigator', 'Worker',
]);
/** `base/value.ts` looks for codecs that only some hosts have, and works without. */
const MAY_ASK_FOR_HOST = ['src/base/value.ts'];
const FORBIDDEN_MEMBERS = new Set(['Date.now', 'Math.random', 'import.meta', 'Date.parse']);

function impurities(): string[] {
  const found: string[] = [];
  for (const s of SRC.filter(({ file }) => file.startsWith('src/base/') || /^src\/[^/]+\/core\//.test(file))) {
    for (const { specifier, target } of s.imports) if (target === undefined) found.push(`${s.file} imports '${specifier}'`);
    // Names that the file declares itself are not the host's; acorn-walk's `full` also visits them.
    const declared = new Set([...s.imports.flatMap((i) => i.names), ...[...s.code.matchAll(/\b(?:const|let|function|class)\s+(\w+)/g)].map(([, name]) => name)]);
    full(s.program, (node: Node) => {
      for (const parameter of (node as Node & { params?: { name?: string }[] }).params ?? []) declared.add(parameter.name ?? '');
    });
    full(s.program, (node: Node) => {
      const n = node as Node & { name?: string; object?: { name?: string }; property?: { name?: string }; async?: boolean; callee?: { name?: string }; arguments?: unknown[] };
      const complain = (what: string): void => void found.push(`${place(s, n.start)} uses ${what}`);
      if (n.type === 'AwaitExpression' || n.type === 'ImportExpression' || n.type === 'MetaProperty') complain(n.type);
      if (n.async === true) complain('async');
      if (n.type === 'MemberExpression' && FORBIDDEN_MEMBERS.has(`${n.object?.name}.${n.property?.name}`)) complain(`${n.object?.name}.${n.property?.name}`);
      if (n.type === 'NewExpression' && n.callee?.name === 'Date' && n.arguments?.length === 0) complain('new Date()');
      if (n.type === 'Identifier' && n.name !== undefined && HOST_GLOBALS.has(n.name) && !declared.has(n.name)) complain(n.name);
      if (n.type === 'Identifier' && n.name === 'globalThis' && !MAY_ASK_FOR_HOST.includes(s.file)) complain('globalThis');
    });
  }
  return found;
}

// --- cycles, dead files, dead exports -------------------------------------------------------------------------------

/** Strongly connected components with more than one file (Tarjan 1972). */
function cycles(): string[][] {
  const edges = new Map(SRC.map((s) => [s.file, s.imports.filter((i) => !i.typeOnly && i.target !== undefined).map((i) => i.target ?? '')]));
  const index = new Map<string, number>();
  const low = new Map<string, number>();
  const stack: string[] = [];
  const found: string[][] = [];
  const visit = (file: string): number => {
    const at = index.size;
    index.set(file, at);
    low.set(file, at);
    stack.push(file);
    for (const next of edges.get(file) ?? []) {
      if (!index.has(next)) low.set(file, Math.min(low.get(file) ?? at, visit(next)));
      else if (stack.includes(next)) low.set(file, Math.min(low.get(file) ?? at, index.get(next) ?? at));
    }
    if (low.get(file) === at) {
      const component = stack.splice(stack.indexOf(file));
      if (component.length > 1) found.push(component);
    }
    return low.get(file) ?? at;
  };
  for (const file of edges.keys()) if (!index.has(file)) visit(file);
  return found;
}

/** Where programs start, and what others import: everything in src must be reachable from here without a test's help. */
const ENTRY_POINTS = [
  'src/cli/main.ts', 'src/sdk/sdk.ts', 'src/sdk/runtime.ts', 'src/sdk/actor-pool.ts', 'src/sdk/queue.ts', 'src/gcs/main.ts', 'src/raylet/main.ts', 'src/sandbox/isolate/worker-host.ts', 'src/sandbox/isolate/guest/prelude.ts',
  'src/authz/json-schema.ts', 'src/sandbox/gvisor/build-runsc.ts', 'bin/bulkhead.js', 'vitest.config.ts',
];
/** Second implementations of a seam, there so that its contract suite proves something and tests need no disk. */
const FOR_TESTS = ['src/gcs/memory-store.ts', 'src/pki/memory-key-manager.ts'];

/** By imports that `follow` takes; without it by all, and by the names of files that are started instead of imported. */
function reachable(from: readonly string[], follow?: (i: Import) => boolean): Set<string> {
  const seen = new Set<string>();
  const todo = [...from];
  for (let file = todo.pop(); file !== undefined; file = todo.pop()) {
    if (seen.has(file) || !CODE_FILES.includes(file)) continue;
    seen.add(file);
    const { imports, mentions } = source(file);
    todo.push(...imports.filter((i) => follow?.(i) ?? true).map((i) => i.target ?? ''), ...(follow === undefined ? mentions : []));
  }
  return seen;
}

function deadFiles(): string[] {
  const product = reachable([...ENTRY_POINTS, ...FOR_TESTS, ...CODE_FILES.filter((f) => /^(?:scripts|bench|examples)\//.test(f))]);
  // Programs of the tests that a script of the package starts.
  const programs = [...read('package.json').matchAll(/"node (test\/[\w./-]+\.ts)"/g)].map(([, file]) => file as string);
  const all = reachable([...product, ...programs, ...CODE_FILES.filter((f) => f.endsWith('.test.ts'))]);
  return CODE_FILES.filter((file) => !(file.startsWith('src/') ? product : all).has(file));
}

/** Exports that nobody imports and their own file does not use either. Entry points and faces export for others. */
function deadExports(): string[] {
  const used = new Map<string, Set<string>>();
  for (const s of SOURCES) for (const { target, names } of s.imports) if (target !== undefined) for (const name of names) used.set(target, (used.get(target) ?? new Set()).add(name));
  return SRC.filter((s) => !ENTRY_POINTS.includes(s.file)).flatMap((s) => {
    const names = used.get(s.file) ?? new Set();
    return names.has('*') ? [] : s.exports.filter((name) => !names.has(name) && !new RegExp(`^export (?:type )?\\{[^}]*\\b${name}\\b[^}]*\\} from`, 'm').test(s.code) && s.code.split(new RegExp(`\\b${name}\\b`)).length === 2).map((name) => `${s.file}: ${name}`);
  });
}

describe('structure', () => {
  test('imports go only in the directions of the table', () => {
    expect(importViolations()).toEqual([]);
  });

  test('base and every core are free of IO, clock, randomness, await and host types', () => {
    expect(impurities()).toEqual([]);
  });

  test('no trusted process can decode a tenant’s value', () => {
    const decoders = ['src/base/value.ts', 'src/sdk/client-core.ts'];
    const trusted = reachable(['src/gcs/main.ts', 'src/raylet/main.ts'], (i) => !i.typeOnly);
    expect(decoders.filter((file) => trusted.has(file))).toEqual([]);
    // Nor make code or values of bytes by other means. Tenants' JSON is read by schema, in the open.
    const found = SRC.filter((s) => trusted.has(s.file)).flatMap((s) => [...s.code.matchAll(/\b(?:eval|Function|deserialize|unserialize|runIn\w*Context|compileFunction)\s*\(|from 'node:(?:vm|worker_threads|repl|inspector)'/g)].map((m) => place(s, m.index)));
    // One file starts a thread, of the head's own code by its path, which reads policy files as the head would.
    expect(found.map((at) => at.slice(0, at.lastIndexOf(':')))).toEqual(['src/gcs/policy-check.ts']);
    expect([...read('src/gcs/policy-check.ts').matchAll(/new Worker\((.*?),/g)].map((m) => m[1])).toEqual(["new URL('./policy-check-thread.ts'"]);
  });

  test('what runs inside isolates names no module of Node', () => {
    const guest = SRC.filter(({ file }) => file.startsWith('src/sandbox/isolate/guest/') || SHARED_WITH_ISOLATES.includes(file));
    expect(guest.flatMap((s) => s.imports.filter((i) => i.target === undefined).map((i) => `${s.file}: ${i.specifier}`))).toEqual([]);
  });

  test('every npm package is known only in its places', () => {
    const found = SOURCES.flatMap((s) =>
      s.imports.filter((i) => i.target === undefined && !i.specifier.startsWith('.') && !i.specifier.startsWith('node:')).flatMap(({ specifier }) => {
        const name = packageOf(specifier);
        const homes = PACKAGE_HOMES[name] ?? (TEST_ONLY_PACKAGES.includes(name) ? ['test/', 'examples/', 'scripts/'] : undefined);
        if (homes === undefined) return [`${s.file} imports '${specifier}', which has no place in the table`];
        return inside(s.file, homes) ? [] : [`${s.file} imports '${specifier}': its places are ${homes.join(', ')}`];
      }),
    );
    expect(found.filter((line) => !line.startsWith('test/spec/fixtures/'))).toEqual([]);
  });

  test('relative imports end in the name of a file that exists', () => {
    expect(SOURCES.flatMap((s) => s.imports.filter((i) => i.target !== undefined && !FILES.includes(i.target)).map((i) => `${s.file}: ${i.specifier}`))).toEqual([]);
  });

  test('there is no import cycle', () => {
    expect(cycles()).toEqual([]);
  });

  test('every file can be reached from an entry point, files of src without the help of tests', () => {
    expect(deadFiles()).toEqual([]);
  });

  test('nothing is exported that nobody uses', () => {
    expect(deadExports()).toEqual([]);
  });
});

// --- names and text -------------------------------------------------------------------------------------------------

const MAX_LINE_CHARS = 380;
const MAX_README_LINES = 60;
const VAGUE_NAMES = /^(?:index|utils?|helpers?|common|misc|manager)$/;
const UPPER_CASE_FILES = /^(?:README|SECURITY|GUARANTEES|CONTRIBUTING|CHANGELOG|ARCHITECTURE|PERFORMANCE|TESTING)\.md$|^LICENSE$/;

const TEXT_FILES = FILES.filter((f) => /\.(?:ts|js|sh|py|md|json|ya?ml|proto|svg|c|go)$|^\.ci\/|^LICENSE$/.test(f) && f !== 'package-lock.json');
const WRITTEN = TEXT_FILES.filter((f) => !f.includes('/generated/') && f !== 'test/tidy.test.ts');

function lines(files: readonly string[], bad: RegExp): string[] {
  return files.flatMap((file) => read(file).split('\n').flatMap((line, i) => (bad.test(line) ? [`${file}:${i + 1}: ${line.trim().slice(0, 120)}`] : [])));
}

describe('names and text', () => {
  test('files are named in kebab case after what they hold', () => {
    const found = FILES.filter((file) => !file.includes('/generated/')).flatMap((file) => {
      const name = basename(file);
      const stem = name.replace(/^\./, '').replace(/(?:\.test|\.config|\.schema)?\.[a-z0-9]+$/, '');
      if (UPPER_CASE_FILES.test(name)) return [];
      return VAGUE_NAMES.test(stem) || !/^[a-z0-9]+(?:[-.][a-z0-9]+)*$/.test(stem) ? [file] : [];
    });
    // Python's own habit is snake case.
    expect(found.filter((f) => !/\.py$/.test(f) || !/^[a-z0-9_]+\.py$/.test(basename(f)))).toEqual([]);
  });

  test('every source file opens with a comment', () => {
    const opens = (text: string): boolean => /^(?:#![^\n]*\n)?(?:\/\*|\/\/|#|""")/.test(text);
    expect([...CODE_FILES, ...FILES.filter((f) => /\.(?:sh|py|proto|c|go)$/.test(f))].filter((file) => !opens(read(file)))).toEqual([]);
  });

  test('lines of code can be read', () => {
    const found = CODE_FILES.flatMap((file) => read(file).split('\n').flatMap((line, i) => (line.length > MAX_LINE_CHARS ? [`${file}:${i + 1}`] : [])));
    expect(found).toEqual([]);
  });

  test('every area has a README of at most a page', () => {
    const areas = [...new Set(SRC.map((s) => areaOf(s.file)))];
    const found = areas.flatMap((area) => {
      const readme = `src/${area}/README.md`;
      if (!FILES.includes(readme)) return [`${readme} is missing`];
      return read(readme).trimEnd().split('\n').length > MAX_README_LINES ? [`${readme} is longer than a page`] : [];
    });
    expect(found).toEqual([]);
  });

  test('nothing is left for later in a comment, no test is switched off or singled out', () => {
    expect(lines(WRITTEN, /\b(?:TODO|FIXME|XXX|HACK)\b/)).toEqual([]);
    expect(lines(CODE_FILES.filter((f) => f.startsWith('test/') && f !== 'test/tidy.test.ts'), /\b(?:test|it|describe|suite)(?:\.\w+)*\.(?:only|skip|todo|fails)\b/)).toEqual([]);
  });

  test('no path of a developer’s machine, no registry, no private key', () => {
    expect(lines(WRITTEN, /(?<![\w$}./-])\/(?:work|root|Users|home\/[a-z]+)\/[a-z]/i).filter((line) => !/^test\/hostile\//.test(line))).toEqual([]);
    expect(lines(TEXT_FILES, /registry\.[a-z0-9-]+\.[a-z]{2,}|\/api\/npm\//)).toEqual([]);
    expect(lines(WRITTEN, /-----BEGIN [A-Z ]*PRIVATE KEY-----[^'"`$\\]*[A-Za-z0-9+/]{40}/)).toEqual([]);
  });

  test('links in documents lead somewhere', () => {
    const anchors = (file: string): Set<string> => new Set([...read(file).matchAll(/^#+\s+(.*)$/gm)].map(([, h]) => (h ?? '').trim().toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, '').replace(/\s/g, '-')));
    const found = FILES.filter((f) => f.endsWith('.md')).flatMap((file) =>
      [...read(file).replace(/```[\s\S]*?```/g, '').matchAll(/\]\(([^)\s]+)\)/g)].flatMap(([, link]) => {
        if (link === undefined || /^(?:https?|mailto):/.test(link)) return [];
        const [path, anchor] = link.split('#');
        const target = path === undefined || path === '' ? file : join(dirname(file), path).replace(/\/$/, '');
        if (!FILES.includes(target) && !FILES.some((f) => f.startsWith(`${target}/`))) return [`${file}: ${link}`];
        return anchor !== undefined && target.endsWith('.md') && !anchors(target).has(anchor) ? [`${file}: ${link} (no such heading)`] : [];
      }),
    );
    expect(found).toEqual([]);
  });
});

// --- what comes from elsewhere --------------------------------------------------------------------------------------

describe('what comes from elsewhere', () => {
  test('dependencies are pinned exactly, and the lock file names no host', () => {
    const manifest = JSON.parse(read('package.json')) as Record<string, Record<string, string>>;
    const loose = Object.entries({ ...manifest['dependencies'], ...manifest['devDependencies'] }).filter(([, version]) => !/^\d+\.\d+\.\d+(?:-[\w.]+)?$/.test(version));
    expect(loose).toEqual([]);
    expect(read('package-lock.json')).not.toContain('"resolved"');
    // Binaries of development tools for other platforms: npm must find them named, and installs them nowhere that this was locked for.
    const elsewhere = (p: { dev?: boolean; optional?: boolean; os?: string[] }): boolean => p.dev === true && p.optional === true && p.os !== undefined;
    const { packages } = JSON.parse(read('package-lock.json')) as { packages: Record<string, { integrity?: string; link?: boolean; dev?: boolean; optional?: boolean; os?: string[] }> };
    const unchecked = Object.entries(packages).filter(([path, p]) => path !== '' && p.link !== true && p.integrity === undefined && !elsewhere(p));
    expect(unchecked.map(([path]) => path)).toEqual([]);
  });

  test('every dependency is used', () => {
    const manifest = JSON.parse(read('package.json')) as { dependencies: Record<string, string> };
    const used = new Set(SRC.flatMap((s) => s.imports.map((i) => packageOf(i.specifier))));
    expect(Object.keys(manifest.dependencies).filter((name) => !USED_WITHOUT_IMPORT.includes(name) && !used.has(name))).toEqual([]);
  });

  test('scripts run by package managers are only of packages that need them', () => {
    const manifest = JSON.parse(read('package.json')) as { allowScripts: Record<string, boolean>; scripts: Record<string, string> };
    expect(Object.keys(manifest.allowScripts).filter((name) => manifest.allowScripts[name] === true).sort()).toEqual(['isolated-vm', 'node']);
    expect(Object.keys(manifest.scripts).filter((name) => /^(?:pre|post)?(?:install|prepare)$/.test(name))).toEqual([]);
  });

  test('the generated protocol code is what the proto files say', () => {
    const out = mkdtempSync(join(tmpdir(), 'bulkhead-generate-'));
    try {
      const bin = join(ROOT, 'node_modules', '.bin');
      execFileSync(join(bin, 'buf'), ['generate', '--output', out], { cwd: ROOT, env: { ...process.env, PATH: `${bin}:${process.env['PATH'] ?? ''}` }, stdio: 'pipe', timeout: 60_000 });
      const generated = FILES.filter((f) => f.startsWith('src/rpc/generated/'));
      expect(generated.length).toBeGreaterThan(0);
      expect(generated.filter((file) => readFileSync(join(out, file), 'utf8') !== read(file))).toEqual([]);
      expect(FILES.filter((f) => f.endsWith('.proto')).length * 2).toBe(generated.length);
    } finally {
      rmSync(out, { recursive: true, force: true });
    }
  });

  test('actions of the workflow are pinned by full commit hash', () => {
    const uses = FILES.filter((f) => f.startsWith('.github/workflows/')).flatMap((f) => lines([f], /^\s*-?\s*uses:/));
    expect(uses.filter((line) => !/uses: [\w.-]+\/[\w./-]+@[0-9a-f]{40}\b/.test(line))).toEqual([]);
  });
});
