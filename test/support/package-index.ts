/**
 * A package index for tests: PEP 503 pages and wheels that are made here, on a loopback port, with whatever a hostile index might do. It remembers what it was asked.
 */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { crc32, deflateRawSync } from 'node:zlib';

export interface ZipEntry {
  readonly name: string;
  readonly content: string | Buffer | Deflated;
}

/** Compressed once, to stand in an archive as often as a bomb wants. */
export interface Deflated {
  readonly octets: Buffer;
  readonly bytes: number;
  readonly crc: number;
}

export function zeros(bytes: number): Deflated {
  const content = Buffer.alloc(bytes);
  return { octets: deflateRawSync(content), bytes, crc: crc32(content) };
}

/** An archive whose names can be whatever a test wants. */
export function zipOf(entries: readonly ZipEntry[]): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, content } of entries) {
    const packed = typeof content === 'object' && 'octets' in content;
    const data = packed ? content.octets : Buffer.from(content);
    const title = Buffer.from(name, 'utf8');
    const head = Buffer.alloc(30);
    head.writeUInt32LE(0x0403_4b50, 0);
    head.writeUInt16LE(20, 4);
    head.writeUInt16LE(packed ? 8 : 0, 8);
    head.writeUInt16LE(0x21, 12);
    head.writeUInt32LE(packed ? content.crc : crc32(data), 14);
    head.writeUInt32LE(data.length, 18);
    head.writeUInt32LE(packed ? content.bytes : data.length, 22);
    head.writeUInt16LE(title.length, 26);
    const entry = Buffer.alloc(46);
    entry.writeUInt32LE(0x0201_4b50, 0);
    entry.writeUInt16LE(0x031e, 4);
    head.copy(entry, 6, 4, 30);
    entry.writeUInt32LE((0o100644 << 16) >>> 0, 38);
    entry.writeUInt32LE(offset, 42);
    parts.push(head, title, data);
    directory.push(entry, title);
    offset += head.length + title.length + data.length;
  }
  const central = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x0605_4b50, 0);
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(central.length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...parts, central, end]);
}

export function wheelOf(project: string, version: string, files: readonly ZipEntry[], requires: readonly string[] = []): Buffer {
  const info = `${project}-${version}.dist-info`;
  const meta = [
    { name: `${info}/METADATA`, content: `Metadata-Version: 2.1\nName: ${project}\nVersion: ${version}\n${requires.map((each) => `Requires-Dist: ${each}\n`).join('')}` },
    { name: `${info}/WHEEL`, content: 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n' },
  ];
  const record = [...files, ...meta].map(({ name }) => `${name},,\n`).join('') + `${info}/RECORD,,\n`;
  return zipOf([...files, ...meta, { name: `${info}/RECORD`, content: record }]);
}

const digest = (octets: Buffer): string => createHash('sha256').update(octets).digest('hex');

export class TestIndex implements AsyncDisposable {
  readonly #server: Server;
  readonly #files = new Map<string, Buffer>();
  readonly #pages = new Map<string, string[]>();
  /** Paths of all requests, and what answers one of them in the index's place. */
  readonly asked: string[] = [];
  readonly special = new Map<string, (response: ServerResponse, request: IncomingMessage) => void>();
  url = '';

  private constructor() {
    this.#server = createServer((request, response) => {
      const path = request.url ?? '';
      this.asked.push(`${request.method ?? ''} ${path}`);
      const own = this.special.get(path);
      const file = this.#files.get(path);
      const page = /^\/simple\/([a-z0-9-]+)\/$/.exec(path)?.[1];
      if (own !== undefined) own(response, request);
      else if (file !== undefined) response.end(file);
      else if (page !== undefined && this.#pages.has(page)) response.setHeader('content-type', 'text/html').end(`<!DOCTYPE html><html><body>${(this.#pages.get(page) ?? []).join('\n')}</body></html>`);
      else response.writeHead(404).end();
    });
  }

  static async start(): Promise<TestIndex> {
    const index = new TestIndex();
    await new Promise<void>((resolve) => index.#server.listen(0, '127.0.0.1', resolve));
    index.url = `http://127.0.0.1:${(index.#server.address() as AddressInfo).port}/simple/`;
    return index;
  }

  /** @param said the digest that the page tells, if it is not the file's. */
  add(project: string, file: string, octets: Buffer, said = digest(octets)): void {
    this.#files.set(`/files/${file}`, octets);
    this.link(project, `<a href="../../files/${file}#sha256=${said}">${file}</a>`);
  }

  link(project: string, html: string): void {
    this.#pages.set(project, [...(this.#pages.get(project) ?? []), html]);
  }

  wheel(project: string, version: string, files: Readonly<Record<string, string>>, requires: readonly string[] = []): void {
    this.add(project, `${project.replaceAll('-', '_')}-${version}-py3-none-any.whl`, wheelOf(project.replaceAll('-', '_'), version, Object.entries(files).map(([name, content]) => ({ name, content })), requires));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
