/**
 * `npm run quickstart:python`: Ray programs with one line changed, in gVisor. A hospital's records and a postal service's scans on one cluster; each tenant searches for
 * the best model of its own data, then the second one, who has learnt the first one's ids, tries to use them. Installs what it needs first: runsc and a Python environment.
 * Everything goes through commands that are printed. Stops everything it started, also when something fails.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { pythonWith } from './python-venv.ts';
import { bold, dim, ROOT, Stage, type AuditLine } from './stage.ts';
import { requirePackages, SANDBOX_PACKAGES } from './system-packages.ts';

const OUT = join(ROOT, 'quickstart-output');
const EXAMPLES = join(ROOT, 'examples', 'python');
const GONE_TRIES = 100;
const stage = new Stage();
const { work, data } = stage;
const run = stage.run.bind(stage);

/** A refusal of the tenant's own side of the wall leaves no record, since nothing was asked of the cluster: `action` is empty then. */
interface Attempt {
  readonly what: string;
  readonly action: string;
  readonly denied: boolean;
  readonly how: string;
}

/** Builds runsc if this user has none; it says itself how long that takes, and what to do where Go is missing. */
function requireRunsc(): void {
  const { status } = spawnSync(process.execPath, [join(ROOT, 'src', 'sandbox', 'gvisor', 'build-runsc.ts')], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0) throw new Error('Python needs gVisor; the lines above say what is missing');
}

async function quickstart(): Promise<void> {
  stage.title('What it needs: system packages, gVisor’s runsc, a Python environment of its own');
  requirePackages(SANDBOX_PACKAGES);
  requireRunsc();
  const python = await pythonWith(['numpy', 'scikit-learn>=1.5'], (text) => console.log(dim(`   ${text}`)));
  // The package of this checkout, as `pip install ./python` would install it.
  const program = { file: python, shown: 'python', env: { PYTHONPATH: join(ROOT, 'python'), PYTHONDONTWRITEBYTECODE: '1' } };
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  console.log(dim(`   WORK=${work}`));

  stage.title('A cluster on this machine whose workers for Python are gVisor sandboxes');
  process.env['BULKHEAD_PYTHON'] = python;
  await run(['up', '--data', data, '--raylets', '1', '--python', python, '--detach']);
  await run(['doctor'], { show: true });

  stage.title('Two tenants who do not trust each other: a hospital and a postal service');
  for (const tenant of ['clinic', 'post']) {
    await run(['tenant', 'create', tenant]);
    await run(['policy', 'apply', join(EXAMPLES, 'policies', `${tenant}.yaml`)], { show: true });
  }
  for (const [tenant, user] of [['clinic', 'ana'], ['post', 'bob'], ['post', 'olga']] as const) await run(['identity', 'issue', 'user', user, '--tenant', tenant, '--out', stage.profile(user)]);

  stage.title('The hospital: real records of breast cancer patients, 125 models in its own sandbox, the array shared without a copy');
  const ids = join(work, 'ids.json');
  const search = join(EXAMPLES, 'grid_search.py');
  const first = stage.start([search, 'breast-cancer', '--out', OUT, '--ids', ids, '--hold'], 'ana', ['pipe', 'inherit', 'inherit'], program);
  const ended = new Promise<number>((resolve) => first.on('close', (code) => resolve(code ?? 1)));
  try {
    await stage.appears(ids, first);

    stage.title('The postal service: images of digits, in a sandbox of its own on the same machine');
    await stage.output(stage.start([search, 'digits', '--out', OUT], 'bob', ['ignore', 'pipe', 'pipe'], program), { show: true });

    stage.title('The postal service has learnt the ids of the patients’ records, and tries to use them');
    const attempts = JSON.parse(await stage.output(stage.start([join(EXAMPLES, 'intruder.py'), ids], 'bob', ['ignore', 'pipe', 'pipe'], program))) as Attempt[];
    const denials = await stage.denials('post', 'olga');
    const used = new Set<AuditLine>();
    for (const attempt of attempts) {
      console.log(`   ${attempt.denied ? 'denied' : bold('NOT DENIED')}  ${attempt.what}`);
      if (!attempt.denied) throw new Error(`an attempt across the tenant wall was not denied: ${attempt.how}`);
      if (attempt.action === '') {
        console.log(dim(`           ${attempt.how.split('\n')[0] ?? ''}`));
        continue;
      }
      const line = denials.find((l) => !used.has(l) && l.record.action === attempt.action);
      if (line === undefined) throw new Error('a denied attempt left no audit record');
      used.add(line);
      console.log(dim(`           record ${line.node} #${line.index}: ${line.record.principal} ${line.record.action ?? ''} on ${line.record.resourceKind} ${line.record.resource.slice(0, 24)}… denied by ${line.record.rule ?? ''}`));
    }
  } finally {
    // The first program holds its records until then, so that the attempts were at something that existed.
    first.stdin?.end();
  }
  if ((await ended) !== 0) throw new Error('the first tenant’s program failed');

  stage.title('Everything stops; nothing is left behind');
  await run(['down', '--data', data, '--purge'], { show: true });
  for (let i = 0; stage.processes().length > 0; i++) {
    if (i === GONE_TRIES) throw new Error(`processes are left: ${stage.processes().join(', ')}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  console.log(dim('   no process and no sandbox of it is left'));
  console.log(`\n${bold(`Done in ${stage.seconds()} s.`)} The charts are ${relative(process.cwd(), join(OUT, 'breast-cancer.svg'))} and digits.svg beside it.`);
}

await stage.play(quickstart);
