/** Every RPC of the proto files and every call of a channel has its row; nothing starts without. */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { ACTIONS } from '../../src/base/decision.ts';
import { ATTRIBUTES_OF_KIND, builtinMethods, CHANNEL_CALLS, methodTable, parseMethods, targetOf, type MethodRow } from '../../src/authz/authz.ts';
import { policyJsonSchemaText } from '../../src/authz/json-schema.ts';

/** Services, methods and request fields straight from the text of the proto files. */
function protoMethods(): Map<string, { request: string; streamed: boolean; fields: Map<string, string> }> {
  const methods = new Map<string, { request: string; streamed: boolean; fields: Map<string, string> }>();
  const files = readdirSync('proto', { recursive: true, encoding: 'utf8' }).filter((f) => f.endsWith('.proto')).map((f) => readFileSync(`proto/${f}`, 'utf8').replace(/\/\/.*$/gm, ''));
  const messages = new Map(files.flatMap((text) => [...text.matchAll(/message (\w+) \{([^}]*)\}/g)].map((m) => [m[1] as string, new Map([...(m[2] as string).matchAll(/(?:^|[;{\s])((?:repeated )?[\w.<>, ]+?) (\w+) = \d+/g)].map((f) => [f[2] as string, (f[1] as string).trim()]))])));
  for (const text of files) {
    const pkg = /package ([\w.]+);/.exec(text)?.[1];
    for (const service of text.matchAll(/service (\w+) \{([\s\S]*?)\n\}/g)) {
      for (const rpc of (service[2] as string).matchAll(/rpc (\w+)\((stream )?(\w+)\)/g)) {
        methods.set(`${pkg}.${service[1]}/${rpc[1]}`, { request: rpc[3] as string, streamed: rpc[2] !== undefined, fields: messages.get(rpc[3] as string) ?? new Map() });
      }
    }
  }
  return methods;
}

const proto = protoMethods();
const file = builtinMethods();
const rowNamed = (name: string): MethodRow => file.rows.find((r) => r.method === name) as MethodRow;

describe('policies/methods.yaml', () => {
  test('has a row for exactly the RPCs of the proto files and the calls of a channel', () => {
    expect(proto.size).toBeGreaterThan(30);
    const table = methodTable(file, [...proto.keys()]);
    expect([...table.methods.keys()].sort()).toEqual([...proto.keys()].sort());
    expect([...table.channel.keys()].sort()).toEqual([...CHANNEL_CALLS].sort());
  });

  test('takes tenants, names and cases from fields that the requests have, and none from streams', () => {
    for (const row of file.rows) {
      const method = proto.get(row.method);
      for (const source of [row.tenant, row.name, row.cases]) if (typeof source === 'object') expect([row.method, source.field, method?.streamed, method?.fields.get(source.field)]).toEqual([row.method, source.field, false, 'string']);
    }
  });

  test('every request with a tenant field is decided for that tenant', () => {
    for (const [name, { fields }] of proto) {
      if (fields.has('tenant') && !name.includes('.NodeSync/')) expect([name, rowNamed(name).tenant]).toEqual([name, { field: 'tenant' }]);
    }
  });

  test('between nodes only nodes call, nodes call nothing else, and only attestation is open to peers without an SVID', () => {
    const open = file.rows.filter((r) => r.callers.length === 0).map((r) => r.method);
    expect(open).toEqual(['bulkhead.v1.NodeAttestation/Attest']);
    for (const r of file.rows) {
      const service = r.method.split(/[./]/).at(-2);
      if (service === 'NodeSync' || service === 'Peers') expect(r.callers).toEqual(['node']);
      else if (service !== 'Identities') expect(r.callers).not.toContain('node');
      expect(r.callers).not.toContain('job');
    }
    for (const r of file.channel) expect(r.callers).toEqual(['user', 'service', 'job']);
  });

  test('a raylet’s core asks for no action that has no row among the calls of channels', () => {
    const core = readdirSync('src/raylet/core').map((name) => readFileSync(`src/raylet/core/${name}`, 'utf8')).join('\n');
    const asked = ACTIONS.filter((action) => core.includes(`'${action}'`));
    const rows = file.channel.map((r) => r.action);
    expect(asked.length).toBeGreaterThan(8);
    expect(asked.filter((action) => !rows.includes(action))).toEqual([]);
    expect(rows.filter((action) => !asked.includes(action) && action !== 'session.read')).toEqual([]);
  });

  test('streams are recorded when they open, and only they', () => {
    for (const r of file.rows) expect([r.method, r.audit === 'stream']).toEqual([r.method, proto.get(r.method)?.streamed]);
  });

  test('inspection chooses its action by the kind asked for, and knows no other kind', () => {
    const list = rowNamed('bulkhead.v1.Inspection/List');
    expect(targetOf(list, () => 'workers')).toEqual({ action: 'worker.list', resource: 'worker' });
    for (const kind of ['', 'tenants', '__proto__', 'constructor', undefined, 1]) expect(targetOf(list, () => kind)).toBeUndefined();
    expect(targetOf(rowNamed('bulkhead.v1.Jobs/Get'), () => undefined)).toMatchObject({ action: 'job.read', resource: 'job' });
  });
});

