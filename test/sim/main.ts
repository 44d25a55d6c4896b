/**
 * `npm run sim`: whole clusters of the real cores under faults, one seed after the other. Prints what does not hold with its seed and its
 * last events; the same seed replays it exactly. Ends with 1 when a seed fails.
 */
import { CANARIES, NO_BUGS } from './canaries.ts';
import { simulate, type Outcome } from './simulation.ts';

const USAGE = `usage: npm run sim -- [--seed N | --seeds A..B | --forever] [--canary TEXT] [--trace] [--json]
  --seed N      one run, twice: both must be the same
  --seeds A..B  all of these, one run each (default: 1..50)
  --forever     from a random seed on, until it fails or is stopped
  --canary TEXT plants the bug whose name contains the text
  --trace       prints every event of each run, not only the last ones
  --json        a line of JSON for each seed`;

interface Wanted {
  readonly seeds: Iterable<number>;
  readonly twice: boolean;
  readonly json: boolean;
  readonly trace: boolean;
  readonly canary: string;
}

function usage(why: string): never {
  process.stderr.write(`${why}\n${USAGE}\n`);
  process.exit(2);
}

function wholeNumber(text: string | undefined): number {
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : usage(`'${text ?? ''}' is not a seed: give a whole number`);
}

function* from(first: number, last = Number.POSITIVE_INFINITY): Generator<number> {
  for (let seed = first; seed <= last; seed++) yield seed;
}

function parse(args: readonly string[]): Wanted {
  let seeds: Iterable<number> = from(1, 50);
  let [twice, json, trace, canary] = [false, false, false, ''];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    if (arg === '--seed') {
      const seed = wholeNumber(args[++i]);
      seeds = [seed];
      twice = true;
    } else if (arg === '--seeds') {
      const [first, last] = (args[++i] ?? '').split('..');
      seeds = from(wholeNumber(first), wholeNumber(last));
    } else if (arg === '--forever') seeds = from(1 + Math.floor(Math.random() * 1e8));
    else if (arg === '--canary') {
      const text = args[++i] ?? '';
      canary = Object.keys(CANARIES).find((name) => text !== '' && name.includes(text)) ?? usage(`no planted bug is called '${text}': ${Object.keys(CANARIES).join('; ')}`);
    } else if (arg === '--json') json = true;
    else if (arg === '--trace') trace = true;
    else usage(arg === '--help' ? '' : `'${arg}' is not an option`);
  }
  return { seeds, twice, json, trace, canary };
}

function tell(outcome: Outcome, json: boolean): void {
  const { seed, failure, digest, steps, lastEvents, counts } = outcome;
  if (json) return void process.stdout.write(`${JSON.stringify({ seed, failure, digest, steps, counts, ...(failure === '' ? {} : { lastEvents }) })}\n`);
  process.stdout.write(`seed ${seed}: ${failure === '' ? 'holds' : 'FAILS'}, ${steps} steps, digest ${digest}\n`);
  if (failure !== '') process.stdout.write(`${lastEvents.map((line) => `  ${line}\n`).join('')}${failure}\nreplay: npm run sim -- --seed ${seed}\n`);
}

const { seeds, twice, json, trace, canary } = parse(process.argv.slice(2));
let ran = 0;
for (const seed of seeds) {
  const bugs = CANARIES[canary] ?? NO_BUGS;
  const outcome = simulate(seed, bugs, undefined, trace ? (event) => void process.stdout.write(`${event}\n`) : undefined);
  ran++;
  tell(outcome, json);
  if (twice && simulate(seed, bugs).digest !== outcome.digest) {
    process.stdout.write(`seed ${seed} is not the same twice: something asks what the seed does not decide\n`);
    process.exitCode = 1;
  }
  if (outcome.failure === '') continue;
  process.exitCode = 1;
  break;
}
if (!json) process.stdout.write(`${ran} seed${ran === 1 ? '' : 's'}\n`);
