/** What decides about gVisor without starting it: releases of `runsc`, the bundle of a sandbox, options of Python functions. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseFunctionOptions } from '../../src/raylet/core/function-options.ts';
import { checkRunsc, findRunsc, parseRelease, RUNSC_RELEASE } from '../../src/sandbox/gvisor/runsc.ts';
import { ociConfig, RUNSC_FLAGS } from '../../src/sandbox/gvisor/sandbox.ts';
import { pythonEnvironment } from '../../src/sandbox/gvisor/python-environment.ts';

const directory = mkdtempSync(join(tmpdir(), 'bulkhead-gvisor-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function pretend(name: string, says: string): string {
  const path = join(directory, name);
  writeFileSync(path, `#!/bin/sh\ncat <<'END'\n${says}\nEND\n`);
  chmodSync(path, 0o755);
  return path;
}

describe('runsc', () => {
  test.each([
    ['runsc version release-20260905.0\nspec: 1.2.1', 20260905], ['runsc version release-20260601.0-12-g0123456789ab', 20260601], ['runsc version 0.0~20221219.0-1', undefined],
    ['runsc version VERSION_MISSING', undefined], ['something else release-20260905.0', undefined], ['', undefined],
  ])('%j is the release %s', (text, release) => {
    expect(parseRelease(text)).toBe(release);
  });

  test('a current release is taken, and the one that a variable names wins', () => {
    const path = pretend('current', `runsc version release-${RUNSC_RELEASE}.0`);
    expect(findRunsc(path)).toEqual({ path, release: RUNSC_RELEASE, text: `runsc version release-${RUNSC_RELEASE}.0` });
  });

  test('an older release is refused with the reason and the remedy', () => {
    expect(() => checkRunsc(pretend('old', 'runsc version release-20221219.0'), undefined)).toThrow(/runsc is of 20221219, and releases before \d{8} have known ways out.*npm run gvisor/);
  });

  test('one that tells no release, that does not run, or that is not what was built is refused', () => {
    expect(() => checkRunsc(pretend('unknown', 'runsc version VERSION_MISSING'), undefined)).toThrow(/tells no release/);
    expect(() => checkRunsc(join(directory, 'absent'), undefined)).toThrow(/does not run/);
    expect(() => checkRunsc(pretend('other', `runsc version release-${RUNSC_RELEASE}.0`), '0'.repeat(64))).toThrow(/has not the digest/);
  });
});

describe('the bundle of a sandbox', () => {
  const environment = { version: '3.11', cloudpickle: '3', readOnly: [{ source: '/a', target: '/opt/python' }], program: '/opt/python/bin/python3.11', args: ['-I'], paths: [], env: ['HOME=/tmp'] };
  const config = ociConfig({ environment, rootDir: '/root-dir', readOnly: [{ source: '/o', target: '/objects' }], readWrite: [{ source: '/s', target: '/staging' }] }) as {
    root: { readonly: boolean }; process: { noNewPrivileges: boolean; capabilities: Record<string, string[]>; env: string[] }; mounts: { destination: string; type: string; options?: string[] }[]; linux: Record<string, unknown>;
  };

  test('never asks for the platform kvm, a network or the host’s sockets', () => {
    expect(RUNSC_FLAGS).toEqual(expect.arrayContaining(['--platform=systrap', '--network=none', '--ignore-cgroups', '--host-uds=none']));
    expect(RUNSC_FLAGS.join(' ')).not.toMatch(/kvm/);
  });

  test('has a read-only root and one writable place of the host, from which nothing runs', () => {
    expect(config.root.readonly).toBe(true);
    expect(config.mounts.filter((m) => m.type === 'bind' && !m.options?.includes('ro'))).toEqual([{ destination: '/staging', type: 'bind', source: '/s', options: ['bind', 'nosuid', 'nodev', 'rw', 'noexec', 'dcache=0'] }]);
    expect(config.mounts.filter((m) => m.destination.startsWith('/dev'))).toEqual([]);
    expect(config.mounts.find((m) => m.destination === '/tmp')?.options?.some((o) => /^size=\d+$/.test(o))).toBe(true);
  });

  test('gives the supervisor what makes and ends processes, and nobody anything that is inherited', () => {
    const { capabilities, noNewPrivileges } = config.process;
    expect(noNewPrivileges).toBe(true);
    expect(capabilities['effective']).toEqual(['CAP_SETUID', 'CAP_SETGID', 'CAP_KILL', 'CAP_SETPCAP']);
    expect([capabilities['inheritable'], capabilities['ambient']]).toEqual([[], []]);
    expect(config.process.env).toEqual(['HOME=/tmp']);
  });

  test('an interpreter that cannot be asked is a missing layer with a remedy', () => {
    expect(() => pythonEnvironment(join(directory, 'absent'))).toThrow(/layer python is missing.*bulkhead up --python/);
  });
});

describe('options of a function', () => {
  test('Python runs in gVisor only, whatever is asked', () => {
    expect(parseFunctionOptions('{"runtime":"python3.11"}', false)).toMatchObject({ runtime: 'python3.11', isolation: 'gvisor' });
    expect(parseFunctionOptions('{}', false)).toMatchObject({ runtime: 'javascript', isolation: 'isolate' });
    expect(() => parseFunctionOptions('{"runtime":"python3.11","isolation":"isolate"}', false)).toThrow(/gvisor/);
    for (const runtime of ['python', 'python2.7', 'python3.11 ', 'ruby', 3]) expect(() => parseFunctionOptions(JSON.stringify({ runtime }), false)).toThrow(/runtime must be/);
  });
});
