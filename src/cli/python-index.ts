/**
 * Which package index the nodes of a cluster fetch packages from: the one that the operator names, else the one that pip on this machine is configured to use (PIP_INDEX_URL and
 * PIP_CERT, then pip's configuration files). None where nobody named one. Must never: fall back to an index that nobody chose; print a name and password of one.
 */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { toSafeError } from '../base/errors.ts';
import { PackageIndex, type PackageIndexConfig } from '../sandbox/packages/package-index.ts';
import { UsageError } from './terminal.ts';

const HOST = /^[a-z0-9.-]{1,253}(?::\d{1,5})?$/;

export interface PythonIndexOptions {
  readonly url?: string | undefined;
  readonly files?: readonly string[] | undefined;
  readonly loopbackHttp?: boolean | undefined;
}

/** The last word for each key of [global] and [install], as pip has it. */
export function pipSettings(texts: readonly string[]): ReadonlyMap<string, string> {
  const global = new Map<string, string>();
  const install = new Map<string, string>();
  for (const text of texts) {
    let section = '';
    for (const line of text.split('\n')) {
      const header = /^\[([a-z]+)\]\s*$/.exec(line);
      const setting = /^([A-Za-z][A-Za-z_-]*)\s*[=:]\s*(.*?)\s*$/.exec(line);
      if (header !== null) section = header[1] as string;
      else if (setting !== null && (section === 'global' || section === 'install')) (section === 'global' ? global : install).set((setting[1] as string).toLowerCase().replaceAll('_', '-'), setting[2] as string);
    }
  }
  return new Map([...global, ...install]);
}

function readAll(files: readonly string[]): string[] {
  return files.flatMap((file) => {
    try {
      return [readFileSync(file, 'utf8')];
    } catch {
      return [];
    }
  });
}

function configurationFiles(env: NodeJS.ProcessEnv): string[] {
  const own = env['PIP_CONFIG_FILE'];
  if (own === '/dev/null') return [];
  const home = homedir();
  return ['/etc/xdg/pip/pip.conf', '/etc/pip.conf', join(home, '.pip', 'pip.conf'), join(env['XDG_CONFIG_HOME'] ?? join(home, '.config'), 'pip', 'pip.conf'), ...(own === undefined ? [] : [own])];
}

/** Throws UsageError. */
export function pythonIndex(options: PythonIndexOptions, env: NodeJS.ProcessEnv = process.env): PackageIndexConfig | undefined {
  const fileHosts = options.files ?? [];
  const odd = fileHosts.find((host) => !HOST.test(host));
  if (odd !== undefined) throw new UsageError(`--python-index-files: '${odd}' is not a host, such as files.example.org`);
  if (options.url !== undefined && /^[a-z]+:\/\/[^/]*@/i.test(options.url)) throw new UsageError('--python-index: a name and password in arguments can be read by others of this machine; put the URL into PIP_INDEX_URL or pip.conf');
  const settings = pipSettings(readAll(configurationFiles(env)));
  const url = options.url ?? (env['PIP_INDEX_URL'] || settings.get('index-url'));
  if (url === undefined || url === '') return undefined;
  const authorities = env['PIP_CERT'] || settings.get('cert');
  const pem = authorities === undefined || authorities === '' ? [] : readAll([authorities]);
  const config = { url, fileHosts, loopbackHttp: options.loopbackHttp === true, ...(pem.length === 0 ? {} : { certificateAuthorities: pem.join('\n') }) };
  if (options.url !== undefined) refuseUnusable(config);
  return config;
}

/** Of one that was typed here. What pip is configured with need not fit, and is refused when somebody wants packages. */
function refuseUnusable(config: PackageIndexConfig): void {
  try {
    new PackageIndex(config);
  } catch (thrown) {
    throw new UsageError(`--python-index: ${toSafeError(thrown).safeMessage}`);
  }
}
