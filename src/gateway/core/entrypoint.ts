/**
 * A job's entry point, the command line that Ray's clients send, as what follows `python`. No shell ever sees it: quotes and backslashes are read as a shell reads them, and what
 * would need one is refused by name. Must never: guess what a command that is not Python's would have done.
 */
import { BulkheadError } from '../../base/errors.ts';

const MAX_CHARS = 65_536;
const MAX_WORDS = 1_024;
const META = '|&;<>()$`\n\r*?[]{}~#!';
/** Say how an interpreter runs, and change nothing about a program in a sandbox. */
const HARMLESS = new Set(['-u', '-B', '-s', '-E', '-I', '-q']);

function refuse(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `entrypoint: ${why}; give one command of Python: python FILE [ARG…], python -m MODULE or python -c PROGRAM`);
}

/** Words of a command line. Throws INVALID_ARGUMENT for what a shell would expand. */
export function wordsOf(line: string): string[] {
  if (line.length > MAX_CHARS || line.includes('\0')) return refuse(`it is longer than ${MAX_CHARS} characters, or has a NUL`);
  const words: string[] = [];
  let word: string | undefined;
  for (let i = 0; i < line.length; i++) {
    const c = line.charAt(i);
    if (c === ' ' || c === '\t') {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (c === "'") {
      const end = line.indexOf("'", i + 1);
      if (end < 0) return refuse('a quote is not closed');
      word = (word ?? '') + line.slice(i + 1, end);
      i = end;
    } else if (c === '"') {
      word ??= '';
      for (i++; line.charAt(i) !== '"'; i++) {
        const d = line.charAt(i);
        if (d === '') return refuse('a quote is not closed');
        if (d === '$' || d === '`') return refuse(`'${d}' needs a shell, and there is none`);
        if (d === '\\' && '"\\$`'.includes(line.charAt(i + 1) || ' ')) i++;
        word += line.charAt(i);
      }
    } else if (c === '\\') {
      if (i + 1 === line.length) return refuse('it ends with a backslash');
      word = (word ?? '') + line.charAt(++i);
    } else if (META.includes(c) && !(c === '#' && word !== undefined) && !(c === '~' && word !== undefined)) return refuse(`${c === '\n' || c === '\r' ? 'a line break' : `'${c}'`} needs a shell, and there is none`);
    else word = (word ?? '') + c;
    if (words.length > MAX_WORDS) return refuse(`it has more than ${MAX_WORDS} words`);
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** What follows `python`. Throws INVALID_ARGUMENT. */
export function pythonArguments(entrypoint: string): string[] {
  const [program = '', ...rest] = wordsOf(entrypoint);
  if (!/^(?:\/usr\/bin\/)?python(?:3(?:\.\d{1,2})?)?$/.test(program)) return refuse(program === '' ? 'it is empty' : 'it does not start with python');
  while (HARMLESS.has(rest[0] ?? '')) rest.shift();
  const [first = ''] = rest;
  if (first === '') return refuse('it names no program');
  if (first.startsWith('-') && first !== '-c' && first !== '-m') return refuse(`the option ${/^-{1,2}[A-Za-z-]{1,20}/.exec(first)?.[0] ?? '-'} of python is not supported`);
  if (first.startsWith('-') && rest.length < 2) return refuse(`${first} without what it runs`);
  return rest;
}
