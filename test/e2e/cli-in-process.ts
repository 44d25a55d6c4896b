/** Runs a command line inside this process, which saves the start of node: its exit code and what it wrote. One at a time: the streams are shared. */
import { vi } from 'vitest';
import { runCommandLine } from '../../src/cli/program.ts';

export interface CommandResult {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

export async function runInProcess(args: readonly string[]): Promise<CommandResult> {
  const texts = { out: '', err: '' };
  const keep = (key: 'out' | 'err') => (text: string | Uint8Array): boolean => {
    texts[key] += typeof text === 'string' ? text : Buffer.from(text).toString();
    return true;
  };
  const spies = [vi.spyOn(process.stdout, 'write').mockImplementation(keep('out')), vi.spyOn(process.stderr, 'write').mockImplementation(keep('err'))];
  const listeners = process.stdout.listeners('error');
  try {
    const code = await runCommandLine(args);
    return { code, ...texts };
  } finally {
    for (const spy of spies) spy.mockRestore();
    for (const listener of process.stdout.listeners('error')) if (!listeners.includes(listener)) process.stdout.removeListener('error', listener as () => void);
  }
}
