/** `bulkhead tenant …`: tenants and their quotas, for the cluster's administrator. */
import { createInterface } from 'node:readline/promises';
import { Tenants, type Tenant } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { ExitCode, printable, timeText, type Terminal } from '../terminal.ts';

/** Destroying keys, jobs and names of a large tenant takes a while. */
const DELETE_TIMEOUT_MS = 120_000;

const quotaText = (quota: Readonly<Record<string, string>>): string => Object.keys(quota).sort().map((name) => `${name}=${quota[name] ?? ''}`).join(',');

function show(terminal: Terminal, tenants: readonly Tenant[]): void {
  const sorted = [...tenants].sort((a, b) => (a.name < b.name ? -1 : 1));
  terminal.table(['TENANT', 'NUMBER', 'STATE', 'CREATED', 'QUOTA'], sorted.map((t) => [t.name, String(t.number), t.overBudget === '' ? t.state : `${t.state}, over budget`, timeText(Number(t.createdMs)), quotaText(t.quota)]), [1]);
}

export async function createTenant(terminal: Terminal, name: string, quota: Record<string, string>, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = await terminal.progress('creating the tenant', session.to(Tenants).create({ name, quota }, { timeoutMs: CALL_TIMEOUT_MS }));
  terminal.answer(tenant);
  terminal.say(`tenant ${tenant.name} exists (number ${tenant.number}${Object.keys(tenant.quota).length === 0 ? '' : `, quota ${quotaText(tenant.quota)}`})\nnext: bulkhead identity issue user NAME --tenant ${tenant.name} --role developer --out DIR`);
}

export async function listTenants(terminal: Terminal, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const { tenants } = await session.to(Tenants).list({}, { timeoutMs: CALL_TIMEOUT_MS });
  const sorted = [...tenants].sort((a, b) => (a.name < b.name ? -1 : 1));
  terminal.answer({ tenants: sorted });
  show(terminal, sorted);
}

export async function showTenant(terminal: Terminal, name: string, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = await session.to(Tenants).show({ tenant: name }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer(tenant);
  show(terminal, [tenant]);
}

export async function setQuota(terminal: Terminal, name: string, quota: Record<string, string>, remove: readonly string[], profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = await session.to(Tenants).setQuota({ tenant: name, quota, remove: [...remove] }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer(tenant);
  show(terminal, [tenant]);
}

/** `name`: tenant/project. */
export async function setProjectQuota(terminal: Terminal, name: string, quota: Record<string, string>, remove: readonly string[], profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const slash = name.indexOf('/');
  const tenant = await session.to(Tenants).setProjectQuota({ tenant: name.slice(0, slash), project: name.slice(slash + 1), quota, remove: [...remove] }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer(tenant);
  show(terminal, [tenant]);
}

export async function deleteTenant(terminal: Terminal, name: string, yes: boolean, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  if (!yes && process.stdin.isTTY && process.stderr.isTTY) {
    const line = createInterface({ input: process.stdin, output: process.stderr });
    const typed = await line.question(`This destroys the keys of tenant ${printable(name)} for good: nothing it stored can be read again. Type its name to go on: `);
    line.close();
    if (typed !== name) {
      terminal.note('nothing was deleted');
      throw new ExitCode(1);
    }
  }
  const certificate = await terminal.progress('deleting the tenant', session.to(Tenants).delete({ tenant: name }, { timeoutMs: DELETE_TIMEOUT_MS }));
  terminal.answer(certificate);
  terminal.say(`tenant ${certificate.tenant} was deleted at ${timeText(Number(certificate.deletedMs))}; its keys are destroyed. Deletion certificate (keep it):\n`);
  terminal.say(`${certificate.statement}\nEd25519 signature (base64): ${Buffer.from(certificate.signature).toString('base64')}\nverifier key: ${certificate.verifierKey}`);
}
