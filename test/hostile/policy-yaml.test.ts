/** Policy files from somebody who wants two readers to see two policies, a reader to hang, or a rule to mean more than it says. */
import { describe, expect, test, vi } from 'vitest';
import { diagnosticText } from '../../src/authz/core/policy-schema.ts';
import { parsePolicyFile } from '../../src/authz/policy-file.ts';
import { checkPolicies, checkText } from '../../src/authz/policy-tests.ts';

vi.setConfig({ testTimeout: 30_000 });

const HEAD = 'version: 1\ntenant: acme\n';
const role = (rules: string): string => `${HEAD}roles:\n  r:\n    permit:\n      - ${rules}\n`;
const when = (text: string): string => role(`{ action: task.submit, resource: task, when: ${text} }`);

function refusal(content: string | Uint8Array): string[] {
  const { document, diagnostics } = parsePolicyFile('acme.yaml', content);
  expect(document).toBeUndefined();
  return diagnostics.filter((d) => d.severity === 'error').map(diagnosticText);
}

/** name, content, the first error: where exactly and what. */
const REFUSED: [string, string, RegExp][] = [
  ['an empty file', '', /:1:1: the file is empty; begin with/],
  ['only a comment', '# nothing\n', /:1:1: the file is empty/],
  ['a scalar', 'policy', /:1:1: a policy file is a map/],
  ['a list', '- version: 1', /:1:1: a policy file is a map/],
  ['a duplicate key', `${HEAD}tenant: globex\n`, /:3:1: the key 'tenant' is given twice; the first is on line 2/],
  ['a duplicate key in quotes', `${HEAD}"tenant": globex\n`, /:3:1: the key 'tenant' is given twice/],
  ['a duplicate key written with an escape', `${HEAD}"ten\\u0061nt": globex\n`, /:3:1: the key 'tenant' is given twice/],
  ['a duplicate role', `${HEAD}roles:\n  r: { permit: [] }\n  r: { permit: [] }\n`, /:5:3: the key 'r' is given twice; the first is on line 4/],
  ['a duplicate operator', when('{ cpus: { lte: 1, lte: 100 } }'), /:6:72: the key 'lte' is given twice/],
  ['an anchor', `${HEAD}roles: &all { r: { permit: [] } }\n`, /:3:13: the anchor '&all' is not allowed/],
  ['an alias', `${HEAD}roles: { r: &x { permit: [] }, s: *x }\n`, /:3:16: the anchor '&x' is not allowed/],
  ['an alias of nothing', `${HEAD}roles: *gone\n`, /:3:8: /],
  ['a merge key', `${HEAD}<<: { roles: {} }\n`, /:3:1: merge keys are not allowed/],
  ['a merge key of a list', `${HEAD}roles:\n  r: { <<: [ { permit: [] } ] }\n`, /:4:8: merge keys are not allowed/],
  ['a custom tag', `${HEAD}roles: !include roles.yaml\n`, /:3:8: not valid YAML: Unresolved tag/],
  ['a language tag', `${HEAD}roles: !!js/function "x"\n`, /:3:8: not valid YAML: Unresolved tag/],
  ['a core tag on a scalar', 'version: !!int "1"\ntenant: acme\n', /:1:16: tags are not allowed/],
  ['a core tag on a map', `${HEAD}roles: !!map {}\n`, /:3:14: tags are not allowed/],
  ['a set', `${HEAD}roles: !!set { r }\n`, /:3:14: tags are not allowed/],
  ['binary', `${HEAD}roles: !!binary aGk=\n`, /:3:17: tags are not allowed/],
  ['a second document', `${HEAD}---\n${HEAD}`, /:4:1: a second document begins here/],
  ['a second document after an end mark', `${HEAD}...\n---\nversion: 1\n`, /a second document begins here/],
  ['a YAML 1.1 directive', `%YAML 1.1\n---\n${HEAD}`, /:1:1: directives/],
  ['a tag directive', `%TAG !! tag:example.org,2000:\n---\n${HEAD}`, /:1:1: directives/],
  ['__proto__ at the top', `${HEAD}__proto__: { platform: true }\n`, /:3:1: the key '__proto__' is not allowed/],
  ['__proto__ as a role', `${HEAD}roles: { __proto__: { permit: [] } }\n`, /:3:10: the key '__proto__' is not allowed/],
  ['__proto__ with escapes', `${HEAD}roles: { "__pr\\u006fto__": { permit: [] } }\n`, /:3:10: the key '__proto__' is not allowed/],
  ['constructor as a role', `${HEAD}roles: { constructor: { permit: [] } }\n`, /:3:10: the key 'constructor' is not allowed/],
  ['prototype as an attribute', when('{ prototype: { eq: a } }'), /the key 'prototype' is not allowed/],
  ['__proto__ as an operator', when('{ name: { __proto__: a } }'), /the key '__proto__' is not allowed/],
  ['a key that is a list', `${HEAD}? [roles]\n: {}\n`, /:3:3: a key of a policy file must be text/],
  ['a key that is a number', `${HEAD}1: {}\n`, /:3:1: a key of a policy file must be text/],
  ['a key that is null', `${HEAD}~: {}\n`, /:3:1: a key of a policy file must be text/],
  ['no version', 'tenant: acme\n', /:1:1: a policy file needs the key 'version'/],
  ['another version', 'version: 2\ntenant: acme\n', /:1:10: 'version' must be 1/],
  ['a version in quotes', "version: '1'\ntenant: acme\n", /:1:10: 'version' must be 1/],
  ['no tenant', 'version: 1\n', /:1:1: a policy file needs the key 'tenant'/],
  ['tenant and platform', `${HEAD}platform: true\n`, /:3:1: .* not both/],
  ['platform: false', 'version: 1\nplatform: false\n', /:2:1: 'platform' can only be true/],
  ['platform: yes, which is text in YAML 1.2', 'version: 1\nplatform: yes\n', /:2:11: 'platform' must be true or false, not the text 'yes'/],
  ['a numeric tenant', 'version: 1\ntenant: 12\n', /:2:9: 'tenant' must be text, not the number 12; put it in quotes/],
  ['a tenant that is a path', 'version: 1\ntenant: ../globex\n', /:2:9: tenant name '..\/globex' is not valid/],
  ['the reserved tenant', 'version: 1\ntenant: platform\n', /:2:9: the tenant name 'platform' is reserved/],
  ['an unknown key', `${HEAD}rolls: {}\n`, /:3:1: a policy file has no key 'rolls'; did you mean 'roles'\?/],
  ['an unknown key of a rule', role('{ action: task.submit, resource: task, unless: {} }'), /:6:48: a permit rule has no key 'unless'/],
  ['scope in a tenant file', role('{ action: task.submit, resource: task, scope: any }'), /:6:48: a permit rule has no key 'scope'/],
  ['assignable in a tenant file', `${HEAD}roles: { r: { assignable: true, permit: [] } }\n`, /:3:15: role 'r' has no key 'assignable'/],
  ['a misspelt action', role('{ action: object.gte, resource: object }'), /:6:19: action 'object.gte' does not exist; did you mean 'object.get'\?/],
  ['a wildcard action', role("{ action: '*', resource: object }"), /:6:19: action '\*' does not exist/],
  ['CASL’s manage', role('{ action: manage, resource: object }'), /:6:19: action 'manage' does not exist/],
  ['CASL’s all', role('{ action: object.get, resource: all }'), /:6:41: resource kind 'all' does not exist/],
  ['a misspelt kind', role('{ action: object.get, resource: objct }'), /:6:41: resource kind 'objct' does not exist; did you mean 'object'\?/],
  ['a misspelt attribute', when('{ cpu: { lte: 1 } }'), /:6:56: attribute 'cpu' does not exist; did you mean 'cpus'\?/],
  ['an attribute of another kind', when('{ detached: { eq: true } }'), /:6:56: resource 'task' has no attribute 'detached'/],
  ['an unknown operator', when('{ name: { regex: ".*" } }'), /:6:64: operator 'regex' does not exist/],
  ['a Mongo operator', when('{ name: { $regex: ".*" } }'), /:6:64: operator '\$regex' does not exist/],
  ['an operator of another type', when('{ name: { lt: b } }'), /:6:64: 'name' is a string and cannot be compared with 'lt'/],
  ['an empty condition', when('{}'), /:6:54: 'when' is empty; leave it out/],
  ['an empty condition on an attribute', when('{ name: {} }'), /:6:62: the condition on 'name' is empty/],
  ['a bare value as condition', when('{ name: x }'), /:6:62: write an operator: name: \{ eq: … \}/],
  ['null as condition', when('{ name: { eq: ~ } }'), /'name' is a string, and this is nothing/],
  ['a missing value', when('{ name: { eq: } }'), /'name' is a string, and this is nothing/],
  ['an array where a scalar belongs', when('{ name: { eq: [a] } }'), /'eq' takes one value; for several write 'in'/],
  ['a map where a scalar belongs', when('{ name: { eq: { toString: a } } }'), /'name' is a string, and this is a map/],
  ['a scalar where a list belongs', when('{ name: { in: a } }'), /the operand of 'in' must be a list, not the text 'a'/],
  ['an empty list', when('{ name: { in: [] } }'), /the operand of 'in' is empty/],
  ['a list in a list', when('{ name: { in: [[a]] } }'), /'name' is a string, and this is a list/],
  ['a number as text', when("{ cpus: { lte: '4' } }"), /'cpus' is a number, and this is the text '4'/],
  ['text as a number', when('{ name: { eq: 4 } }'), /'name' is a string, and this is the number 4; put it in quotes/],
  ['a boolean as text', when('{ label: { eq: true } }'), /'label' is a string, and this is true/],
  ['infinity', when('{ cpus: { lte: .inf } }'), /'cpus' must be a finite number/],
  ['infinity by overflow', when('{ cpus: { lte: 1e999 } }'), /'cpus' must be a finite number/],
  ['not a number', when('{ cpus: { lte: .nan } }'), /'cpus' must be a finite number/],
  ['a number that would be rounded', when('{ memory: { lte: 9007199254740993 } }'), /'memory' must be a finite number below 2\^53/],
  ['a wrong unit', when('{ memory: { lte: 4GX } }'), /memory '4GX' is not valid/],
  ['a forbid that can never apply', `${HEAD}roles: { r: { forbid: [ { action: object.get, resource: task } ] } }\n`, /:3:35: 'object.get' acts on resource 'object', not on 'task'/],
  ['a role without rules', `${HEAD}roles: { r: {} }\n`, /:3:10: role 'r' has neither 'permit' nor 'forbid'/],
  ['a role that is nothing', `${HEAD}roles:\n  r:\n`, /:4:\d: role 'r' must be a map, not nothing/],
  ['a role name with a slash', `${HEAD}roles: { a/b: { permit: [] } }\n`, /:3:10: name 'a\/b' is not valid/],
  ['a binding of another tenant’s principal', `${HEAD}bindings: [ { role: r, to: tenant/globex/user/bob } ]\n`, /:3:28: a binding reaches only its own tenant's principals/],
  ['a binding of the administrator', `${HEAD}bindings: [ { role: r, to: system/admin } ]\n`, /:3:28: 'system\/admin' names no principal/],
  ['a binding of nodes', `${HEAD}bindings: [ { role: r, to: ['node/*'] } ]\n`, /:3:29: 'node\/\*' names no principal/],
  ['a binding of jobs', `${HEAD}bindings: [ { role: r, to: 'job/*' } ]\n`, /:3:28: a job cannot be bound/],
  ['a binding of everything', `${HEAD}bindings: [ { role: r, to: '*' } ]\n`, /:3:28: '\*' names no principal/],
  ['a binding with a pattern', `${HEAD}bindings: [ { role: r, to: 'user/a*' } ]\n`, /:3:28: name 'a\*' is not valid/],
  ['a grant without end', `${HEAD}grants: [ { to: tenant/globex, action: object.get, resource: object } ]\n`, /:3:11: a grant needs the key 'until'/],
  ['a grant to all', `${HEAD}grants: [ { to: 'tenant/*', action: object.get, resource: object, until: 2027-01-01 } ]\n`, /:3:17: tenant name '\*' is not valid/],
  ['a grant of a governing action', `${HEAD}grants: [ { to: tenant/globex, action: policy.apply, resource: policy, until: 2027-01-01 } ]\n`, /'policy.apply' cannot be granted/],
  ['a day that does not exist', `${HEAD}grants: [ { to: tenant/globex, action: object.get, resource: object, until: 2027-02-30 } ]\n`, /:3:77: 'until' '2027-02-30' is not a date/],
  ['a date in words', `${HEAD}grants: [ { to: tenant/globex, action: object.get, resource: object, until: tomorrow } ]\n`, /'until' 'tomorrow' is not a date/],
  ['a year as a number', `${HEAD}grants: [ { to: tenant/globex, action: object.get, resource: object, until: 2027 } ]\n`, /'until' must be text, not the number 2027/],
  ['a grant in a platform policy', 'version: 1\nplatform: true\ngrants: []\n', /:3:1: a platform policy has no 'grants'/],
  ['a platform binding of one user of every tenant', 'version: 1\nplatform: true\nbindings: [ { role: r, to: user/ana } ]\n', /:3:28: a platform policy binds all users of all tenants or none/],
  ['a test as nobody', `${HEAD}tests: [ { as: ana, do: task.submit, expect: permit } ]\n`, /:3:16: 'ana' names no principal/],
  ['a test that expects something else', `${HEAD}tests: [ { as: user/ana, do: task.submit, expect: allow } ]\n`, /:3:51: expectation 'allow' does not exist; known are permit, deny, forbid/],
  ['tabs as indentation', `${HEAD}roles:\n\tr: {}\n`, /:4:1: not valid YAML: Tabs are not allowed as indentation/],
  ['a NUL', `${HEAD}ro\u0000les: {}\n`, /:3:3: the character U\+0000 is not allowed/],
  ['an escape sequence for terminals', `${HEAD}roles: { "\u001b[31m": {} }\n`, /:3:11: the character U\+001B is not allowed/],
  ['text that is displayed in another order', `${HEAD}# \u202e nothing to see\n`, /:3:3: the character U\+202E is not allowed/],
  ['a line break that editors do not show', `${HEAD}# comment\u2028roles: {}\n`, /:3:10: the character U\+2028 is not allowed/],
  ['unclosed brackets', `${HEAD}roles: {{{{\n`, /:4:1: not valid YAML/],
];

describe('refused, naming place, reason and remedy', () => {
  test.each(REFUSED)('%s', (_name, content, expected) => {
    expect(refusal(content)[0]).toMatch(expected);
  });

  test('bytes that are not UTF-8', () => {
    expect(refusal(Buffer.concat([Buffer.from(HEAD), Buffer.from([0x23, 0xff, 0x0a])]))).toEqual(['acme.yaml:3:1: this line is not valid UTF-8; save the file as UTF-8']);
    expect(refusal(Buffer.from(HEAD, 'utf16le'))[0]).toMatch(/U\+0000|UTF-8/);
    // An overlong '/', which lenient decoders take.
    expect(refusal(Buffer.concat([Buffer.from(HEAD), Buffer.from([0x23, 0xc0, 0xaf])]))[0]).toMatch(/:3:1: this line is not valid UTF-8/);
  });

  test('every mistake of a file is reported, not only the first', () => {
    expect(refusal(`${HEAD}rolls: {}\nbindings: [ { role: r, to: '*' }, { role: 4, to: user/ana } ]\n`)).toHaveLength(3);
  });

  test('no error shows a control character of the file, whatever it says', () => {
    for (const content of [`${HEAD}"a\\u001b[2Jb": 1\n`, `${HEAD}roles: { r: { permit: [ { action: "\\u202ex\\n", resource: task } ] } }\n`, `${HEAD}!\u00e9\u00e9 x: 1\n`]) {
      for (const line of refusal(content)) expect(line).toMatch(/^[\x20-\x7e…]*$/);
    }
  });
});

describe('bounded, however large or deep', () => {
  const SHAPES: [string, string][] = [
    ['open brackets', '['.repeat(500_000)],
    ['open maps', '{a: '.repeat(200_000)],
    ['sequences in one line', '- '.repeat(500_000)],
    ['explicit keys in one line', '? '.repeat(500_000)],
    ['mixed block markers', '- ? '.repeat(250_000)],
    ['a staircase of maps', Array.from({ length: 1_000 }, (_, i) => `${' '.repeat(i)}k:\n`).join('')],
    ['many lines', `${HEAD}${'k: 1\n'.repeat(100_000)}`],
    ['many keys', `${HEAD}${Array.from({ length: 20_000 }, (_, i) => `k${i}: 1`).join('\n')}`],
    ['many equal keys', `${HEAD}${'k: 1\n'.repeat(20_000)}`],
    ['a long list of values', when(`{ name: { in: [${'a, '.repeat(50_000)}b] } }`)],
    ['a long string', when(`{ name: { eq: ${'a'.repeat(500_000)} } }`)],
    ['backslashes', `${HEAD}a: "${'\\'.repeat(500_001)}`],
    ['exclamation marks', `${HEAD}${'!'.repeat(500_000)}`],
    ['more than a megabyte', `${HEAD}# ${'x'.repeat(1_100_000)}`],
    ['many errors', `${HEAD}bindings:\n${'  - { role: 1, to: 2 }\n'.repeat(9_000)}`],
    ['an alias bomb', `${HEAD}a: &a [x]\n${Array.from({ length: 20 }, (_, i) => `b${i}: &b${i} [*a, *a, *a]`).join('\n')}`],
  ];

  test.each(SHAPES)('%s', (_name, content) => {
    const errors = refusal(content);
    expect(errors.length).toBeGreaterThan(0);
    expect(errors.length).toBeLessThanOrEqual(100);
    expect(errors.every((e) => e.length < 1_000)).toBe(true);
  }, 20_000);
});

describe('accepted', () => {
  test('dates as plain text, byte units, comments, a byte order mark, and Windows line ends', () => {
    const text = `\ufeff# policy\nversion: 1\ntenant: acme\nroles:\n  r:\n    permit:\n      - { action: task.submit, resource: task, when: { memory: { lte: 1GiB }, cpus: { lte: 0.5 } } }\ngrants:\n  - { to: tenant/globex, action: object.get, resource: object, until: 2027-01-01 }\n  - { to: system/admin, action: log.read, resource: log, until: '2027-01-01T12:30:00Z' }\n`;
    for (const content of [text, text.replaceAll('\n', '\r\n'), Buffer.from(text)]) {
      const { document, diagnostics } = parsePolicyFile('acme.yaml', content);
      expect(diagnostics).toEqual([]);
      expect(document?.grants.map((g) => g.untilMs)).toEqual([Date.UTC(2027, 0, 1), Date.UTC(2027, 0, 1, 12, 30)]);
      expect(document?.roles[0]?.permit[0]?.when).toEqual([{ attribute: 'memory', operator: 'lte', value: 2 ** 30 }, { attribute: 'cpus', operator: 'lte', value: 0.5 }]);
    }
  });

  test('a permit for a kind that its action never acts on, with a warning', () => {
    const { document, diagnostics } = parsePolicyFile('acme.yaml', role('{ action: [task.submit, object.get], resource: task }'));
    expect(document).toBeDefined();
    expect(diagnostics.map(diagnosticText)).toEqual([expect.stringMatching(/^acme\.yaml:6:33: warning: 'object\.get' acts on resource 'object', not on 'task'/)]);
  });
});

describe('across files', () => {
  const check = (...contents: string[]): string => checkText(checkPolicies({ files: contents.map((content, i) => ({ name: `f${i}.yaml`, content })), identityRoles: [], version: 1, nowMs: 0 }));
  const platform = 'version: 1\nplatform: true\nroles:\n  dev: { assignable: true, permit: [ { action: task.submit, resource: task } ] }\n  root: { permit: [ { action: cluster.stop, resource: cluster, scope: any } ] }\n';

  test('a role that does not exist, one that is not assignable, one of another tenant', () => {
    expect(check(platform, `${HEAD}bindings:\n  - { role: deb, to: user/ana }\n`)).toMatch(/^f1\.yaml:4:5: role 'deb' does not exist; roles that can be bound here: dev$/);
    expect(check(platform, `${HEAD}bindings:\n  - { role: root, to: user/ana }\n`)).toMatch(/^f1\.yaml:4:5: role 'root' of the platform is not assignable by tenants$/);
    expect(check(platform, `version: 1\ntenant: globex\nroles: { g: { permit: [] } }\n`, `${HEAD}bindings:\n  - { role: g, to: user/ana }\n`)).toMatch(/^f2\.yaml:4:5: role 'g' does not exist/);
  });

  test('a role of the platform cannot be redefined, nor a role in two files of one tenant', () => {
    expect(check(platform, `${HEAD}roles: { dev: { permit: [] } }\n`)).toMatch(/^f1\.yaml:3:10: role 'dev' is a role of the platform/);
    expect(check(`${HEAD}roles: { a: { permit: [] } }\n`, `${HEAD}roles: { a: { permit: [] } }\n`)).toMatch(/^f1\.yaml:3:10: role 'a' is already defined/);
  });

  test('one broken file means no snapshot at all', () => {
    const result = checkPolicies({ files: [{ name: 'p.yaml', content: platform }, { name: 'a.yaml', content: 'x' }], identityRoles: [], version: 1, nowMs: 0 });
    expect([result.ok, result.snapshot]).toEqual([false, undefined]);
  });

  test('a file that is of another tenant than it was applied for', () => {
    const as = (tenant: string, content: string): string => checkText(checkPolicies({ files: [{ name: 'x.yaml', content, tenant }], identityRoles: [], version: 1, nowMs: 0 }));
    expect(as('globex', HEAD)).toMatch(/^x\.yaml:1:1: this is not a policy of tenant 'globex'/);
    expect(as('', HEAD)).toMatch(/^x\.yaml:1:1: this is not a platform policy/);
    expect(as('acme', platform)).toMatch(/^x\.yaml:1:1: this is not a policy of tenant 'acme'/);
    expect(as('acme', HEAD)).toBe('');
  });

  test('tests see the platform and their own tenant: none tells or depends on what another tenant wrote', () => {
    const globex = (body: string): string => `version: 1\ntenant: globex\nroles: { g: { permit: [ { action: object.get, resource: object } ] } }\n${body}`;
    const asks = `${HEAD}grants:\n  - { to: tenant/globex, action: object.get, resource: object, until: 2027-01-01 }\ntests:\n  - { as: tenant/globex/user/bob, do: object.get, expect: permit }\n`;
    const alone = check(platform, asks);
    expect(alone).toMatch(/^f1\.yaml:6:5: test failed: .* the principal has no role$/);
    for (const body of ['', 'bindings: [ { role: g, to: user/bob } ]\n']) expect(check(platform, asks, globex(body))).toBe(alone);
    // Issued identities are not seen either.
    const issued = [{ tenant: 'globex', kind: 'user' as const, name: 'bob', role: 'g' }, { tenant: 'acme', kind: 'user' as const, name: 'ana', role: 'dev' }];
    const files = [platform, `${HEAD}tests: [ { as: user/ana, do: task.submit, expect: deny } ]\n`, globex('')].map((content, i) => ({ name: `f${i}.yaml`, content }));
    expect(checkPolicies({ files, identityRoles: issued, version: 1, nowMs: 0 }).ok).toBe(true);
    // Nor does a tenant's file make the platform's own tests fail.
    const tested = `${platform}tests: [ { as: tenant/acme/user/ana, do: task.submit, expect: deny } ]\n`;
    expect(check(tested, `${HEAD}bindings: [ { role: dev, to: user/ana } ]\n`)).toBe('');
  });

  test('tests that would keep the head busy are refused', () => {
    const rules = Array.from({ length: 2_000 }, (_, i) => `      - { action: task.submit, resource: task, when: { function: { eq: f${i} } } }\n`).join('');
    const file = (count: number): string => `${HEAD}roles:\n  r:\n    permit:\n${rules}tests:\n${Array.from({ length: count }, (_, i) => `  - { as: user/u${i}, roles: dev, do: task.submit, expect: deny }\n`).join('')}`;
    expect(check(platform, file(501))).toMatch(/501 tests exceed the limit of 500/);
    const many = check(platform, file(500)).split('\n');
    expect(many).toHaveLength(500);
    expect(many.filter((line) => line.includes('but it is permitted'))).toHaveLength(64);
    expect(many.filter((line) => line.includes('different identities'))).toHaveLength(436);
  }, 30_000);

  test('only the tests of one tenant run where only its file changes', () => {
    const failing = `version: 1\ntenant: globex\ntests: [ { as: user/bob, do: task.submit, expect: permit } ]\n`;
    const files = [{ name: 'a.yaml', content: HEAD }, { name: 'g.yaml', content: failing }];
    expect(checkPolicies({ files, identityRoles: [], version: 1, nowMs: 0 }).ok).toBe(false);
    expect(checkPolicies({ files, identityRoles: [], version: 1, nowMs: 0, testsOf: 'acme' })).toMatchObject({ ok: true, tests: [] });
    expect(checkPolicies({ files, identityRoles: [], version: 1, nowMs: 0, testsOf: 'globex' }).tests).toHaveLength(1);
  });

  test('a failed test of a file says what was expected, what came, and why', () => {
    const text = check(`${HEAD}roles:\n  a: { permit: [ { action: task.submit, resource: task, when: { cpus: { lte: 4 } } } ] }\nbindings: [ { role: a, to: user/ana } ]\ntests:\n  - { as: user/ana, do: task.submit, on: { cpus: 8 }, expect: permit }\n`);
    expect(text).toBe('f0.yaml:7:5: test failed: user/ana task.submit: permit: expected permit, but it is denied (default-deny): acme/a/permit/0 does not match: cpus is 8, not lte 4');
  });
});
