/** The text that Prometheus scrapes: read back by a strict reader, with the names and labels of tenants at their worst. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { MetricsText } from '../../src/base/metrics-text.ts';
import { parseMetrics } from '../support/metrics-text.ts';

it('what is written is read back, whatever stands in labels', () => {
  fc.assert(fc.property(fc.array(fc.record({ value: fc.double({ noNaN: true }).map((n) => (n === 0 ? 0 : n)), label: fc.string({ unit: 'binary' }).map((s) => s.replaceAll('\r', '')) }), { maxLength: 20 }), (samples) => {
    const m = new MetricsText();
    const distinct = [...new Map(samples.map((s) => [s.label, s])).values()];
    for (const { value, label } of distinct) m.gauge('a_gauge', 'One\nline \\ of help.', value, { first: label, second: 'x' });
    const family = parseMetrics(m.text()).get('a_gauge');
    expect(family?.samples ?? []).toEqual(distinct.map(({ value, label }) => ({ name: 'a_gauge', labels: { first: label, second: 'x' }, value })));
  }));
});

it('families stand together in whatever order their samples come; histograms are cumulative', () => {
  const m = new MetricsText();
  m.counter('calls_total', 'Calls.', 1, { tenant: 'acme' });
  m.histogram('run_seconds', 'Runs.', [0.001, 0.002, 0.004], [1, 0, 2, 3], 7.5, { tenant: 'acme' });
  m.counter('calls_total', '', 2, { tenant: 'globex' });
  const families = parseMetrics(m.text());
  expect(families.get('calls_total')?.samples.map((s) => s.value)).toEqual([1, 2]);
  expect(families.get('run_seconds')?.samples.map((s) => [s.name, s.labels['le'], s.value])).toEqual([
    ['run_seconds_bucket', '0.001', 1], ['run_seconds_bucket', '0.002', 1], ['run_seconds_bucket', '0.004', 3], ['run_seconds_bucket', '+Inf', 6], ['run_seconds_sum', undefined, 7.5], ['run_seconds_count', undefined, 6],
  ]);
});

it('names that are none, and counters without their ending, are refused', () => {
  const m = new MetricsText();
  expect(() => m.gauge('a b', 'x', 1)).toThrow();
  expect(() => m.gauge('ok', 'x', 1, { 'a-b': 'x' })).toThrow();
  expect(() => m.counter('ok_things', 'x', 1)).toThrow('_total');
  m.gauge('twice', 'x', 1);
  expect(() => m.histogram('twice', 'x', [], [], 0)).toThrow('gauge already');
});
