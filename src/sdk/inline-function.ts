/**
 * `cluster.task(fn)`: a function written in the driver becomes a bundle of its own, by its source text. It arrives alone, so it must not
 * use anything around it: what it does use is found here, by scope analysis, and named, instead of failing on the cluster.
 */
import { parse, type AnyNode, type ArrowFunctionExpression, type FunctionDeclaration, type FunctionExpression, type Identifier, type Program } from 'acorn';
import { ancestor, full } from 'acorn-walk';
import { BulkheadError } from '../base/errors.ts';
import { expressionBundle, type Bundle } from './bundle.ts';
import { GUEST_GLOBALS } from './guest-globals.ts';

interface FreeVariable {
  readonly name: string;
  readonly line: number;
}

type FunctionNode = FunctionDeclaration | FunctionExpression | ArrowFunctionExpression;
const isFunction = (node: AnyNode): node is FunctionNode => node.type === 'FunctionDeclaration' || node.type === 'FunctionExpression' || node.type === 'ArrowFunctionExpression';
const SCOPES: ReadonlySet<string> = new Set([
  'Program', 'BlockStatement', 'StaticBlock', 'ForStatement', 'ForInStatement', 'ForOfStatement', 'SwitchStatement', 'CatchClause', 'ClassExpression', 'ClassDeclaration',
  'FunctionDeclaration', 'FunctionExpression', 'ArrowFunctionExpression',
]);

function patternNames(pattern: AnyNode, into: Set<string>): void {
  switch (pattern.type) {
    case 'Identifier':
      into.add(pattern.name);
      break;
    case 'ObjectPattern':
      for (const property of pattern.properties) patternNames(property.type === 'RestElement' ? property.argument : property.value, into);
      break;
    case 'ArrayPattern':
      for (const element of pattern.elements) if (element !== null) patternNames(element, into);
      break;
    case 'AssignmentPattern':
      patternNames(pattern.left, into);
      break;
    case 'RestElement':
      patternNames(pattern.argument, into);
      break;
    default:
  }
}

/** Names that each scope declares. `var` and parameters belong to the function, the rest to the nearest block. */
function declarations(program: Program): Map<AnyNode, Set<string>> {
  const scopes = new Map<AnyNode, Set<string>>();
  const namesOf = (scope: AnyNode): Set<string> => {
    let names = scopes.get(scope);
    if (names === undefined) scopes.set(scope, (names = new Set()));
    return names;
  };
  const nearest = (ancestors: readonly AnyNode[], wanted: (node: AnyNode) => boolean): AnyNode => ancestors.findLast(wanted) ?? program;
  const above = (ancestors: readonly AnyNode[]): AnyNode[] => ancestors.slice(0, -1);
  const visitFunction = (node: AnyNode, _: unknown, ancestors: AnyNode[]): void => {
    if (!isFunction(node)) return;
    const own = namesOf(node);
    for (const parameter of node.params) patternNames(parameter, own);
    if (node.type !== 'ArrowFunctionExpression') own.add('arguments');
    if (node.id !== null && node.id !== undefined) (node.type === 'FunctionDeclaration' ? namesOf(nearest(above(ancestors), (n) => SCOPES.has(n.type))) : own).add(node.id.name);
  };
  const visitClass = (node: AnyNode, _: unknown, ancestors: AnyNode[]): void => {
    const id = (node as { id?: Identifier | null }).id;
    if (id === null || id === undefined) return;
    namesOf(node).add(id.name);
    if (node.type === 'ClassDeclaration') namesOf(nearest(above(ancestors), (n) => SCOPES.has(n.type))).add(id.name);
  };
  ancestor(program, {
    Function: visitFunction as never,
    Class: visitClass as never,
    VariableDeclaration(node, _, ancestors) {
      const scope = nearest(above(ancestors), (n) => (node.kind === 'var' ? isFunction(n) || n.type === 'StaticBlock' : SCOPES.has(n.type)));
      for (const { id } of node.declarations) patternNames(id, namesOf(scope));
    },
    CatchClause(node) {
      if (node.param !== null && node.param !== undefined) patternNames(node.param, namesOf(node));
    },
  });
  return scopes;
}

/** Names that a program uses without declaring them, once each, with the line of the first use. */
export function freeVariables(program: Program): FreeVariable[] {
  const scopes = declarations(program);
  const free = new Map<string, number>();
  const visit = (node: AnyNode, _: unknown, ancestors: AnyNode[]): void => {
    const { name } = node as Identifier;
    if (ancestors.some((scope) => scopes.get(scope)?.has(name) === true) || free.has(name)) return;
    free.set(name, (node.loc?.start.line ?? 1));
  };
  ancestor(program, { Identifier: visit, VariablePattern: visit } as Parameters<typeof ancestor>[1]);
  return Array.from(free, ([name, line]) => ({ name, line }));
}

function refuse(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `task(fn): ${why}`);
}

const bundles = new WeakMap<object, Bundle>();

/** The bundle of an inline function; the same function is bundled once. Throws INVALID_ARGUMENT naming what stands in the way. */
export function bundleFunction(fn: unknown): Bundle {
  if (typeof fn !== 'function') return refuse(`takes a function, this is ${fn === null ? 'null' : `a ${typeof fn}`}`);
  const known = bundles.get(fn);
  if (known !== undefined) return known;
  const text = Function.prototype.toString.call(fn);
  if (/\{\s*\[native code\]\s*\}\s*$/.test(text)) return refuse('native and bound functions have no source to send: write an arrow function that calls it');
  let program: Program;
  try {
    program = parse(`(${text})`, { ecmaVersion: 'latest', sourceType: 'script', locations: true });
  } catch {
    return refuse('a method cannot be sent alone: write it as an arrow function, or export it from a module');
  }
  const [statement] = program.body;
  const expression = statement?.type === 'ExpressionStatement' ? (statement.expression as AnyNode) : undefined;
  if (expression?.type === 'ClassExpression') return refuse('a class is an actor: export it from a module and use module.Class.create()');
  if (expression === undefined || !isFunction(expression)) return refuse('only a plain function or arrow function can be sent');
  full(program, (node) => {
    if (node.type === 'ImportExpression') refuse(`line ${node.loc?.start.line ?? 1}: import() does not work on the cluster: put the function into a module and use cluster.module()`);
  });
  // `__name` is what esbuild-based runners (tsx) leave in function bodies.
  const free = freeVariables(program).filter(({ name }) => !GUEST_GLOBALS.has(name));
  const foreign = free.filter(({ name }) => name !== '__name');
  if (foreign.length > 0) {
    const named = foreign.slice(0, 10).map(({ name, line }) => `'${name}' (line ${line} of the function)`);
    return refuse(`the function uses ${named.join(', ')}${foreign.length > 10 ? ' and more' : ''} from around it, which does not travel: pass it as an argument, or export the function from a module and use cluster.module()`);
  }
  const bundle = expressionBundle(free.length > 0 ? 'var __name = (fn) => fn;\n' : '', text, 'the function', expression.generator ? 'generator' : 'function');
  bundles.set(fn, bundle);
  return bundle;
}
