/** The package as it would be published: what is in it, that its types hold for a strict consumer, and that it runs from node_modules. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { read, ROOT } from '../source-tree.ts';

const NODE = join(ROOT, 'node_modules', 'node', 'bin', 'node');
let consumer: string;
let dist: string;

const run = (command: string, args: readonly string[]): string => execFileSync(command, args, { cwd: consumer, encoding: 'utf8', timeout: 120_000, env: { PATH: process.env['PATH'] ?? '', HOME: consumer } });

beforeAll(() => {
  consumer = mkdtempSync(join(tmpdir(), 'bulkhead-package-'));
  mkdirSync(join(consumer, 'node_modules'));
  for (const name of readdirSync(join(ROOT, 'node_modules')).filter((n) => n !== 'bulkhead')) symlinkSync(join(ROOT, 'node_modules', name), join(consumer, 'node_modules', name));
  dist = join(consumer, 'node_modules', 'bulkhead');
  run(NODE, [join(ROOT, 'scripts', 'build.ts'), dist]);
});

afterAll(() => {
  rmSync(consumer, { recursive: true, force: true });
});

describe('the package', () => {
  test('holds compiled code, types, policies and documents, and nothing else', () => {
    const files = readdirSync(dist, { recursive: true, withFileTypes: true }).filter((f) => f.isFile()).map((f) => join(f.parentPath, f.name).slice(dist.length + 1));
    expect(files.filter((f) => !/^src\/[\w./-]+\.(?:js|d\.ts)$|^policies\/[\w./-]+\.(?:yaml|json)$|^proto\/[\w./-]+\.(?:proto|md)$|^python\/(?:pyproject\.toml|bulkhead\/[\w/]+\.(?:py|typed))$|^bin\/bulkhead\.js$|^[A-Z]+(?:\.md)?$|^package\.json$/.test(f))).toEqual([]);
    for (const needed of ['src/gcs/main.js', 'src/raylet/main.js', 'src/sandbox/isolate/worker-host.js', 'src/sandbox/isolate/guest/prelude.js', 'policies/methods.yaml', 'python/bulkhead/worker.py', 'LICENSE']) expect(files).toContain(needed);
    const manifest = JSON.parse(readFileSync(join(dist, 'package.json'), 'utf8')) as Record<string, unknown>;
    expect(Object.keys(manifest)).not.toContain('scripts');
    expect(Object.keys(manifest)).not.toContain('devDependencies');
    expect(manifest['dependencies']).toEqual((JSON.parse(read('package.json')) as Record<string, unknown>)['dependencies']);
  });

  test('runs from node_modules, where Node strips no types', () => {
    expect(run(NODE, [join(dist, 'bin', 'bulkhead.js'), '--version'])).toBe(`${(JSON.parse(read('package.json')) as { version: string }).version}\n`);
    expect(run(NODE, [join(dist, 'bin', 'bulkhead.js'), 'policy', 'check', join(dist, 'policies', 'examples', 'acme.yaml')])).toContain('ok: 1 file');
    writeFileSync(join(consumer, 'names.mjs'), "import * as sdk from 'bulkhead';\nimport { ActorPool } from 'bulkhead/actor-pool';\nimport { Queue } from 'bulkhead/queue';\nconsole.log(typeof sdk.connect, new sdk.BulkheadError('TIMEOUT', 'late').code, ActorPool.name, Queue.name);\n");
    expect(run(NODE, ['names.mjs'])).toBe('function TIMEOUT ActorPool Queue\n');
  });

  test('has types that a strict program can use', () => {
    writeFileSync(join(consumer, 'program.mts'), "import { connect, type ObjectRef } from 'bulkhead';\nawait using cluster = await connect();\nconst ref: ObjectRef<number> = cluster.task((x: number) => 2 * x)(21);\nexport const value: number = await cluster.get(ref);\n");
    writeFileSync(join(consumer, 'tsconfig.json'), JSON.stringify({ compilerOptions: { target: 'es2024', module: 'nodenext', lib: ['es2024', 'esnext.disposable', 'esnext.iterator'], types: ['node'], strict: true, noEmit: true, skipLibCheck: false }, files: ['program.mts'] }));
    // Foreign packages' types are their own business.
    let out = '';
    try {
      out = run(join(ROOT, 'node_modules', '.bin', 'tsc'), ['-p', 'tsconfig.json']);
    } catch (error) {
      out = String((error as { stdout?: unknown }).stdout);
    }
    expect(out.split('\n').filter((line) => /^(?:program\.mts|node_modules\/bulkhead\/)/.test(line))).toEqual([]);
  });
});
