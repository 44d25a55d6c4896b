/** The bench's arithmetic, its list of rows, its options and its framing. Nothing here measures time. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseOptions, SIZE_ROWS } from '../../bench/bench.ts';
import { schedulingCurve } from '../../bench/curve.ts';
import { resultsText, withResults } from '../../bench/document.ts';
import { median, processTree, proportionalBytes, sliceRate } from '../../bench/measure.ts';
import { BatchFraming } from '../../bench/plain-transport.ts';
import { markdownTable, ratioOf, tableRows, textTable, verdictOf, type RowResult } from '../../bench/report.ts';
import { RAY_VERSION } from '../../bench/ray.ts';
import { ROWS } from '../../bench/rows.ts';
import { NODES, QUEUED, SchedulingCluster } from '../../bench/scheduling.ts';
import { RAY_VERSION as RAY_OF_DOCTOR } from '../../src/cli/ray-package.ts';

/** What `ray microbenchmark` of 2.60.0 prints, in its order. */
const RAY_ROWS = [
  'single client get calls (Plasma Store)', 'single client put calls (Plasma Store)', 'multi client put calls (Plasma Store)', 'single client put gigabytes', 'single client tasks and get batch',
  'multi client put gigabytes', 'single client get object containing 10k refs', 'single client wait 1k refs', 'single client tasks sync', 'single client tasks async', 'multi client tasks async',
  '1:1 actor calls sync', '1:1 actor calls async', '1:1 actor calls concurrent', '1:n actor calls async', 'n:n actor calls async', 'n:n actor calls with arg async', '1:1 async-actor calls sync',
  '1:1 async-actor calls async', '1:1 async-actor calls with args async', '1:n async-actor calls async', 'n:n async-actor calls async', 'placement group create/removal', 'client: get calls', 'client: put calls',
  'client: put gigabytes', 'client: tasks and put batch', 'client: 1:1 actor calls sync', 'client: 1:1 actor calls async', 'client: 1:1 actor calls concurrent', 'client: tasks and get batch',
];

const result = (bulkhead: number[], ray: number[], floor?: RowResult['floor']): RowResult => ({ name: 'row', unit: 'calls/s', bulkhead, ray, ...(floor === undefined ? {} : { floor }) });

describe('rows', () => {
  it('are all of ray microbenchmark, by name and in its order', () => {
    expect(RAY_OF_DOCTOR).toBe(RAY_VERSION);
    expect(ROWS.filter((row) => row.ray === true).map((row) => row.name)).toEqual(RAY_ROWS);
  });

  it('either run or say why they cannot', () => {
    for (const row of ROWS) expect([row.name, (row.prepare === undefined) !== (row.missing === undefined)]).toEqual([row.name, true]);
  });

  it('have unique names', () => {
    const names = [...ROWS.map((row) => row.name), ...SIZE_ROWS.map((row) => row.name)];
    expect(new Set(names).size).toBe(names.length);
  });

  it('hold the floors that are promised', () => {
    expect(Object.fromEntries(ROWS.filter((row) => row.floor !== undefined).map((row) => [row.name, row.floor]))).toEqual({
      'single client get calls (Plasma Store)': 3, 'single client put calls (Plasma Store)': 10, 'single client tasks and get batch': 20, 'single client wait 1k refs': 15, 'single client tasks sync': 2.5,
      'single client tasks async': 20, 'multi client tasks async': 10, '1:1 actor calls sync': 1.5, '1:1 actor calls async': 8, 'client: put gigabytes': 2, 'client: get gigabytes': 2,
      'single client streaming generator items': 5, 'placement group create/removal': 2.5, 'single client get object containing 10k refs': 3, '1:1 actor calls concurrent': 8, '1:n actor calls async': 8, 'n:n actor calls async': 8, 'broadcast of 100 MB to 3 raylets': 0.5,
    });
    expect(Object.fromEntries(SIZE_ROWS.map((row) => [row.name, row.floor]))).toEqual({
      'start to ready': { kind: 'most', value: 1_000 }, 'idle cluster memory': { kind: 'part', value: 1 / 3 }, 'idle cluster processor use': undefined,
      'actor creation': { kind: 'ratio', value: 40 }, 'memory per idle actor': { kind: 'part', value: 1 / 15 }, '100,000 queued tasks, memory': { kind: 'most', value: 512 },
    });
  });
});

