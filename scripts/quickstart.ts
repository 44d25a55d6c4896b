/**
 * `npm run quickstart`: an embedded cluster, two tenants from policy files, real work of the first, the second one's attempts at it, and
 * the first one's audit exported and verified offline. Everything goes through the command line, as a user would type it; each
 * command is printed. Stops everything it started, also when something fails.
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { bold, dim, ROOT, Stage, type AuditLine } from './stage.ts';
import { requirePackages, SANDBOX_PACKAGES } from './system-packages.ts';

const OUT = join(ROOT, 'quickstart-output');
const stage = new Stage();
const { work, data } = stage;
const run = stage.run.bind(stage);

interface Attempt {
  readonly what: string;
  readonly action: string;
  readonly resource: string;
  readonly denied: boolean;
  readonly code: string;
}

async function quickstart(): Promise<void> {
  requirePackages(SANDBOX_PACKAGES);
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  console.log(dim(`WORK=${work}`));

  stage.title('A cluster on this machine: one head and two raylets, separate processes that meet only over mTLS');
  await run(['up', '--data', data, '--raylets', '2', '--detach'], {});
  await run(['status'], { show: true });
  await run(['doctor'], { show: true });

  stage.title('Two tenants who do not trust each other, each with a policy file, users with certificates');
  for (const tenant of ['acme', 'globex']) {
    await run(['tenant', 'create', tenant]);
    await run(['policy', 'apply', join(ROOT, 'examples', 'flights', 'policies', `${tenant}.yaml`)], { show: true });
  }
  for (const [tenant, user] of [['acme', 'ana'], ['acme', 'olga'], ['globex', 'bob']] as const) await run(['identity', 'issue', 'user', user, '--tenant', tenant, '--out', stage.profile(user)]);

  stage.title('Acme: three million flights, decoded by tasks inside jailed isolates, merged by tasks, counted by an actor');
  const ids = join(work, 'ids.json');
  const driver = stage.start(['run', join(ROOT, 'examples', 'flights', 'driver.ts'), '--out', OUT, '--result-id-file', ids, '--hold'], 'ana', ['pipe', 'inherit', 'inherit']);
  const ended = new Promise<number>((resolve) => driver.on('close', (code) => resolve(code ?? 1)));
  try {
    await stage.appears(ids, driver);

    stage.title('Globex has learnt the ids of Acme’s result, actor and job, and tries to use them');
    const stdout = await run(['run', join(ROOT, 'examples', 'flights', 'intruder.ts'), '--ids', ids, '--tenant', 'acme', '--json'], { as: 'bob' });
    const attempts = JSON.parse(stdout) as Attempt[];
    const denials = await stage.denials('globex', 'bob');
    const used = new Set<AuditLine>();
    for (const attempt of attempts) {
      const line = denials.find((l) => !used.has(l) && l.record.action === attempt.action);
      if (line !== undefined) used.add(line);
      console.log(`   ${attempt.denied ? 'denied' : bold('NOT DENIED')}  ${attempt.what}`);
      console.log(dim(`           record ${line === undefined ? 'missing' : `${line.node} #${line.index}: ${line.record.principal} ${line.record.action ?? ''} on ${line.record.resourceKind} ${line.record.resource.slice(0, 24)}… denied by ${line.record.rule ?? ''}`}`));
      if (!attempt.denied || line === undefined) throw new Error('an attempt across the tenant wall was not denied, or left no record');
    }
  } finally {
    // The first program holds its result until then, so that the attempts were at something that existed.
    driver.stdin?.end();
  }
  if ((await ended) !== 0) throw new Error('the first tenant’s program failed');

  stage.title('Acme’s auditor exports every decision of its tenant and verifies it, without the cluster');
  await run(['audit', 'stats', '--tenant', 'acme'], { as: 'olga', show: true });
  const audit = join(OUT, 'audit');
  await run(['audit', 'export', '--tenant', 'acme', '-o', audit], { as: 'olga', show: true });

  stage.title('Everything stops; nothing is left behind');
  await run(['down', '--data', data, '--purge'], { show: true });
  await run(['audit', 'verify', audit], { show: true });
  console.log(`\n${bold(`Done in ${stage.seconds()} s.`)} The chart is ${relative(process.cwd(), join(OUT, 'flights.svg'))}, the verified audit ${relative(process.cwd(), audit)}.`);
}

await stage.play(quickstart);
