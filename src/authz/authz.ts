/** The face of src/authz: from policy files to decisions. Everything else in this folder is its own business. */
export { checkPolicies, checkText, type CheckInput, type PolicyCheck, type TestOutcome } from './policy-tests.ts';
export { parsePolicyFile, type ParsedPolicyFile } from './policy-file.ts';
export { bindableRoles, compilePolicies, type CompileInput, type IdentityRole } from './core/compile.ts';
export { diagnosticText, type Diagnostic, type PolicyDocument } from './core/policy-schema.ts';
export { EMPTY_SNAPSHOT, parseSnapshot, snapshotText, type PolicySnapshot } from './core/snapshot.ts';
export { createDecisionPoint, LiveDecisionPoint } from './decision-point.ts';
export { explain, explanationText, rolesOf, whoCan, type Explanation, type WhoCan } from './explain.ts';
export { CHANNEL_CALLS, GATEWAY_CALLS, methodTable, parseMethods, targetOf, type AuditClass, type ChannelCall, type ChannelRow, type GatewayCall, type GatewayRow, type MethodFile, type MethodRow, type MethodTable, type MethodTarget } from './methods.ts';
export { builtinMethods, defaultPolicy } from './builtin-policies.ts';
export { ATTRIBUTES_OF_KIND, KIND_OF_ACTION } from './core/vocabulary.ts';