describe('verdicts', () => {
  it('compare run by run', () => {
    expect(ratioOf(result([10, 200, 30], [1, 10, 1]))).toBe(20);
    expect(ratioOf(result([10, 20], [1]))).toBe(10);
    expect(ratioOf(result([10], []))).toBeNaN();
  });

  it('need what they compare with', () => {
    expect(verdictOf(result([10], [1]))).toBe('');
    expect(verdictOf(result([10], [], { kind: 'ratio', value: 2 }))).toBe('');
    expect(verdictOf(result([], [1], { kind: 'ratio', value: 2 }))).toBe('');
  });

  it.each([
    [result([20], [10], { kind: 'ratio', value: 2 }), 'PASS'],
    [result([19], [10], { kind: 'ratio', value: 2 }), 'FAIL'],
    [result([1], [3], { kind: 'part', value: 1 / 3 }), 'PASS'],
    [result([1.1], [3], { kind: 'part', value: 1 / 3 }), 'FAIL'],
    [result([900, 2_000, 950], [], { kind: 'most', value: 1_000 }), 'PASS'],
    [result([1_001], [1], { kind: 'most', value: 1_000 }), 'FAIL'],
  ])('%#: a floor, a part, a bound', (row, verdict) => {
    expect(verdictOf(row)).toBe(verdict);
  });

  it('show a row that did not run with its reason, in text and in Markdown', () => {
    const missing: RowResult = { ...result([], []), reason: 'not | built' };
    expect(textTable(['a', ''], tableRows([missing]))).toContain('not run: not | built');
    expect(markdownTable(['a'], [['x|y']])).toContain('x\\|y');
  });
});

describe('results in the page', () => {
  const file = { machine: { processor: 'P', cores: 2, memoryGiB: 4, kernel: 'k', node: 'v', commit: 'c', loadBefore: 0, loadAfter: 1 }, ray: '2.60.0', runs: 3, seconds: 2, rows: [result([20], [10], { kind: 'ratio', value: 2 })], controls: [] };

  it('go between the markers and replace what was there', () => {
    const page = readFileSync(new URL('../../docs/PERFORMANCE.md', import.meta.url), 'utf8');
    const once = withResults(page, resultsText(file));
    expect(once).toContain('| row | 20.0 | 10.0 | calls/s | 2.00 | ≥ 2 | PASS |');
    expect(withResults(once, resultsText(file))).toBe(once);
  });

  it('need the markers', () => {
    expect(() => withResults('no place', 'x')).toThrow('no place for results');
  });
});

describe('options', () => {
  it('default to three runs of all rows without Ray', () => {
    const options = parseOptions([]);
    expect([options.ray, options.controls, options.runs, options.seconds, options.all, options.wanted('anything')]).toEqual([false, false, 3, 2, true, true]);
  });

  it('choose rows by parts of their names', () => {
    const { wanted, all } = parseOptions(['--rows', 'tasks async | idle cluster']);
    expect([all, wanted('single client tasks async'), wanted('idle cluster memory'), wanted('single client tasks sync')]).toEqual([false, true, true, false]);
  });

  it.each([[['--rows', 'no such row']], [['--runs', '0']], [['--runs', '1.5']], [['--seconds', 'x']], [['--seconds', '1e9']], [['--bogus']], [['extra']]])('refuse %j', (args) => {
    expect(() => parseOptions(args)).toThrow();
  });
});

