/**
 * The only file that knows CASL. It hands CASL a few rules and one instance and takes back the rule that determined the answer.
 *
 * CASL is told less than it can do, because each of these has let requests through elsewhere: no rule for a type (instances only), no Mongo
 * conditions (`$regex`, `$ne`, arrays, paths), no `manage` and `all`, no fields, no type named by the instance (`__caslSubjectType__`,
 * `constructor.modelName`), no `@casl/ability/extra`. CASL takes the *last* matching rule, so rules come permits first, then forbids, then
 * the tenant guard: that order is what makes forbid win.
 */
import { Ability, type RawRuleFrom } from '@casl/ability';
import type { Action, Decision, Resource, ResourceKind } from '../base/decision.ts';
import { BulkheadError } from '../base/errors.ts';
import { predicateOf } from './core/conditions.ts';
import type { Condition } from './core/policy-schema.ts';

/** One rule for one action and kind, with the decision it stands for. */
export interface AdapterRule {
  readonly inverted: boolean;
  /** Empty: unconditional. */
  readonly conditions: readonly Condition[];
  /** Place among all rules of the snapshot; the highest that matches determines. */
  readonly order: number;
  readonly decision: Decision;
}

type Subjects = [string, string | Resource];
type Raw = RawRuleFrom<Subjects, readonly Condition[]> & { readonly rule: AdapterRule };

/** Two words that no action or kind can be: CASL's wildcards `manage` and `all` are then words like any other. */
const NO_ACTION = '\u0000no action';
const NO_KIND = '\u0000no kind';

function conditionsMatcher(conditions: readonly Condition[]): (resource: object) => boolean {
  const holds = predicateOf(conditions);
  return (resource) => holds((resource as Resource).attributes);
}

/** CASL would ask the instance (`__caslSubjectType__`, its constructor); the kind was set by the enforcement point. */
function detectSubjectType(resource: Resource): string {
  return resource.kind;
}

/** The rules of one bucket for one action and kind. Built once per snapshot, asked many times. */
export class CaslRules {
  readonly #ability: Ability<Subjects, readonly Condition[]>;
  readonly #action: Action;
  readonly #kind: ResourceKind;

  constructor(action: Action, kind: ResourceKind, rules: readonly AdapterRule[]) {
    this.#action = action;
    this.#kind = kind;
    // Null prototypes: CASL asks its rules for fields they do not have, and nobody else may answer.
    const raw = rules.map((rule): Raw => Object.assign(Object.create(null) as object, { action, subject: kind, inverted: rule.inverted, rule, conditions: rule.conditions.length === 0 ? undefined : rule.conditions }) as Raw);
    this.#ability = new Ability<Subjects, readonly Condition[]>(raw as RawRuleFrom<Subjects, readonly Condition[]>[], {
      conditionsMatcher: conditionsMatcher as never,
      detectSubjectType: detectSubjectType as never,
      anyAction: NO_ACTION,
      anySubjectType: NO_KIND,
    });
  }

  /** The rule that determines, or undefined when none matches. `resource` must be an instance: a name or class would ignore conditions. */
  determining(resource: Resource): AdapterRule | undefined {
    if (typeof resource !== 'object' || resource === null || resource.kind !== this.#kind) throw new BulkheadError('INTERNAL', 'a decision was asked without an instance of the kind');
    const found = this.#ability.relevantRuleFor(this.#action, resource);
    return found === null ? undefined : (found.origin as unknown as Raw).rule;
  }
}
