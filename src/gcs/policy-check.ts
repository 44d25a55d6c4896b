/**
 * Checks a policy file before it is applied. A file may have a mebibyte and tests of its own, and all files are read with it: what would hold the head
 * for a second is done in a thread, one at a time. Must never: let a tenant have more than a few checks waiting, or one run without end.
 */
import { Worker } from 'node:worker_threads';
import { checkPolicies, diagnosticText, parsePolicyFile, type PolicyDocument } from '../authz/authz.ts';
import { BulkheadError } from '../base/errors.ts';
import { MAX_POLICY_CHECKS_PER_TENANT, POLICY_CHECK_TIMEOUT_MS } from '../base/limits.ts';
import type { CurrentFile } from './core/policy-versions.ts';

export interface CheckedFile {
  /** What is wrong, each with file, line and column; empty: nothing. */
  readonly findings: readonly string[];
  readonly document: PolicyDocument | undefined;
}

export interface CheckRequest {
  readonly file: CurrentFile;
  readonly all: readonly CurrentFile[];
  readonly nowMs: number;
}

/** Characters of all files together that are checked where the head is: some tens of milliseconds. */
const INLINE_CHARS = 64 * 2 ** 10;
/** Memory of the thread, MiB: a YAML file of one mebibyte becomes some tens of them. */
const THREAD_HEAP_MIB = 512;

/** Unique over tenants, and what errors name. */
export const shownName = (f: Pick<CurrentFile, 'tenant' | 'fileName'>): string => `${f.tenant === '' ? 'platform' : f.tenant}/${f.fileName}`;

/** Here and now. */
export function checkNow({ file, all, nowMs }: CheckRequest): CheckedFile {
  const name = shownName(file);
  // Without the identities issued so far: a test says itself which roles its principal carries, and must not turn by who was issued what.
  const { diagnostics, tests } = checkPolicies({ files: all.map((f) => ({ name: shownName(f), content: f.content, tenant: f.tenant })), identityRoles: [], version: 1, nowMs, testsOf: file.tenant });
  // A tenant hears of its own file only. The platform's change can break a tenant's file, and its author must know; tests of other
  // files may fail by time alone and concern nobody here.
  const errors = diagnostics.filter((d) => d.severity === 'error' && (file.tenant === '' || d.file === name)).map(diagnosticText);
  const failed = tests.filter((t) => !t.passed && t.file === name).map((t) => `${t.file}:${t.line}:${t.column}: test failed: ${t.what}: ${t.message}`);
  const findings = [...errors, ...failed];
  return { findings, document: findings.length > 0 ? undefined : parsePolicyFile(name, file.content).document };
}

export class PolicyChecks {
  readonly #waiting = new Map<string, number>();
  readonly #timeoutMs: number;
  #last: Promise<unknown> = Promise.resolve();

  constructor(timeoutMs = POLICY_CHECK_TIMEOUT_MS) {
    this.#timeoutMs = timeoutMs;
  }

  /** Throws RESOURCE_EXHAUSTED when the tenant has several checks waiting, or one takes too long. */
  async check(request: CheckRequest): Promise<CheckedFile> {
    if (request.all.reduce((sum, f) => sum + f.content.length, 0) <= INLINE_CHARS) return checkNow(request);
    const { tenant } = request.file;
    const waiting = this.#waiting.get(tenant) ?? 0;
    if (waiting >= MAX_POLICY_CHECKS_PER_TENANT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${waiting} policy files of this tenant are being checked already: wait for them`);
    this.#waiting.set(tenant, waiting + 1);
    try {
      const turn = this.#last.then(() => this.#inThread(request));
      this.#last = turn.catch(() => undefined);
      return await turn;
    } finally {
      const left = (this.#waiting.get(tenant) ?? 1) - 1;
      if (left > 0) this.#waiting.set(tenant, left);
      else this.#waiting.delete(tenant);
    }
  }

  #inThread(request: CheckRequest): Promise<CheckedFile> {
    return new Promise((resolve, reject) => {
      const thread = new Worker(new URL('./policy-check-thread.ts', import.meta.url), { workerData: request, resourceLimits: { maxOldGenerationSizeMb: THREAD_HEAP_MIB }, execArgv: ['--no-warnings'] });
      const over = (settle: () => void): void => {
        clearTimeout(timer);
        void thread.terminate();
        settle();
      };
      const timer = setTimeout(() => over(() => reject(new BulkheadError('RESOURCE_EXHAUSTED', `the policy file takes longer than ${this.#timeoutMs / 1_000} s to check: give it fewer rules and tests, or divide it`))), this.#timeoutMs);
      thread.once('message', (checked: CheckedFile) => over(() => resolve(checked)));
      thread.once('error', (cause) => over(() => reject(new BulkheadError('RESOURCE_EXHAUSTED', 'the policy file could not be checked: give it fewer rules and tests, or divide it', { cause }))));
      // Without a message or an error nobody would be answered.
      thread.once('exit', () => over(() => reject(new BulkheadError('INTERNAL', 'the check of a policy file ended without a result'))));
    });
  }
}
