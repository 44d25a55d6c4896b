/** The gateway's two parsers: command lines as a shell would read them, and archives as a careful reader would. */
import { execFileSync } from 'node:child_process';
import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { pythonArguments, wordsOf } from '../../src/gateway/core/entrypoint.ts';
import { checkZip, MAX_PACKAGE_ENTRIES } from '../../src/gateway/core/zip-directory.ts';
import { zipOf } from '../support/gateway.ts';

describe('entry points', () => {
  it('are the words that a shell would make of them', () => {
    const quoted = (word: string): string => (/^[A-Za-z0-9_./=:-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
    const lines = ['python a.py', `python  'a b.py' "c d" e\\ f`, `python -c "print(\\"x\\")"`, `python -c 'import os; print("$HOME")'`, 'python a.py --x=1 ""', 'python a#b.py'];
    for (const line of lines) expect(wordsOf(line), line).toEqual(execFileSync('/bin/sh', ['-c', `for w in ${line}; do printf '%s\\0' "$w"; done`], { encoding: 'utf8' }).split('\0').slice(0, -1));
    fc.assert(fc.property(fc.array(fc.string({ maxLength: 20 }).filter((w) => !w.includes('\0')), { minLength: 1, maxLength: 6 }), (words) => {
      expect(wordsOf(words.map(quoted).join(' '))).toEqual(words);
    }));
  });

  it.each([
    ['', 'it is empty'], ['echo hi', 'does not start with python'], ['/tmp/python a.py', 'does not start with python'], ['python', 'names no program'], ['python -c', 'without what it runs'], ['python -m', 'without what it runs'],
    ['python a.py; id', "';' needs a shell"], ['python a.py | tee x', "'|' needs a shell"], ['python $(id).py', "'$' needs a shell"], ['python "`id`"', "'`' needs a shell"], ['python "$HOME"', "'$' needs a shell"], ['python a.py\nid', 'a line break needs a shell'],
    ['python *.py', "'*' needs a shell"], ["python 'a.py", 'a quote is not closed'], ['python a.py \\', 'ends with a backslash'], ['python -W error a.py', 'the option -W'], ['FOO=1 python a.py', 'does not start with python'],
  ])('%j is refused', (line, why) => {
    expect(() => pythonArguments(line)).toThrow(why);
  });

  it('leave out how the interpreter runs', () => {
    expect(pythonArguments('python3.11 -u -B main.py -u')).toEqual(['main.py', '-u']);
    expect(pythonArguments('python -m pkg.mod --flag')).toEqual(['-m', 'pkg.mod', '--flag']);
  });
});

describe('archives', () => {
  const text = Buffer.from('print(1)\n');
  const packed = deflateRawSync(Buffer.alloc(100_000));

  it('of regular files and directories pass, as other tools make them', () => {
    expect(checkZip(zipOf([{ name: 'a.py', bytes: text }, { name: 'dir/', mode: 0o040755 }, { name: 'dir/b.py', bytes: text }, { name: 'c', bytes: packed, unpacked: 100_000, method: 8 }]))).toEqual({ entries: 4, unpackedBytes: 2 * text.length + 100_000 });
    expect(checkZip(zipOf([]))).toEqual({ entries: 0, unpackedBytes: 0 });
    const made = execFileSync('python3', ['-c', 'import sys,zipfile,io\nb=io.BytesIO()\nz=zipfile.ZipFile(b,"w",zipfile.ZIP_DEFLATED)\nz.writestr("pkg/__init__.py","x=1\\n"*1000)\nz.writestr("m\\u00fc.py","")\nz.close()\nsys.stdout.buffer.write(b.getvalue())']);
    expect(checkZip(made).entries).toBe(2);
  });

  it.each<readonly [string, Uint8Array, string]>([
    ['nothing', Buffer.alloc(0), 'not a zip'], ['a script', text, 'not a zip'], ['one with a comment', zipOf([{ name: 'a' }], { comment: 'x' }), 'comment'],
    ['a parent', zipOf([{ name: '../a.py', bytes: text }]), 'leave its directory'], ['a parent inside', zipOf([{ name: 'a/../../b', bytes: text }]), 'leave its directory'], ['an absolute name', zipOf([{ name: '/etc/passwd', bytes: text }]), 'leave its directory'],
    ['a backslash', zipOf([{ name: '..\\a', bytes: text }]), 'backslash'], ['a drive', zipOf([{ name: 'C:/a', bytes: text }]), 'leave its directory'], ['an empty part', zipOf([{ name: 'a//b', bytes: text }]), 'leave its directory'], ['a NUL', zipOf([{ name: 'a\0.py', bytes: text }]), 'control character'],
    ['a symbolic link', zipOf([{ name: 'a', bytes: Buffer.from('/etc/passwd'), mode: 0o120777 }]), 'link or a device'], ['a device', zipOf([{ name: 'a', mode: 0o020666 }]), 'link or a device'], ['a pipe', zipOf([{ name: 'a', mode: 0o010666 }]), 'link or a device'],
    ['one name twice', zipOf([{ name: 'a', bytes: text }, { name: 'a', bytes: text }]), 'two entries have one name'], ['two names for one entry', zipOf([{ name: 'a', localName: 'b', bytes: text }]), 'two names'],
    // An entry inside another's contents, as bombs of overlapping entries are made.
    ['shared bytes', zipOf([{ name: 'a', bytes: zipOf([{ name: 'b', bytes: text }]).subarray(0, 31 + text.length) }, { name: 'b', bytes: text, at: 31 }]), 'two entries share bytes'],
    ['more than deflate can', zipOf([{ name: 'a', bytes: text, unpacked: 200_000_000, method: 8 }]), 'more than its bytes can hold'], ['a stored entry that grows', zipOf([{ name: 'a', bytes: text, unpacked: 10 ** 6 }]), 'sizes that cannot be'],
    ['encrypted', zipOf([{ name: 'a', bytes: text, flags: 1 }]), 'encrypted'], ['another packer', zipOf([{ name: 'a', bytes: text, method: 14 }]), 'stored or deflated'], ['an entry elsewhere', zipOf([{ name: 'a', bytes: text, at: 5 }]), 'not where the directory says'],
    ['too many entries', zipOf([], { entries: MAX_PACKAGE_ENTRIES + 1 }), 'more than'], ['fewer than it says', zipOf([{ name: 'a' }], { entries: 2 }), 'damaged'], ['a gap before its end', Buffer.concat([zipOf([{ name: 'a' }]).subarray(0, -22), Buffer.alloc(3), zipOf([{ name: 'a' }]).subarray(-22)]), 'not where it says'],
  ])('%s is refused', (_what, bytes, why) => {
    expect(() => checkZip(bytes)).toThrow(why);
  });

  it('and no bytes whatever make anything but a refusal', () => {
    const whole = zipOf([{ name: 'a.py', bytes: text }, { name: 'd/b.py', bytes: text }]);
    for (let length = 0; length < whole.length; length++) expect(() => checkZip(whole.subarray(0, length))).toThrow('the package is refused');
    fc.assert(fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, octet) => {
      const changed = Buffer.from(whole);
      changed[at] = octet;
      try {
        checkZip(changed);
      } catch (thrown) {
        expect(thrown).toMatchObject({ code: 'INVALID_ARGUMENT' });
      }
    }), { numRuns: 500 });
  });
});
