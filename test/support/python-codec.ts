/** The Python half of the value codec, in a process without gVisor: octets in, what it makes of them out. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const PROGRAM = `
import struct, sys
sys.path.insert(0, sys.argv[1])
from bulkhead import neutral
from bulkhead.errors import BulkheadError
given, at, out = sys.stdin.buffer.read(), 0, []
while at < len(given):
    (n,) = struct.unpack_from("<I", given, at)
    octets = given[at + 4 : at + 4 + n]
    at += 4 + n
    try:
        value = neutral.decode(octets)
        try: answer = b"A" + b"".join(bytes(part) for part in neutral.encode(value).parts)
        except BulkheadError as refused: answer = b"W" + refused.message.encode()
    except BulkheadError as refused: answer = (b"R" if refused.code == "INVALID_ARGUMENT" else b"X") + refused.message.encode("utf-8", "replace")
    except BaseException as thrown: answer = b"X" + repr(thrown).encode("utf-8", "replace")
    out.append(struct.pack("<I", len(answer)) + answer)
sys.stdout.buffer.write(b"".join(out))
`;

/** `written`: what Python writes of the value that it has read. `refused`: why it does not read it. `failed`: anything else, which is a defect. */
export interface Answer {
  readonly written?: Uint8Array;
  readonly refused?: string;
  readonly failed?: string;
}

export function throughPython(interpreter: string, values: readonly Uint8Array[]): Answer[] {
  const input = Buffer.concat(values.flatMap((value) => [Buffer.from(Uint32Array.of(value.length).buffer), value]));
  const { stdout, stderr, status } = spawnSync(interpreter, ['-c', PROGRAM, join(import.meta.dirname, '../../python')], { input, maxBuffer: 2 ** 28, timeout: 120_000 });
  if (status !== 0) throw new Error(`Python ended with ${status}: ${stderr.toString().slice(-4_000)}`);
  const answers: Answer[] = [];
  for (let at = 0; at < stdout.length; ) {
    const n = stdout.readUInt32LE(at);
    const body = stdout.subarray(at + 5, at + 4 + n);
    const kind = String.fromCharCode(stdout[at + 4] ?? 0);
    answers.push(kind === 'A' ? { written: Uint8Array.from(body) } : kind === 'R' ? { refused: body.toString() } : { failed: `${kind} ${body.toString()}` });
    at += 4 + n;
  }
  return answers;
}

/** A program with the package of the working tree and no cluster: what it prints. */
export function runPython(interpreter: string, program: string): string {
  const { stdout, stderr, status } = spawnSync(interpreter, ['-'], { input: program, timeout: 60_000, env: { PYTHONPATH: join(import.meta.dirname, '../../python'), PYTHONDONTWRITEBYTECODE: '1' } });
  if (status !== 0) throw new Error(`Python ended with ${status}: ${stderr.toString().slice(-4_000)}`);
  return stdout.toString();
}
