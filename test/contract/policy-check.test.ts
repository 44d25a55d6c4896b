/** Checks of policy files beside the head's other work: the same answer in the thread as without it, bounds, and a head that goes on meanwhile. */
import { describe, expect, it } from 'vitest';
import { checkNow, PolicyChecks } from '../../src/gcs/policy-check.ts';
import { defaultPolicy } from '../../src/authz/authz.ts';

const platform = { tenant: '', fileName: 'defaults.yaml', content: defaultPolicy().content };

/** A file of many rules; `bad` adds a mistake at its end. */
function file(tenant: string, rules: number, bad = false): { tenant: string; fileName: string; content: string } {
  const roles = Array.from({ length: rules }, (_, i) => `  r${i}:\n    permit:\n      - { action: task.submit, resource: task, when: { name: { eq: n${i} } } }\n`).join('');
  return { tenant, fileName: 'many.yaml', content: `version: 1\ntenant: ${tenant}\nroles:\n${roles}${bad ? '  broken: 7\n' : ''}` };
}

const request = (f: ReturnType<typeof file>) => ({ file: f, all: [platform, f], nowMs: 1_000 });

describe('a large policy file', () => {
  it('is checked in a thread, with the same findings, and the head goes on meanwhile', async () => {
    for (const bad of [false, true]) {
      const asked = request(file('acme', 1_500, bad));
      let turns = 0;
      const count = setInterval(() => turns++, 1);
      const checked = await new PolicyChecks().check(asked);
      clearInterval(count);
      const now = checkNow(asked);
      expect(checked.findings).toEqual(now.findings);
      expect(checked.findings.length > 0).toBe(bad);
      expect(checked.document).toEqual(now.document);
      expect(turns, 'other work was done').toBeGreaterThan(5);
    }
  });

  it('that takes too long is refused with what to do', async () => {
    await expect(new PolicyChecks(1).check(request(file('acme', 1_500)))).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED', safeMessage: expect.stringContaining('fewer rules') });
  });

  it('waits its turn, and a tenant has only so many waiting', async () => {
    const checks = new PolicyChecks();
    const order: string[] = [];
    const mine = [1, 2, 3, 4].map((i) => checks.check(request(file('acme', 1_500))).then(() => order.push(`acme ${i}`)));
    await expect(checks.check(request(file('acme', 1_500)))).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    const theirs = checks.check(request(file('globex', 1_500))).then(() => order.push('globex'));
    // A small one does not wait.
    expect((await checks.check(request(file('initech', 10)))).findings).toEqual([]);
    expect(order).toEqual([]);
    await Promise.all([...mine, theirs]);
    expect(order).toEqual(['acme 1', 'acme 2', 'acme 3', 'acme 4', 'globex']);
  });
});
