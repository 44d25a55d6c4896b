/** The URL of isolates against Node's: what programs see must not depend on where they run. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { URL as GuestURL, URLSearchParams as GuestParams } from '../../src/sandbox/isolate/guest/url.ts';

const PARTS = ['href', 'origin', 'protocol', 'username', 'password', 'host', 'hostname', 'port', 'pathname', 'search', 'hash'] as const;
type Like = Record<(typeof PARTS)[number], string>;

function seen(Class: new (text: string, base?: string) => object, text: string, base?: string): unknown {
  try {
    const url = new Class(text, base) as Like;
    return PARTS.map((part) => url[part]);
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(TypeError);
    return 'invalid';
  }
}

const CASES = [
  'http://example.com', 'HTTP://User:Pa%20ss@EXAMPLE.com:80/a/../b/./c?x=1 2#frag ment', 'https://example.com:443/', 'https://example.com:8443', 'ws://h/', 'ftp://h:21/a', 'file:///C|/x/../y', 'file://localhost/a', 'file:c:\\x', 'file:', 'file://host/p', 'mailto:a@b.c',
  'data:text/plain,hello world?q#f', 'data:x  #f', 'javascript:alert(1)', 'about:blank', 'foo://bar/../..//x', 'foo:/a//b', 'foo:///p', 'foo://h:99/?q', 'http:\\\\h\\p', 'http:h', 'http:////h', 'http://h/%zz%41%2e%2E/x', 'http://[::1]:80/', 'http://[1:0:0:2::3]/', 'http://[::ffff:1.2.3.4]/', 'http://[1::2::3]/',
  'http://1.2.3/', 'http://0x7f.1/', 'http://256.1.1.1/', 'http://4294967296/', 'http://1.2.3.4.5/', 'http://a.0x/', 'http://09.1/', 'http://h:65536/', 'http://h:x/', 'http://@h/', 'http://u@/', 'http://u:p@@h/', 'http://a b/', 'http://a%20b/', 'http://a^b/', 'http://%41.com/', 'http://ex%2fample/',
  '//h/p', '/p', 'p', '?q', '#f', '', '..', './/x', '../../../x', 'http:x', 'http:/x', ' \t http://h\n/ ', 'http://h?', 'http://h#', 'http://h/?a=\'"<>`', 'foo:a?\'"<>`', 'http://h/a"<>`{}|^', 'x y://h', '1http://h', 'blob:https://a.b/c', 'blob:x', 'http://ümlaut.de/', 'http://日本語。jp/ä?ö#ü', 'non-special:x/y', 'http://h/a\\b', 'foo://h/a\\b', 'foo://[::1]/x', 'foo://a b/',
];

describe('URL', () => {
  it('parses as Node does, with and without a base', () => {
    for (const text of CASES) {
      expect([text, seen(GuestURL, text)]).toEqual([text, seen(URL, text)]);
      for (const base of ['http://u:p@base.example:81/a/b?q#f', 'file:///C:/a/b', 'foo://h/a/b', 'mailto:x', 'foo:/a/b', 'file://server/share/x']) expect([text, base, seen(GuestURL, text, base)]).toEqual([text, base, seen(URL, text, base)]);
    }
  });

  it('parses noise as Node does', () => {
    const token = fc.constantFrom('http:', 'https:', 'file:', 'foo:', 'ws:', '/', '//', '\\', '?', '#', ':', '@', '.', '..', '%2e', '%', '%41', '[', ']', '::1', 'a', 'B', 'c:', 'C|', '0x1', '1', '255', '80', '8080', ' ', '\t', '"', '\'', '<', '^', '`', '{', '|', '&', '=', '+', ';', 'é', '💩', '\ud800', '~', '!');
    fc.assert(fc.property(fc.array(token, { maxLength: 10 }).map((tokens) => tokens.join('')), fc.constantFrom(undefined, 'http://base/a/b?c', 'file:///x/y', 'foo://z/w'), (text, base) => {
      // Hosts outside ASCII go through UTS 46, of which isolates have a part.
      fc.pre(!/[^\x00-\x7f]/.test(text.split(/[?#]/)[0] as string));
      expect(seen(GuestURL, text, base)).toEqual(seen(URL, text, base));
    }), { numRuns: 6_000 });
  });

  it('sets parts as Node does', () => {
    const values = ['', 'x', 'https', 'file:', 'foo', 'a.b:99', 'a.b', '99', '99x', 'x99', '65536', '/p q', 'p/../q', '?a=b', 'a b', '#f', 'f f', '[::1]', 'h/p', 'u:p@', '\\x', 'a?b#c'];
    for (const start of ['http://u:p@h:8080/a/b?c#d', 'file:///x', 'mailto:x', 'foo://h/x', 'foo:/x']) {
      for (const part of PARTS.filter((p) => p !== 'origin' && p !== 'href')) {
        for (const value of values) {
          const [ours, theirs] = [new GuestURL(start), new URL(start)];
          ours[part] = value;
          theirs[part] = value;
          expect([start, part, value, ours.href]).toEqual([start, part, value, theirs.href]);
        }
      }
    }
  });
});

describe('URLSearchParams', () => {
  it('reads and writes as Node does', () => {
    fc.assert(fc.property(fc.array(fc.constantFrom('a', 'b', '=', '&', '+', '%20', '%', '%C3%A9', ' ', '?', '#', '~', '*', '\''), { maxLength: 12 }).map((t) => t.join('')), (text) => {
      const [ours, theirs] = [new GuestParams(text), new URLSearchParams(text)];
      expect([...ours]).toEqual([...theirs]);
      expect(ours.toString()).toBe(theirs.toString());
      for (const params of [ours, theirs]) {
        params.append('z', '1 2');
        params.set('a', 'new');
        params.delete('b');
        params.sort();
      }
      expect([ours.toString(), ours.size, ours.get('a'), ours.getAll('z'), ours.has('z', '1 2'), ours.has('nope')]).toEqual([theirs.toString(), theirs.size, theirs.get('a'), theirs.getAll('z'), theirs.has('z', '1 2'), theirs.has('nope')]);
    }), { numRuns: 500 });
    expect(new GuestParams({ a: 1, b: 'x y' }).toString()).toBe('a=1&b=x+y');
    expect(new GuestParams([['a', '1'], ['a', '2']]).getAll('a')).toEqual(['1', '2']);
  });

  it('is tied to its URL', () => {
    const url = new GuestURL('http://h/?a=1');
    url.searchParams.append('b', '2 3');
    expect(url.href).toBe('http://h/?a=1&b=2+3');
    url.search = '?c=4';
    expect([...url.searchParams]).toEqual([['c', '4']]);
    url.searchParams.delete('c');
    expect(url.href).toBe('http://h/');
  });
});
