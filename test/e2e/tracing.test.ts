/** OpenTelemetry spans of a driver on a real cluster of two nodes: to a collector and to a file, one tree from the driver to what its calls call. */
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { connect } from '../../src/sdk/sdk.ts';
import type { Span } from '../../src/sdk/tracing.ts';
import { TestCluster } from '../support/cluster.ts';

const TEST_TIMEOUT_MS = 60_000;
const TRACE = '0af7651916cd43dd8448eb211c80319c';
const PARENT = 'b7ad6b7169203331';
let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 1 });
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

interface Document {
  readonly resourceSpans: readonly { readonly resource: { readonly attributes: readonly { key: string; value: { stringValue: string } }[] }; readonly scopeSpans: readonly { readonly scope: { readonly name: string }; readonly spans: readonly Span[] }[] }[];
}
const spansOf = (documents: readonly string[]): Span[] => documents.flatMap((text) => (JSON.parse(text) as Document).resourceSpans.flatMap((r) => r.scopeSpans.flatMap((s) => s.spans)));
const attribute = (span: Span, key: string): string | undefined => {
  const value = span.attributes.find((a) => a.key === key)?.value;
  return value === undefined ? undefined : 'stringValue' in value ? value.stringValue : value.intValue;
};

it('tell of submit, queue and run, nested calls under the run that made them, wherever they ran', { timeout: TEST_TIMEOUT_MS }, async () => {
  const file = join(cluster.directory, 'spans.jsonl');
  const driver = await connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, trace: { file, serviceName: 'test', traceparent: `00-${TRACE}-${PARENT}-01` } });
  const work = await driver.module<typeof import('../support/work.ts')>(join(import.meta.dirname, '..', 'support', 'work.ts'));
  expect(await driver.get(work.fibonacci(3))).toBe(2);
  const counter = await work.Counter.create(0);
  expect(await driver.get(counter.add(2))).toBe(2);
  await expect(driver.get(work.fail('on purpose'))).rejects.toThrow();
  const seen = await driver.get(work.traceOf());
  expect(seen).toMatch(new RegExp(`^00-${TRACE}-[0-9a-f]{16}-01$`));
  await driver.close();

  const spans = spansOf(readFileSync(file, 'utf8').trim().split('\n'));
  const byId = new Map(spans.map((s) => [s.spanId, s]));
  expect(byId.size).toBe(spans.length);
  for (const span of spans) {
    expect(span.traceId).toBe(TRACE);
    expect(BigInt(span.startTimeUnixNano) <= BigInt(span.endTimeUnixNano)).toBe(true);
  }
  const [root, ...otherRoots] = spans.filter((s) => s.parentSpanId === undefined || !byId.has(s.parentSpanId));
  expect(otherRoots).toEqual([]);
  expect(root).toMatchObject({ name: 'driver test', parentSpanId: PARENT });
  expect(root?.spanId).toBe(seen.split('-')[2]);
  // fib(3) makes fib(2), fib(1), fib(1), fib(0).
  const runs = spans.filter((s) => s.name === 'fibonacci');
  expect(runs.length).toBe(5);
  const up = (span: Span | undefined): Span | undefined => (span?.parentSpanId === undefined ? undefined : byId.get(span.parentSpanId));
  const depths = runs.map((run) => {
    let depth = 0;
    for (let at: Span | undefined = run; at !== undefined; at = up(at)) if (at.name === 'fibonacci') depth++;
    expect(up(run)?.name).toBe('queue fibonacci');
    return depth;
  });
  expect(depths.sort()).toEqual([1, 2, 2, 3, 3]);
  expect(spans.filter((s) => s.name === 'submit fibonacci').length).toBe(1);
  expect(spans.filter((s) => s.name === 'queue fibonacci').length).toBe(5);
  for (const name of ['Counter', 'Counter.add', '.add', 'add']) if (spans.some((s) => s.name === name)) expect(attribute(spans.find((s) => s.name === name) as Span, 'bulkhead.call.type')).toMatch(/^ACTOR_/);
  expect(spans.some((s) => attribute(s, 'bulkhead.call.type') === 'ACTOR_TASK' && s.kind === 5)).toBe(true);
  expect(spans.find((s) => s.name === 'fail')?.status).toMatchObject({ code: 2, message: expect.stringContaining('on purpose') });
  expect(existsSync(file)).toBe(true);
});

it('go to a collector over HTTP while the program runs; one that is away is told once and holds nothing up', { timeout: TEST_TIMEOUT_MS }, async () => {
  const posts: { readonly body: string; readonly type: string | undefined; readonly key: string | undefined }[] = [];
  const collector = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk)).on('end', () => {
      posts.push({ body, type: request.headers['content-type'], key: request.headers['x-key'] as string | undefined });
      response.end('{}');
    });
  });
  await new Promise<void>((resolve) => collector.listen(0, '127.0.0.1', resolve));
  const endpoint = `http://127.0.0.1:${(collector.address() as AddressInfo).port}/v1/traces`;
  const driver = await connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, trace: { endpoint, headers: { 'x-key': 'k' } } });
  const one = driver.task(() => 1, { name: 'one' });
  await driver.get(Array.from({ length: 50 }, () => one()));
  await expect.poll(() => spansOf(posts.map((p) => p.body)).filter((s) => s.name === 'one').length, { timeout: 20_000 }).toBe(50);
  await driver.close();
  expect(new Set(posts.map((p) => `${p.type} ${p.key}`))).toEqual(new Set(['application/json k']));
  const spans = spansOf(posts.map((p) => p.body));
  // Each once, though every poll looks back a little.
  expect(new Set(spans.map((s) => s.spanId)).size).toBe(spans.length);
  expect(spans.filter((s) => s.name === 'submit one').length).toBe(50);
  await new Promise((resolve) => collector.close(resolve));

  const warnings: Error[] = [];
  const note = (warning: Error): void => void (warning.name === 'BulkheadTracing' && warnings.push(warning));
  process.on('warning', note);
  const away = await connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, trace: { endpoint } });
  expect(await away.get(away.task(() => 2)())).toBe(2);
  await away.close();
  await new Promise((resolve) => setImmediate(resolve));
  process.removeListener('warning', note);
  expect(warnings.length).toBe(1);
});

it('are off unless asked for, and a trace that is not sampled leaves none', { timeout: TEST_TIMEOUT_MS }, async () => {
  const file = join(cluster.directory, 'none.jsonl');
  for (const trace of [undefined, { file, traceparent: `00-${TRACE}-${PARENT}-00` }]) {
    const driver = await connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, trace });
    const work = await driver.module<typeof import('../support/work.ts')>(join(import.meta.dirname, '..', 'support', 'work.ts'));
    expect(await driver.get(work.traceOf())).toBe('none');
    await driver.close();
  }
  expect(existsSync(file)).toBe(false);
  const bad = [{}, { file, endpoint: 'http://x/' }, { endpoint: 'ftp://x/' }, { file, traceparent: '00-0-0-01' }, { file, traceparent: `00-${'0'.repeat(32)}-${PARENT}-01` }];
  for (const trace of bad) await expect(connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, trace })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  expect(cluster.faults()).toEqual([]);
});
