/**
 * The table of Ray's public names in docs/ray-compatibility.md: what of them Bulkhead has, and why it has not the others. `collect PYTHON` asks an interpreter with Ray
 * for the names (python/ray-names.json); without an argument the table is written. Must never: leave a name out, or call one supported that the package does not have.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const ROOT = join(import.meta.dirname, '..');
const NAMES = join(ROOT, 'python/ray-names.json');
const PAGE = join(ROOT, 'docs/ray-compatibility.md');
const BEGIN = '<!-- names: written by scripts/ray-names.ts -->\n';
const END = '<!-- end of names -->\n';

interface Names {
  readonly version: string;
  readonly modules: Readonly<Record<string, readonly string[]>>;
  readonly classes: Readonly<Record<string, readonly string[]>>;
}

const COLLECT = `
import importlib, json, sys, types
import ray
def at(path):
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try: found = importlib.import_module(".".join(parts[:n]))
        except ImportError: continue
        for part in parts[n:]: found = getattr(found, part)
        return found
def public(module):
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, types.ModuleType) and getattr(v, "__module__", None) == module.__name__]
    return sorted(n for n in set(listed) if n not in ("T", "U", "V"))
known = json.loads(sys.argv[1])
print(json.dumps({"version": ray.__version__, "modules": {m: public(importlib.import_module(m)) for m in known["modules"]}, "classes": {c: sorted(n for n in dir(at(c)) if not n.startswith("_")) for c in known["classes"]}}))
`;

type Answer = readonly [state: 'not yet' | 'never', why: string];
const IDS = "ids are texts, as lists of the command line show them; there is no class for each kind";
const LANGUAGES = 'functions of other languages than Python are JavaScript’s: `ray.cross_language.js_function`';
const CLIENT = 'Ray Client has a proxy that runs the driver; here each driver speaks to the cluster itself';
const STATE = 'the command line lists them (`bulkhead list …`)';
const COLLECTIVE = 'sandboxes have no network between them; values go by refs';
const NO_RAISE = 'nothing here raises it';
const DEBUGGER = 'it opens a port in a worker: sandboxes have no network';

/** Of a name, or of all names that begin so (`…*`); the longest counts. */
const ANSWERS: Readonly<Record<string, Answer>> = {
  'ray.ActorClassID': ['never', IDS], 'ray.ActorID': ['never', IDS], 'ray.FunctionID': ['never', IDS], 'ray.JobID': ['never', IDS], 'ray.NodeID': ['never', IDS],
  'ray.PlacementGroupID': ['never', IDS], 'ray.TaskID': ['never', IDS], 'ray.UniqueID': ['never', IDS], 'ray.WorkerID': ['never', IDS],
  'ray.ClientBuilder': ['never', CLIENT], 'ray.client': ['never', CLIENT], 'ray.util.connect': ['never', CLIENT], 'ray.util.disconnect': ['never', CLIENT],
  'ray.Language': ['never', LANGUAGES], 'ray.cpp_function': ['never', LANGUAGES], 'ray.java_function': ['never', LANGUAGES], 'ray.java_actor_class': ['never', LANGUAGES], 'ray.cross_language.*': ['never', LANGUAGES],
  'ray.LoggingConfig': ['not yet', 'logs are lines of text, by job'],
  'ray.SCRIPT_MODE': ['never', 'a constant of Ray’s inside'], 'ray.WORKER_MODE': ['never', 'a constant of Ray’s inside'], 'ray._config': ['never', 'settings of Ray’s processes'],
  'ray.autoscaler': ['never', 'nodes come from the operator’s launcher'], 'ray.internal': ['never', 'Ray’s inside'], 'ray.widgets': ['never', 'Ray’s notebook widgets'],
  'ray.data': ['not yet', 'a library on top of Ray’s core'], 'ray.workflow': ['not yet', 'a library on top of Ray’s core'],
  'ray.get_gpu_ids': ['not yet', 'devices are not passed into sandboxes'], 'ray.timeline': ['not yet', '`bulkhead timeline` writes it'],
  'ray.actor.ActorClassInheritanceException': ['not yet', 'a class that inherits from an actor class raises TypeError'],
  'ray.exceptions.RayC*': ['never', 'compiled graphs'], 'ray.exceptions.RayDirectTransportError': ['never', 'transfers between GPUs'], 'ray.exceptions.OufOfBandObjectRefSerializationException': ['never', NO_RAISE],
  'ray.exceptions.StreamingGeneratorReplayInconsistentError': ['never', NO_RAISE],
  'ray.runtime_env.*': ['not yet', 'a dict is the runtime environment'],
  'ray.job_submission.*': ['not yet', 'jobs are submitted by `bulkhead run`'],
  'ray.util.accelerators': ['not yet', 'devices are not passed into sandboxes'], 'ray.util.collective': ['never', COLLECTIVE], 'ray.util.collective.*': ['never', COLLECTIVE],
  'ray.util.deregister_serializer': ['not yet', '`copyreg` does it, in the module of the class'], 'ray.util.register_serializer': ['not yet', '`copyreg` does it, in the module of the class'],
  'ray.util.disable_log_once_globally': ['not yet', 'Ray’s logging'], 'ray.util.enable_periodic_logging': ['not yet', 'Ray’s logging'], 'ray.util.log_once': ['not yet', 'Ray’s logging'],
  'ray.util.get_node_instance_id': ['never', 'addresses of nodes are not told to tenants’ code'], 'ray.util.get_node_ip_address': ['never', 'addresses of nodes are not told to tenants’ code'],
  'ray.util.inspect_serializability': ['not yet', 'a value that cannot be pickled raises TypeError with its name'], 'ray.util.list_named_actors': ['not yet', STATE],
  'ray.util.iter': ['not yet', 'a library on top of Ray’s core'], 'ray.util.iter.*': ['not yet', 'a library on top of Ray’s core'], 'ray.util.pdb': ['never', DEBUGGER], 'ray.util.ray_debugpy': ['never', DEBUGGER],
  'ray.util.placement_group.check_placement_group_index': ['never', 'Ray’s inside'], 'ray.util.placement_group.validate_placement_group': ['never', 'Ray’s inside'],
  'ray.util.multiprocessing.JoinableQueue': ['never', 'of one machine: `ray.util.queue.Queue` is of the cluster'],
  'ray.util.state.*': ['not yet', STATE], 'ray.util.metrics.*': ['not yet', 'metrics of tenants’ own'],
  'ray.ObjectRef.call_site': ['not yet', 'not recorded'], 'ray.ObjectRef.from_random': ['never', 'ids are unguessable, and made where a value is'], 'ray.ObjectRef.job_id': ['not yet', 'the id does not carry it'],
  'ray.ObjectRef.owner_address': ['never', 'addresses of nodes are not told to tenants’ code'], 'ray.ObjectRef.redis_shard_hash': ['never', 'Ray’s inside'], 'ray.ObjectRef.tensor_transport': ['never', 'transfers between GPUs'],
  'ray.ObjectRefGenerator.aclose': ['not yet', '`close()` ends the call'], 'ray.ObjectRefGenerator.asend': ['never', 'raises in Ray too'], 'ray.ObjectRefGenerator.athrow': ['never', 'raises in Ray too'],
  'ray.ObjectRefGenerator.send': ['never', 'raises in Ray too'], 'ray.ObjectRefGenerator.throw': ['never', 'raises in Ray too'],
  'ray.runtime_context.RuntimeContext.gcs_address': ['never', 'addresses of nodes are not told to tenants’ code'], 'ray.runtime_context.RuntimeContext.get_resource_ids': ['never', 'deprecated in Ray'],
  'ray.runtime_context.RuntimeContext.get_session_name': ['never', 'a directory of Ray’s processes'], 'ray.runtime_context.RuntimeContext.get_temp_dir': ['never', 'a directory of Ray’s processes'],
};

