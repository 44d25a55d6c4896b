/** Fifty seeds of the simulation hold, a seed is a run, and every planted bug is found. `npm run sim` runs more of them. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { CANARIES } from './canaries.ts';
import { simulate } from './simulation.ts';

const SEEDS = 50;
/** A planted bug must be found by one of the first so many seeds. */
const CANARY_SEEDS = 80;
/** A second of work for each seed: on a busy machine that takes its time. */
const PATIENCE_MS = 240_000;

describe('a simulated cluster', () => {
  it.each(Array.from({ length: SEEDS / 5 }, (_, i) => 5 * i + 1))('holds what is promised, whatever fails (seeds from %i)', (first) => {
    for (let seed = first; seed < first + 5; seed++) {
      const { failure, lastEvents } = simulate(seed);
      expect(failure, `seed ${seed} (npm run sim -- --seed ${seed}):\n${lastEvents.slice(-20).join('\n')}`).toBe('');
    }
  }, PATIENCE_MS);

  it('does the same for the same seed, and something else for another', () => {
    const [first, again, other] = [simulate(2), simulate(2), simulate(3)];
    expect([again.digest, again.steps]).toEqual([first.digest, first.steps]);
    expect(other.digest).not.toBe(first.digest);
  });

  it('has every fault that it is for', () => {
    const seen = new Set<string>();
    for (let seed = 1; seed <= 12; seed++) for (const what of Object.keys(simulate(seed).counts)) seen.add(what);
    const faults = [
      'node loses power', 'a link breaks', 'a one-way partition', 'a failing disk', 'a clock jumps', 'a full disk', 'a worker dies', 'another policy', 'an identity is revoked', 'a job is stopped',
      'the head loses power', 'a hostile driver attaches', 'a credential is renewed', 'an object goes to disk', 'an object comes back from disk',
    ];
    for (const what of faults) expect([...seen]).toContain(what);
  }, PATIENCE_MS);
});

describe('npm run sim', () => {
  const run = (...args: readonly string[]): { readonly status: number | null; readonly stdout: string } => spawnSync(process.execPath, [fileURLToPath(new URL('./main.ts', import.meta.url)), ...args], { encoding: 'utf8', timeout: 60_000 });

  it('tells a seed’s digest, which is the same twice', () => {
    const { status, stdout } = run('--seed', '4', '--json');
    expect([status, JSON.parse(stdout)]).toMatchObject([0, { seed: 4, failure: '', digest: simulate(4).digest }]);
  });

  it('says how to replay what fails, and what happened before', () => {
    const { status, stdout } = run('--seeds', '1..9', '--canary', 'counts twice');
    expect(status).toBe(1);
    expect(stdout).toMatch(/quotas: \w+ counts \d+ tasks, and has \d+[\s\S]*replay: npm run sim -- --seed \d+/);
    expect(stdout.split('\n').length).toBeGreaterThan(20);
  });
});

describe('a planted bug', () => {
  it.each(Object.entries(CANARIES))('is found: %s', (_name, bugs) => {
    let found = '';
    for (let seed = 1; seed <= CANARY_SEEDS && found === ''; seed++) found = simulate(seed, bugs).failure;
    expect(found).not.toBe('');
  }, PATIENCE_MS);
});
