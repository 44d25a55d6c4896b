/**
 * `bulkhead usage`: what a tenant used, from the audit logs of all nodes; as a table, JSON, or CSV in the FOCUS format. Must never: show a sum
 * that leaves a node out without saying so, or a price (there is none here).
 */
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { Cluster, Tenants } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, type UsageHour } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { bytesText, printable, timeText, UsageError, type Terminal } from '../terminal.ts';

/** A log of a month is read whole. */
const TIMEOUT_MS = 30 * 60_000;
const HOUR_MS = 3_600_000;

/** One meter: how a charge is named, and its quantity in an hour of one node, as an exact integer over a divisor. */
interface Meter {
  readonly sku: string;
  readonly description: string;
  readonly category: string;
  readonly unit: string;
  readonly raw: (hour: UsageHour) => bigint;
  /** Raw units in one of `unit`. */
  readonly per: bigint;
}

const callsOf = (action: string) => (hour: UsageHour): bigint => hour.calls[action] ?? 0n;
export const METERS: readonly Meter[] = [
  { sku: 'tasks', description: 'Tasks', category: 'Compute', unit: 'Calls', raw: callsOf('task.submit'), per: 1n },
  { sku: 'actor-creations', description: 'Actor creations', category: 'Compute', unit: 'Calls', raw: callsOf('actor.create'), per: 1n },
  { sku: 'actor-calls', description: 'Actor calls', category: 'Compute', unit: 'Calls', raw: callsOf('actor.call'), per: 1n },
  { sku: 'cpu', description: 'CPU time of workers', category: 'Compute', unit: 'CPU-Seconds', raw: (hour) => hour.cpuMicros, per: 1_000_000n },
  { sku: 'memory', description: 'Memory of workers', category: 'Compute', unit: 'GiB-Hours', raw: (hour) => hour.memoryMibMs, per: 1_024n * BigInt(HOUR_MS) },
  { sku: 'objects', description: 'Values held', category: 'Storage', unit: 'GiB-Hours', raw: (hour) => hour.objectKibMs, per: 1_048_576n * BigInt(HOUR_MS) },
  { sku: 'bytes-in', description: 'Octets from drivers', category: 'Networking', unit: 'Bytes', raw: (hour) => hour.bytesIn, per: 1n },
  { sku: 'bytes-out', description: 'Octets to drivers', category: 'Networking', unit: 'Bytes', raw: (hour) => hour.bytesOut, per: 1n },
];

/** Decimal, not rounded to what a double holds. */
export function quantityText(raw: bigint, per: bigint, decimals = 9): string {
  const scale = 10n ** BigInt(decimals);
  const scaled = (raw * scale + per / 2n) / per;
  const fraction = (scaled % scale).toString().padStart(decimals, '0').replace(/0+$/, '');
  return fraction === '' ? String(scaled / scale) : `${scaled / scale}.${fraction}`;
}

/** Mandatory columns of FOCUS 1.2 for usage without prices, and those that tell whose and what it is. */
const COLUMNS = [
  'BilledCost', 'BillingAccountId', 'BillingAccountName', 'BillingCurrency', 'BillingPeriodEnd', 'BillingPeriodStart', 'ChargeCategory', 'ChargeClass', 'ChargeDescription', 'ChargeFrequency', 'ChargePeriodEnd', 'ChargePeriodStart',
  'ConsumedQuantity', 'ConsumedUnit', 'ContractedCost', 'EffectiveCost', 'InvoiceIssuerName', 'ListCost', 'PricingQuantity', 'PricingUnit', 'ProviderName', 'PublisherName', 'RegionId', 'ResourceId', 'ResourceName', 'ResourceType',
  'ServiceCategory', 'ServiceName', 'SkuId', 'SubAccountId', 'SubAccountName',
] as const;

/** ISO 4217's code for "no currency" is the letter X three times. */
const NO_CURRENCY = 'X'.repeat(3);

const csvCell = (text: string): string => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const iso = (ms: number): string => new Date(ms).toISOString().replace('.000Z', 'Z');

