/** Wrong input to each command: exit code 2 and a text that says what to do. In process, without a cluster: nothing here may get as far as one. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { buildProgram } from '../../src/cli/program.ts';
import { jsonText, printable, Terminal } from '../../src/cli/terminal.ts';
import { runInProcess, type CommandResult } from './cli-in-process.ts';

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'bulkhead-cli-'));
  vi.stubEnv('HOME', directory);
  vi.stubEnv('BULKHEAD_PROFILE', '');
  writeFileSync(join(directory, 'good.yaml'), 'version: 1\ntenant: acme\nroles:\n  r:\n    permit: [{ action: task.submit, resource: task, when: { cpus: { lte: 4 } } }]\nbindings: [{ role: r, to: user/bob }]\ntests: [{ as: user/bob, do: task.submit, on: { cpus: 2 }, expect: permit }]\n');
  writeFileSync(join(directory, 'bad.yaml'), 'version: 1\ntenant: acme\nroles:\n  r:\n    permit: [{ action: task.submti, resource: task }]\n');
  writeFileSync(join(directory, 'untrue.yaml'), 'version: 1\ntenant: acme\nroles:\n  r:\n    permit: [{ action: task.submit, resource: task }]\nbindings: [{ role: r, to: user/bob }]\ntests: [{ as: user/eve, do: task.submit, expect: permit }]\n');
});
afterAll(() => {
  vi.unstubAllEnvs();
  rmSync(directory, { recursive: true, force: true });
});

const run = (...args: string[]): Promise<CommandResult> => runInProcess(args.map((a) => a.replace('$DIR', directory)));

const WRONG: readonly (readonly [string, RegExp])[] = [
  ['stats', /unknown command 'stats'[^]*Did you mean status\?/],
  ['tenant creat acme', /unknown command 'creat'[^]*Did you mean create\?/],
  ['up --raylet 2', /unknown option '--raylet'[^]*Did you mean --raylets\?/],
  ['up --raylets many', /a whole number of raylets from 1 to 64/],
  ['up --raylets 0', /from 1 to 64/],
  ['up --listen 127.0.0.1', /HOST:PORT/],
  ['pki join-token --most cpus', /give NAME=AMOUNT/],
  ['pki join-token --most gpu=many', /the amount of gpu is not a number/],
  ['up --listen 127.0.0.1:99999', /HOST:PORT/],
  ['up --cpus none', /a number of CPUs/],
  ['up --memory lots', /memory 'lots' is not valid/],
  ['up --python-index http://index.example/simple', /--python-index: .* must begin with https:\/\//],
  ['up --python-index nowhere', /--python-index: .* its URL is not one/],
  ['up --object-memory lots', /memory 'lots' is not valid/],
  ['up --object-memory 4KiB', /--object-memory: 4KiB is less than 1MiB/],
  ['up --spill -1', /memory '-1' is not valid/],
  ['up --resources gpu', /NAME=AMOUNT/],
  ['up --resources gpu=many', /amount of gpu is not a number/],
  ['up --insecure-dev sandbox', /there is no layer 'sandbox'; the layers are: user-namespace/],
  ['up here', /too many arguments/],
  ['down --all', /unknown option '--all'/],
  ['down --purge --data $DIR', /not the data directory of a cluster; nothing was deleted/],
  ['status --jso', /Did you mean --json\?/],
  ['status', /there is no profile yet: start a cluster with 'bulkhead up'/],
  ['status --profile $DIR/none', /is not a profile: profile.json is missing/],
  ['doctor --fix', /unknown option '--fix'/],
  ['tenant create', /missing required argument 'name'/],
  ['tenant create a --quota cpus', /NAME=AMOUNT/],
  ['tenant show', /missing required argument/],
  ['tenant delete', /missing required argument/],
  ['identity issue --out $DIR/x', /missing required argument 'kind'/],
  ['identity issue user ana', /required option '--out <dir>' not specified/],
  ['identity issue robot ana --out $DIR/x', /the kind is 'user' or 'service', not 'robot'/],
  ['identity issue user ana --out $DIR', /is not empty; choose a new directory/],
  ['whoami --tokn', /Did you mean --token\?/],
  ['policy check', /missing required argument 'files'/],
  ['policy check $DIR/none.yaml', /none.yaml cannot be read \(ENOENT\)/],
  ['policy explain user/bob', /missing required argument 'action'/],
  ['policy explain user/bob task.submti $DIR/good.yaml', /no action 'task.submti'; near it: task.submit/],
  ['policy explain bob task.submit $DIR/good.yaml', /give user\/NAME, service\/NAME/],
  ['policy explain user/bob task.submit', /of which tenant is 'user\/bob'\?/],
  ['policy explain user/bob task.submit $DIR/good.yaml --on colour=red', /no attribute 'colour'; attributes are: tenant, name/],
  ['policy explain user/bob task.submit $DIR/good.yaml --role boss', /no role 'boss' in these files/],
  ['policy who-can fly $DIR/good.yaml', /no action 'fly'; actions are: task.submit/],
  ['policy apply', /missing required argument 'files'/],
  ['policy apply $DIR/none.yaml', /cannot be read/],
  ['policy rollback now', /a number of 'bulkhead policy history'/],
  ['bundle $DIR/none.ts -o -', /none.ts is not there; give a .ts or .js module/],
  ['run', /missing required argument 'file'/],
  ['run $DIR/none.ts', /none.ts is not a file; give the program to run/],
  ['job', /Usage: bulkhead job/],
  ['job status', /missing required argument 'id'/],
  ['job stop', /missing required argument 'id'/],
  ['list', /missing required argument 'kind'/],
  ['list cats', /no kind 'cats'; kinds are: nodes, tenants, workers, jobs, tasks, actors, objects/],
  ['list tasks --limit 0', /from 1 to 10000/],
  ['get task', /missing required argument 'id'/],
  ['summary cats', /no kind 'cats'/],
  ['logs task', /give one of: job ID, task ID, actor ID/],
  ['logs worker w1', /logs of what\? give job, task or actor/],
  ['audit tail --last none', /a whole number of records/],
  ['audit export', /required option '-o, --out <dir>' not specified/],
  ['audit export -o $DIR/x --format pdf', /Allowed choices are jsonl, ocsf, cef/],
  ['audit export -o $DIR/x --from yesterday', /a time as ISO 8601/],
  ['audit verify', /missing required argument 'dir'/],
  ['audit verify $DIR', /not an audit export: manifest.json is missing/],
  ['audit verify $DIR --key $DIR/none', /--key: .*none cannot be read/],
  ['pki revoke', /missing required argument 'whom'/],
  ['pki join-token --nodes n1', /Did you mean --node\?/],
];

test.each(WRONG)('bulkhead %s', async (line, expected) => {
  const { code, err, out } = await run(...line.split(' '));
  expect(err + out).toMatch(expected);
  expect(out).toBe('');
  expect(code).toBe(2);
});

test('errors are JSON where JSON was asked for, usage errors too', async () => {
  for (const args of [['list', 'cats', '--json'], ['list', '--json'], ['nothing', '--json']]) {
    const { code, err, out } = await run(...args);
    expect([code, out]).toEqual([2, '']);
    expect(JSON.parse(err)).toMatchObject({ error: { code: 'INVALID_ARGUMENT', message: expect.stringMatching(/./) } });
  }
});

test('each command has a help that names its exit codes or options', async () => {
  const leaves: string[][] = [];
  const walk = (command: ReturnType<typeof buildProgram>, path: string[]): void => {
    if (command.commands.length === 0) leaves.push(path);
    for (const child of command.commands) walk(child, [...path, child.name()]);
  };
  walk(buildProgram(), []);
  expect(leaves.map((l) => l.join(' ')).sort()).toEqual([
    'audit export', 'audit stats', 'audit tail', 'audit verify', 'bench', 'bundle', 'doctor', 'down', 'get', 'identity issue', 'job list', 'job logs', 'job status', 'job stop', 'job submit', 'list', 'logs', 'metrics',
    'pki join-token', 'pki revoke', 'pki rotate', 'pki show', 'policy apply', 'policy check', 'policy explain', 'policy history', 'policy rollback', 'policy test', 'policy who-can',
    'run', 'status', 'summary', 'tenant create', 'tenant delete', 'tenant list', 'tenant quota', 'tenant show', 'timeline', 'token create', 'token list', 'token revoke', 'up', 'usage', 'whoami',
  ]);
  for (const leaf of leaves) {
    const { code, out } = await run(...leaf, '--help');
    expect([code, out]).toEqual([0, expect.stringMatching(new RegExp(`^Usage: bulkhead ${leaf.join(' ')} `))]);
  }
  expect((await run('--help')).out).toMatch(/Exit codes: 0 done, 1 failed, 2 wrong usage, 3 denied or not found, 4 an isolation layer is missing/);
});

test('the help of list, get and summary names the kinds that there are', async () => {
  const kinds = /kinds are: ([a-z, -]+)/.exec((await run('list', 'cats')).err)?.[1];
  for (const command of ['list', 'get', 'summary']) expect((await run(command, '--help')).out).toContain(`KIND: ${kinds}.`);
});

describe('policy files, without a cluster', () => {
  test('a good file', async () => {
    expect(await run('policy', 'check', '$DIR/good.yaml')).toMatchObject({ code: 0, out: expect.stringMatching(/ok: 1 file, 1 test passed/) });
    const { code, out } = await run('policy', 'test', '$DIR/good.yaml', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ ok: true, tests: [{ passed: true, what: 'user/bob task.submit: permit', rule: 'acme/r/permit/0' }] });
  });

  test('a bad file and a failed test: exit 1, with file, line and column', async () => {
    expect(await run('policy', 'check', '$DIR/bad.yaml')).toMatchObject({ code: 1, out: expect.stringMatching(/bad\.yaml:5:\d+: .*task\.submti[^]*not ok: 1 error/) });
    expect(await run('policy', 'check', '$DIR/untrue.yaml')).toMatchObject({ code: 1, out: expect.stringMatching(/untrue\.yaml:7:\d+: test failed: user\/eve task\.submit: permit[^]*1 failed test/) });
    expect(await run('policy', 'apply', '$DIR/bad.yaml')).toMatchObject({ code: 1, err: expect.stringMatching(/bad\.yaml:5:[^]*nothing was changed/) });
  });

  test('explain and who-can', async () => {
    const permitted = JSON.parse((await run('policy', 'explain', 'user/bob', 'task.submit', '$DIR/good.yaml', '--on', 'cpus=4', '--json')).out) as { allow: boolean; rule: string };
    expect(permitted).toMatchObject({ allow: true, rule: 'acme/r/permit/0' });
    const refused = await run('policy', 'explain', 'user/bob', 'task.submit', '$DIR/good.yaml', '--on', 'cpus=8');
    expect(refused).toMatchObject({ code: 0, out: expect.stringMatching(/^denied by default-deny: .*cpus is 8, not lte 4/) });
    expect((await run('policy', 'explain', 'tenant/globex/user/bob', 'object.get', '--on', 'tenant=acme', '--role', 'developer')).out).toMatch(/^denied by wall/);
    expect(JSON.parse((await run('policy', 'who-can', 'task.submit', '$DIR/good.yaml', '--on', 'cpus=1', '--json')).out)).toMatchObject({ who: [{ tenant: 'acme', kind: 'user', name: 'bob' }] });
  });
});

describe('output', () => {
  test('foreign text cannot write terminal codes, bidi tricks or lines', () => {
    expect(printable('a\u001b[2Jb\r\nc\u202e\u0007')).toBe('a\\u001b[2Jb\\u000d\\u000ac\\u202e\\u0007');
    expect(printable('a\n\tb\u009b', true)).toBe('a\n\tb\\u009b');
  });

  test('JSON: exact integers, bytes, no type names', () => {
    expect(jsonText({ $typeName: 'x', a: 5n, b: 2n ** 60n, c: new Uint8Array([1, 2]), d: -7n, e: [Buffer.from('x')] })).toBe('{"a":5,"b":"1152921504606846976","c":"AQI=","d":-7,"e":["eA=="]}');
  });

  test('colours on a terminal only, and not where NO_COLOR or JSON says no', () => {
    const was = Object.getOwnPropertyDescriptor(process.stdout, 'isTTY');
    vi.stubEnv('NO_COLOR', '');
    vi.stubEnv('TERM', 'xterm');
    try {
      Object.defineProperty(process.stdout, 'isTTY', { value: true, configurable: true });
      expect(new Terminal(false).colour('red', 'x')).toBe('\u001b[31mx\u001b[39m');
      expect(new Terminal(true).colour('red', 'x')).toBe('x');
      // Padded first, coloured then; foreign text never brings its own codes.
      const written: string[] = [];
      const spy = vi.spyOn(process.stdout, 'write').mockImplementation((text) => written.push(String(text)) > 0);
      new Terminal(false).table(['A', 'LONG', 'N'], [[{ text: 'ok', colour: 'green' }, 'x\u001b[31m', '1'], ['no', 'y', '10']], [2]);
      spy.mockRestore();
      expect(written.join('').split('\n')).toEqual(['\u001b[1mA   LONG          N\u001b[22m', '\u001b[32mok\u001b[39m  x\\u001b[31m   1', 'no  y            10', '']);
      vi.stubEnv('NO_COLOR', '1');
      expect(new Terminal(false).colour('red', 'x')).toBe('x');
      vi.stubEnv('NO_COLOR', '');
      Object.defineProperty(process.stdout, 'isTTY', { value: false, configurable: true });
      expect(new Terminal(false).colour('red', 'x')).toBe('x');
    } finally {
      if (was === undefined) Reflect.deleteProperty(process.stdout, 'isTTY');
      else Object.defineProperty(process.stdout, 'isTTY', was);
    }
  });
});
