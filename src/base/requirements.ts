/**
 * Requirements of a runtime environment, as a client sends them: names of packages with versions and markers, and nothing that names a place. In the raylet's core they are the
 * tail of a runtime's name, so that whatever keeps runtimes apart keeps these apart too. Must never: let an option of pip, a URL or a path through.
 */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';
import { MAX_REQUIREMENTS, MAX_REQUIREMENT_CHARS, MAX_REQUIREMENTS_CHARS } from './limits.ts';

const NAME = '[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?';
const CLAUSE = '(?:===|==|~=|!=|<=|>=|<|>)\\s*[A-Za-z0-9._*+!-]+';
/** PEP 508 without direct references: a name, extras, versions, a marker. */
const REQUIREMENT = new RegExp(`^${NAME}(?:\\s*\\[\\s*${NAME}(?:\\s*,\\s*${NAME})*\\s*\\])?(?:\\s*\\(?\\s*${CLAUSE}(?:\\s*,\\s*${CLAUSE})*\\s*\\)?)?(?:\\s*;[A-Za-z0-9._ <>=!~'"()-]+)?$`);

export function parseRequirements(given: unknown): readonly string[] {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `options are not valid: packages: ${why}`);
  };
  if (!Array.isArray(given) || given.length === 0 || given.length > MAX_REQUIREMENTS) return refuse(`a list of 1 to ${MAX_REQUIREMENTS} requirements`);
  const requirements = new Set<string>();
  let chars = 0;
  for (const each of given as unknown[]) {
    if (typeof each !== 'string' || each.length > MAX_REQUIREMENT_CHARS || !REQUIREMENT.test(each)) return refuse(`${quote(each)} is not a package by its name with versions, such as numpy==1.26.4`);
    chars += each.length;
    requirements.add(each);
  }
  if (chars > MAX_REQUIREMENTS_CHARS) refuse(`more than ${MAX_REQUIREMENTS_CHARS} characters`);
  return [...requirements].sort();
}

export function runtimeWith(runtime: string, requirements: readonly string[]): string {
  return requirements.length === 0 ? runtime : `${runtime} ${JSON.stringify(requirements)}`;
}

/** Both parts of a runtime's name. */
export function requirementsOf(name: string): { readonly runtime: string; readonly requirements: readonly string[] } {
  const at = name.indexOf(' ');
  return at < 0 ? { runtime: name, requirements: [] } : { runtime: name.slice(0, at), requirements: JSON.parse(name.slice(at + 1)) as string[] };
}