describe('measures', () => {
  it('take medians', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3]), median([])]).toEqual([2, 2.5, Number.NaN]);
  });

  it('count whole steps', async () => {
    let steps = 0;
    const rate = await sliceRate(async () => {
      steps++;
      return 7;
    }, 0);
    expect(steps).toBe(1);
    expect(rate).toBeGreaterThan(0);
  });

  it('see the processes below one, and their memory', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'bulkhead-bench-test-'));
    const file = join(directory, 'child.mjs');
    writeFileSync(file, "import { spawn } from 'node:child_process'; const below = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']); process.send(below.pid); process.on('message', () => { below.kill(); process.exit(0); });");
    const child = fork(file, { execArgv: [] });
    try {
      const [below] = (await once(child, 'message')) as [number];
      const tree = processTree(child.pid as number);
      expect(tree).toContain(child.pid);
      expect(tree).toContain(below);
      expect(tree).not.toContain(process.pid);
      expect(proportionalBytes([child.pid as number])).toBeGreaterThan(2 ** 20);
      expect(proportionalBytes([])).toBe(0);
    } finally {
      child.send('end');
      await once(child, 'exit');
      rmSync(directory, { recursive: true, force: true });
    }
  });
});

describe('framing of the controls bench', () => {
  it('gives the batches back, however the octets are cut', () => {
    fc.assert(fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { maxLength: 20 }), fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1, maxLength: 50 }), (batches, cuts) => {
      const wire = Buffer.concat(batches.map((batch) => BatchFraming.frame(batch)));
      const seen: Uint8Array[] = [];
      const framing = new BatchFraming((batch) => seen.push(Uint8Array.from(batch)));
      for (let at = 0, i = 0; at < wire.length; i++) {
        const next = at + (cuts[i % cuts.length] as number);
        framing.push(wire.subarray(at, next));
        at = next;
      }
      expect(seen).toEqual(batches);
    }));
  });
});

describe('the product', () => {
  it('imports nothing of the bench', () => {
    const source = fileURLToPath(new URL('../../src/', import.meta.url));
    const guilty = readdirSync(source, { recursive: true, encoding: 'utf8' }).filter((file) => /\.[jt]s$/.test(file) && /from '[^']*\/bench\//.test(readFileSync(join(source, file), 'utf8')));
    expect(guilty).toEqual([]);
  });
});

describe('what scheduling a task costs', () => {
  /** How often a node's size is looked at for one task, while tasks end and others are submitted and everything is full. */
  function looks(queued: number, nodes: number): number {
    let count = 0;
    const whole = { get cpuUnits() { count++; return 20_000; }, memoryBytes: 2 ** 36, custom: undefined };
    const cluster = new SchedulingCluster(nodes, whole);
    cluster.submit(queued + 2 * nodes);
    cluster.begin();
    const step = (): void => {
      cluster.pass();
      cluster.finish();
      cluster.submit(1);
    };
    for (let i = 0; i < 200; i++) step();
    count = 0;
    for (let i = 0; i < 2 * nodes; i++) step();
    expect(cluster.queued).toBe(queued);
    // Once a second all nodes are asked again: that is how long it took until here.
    return (count - nodes) / (2 * nodes);
  }

  it('is no more looks at nodes where there are hundreds of them, or where thousands wait', () => {
    const few = looks(200, 20);
    for (const [queued, nodes] of [[200, 300], [5_000, 20], [5_000, 300]] as const) expect(looks(queued, nodes)).toBeLessThan(few + 8);
  });

  it('is drawn from zero up, with every point', () => {
    const svg = schedulingCurve({ byQueued: QUEUED.map((queued) => ({ queued, nodes: 1, micros: 5 })), byNodes: NODES.map((nodes) => ({ queued: 10_000, nodes, micros: 10 })) });
    expect(svg.match(/<circle/g)?.length).toBe(QUEUED.length + NODES.length);
    expect(svg).toContain('100,000');
  });

  it('is measured alone when nothing else is asked for', () => {
    const alone = parseOptions(['--scheduling']);
    expect([alone.scheduling, ROWS.some(({ name }) => alone.wanted(name))]).toEqual([true, false]);
    const beside = parseOptions(['--scheduling', '--rows', 'tasks async']);
    expect([beside.scheduling, beside.wanted('single client tasks async')]).toEqual([true, true]);
  });
});
