/** Packages of runtime environments, without a cluster: what a requirement may be, what the broker fetches and refuses, what an index may say, and what a build's sandbox may claim. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { connect, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { MAX_BUILD_PAGES, MAX_ENVIRONMENT_BYTES, MAX_REQUIREMENTS } from '../../src/base/limits.ts';
import { parseRequirements, requirementsOf, runtimeWith } from '../../src/base/requirements.ts';
import { pipSettings, pythonIndex } from '../../src/cli/python-index.ts';
import { IndexBroker } from '../../src/sandbox/packages/index-broker.ts';
import { entryPath, lockOf, runBuild, type Built } from '../../src/sandbox/packages/package-build.ts';
import { PackageCache } from '../../src/sandbox/packages/package-cache.ts';
import { PackageIndex, parseProjectPage } from '../../src/sandbox/packages/package-index.ts';
import { TestIndex, wheelOf } from '../support/package-index.ts';

let index: TestIndex;
let directory: string;

beforeAll(async () => {
  index = await TestIndex.start();
  index.wheel('words', '1.1', { 'words.py': 'word = 1\n' });
});
afterAll(() => index[Symbol.asyncDispose]());
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'bulkhead-packages-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

const config = (more: object = {}) => ({ url: index.url, fileHosts: [], loopbackHttp: true, ...more });
const broker = (more: object = {}): IndexBroker => new IndexBroker(new PackageIndex(config(more)), new AbortController().signal);
const refusal = (work: () => unknown): string => {
  try {
    return `taken: ${JSON.stringify(work())}`;
  } catch (thrown) {
    return (thrown as Error).message;
  }
};
async function read(of: IndexBroker, number: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of of.file(number)) parts.push(part);
  return Buffer.concat(parts);
}

describe('a requirement', () => {
  test('is a name with extras, versions and a marker', () => {
    const given = ['numpy==1.26.4', 'requests[security,socks]>=2,<3', "tomli ; python_version < '3.11'", 'a', 'x~=1.0', 'y===1.0+local', 'a'];
    expect(parseRequirements(given)).toEqual([...new Set(given)].sort());
    expect(requirementsOf(runtimeWith('python3.11', parseRequirements(given)))).toEqual({ runtime: 'python3.11', requirements: [...new Set(given)].sort() });
    expect(requirementsOf(runtimeWith('python3.11', []))).toEqual({ runtime: 'python3.11', requirements: [] });
  });

  test.each([
    '-e .', '--index-url=https://evil.example', '-r other.txt', 'x @ https://evil.example/x.whl', 'x@file:///etc/passwd', './x.whl', '/etc/passwd', 'git+https://evil.example/x', 'x==1 --global-option=a', 'x\n--index-url https://evil.example',
    'x==1\r-e .', 'x;\nimport', '', ' ', 'x\0', 'ｘ', 'x --hash=sha256:00', 'x==https://evil.example', `${'x'.repeat(257)}`,
  ])('that names a place or an option is refused: %j', (each) => {
    expect(refusal(() => parseRequirements([each]))).toMatch(/^options are not valid: packages: .* is not a package by its name/);
  });

  test('and a list of them is bounded', () => {
    for (const odd of [[], 'x', { 0: 'x' }, [1], Array.from({ length: MAX_REQUIREMENTS + 1 }, (_, i) => `x${i}`), Array.from({ length: 60 }, (_, i) => `x${i}${'y'.repeat(200)}`)]) expect(refusal(() => parseRequirements(odd))).toMatch(/^options are not valid: packages/);
  });
});

describe('the index', () => {
  test.each([
    ['http://index.example/simple/', true], ['http://127.0.0.1/simple/', false], ['ftp://127.0.0.1/', true], ['file:///etc/', true], ['not a url', true], ['https://index.example/?x=1', true], ['http://127.0.0.1.example/', true],
  ])('%s is refused (loopback http allowed: %s)', (url, loopbackHttp) => {
    expect(refusal(() => new PackageIndex({ url, fileHosts: [], loopbackHttp }))).toMatch(/^the package index of this cluster cannot be used/);
  });

  test('gets its name and password in a header, and nobody else does or sees them', () => {
    const of = new PackageIndex({ url: 'https://ana:secret@index.example/simple', fileHosts: ['files.example'], loopbackHttp: false });
    expect([of.shown, of.root.href, of.authorization(of.page('x')), of.authorization(new URL('https://files.example/x'))]).toEqual(['https://index.example/simple/', 'https://index.example/simple/', `Basic ${Buffer.from('ana:secret').toString('base64')}`, undefined]);
  });

  test('that the machine’s pip is configured with is taken, one with a password in an argument is not, and nothing is guessed', () => {
    expect(pipSettings(['[global]\nindex-url = https://a.example/simple\n# no\n[install]\nindex_url: https://b.example/simple', '[list]\nindex-url=https://c.example\n']).get('index-url')).toBe('https://b.example/simple');
    expect(pythonIndex({}, { PIP_CONFIG_FILE: '/dev/null' })).toBeUndefined();
    expect(pythonIndex({}, { PIP_CONFIG_FILE: '/dev/null', PIP_INDEX_URL: 'https://a.example/simple' })).toEqual({ url: 'https://a.example/simple', fileHosts: [], loopbackHttp: false });
    expect(() => pythonIndex({ url: 'https://ana:secret@a.example' }, { PIP_CONFIG_FILE: '/dev/null' })).toThrow(/can be read by others/);
  });

  test('offers wheels of the project itself on allowed hosts with a digest, and nothing else', () => {
    const of = new PackageIndex({ url: 'https://index.example/simple/', fileHosts: ['files.example'], loopbackHttp: true });
    const sha = 'a'.repeat(64);
    const links = [
      ['x-1-py3-none-any.whl', `https://files.example/x-1-py3-none-any.whl#sha256=${sha}`, 'taken'], ['x-2-py3-none-any.whl', `../../f/x-2-py3-none-any.whl#sha256=${sha}`, 'taken'],
      ['x-3-py3-none-any.whl', 'https://files.example/x-3-py3-none-any.whl', 'no digest'], ['x-4-py3-none-any.whl', `https://files.example/x-4-py3-none-any.whl#md5=${'a'.repeat(32)}`, 'no sha-256'],
      ['x-5-py3-none-any.whl', `https://evil.example/x-5-py3-none-any.whl#sha256=${sha}`, 'another host'], ['x-6-py3-none-any.whl', `http://files.example/x-6-py3-none-any.whl#sha256=${sha}`, 'plain http'],
      ['x-7-py3-none-any.whl', `http://169.254.169.254/x-7-py3-none-any.whl#sha256=${sha}`, 'an address of the machine’s'], ['x-8-py3-none-any.whl', `file:///etc/x-8-py3-none-any.whl#sha256=${sha}`, 'a file'],
      ['y-9-py3-none-any.whl', `https://files.example/y-9-py3-none-any.whl#sha256=${sha}`, 'another project'], ['x-1.tar.gz', `https://files.example/x-1.tar.gz#sha256=${sha}`, 'source'],
      ['x-a-py3-none-any.whl', `https://user@files.example/x-a-py3-none-any.whl#sha256=${sha}`, 'a user'], ['..%2fx-b-py3-none-any.whl', `https://files.example/..%2fx-b-py3-none-any.whl#sha256=${sha}`, 'a path as name'],
    ];
    const html = parseProjectPage(of, 'x', of.page('x'), 'text/html', links.map(([file, href]) => `<a href="${href}" data-requires-python="&gt;=3.8">${file}</a>`).join('\n'));
    const json = parseProjectPage(of, 'x', of.page('x'), 'application/vnd.pypi.simple.v1+json', JSON.stringify({ files: links.map(([filename, href = '']) => ({ filename, url: href.split('#')[0], hashes: Object.fromEntries([(href.split('#')[1] ?? '').split('=')]), 'requires-python': '>=3.8' })) }));
    for (const page of [html, json]) {
      expect(page.wheels.map((w) => [w.file, w.requiresPython])).toEqual([['x-1-py3-none-any.whl', '>=3.8'], ['x-2-py3-none-any.whl', '>=3.8']]);
      expect(page.sources).toBe(1);
    }
    for (const odd of ['', 'null', '[]', '{"files":1}', '{"files":[null,1,{"hashes":null}]}', '{']) expect(parseProjectPage(of, 'x', of.page('x'), 'application/json', odd)).toEqual({ wheels: [], sources: 0 });
  });
});

describe('the broker', () => {
  test('fetches a page and its wheel by GET, and counts it when its digest is right', async () => {
    const of = broker();
    const [link] = (await of.page('words')) ?? [];
    expect(link).toMatchObject({ number: 0, file: 'words-1.1-py3-none-any.whl' });
    expect((await read(of, 0)).length).toBeGreaterThan(100);
    expect(of.fetched).toMatchObject([{ file: 'words-1.1-py3-none-any.whl', sha256: link?.sha256 }]);
    expect(index.asked.filter((path) => !path.startsWith('GET '))).toEqual([]);
  });

  test('is told no URL: what is no name of a project or no number of a link goes nowhere', async () => {
    const before = index.asked.length;
    for (const odd of ['../admin', 'words/../../etc', 'http://evil.example', 'a?b', 'A', '', 'x y', '%2e%2e', 'x'.repeat(129)]) await expect(broker().page(odd)).rejects.toThrow(/no name of a package/);
    for (const odd of [-1, 0, 7]) await expect(read(broker(), odd)).rejects.toThrow(/a file that no page has/);
    expect(index.asked.length).toBe(before);
  });

  test('follows no redirection to a host that was not allowed, and does not go round for ever', async () => {
    const target = await TestIndex.start();
    index.special.set('/simple/away/', (response) => response.writeHead(302, { location: `${target.url}away/` }).end());
    index.special.set('/simple/metadata/', (response) => response.writeHead(307, { location: 'http://169.254.169.254/latest/' }).end());
    index.special.set('/simple/local/', (response) => response.writeHead(301, { location: 'file:///etc/passwd' }).end());
    index.special.set('/simple/round/', (response) => response.writeHead(302, { location: '/simple/round/' }).end());
    for (const project of ['away', 'metadata', 'local']) await expect(broker().page(project)).rejects.toThrow(/which the operator has not allowed/);
    await expect(broker().page('round')).rejects.toThrow(/sends on more than 3 times/);
    expect(target.asked).toEqual([]);
    await target[Symbol.asyncDispose]();
  });

  test('hands on no file whole whose digest is not the one of its page', async () => {
    index.add('forged', 'forged-1-py3-none-any.whl', wheelOf('forged', '1', []), 'b'.repeat(64));
    const of = broker();
    await of.page('forged');
    const got: Buffer[] = [];
    await expect((async () => {
      for await (const part of of.file(0)) got.push(part);
    })()).rejects.toThrow(/has not the digest that the index says/);
    expect([Buffer.concat(got).length, of.fetched]).toEqual([0, []]);
  });

  test('ends a build that asks without end, and one whose index does not answer as one', async () => {
    const of = broker();
    await Promise.all(Array.from({ length: MAX_BUILD_PAGES }, (_, i) => i).map((i) => of.page(`none-${i}`).catch(() => undefined)));
    await expect(of.page('words')).rejects.toThrow(/asked for more than/);
    index.special.set('/simple/broken/', (response) => response.writeHead(500).end('secret detail'));
    await expect(broker().page('broken')).rejects.toThrow(/answered 500$/);
    index.special.set('/simple/cut/', (response) => {
      response.writeHead(200, { 'content-length': '1000' }).write('x');
      response.destroy();
    });
    await expect(broker().page('cut')).rejects.toThrow(/broke off its answer|cannot be reached/);
  });

  test('says why a package cannot be had: not in the index, or as sources only', async () => {
    index.link('sources', '<a href="../../files/sources-1.tar.gz">sources-1.tar.gz</a>');
    const of = broker();
    expect([await of.page('absent'), await of.page('sources')]).toEqual([undefined, []]);
    expect(of.missing).toEqual([`the package 'absent' is not in the index ${index.url}`, `the package 'sources' has source distributions only in the index ${index.url}: building one would run its code, so wheels only are installed`]);
  });
});

const FRAME = { READY: 1, PAGE: 2, FILE: 3, ENTRY: 4, DATA: 5, DONE: 6, FAILED: 7 };
const frame = (kind: number, body: string | Buffer = ''): Buffer => {
  const octets = Buffer.from(body);
  const head = Buffer.alloc(5);
  head.writeUInt32LE(octets.length + 1, 0);
  head[4] = kind;
  return Buffer.concat([head, octets]);
};
const entry = (path: unknown, bytes = 0, more: object = {}): Buffer => frame(FRAME.ENTRY, JSON.stringify({ path, executable: false, bytes, ...more }));

/** A sandbox that says just this, with a broker that has fetched words 1.1. */
async function build(...said: Buffer[]): Promise<Built> {
  const of = broker();
  await of.page('words');
  await read(of, 0);
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end(Buffer.concat(said));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const channel: Socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  channel.on('error', () => undefined);
  try {
    return await runBuild({ channel, ready: () => undefined }, of, ['words'], directory);
  } finally {
    channel.destroy();
    server.close();
  }
}