export function focusCsv(trustDomain: string, tenant: string, hours: readonly UsageHour[]): string {
  const lines = hours.flatMap((hour) => {
    const startMs = Number(hour.startMs);
    const start = new Date(startMs);
    return METERS.filter((meter) => meter.raw(hour) > 0n).map((meter) => {
      const quantity = quantityText(meter.raw(hour), meter.per);
      const row: Record<(typeof COLUMNS)[number], string> = {
        // No price is known here.
        BilledCost: '0', ContractedCost: '0', EffectiveCost: '0', ListCost: '0', BillingCurrency: NO_CURRENCY,
        BillingAccountId: trustDomain, BillingAccountName: trustDomain, SubAccountId: `${trustDomain}/tenant/${tenant}`, SubAccountName: tenant,
        BillingPeriodStart: iso(Date.UTC(start.getUTCFullYear(), start.getUTCMonth(), 1)), BillingPeriodEnd: iso(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + 1, 1)), ChargePeriodStart: iso(startMs), ChargePeriodEnd: iso(startMs + HOUR_MS),
        ChargeCategory: 'Usage', ChargeClass: '', ChargeDescription: meter.description, ChargeFrequency: 'Usage-Based', ConsumedQuantity: quantity, ConsumedUnit: meter.unit, PricingQuantity: quantity, PricingUnit: meter.unit,
        InvoiceIssuerName: trustDomain, ProviderName: 'Bulkhead', PublisherName: 'Bulkhead', RegionId: '', ResourceId: `${trustDomain}/node/${hour.nodeId}`, ResourceName: hour.nodeId, ResourceType: 'Node', ServiceCategory: meter.category, ServiceName: 'Bulkhead', SkuId: meter.sku,
      };
      return COLUMNS.map((column) => csvCell(row[column])).join(',');
    });
  });
  return `${[COLUMNS.join(','), ...lines].join('\r\n')}\r\n`;
}

/** Who is of no tenant may count any, and a name that nobody has would count nothing: a typing error must not look like a tenant at rest. */
async function requireTenant(session: CallerSession, tenant: string): Promise<void> {
  try {
    await session.to(Tenants).show({ tenant }, { timeoutMs: CALL_TIMEOUT_MS });
  } catch (thrown) {
    const error = toSafeError(thrown);
    throw error.code === 'DENIED' || error.code === 'INVALID_ARGUMENT' ? new BulkheadError('DENIED', `there is no tenant ${quote(tenant)}, or you may not see it; 'bulkhead tenant list' shows those there are`) : error;
  }
}

export async function usage(terminal: Terminal, options: { readonly tenant: string | undefined; readonly fromMs: number | undefined; readonly toMs: number | undefined; readonly csv: boolean; readonly partial: boolean }, profile: string | undefined): Promise<void> {
  if (options.csv && terminal.json) throw new UsageError('give --json or --csv, not both');
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant;
  if (tenant === undefined) throw new UsageError(`whose usage? you are ${session.self.id}, which is of no tenant: give --tenant NAME`);
  const now = new Date();
  const fromMs = options.fromMs ?? Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1);
  const toMs = options.toMs ?? now.getTime();
  if (session.tenant === undefined) await requireTenant(session, tenant);
  const { nodes } = await session.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS });
  const { answers, unreachable } = await terminal.progress('reading the audit logs', session.ask(await session.raylets(), async (raylet) => {
    const found: UsageHour[] = [];
    for await (const hour of raylet.to(Audit).usage({ tenant, fromMs: BigInt(fromMs), toMs: BigInt(toMs) }, { timeoutMs: TIMEOUT_MS })) found.push(hour);
    return found;
  }));
  const absent = [...new Set([...nodes.filter((n) => n.state !== 'alive').map((n) => n.nodeId), ...unreachable.map((u) => u.nodeId)])];
  if (absent.length > 0 && !options.partial) throw new BulkheadError('UNAVAILABLE', `what ${absent.join(', ')} knows cannot be had now, and a sum without it is not complete; start the node again, or take what there is with --partial`);
  const hours = answers.flat().sort((a, b) => Number(a.startMs - b.startMs) || (a.nodeId < b.nodeId ? -1 : 1));
  if (absent.length > 0) terminal.warn(printable(`PARTIAL: without ${absent.join(', ')}`));
  if (options.csv) return terminal.raw(focusCsv(session.self.trustDomain, tenant, hours));
  const totals = METERS.map((meter) => ({ sku: meter.sku, description: meter.description, quantity: quantityText(hours.reduce((sum, hour) => sum + meter.raw(hour), 0n), meter.per), unit: meter.unit }));
  terminal.answer({ tenant, from: iso(fromMs), to: iso(toMs), totals, hours, absent });
  terminal.say(`tenant ${printable(tenant)}, ${timeText(fromMs)} to ${timeText(toMs)}`);
  terminal.table(['METER', 'QUANTITY', 'UNIT'], totals.map((t) => [t.description, t.unit === 'Bytes' ? `${t.quantity} (${bytesText(Number(t.quantity))})` : t.quantity, t.unit]), [1]);
}