describe('does not start', () => {
  const all = [...proto.keys()];
  const ROW = '{ action: job.list, resource: job, callers: [user], tenant: none, audit: call }';
  const yaml = (rpc: string, rest = 'channel: {}\nreserved: []'): string => `version: 1\nrpc:\n  ${rpc}\n${rest}\n`;

  test('a method without a row', () => {
    expect(() => methodTable(file, [...all, 'bulkhead.v1.Jobs/Steal'])).toThrow(/bulkhead\.v1\.Jobs\/Steal has no row, so it does not start/);
  });
  test('a row without a method', () => {
    expect(() => methodTable(file, all.filter((m) => m !== 'bulkhead.v1.Jobs/List'))).toThrow(/the row 'bulkhead\.v1\.Jobs\/List' is for a method that does not exist/);
  });
  test('a channel call without a row', () => {
    expect(() => methodTable({ ...file, channel: file.channel.filter((r) => r.call !== 'kill') }, all)).toThrow(/channel call 'kill' has no row/);
  });
  test('an action without a row', () => {
    const without = { ...file, rows: file.rows.filter((r) => r.action !== 'pki.rotate') };
    expect(() => methodTable(without, all.filter((m) => !m.endsWith('/RotateAuthority')))).toThrow(/no row asks for the action 'pki.rotate'/);
    expect(() => methodTable({ ...file, reserved: [...file.reserved, 'task.submit'] }, all)).toThrow(/'task.submit' has a row/);
  });
  test.each([
    ['an unknown action', yaml(`bulkhead.v1.A/B: ${ROW.replace('job.list', 'job.steal')}`)],
    ['an action on a kind it does not act on', yaml(`bulkhead.v1.A/B: ${ROW.replace('resource: job', 'resource: task')}`)],
    ['an unknown caller', yaml(`bulkhead.v1.A/B: ${ROW.replace('[user]', '[everybody]')}`)],
    ['a tenant from nowhere', yaml(`bulkhead.v1.A/B: ${ROW.replace('tenant: none', 'tenant: guess')}`)],
    ['a key that does not exist', yaml(`bulkhead.v1.A/B: ${ROW.replace('audit', 'adit')}`)],
    ['a method that is no full name', yaml(`List: ${ROW}`)],
    ['two rows of one method', yaml(`bulkhead.v1.A/B: ${ROW}\n  bulkhead.v1.A/B: ${ROW}`)],
    ['an alias', yaml(`bulkhead.v1.A/B: &a ${ROW}\n  bulkhead.v1.A/C: *a`)],
    ['an unknown channel call', yaml(`bulkhead.v1.A/B: ${ROW}`, 'channel: { steal: { action: job.list, resource: job, callers: [user], tenant: own, audit: call } }\nreserved: []')],
    ['no text at all', ''],
  ])('a file with %s', (_what, text) => {
    expect(() => parseMethods(text)).toThrow(/policies\/methods\.yaml: /);
  });
});

test('policies/policy.schema.json is current', () => {
  expect(readFileSync('policies/policy.schema.json', 'utf8')).toBe(policyJsonSchemaText());
});

test('every kind of resource has its attributes', () => {
  for (const action of ACTIONS) expect(ATTRIBUTES_OF_KIND[file.rows.find((r) => r.action === action)?.resource ?? 'task']).toContain('tenant');
});