describe('a build', () => {
  test('that is honest leaves read-only files under the digest of its lock', async () => {
    const built = await build(frame(FRAME.READY), entry('words.py', 5), frame(FRAME.DATA, 'word='), entry('words-1.1.dist-info/METADATA'), entry('bin/run', 2, { executable: true }), frame(FRAME.DATA, 'x'), frame(FRAME.DATA, 'y'), frame(FRAME.DONE));
    expect([built.files, built.bytes, built.wheels.map((w) => w.file)]).toEqual([3, 7, ['words-1.1-py3-none-any.whl']]);
    expect(built.lock).toBe(lockOf(new Map([['words', '1.1']]), built.wheels).lock);
    expect([readFileSync(join(directory, 'bin/run'), 'utf8'), statSync(join(directory, 'bin/run')).mode & 0o777, statSync(join(directory, 'words.py')).mode & 0o777, statSync(join(directory, 'bin')).mode & 0o777]).toEqual(['xy', 0o555, 0o444, 0o755]);
  });

  test.each([
    '../x', '/etc/x', 'a/../../x', 'a//x', './x', 'a/.', '..', '', 'a\0b', 'a\\..\\x', `${'a/'.repeat(50)}x`, 'x'.repeat(256),
  ])('writes nothing outside its directory: %j', async (path) => {
    expect(entryPath(path)).toBeUndefined();
    await expect(build(frame(FRAME.READY), entry(path, 1), frame(FRAME.DATA, 'x'), frame(FRAME.DONE))).rejects.toMatchObject({ code: 'ENVIRONMENT_FAILED' });
    expect(readdirSync(directory)).toEqual([]);
  });

  test.each([
    ['more than it said of a file', [entry('a', 1), frame(FRAME.DATA, 'xy')]], ['a file twice', [entry('a'), entry('a')]], ['less than it said', [entry('a', 2), frame(FRAME.DATA, 'x'), frame(FRAME.DONE)]],
    ['a file in a file', [entry('a'), entry('a/b'), frame(FRAME.DONE)]], ['more than fits', [entry('a', MAX_ENVIRONMENT_BYTES), entry('b', 1)]], ['a size that is none', [entry('a', -1)]], ['a field too many', [entry('a', 0, { link: '/etc/passwd' })]],
    ['no JSON', [frame(FRAME.ENTRY, '{')]], ['data of no file', [frame(FRAME.DATA, 'x')]], ['a message that is none', [frame(99)]], ['a message out of bounds', [Buffer.from([0xff, 0xff, 0xff, 0x7f, 4])]], ['a package that was not fetched', [entry('evil-1.dist-info/METADATA'), frame(FRAME.DONE)]],
    ['another version than was fetched', [entry('words-2.dist-info/METADATA'), frame(FRAME.DONE)]], ['nothing more', []], ['a page by a URL', [frame(FRAME.PAGE, 'http://evil.example/')]], ['a file by a path', [frame(FRAME.FILE, '../0')]],
  ])('is over when its sandbox says %s', async (_, said) => {
    await expect(build(frame(FRAME.READY), ...said)).rejects.toMatchObject({ code: 'ENVIRONMENT_FAILED' });
  });

  test('is over when its sandbox speaks before it was seen to stand', async () => {
    await expect(build(entry('a'), frame(FRAME.DONE))).rejects.toThrow(/spoke before it was ready/);
  });

  test('tells its tenant what pip says, without what a terminal would obey', async () => {
    await expect(build(frame(FRAME.READY), frame(FRAME.FAILED, 'no\u001b[31m such\nthing http://127.0.0.1:4321/simple/x/'))).rejects.toThrow(/^the packages could not be installed; no \[31m such thing x\/$/);
  });
});

describe('the cache', () => {
  const built = (lock: string, bytes: number): Built => ({ wheels: [], lock, bytes, files: 1 });

  test('builds once for a tenant and a list, again for another tenant, one at a time for each, and removes what nobody uses', async () => {
    const events: string[] = [];
    let running = 0;
    let most = 0;
    const cache = new PackageCache({ directory: join(directory, 'cache'), index: config() }, async (tenant, _broker, requirements) => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
      events.push(`${tenant} ${requirements.join()}`);
      return built(requirements.join().startsWith('same') ? 'same' : requirements.join(), 3 * 2 ** 30);
    });
    const [a, b] = await Promise.all([cache.lend('acme', ['x']), cache.lend('acme', ['x'])]);
    const other = await cache.lend('globex', ['x']);
    expect([a.directory === b.directory, other.directory === a.directory, events]).toEqual([true, false, ['acme x', 'globex x']]);
    await expect(cache.lend('acme', ['y'])).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    a.release();
    a.release();
    await expect(cache.lend('acme', ['y'])).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    b.release();
    const y = await cache.lend('acme', ['y']);
    expect(readdirSync(join(directory, 'cache', 'acme'))).toEqual(['y']);
    y.release();
    const [one, two] = await Promise.all([cache.lend('acme', ['same 1']), cache.lend('acme', ['same 2'])]);
    expect([one.directory === two.directory, most]).toEqual([true, 1]);
    cache.forget('acme');
    expect(readdirSync(join(directory, 'cache'))).toEqual(['globex']);
    await cache.close();
    expect(readdirSync(directory)).toEqual([]);
  });

  test('keeps nothing of a build that failed, tells the log, and tries again when asked again', async () => {
    let tries = 0;
    const told: string[] = [];
    const cache = new PackageCache({ directory: join(directory, 'cache'), index: config() }, () => (++tries === 1 ? Promise.reject(new Error('secret path')) : Promise.resolve(built('z', 1))));
    cache.onFact = (tenant, event, name, detail) => told.push([tenant, event, name, detail].join(' '));
    await expect(cache.lend('acme', ['z'])).rejects.toMatchObject({ code: 'INTERNAL', safeMessage: expect.not.stringContaining('secret') });
    expect(readdirSync(join(directory, 'cache', 'acme'))).toEqual([]);
    await cache.lend('acme', ['z']);
    expect(told).toEqual(['acme environment.failed INTERNAL z', 'acme environment.built sha256:z  (1 files, 1 bytes)']);
    await cache.close();
  });
});