function answerFor(path: string): Answer {
  const exact = ANSWERS[path];
  if (exact !== undefined) return exact;
  const [found] = Object.keys(ANSWERS).filter((key) => key.endsWith('*') && path.startsWith(key.slice(0, -1))).sort((a, b) => b.length - a.length);
  if (found === undefined) throw new Error(`${path} is neither in the package nor does scripts/ray-names.ts say why not: decide, and add it to ANSWERS`);
  return ANSWERS[found] as Answer;
}

function moduleSource(module: string): string | undefined {
  const path = join(ROOT, 'python/bulkhead', ...module.split('.'));
  const file = [`${path}.py`, `${path}/__init__.py`].find(existsSync);
  return file === undefined ? undefined : readFileSync(file, 'utf8');
}

/** What `__all__` of our module of that name lists; without one, its classes and functions. */
function listed(module: string): ReadonlySet<string> {
  const source = moduleSource(module) ?? '';
  const all = /^__all__ = \[(.*?)\]/ms.exec(source)?.[1];
  if (all === undefined) return new Set([...source.matchAll(/^(?:class|def) ([A-Za-z]\w*)/gm)].map(([, name]) => name as string));
  return new Set([...all.matchAll(/"(\w+)"/g)].map(([, name]) => name as string));
}

/** Members of our class of that name, with those that it inherits from classes of the package. */
function members(name: string, seen: ReadonlySet<string> = new Set()): Set<string> {
  const found = new Set<string>();
  for (const file of ['api', 'streams', 'groups', 'ray/util/actor_pool', 'ray/util/queue', 'ray/util/multiprocessing/pool']) {
    const source = readFileSync(join(ROOT, 'python/bulkhead', `${file}.py`), 'utf8');
    const [, bases, body] = new RegExp(`^class ${name}(?:\\((.*?)\\))?:\\n((?:    .*\\n|\\n)+)`, 'm').exec(source) ?? [];
    if (body === undefined) continue;
    for (const [, member] of body.matchAll(/^ {4}(?:async )?def (\w+)|^ {4}(\w+) = /gm)) if (member !== undefined) found.add(member);
    for (const [, alias] of body.matchAll(/^ {4}(\w+) = \w+$/gm)) found.add(alias as string);
    for (const [base] of (bases ?? '').matchAll(/\w+/g)) if (!seen.has(base)) for (const member of members(base, new Set([...seen, name]))) found.add(member);
  }
  return found;
}

