/** What every call with a request does: a decision that the owner of an id hears of too, and its answer. Must never: answer before the record that it needs. */
import type { Action, Resource } from '../../base/decision.ts';
import { OP } from '../../base/frame.ts';
import { idWord, type Core } from './core.ts';
import type { Channel, Failure } from './state.ts';

export function failRequest(core: Core, channel: Channel, request: number, failure: Failure, needed: number): void {
  channel.out.begin(OP.FAILED).u32(request).str(failure.code).text(failure.message).end();
  core.markChannel(channel, needed);
}

export function done(core: Core, channel: Channel, request: number, info: string, needed: number): void {
  channel.out.begin(OP.DONE).u32(request).text(info).end();
  core.markChannel(channel, needed);
}

/** Decides, and when the id is another tenant's, leaves the record with that tenant too: its auditors see who tried. */
export function decideOn(core: Core, channel: Channel, action: Action, target: Resource, name: string, index: number, count: number, detail: string, id: Uint8Array): number {
  const seq = core.decide(channel, action, target, name, index, count, detail);
  const owner = core.tenants.get(idWord(id, 0));
  if (owner !== undefined && owner !== channel.job.tenant) {
    core.tellOwner(owner, channel.job.tenant, { type: 'decision', timeMs: core.wallMs, principal: channel.principal.spiffeId, action, resourceKind: target.kind, resource: name, index, count, allow: seq >= 0, rule: seq >= 0 ? 'grant' : 'wall', policyVersion: core.config.decisions.version, detail });
  }
  return seq;
}