/** Ray's path of a class and the name of ours. */
function rows(owner: string, names: readonly string[], have: ReadonlySet<string>): string {
  const supported = names.filter((name) => have.has(name));
  const rest = names.filter((name) => !have.has(name)).map((name) => ({ name, answer: answerFor(`${owner}.${name}`) }));
  const groups = new Map<string, string[]>();
  for (const { name, answer: [state, why] } of rest) groups.set(`${state} | ${why}`, [...(groups.get(`${state} | ${why}`) ?? []), name]);
  const cells = (list: readonly string[]): string => list.map((name) => `\`${name}\``).join(' ');
  return [...(supported.length > 0 ? [`| \`${owner}\` | ${cells(supported)} | supported | |`] : []), ...[...groups].map(([answer, list]) => `| \`${owner}\` | ${cells(list)} | ${answer} |`)].join('\n');
}

/** The table, of the committed list of names. */
export function namesTable(): string {
  const { version, modules, classes } = JSON.parse(readFileSync(NAMES, 'utf8')) as Names;
  const parts: string[] = [];
  let have = 0;
  let all = 0;
  const add = (owner: string, names: readonly string[], found: ReadonlySet<string>): void => {
    all += names.length;
    have += names.filter((name) => found.has(name)).length;
    parts.push(rows(owner, names, found));
  };
  for (const [module, names] of Object.entries(modules)) add(module, names, listed(module));
  for (const [path, names] of Object.entries(classes)) add(path, names, members(path.slice(path.lastIndexOf('.') + 1)));
  return `Of ${all} public names of Ray ${version} ${have} are there.\n\n| of | names | | why |\n|---|---|---|---|\n${parts.join('\n')}\n`;
}

/** The page with the table in its place. */
export function withTable(page: string): string {
  const from = page.indexOf(BEGIN);
  const to = page.indexOf(END);
  if (from < 0 || to < from) throw new Error('docs/ray-compatibility.md has lost the marks between which the table is');
  return page.slice(0, from + BEGIN.length) + namesTable() + page.slice(to);
}

if (import.meta.main) {
  const [command, python] = process.argv.slice(2);
  if (command === 'collect' && python !== undefined) {
    const said = execFileSync(python, ['-W', 'ignore', '-c', COLLECT, readFileSync(NAMES, 'utf8')], { encoding: 'utf8', timeout: 120_000, stdio: ['ignore', 'pipe', 'ignore'], cwd: '/' });
    const { version, modules, classes } = JSON.parse(said.trim().split('\n').at(-1) ?? '') as Names;
    const list = (of: Readonly<Record<string, readonly string[]>>): string => Object.entries(of).map(([key, names]) => `    ${JSON.stringify(key)}: [${names.map((name) => JSON.stringify(name)).join(', ')}]`).join(',\n');
    writeFileSync(NAMES, `{\n  "version": ${JSON.stringify(version)},\n  "modules": {\n${list(modules)}\n  },\n  "classes": {\n${list(classes)}\n  }\n}\n`);
  }
  writeFileSync(PAGE, withTable(readFileSync(PAGE, 'utf8')));
}
