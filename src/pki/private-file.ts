/**
 * Files that hold keys: read only when nobody else can read them, written so that a crash leaves the old or the new content and
 * never a part. Must never: follow a symbolic link to a key, or loosen permissions.
 */
import { constants } from 'node:fs';
import { mkdir, open, rename, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { randomBytes } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';

const MAX_PRIVATE_FILE_BYTES = 64 * 2 ** 20;

/** Content of a regular file of ours that no other user can read or write; undefined when there is none. */
export async function readPrivateFile(path: string): Promise<Buffer | undefined> {
  return read(path, true);
}

/** As `readPrivateFile`, for content that is public but must not be written by others. */
export async function readGuardedFile(path: string): Promise<Buffer | undefined> {
  return read(path, false);
}

async function read(path: string, secret: boolean): Promise<Buffer | undefined> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    if (error.code === 'ELOOP') throw new BulkheadError('INVALID_ARGUMENT', `${path} is a symbolic link; put the file itself there`);
    throw new BulkheadError('UNAVAILABLE', `${path} cannot be read (${error.code}); check its owner and permissions`, { cause: error });
  });
  if (file === undefined) return undefined;
  try {
    const status = await file.stat();
    if (!status.isFile()) throw new BulkheadError('INVALID_ARGUMENT', `${path} is not a regular file`);
    if (status.uid !== process.getuid?.() && status.uid !== 0) throw new BulkheadError('INVALID_ARGUMENT', `${path} belongs to another user (uid ${status.uid}); it must be yours: chown ${process.getuid?.()} '${path}'`);
    if ((status.mode & (secret ? 0o077 : 0o022)) !== 0) {
      const now = (status.mode & 0o777).toString(8).padStart(4, '0');
      throw new BulkheadError('INVALID_ARGUMENT', `${path} can be ${secret ? 'read or written' : 'written'} by others (mode ${now}); run: chmod ${secret ? '600' : '644'} '${path}'`);
    }
    if (status.size > MAX_PRIVATE_FILE_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `${path} is larger than any file of its kind`);
    return await file.readFile();
  } finally {
    await file.close();
  }
}

/** Creates the directory (0700) or checks that nobody else can write into an existing one. */
export async function openPrivateDirectory(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 });
  const status = await stat(path);
  if (!status.isDirectory()) throw new BulkheadError('INVALID_ARGUMENT', `${path} is not a directory`);
  if ((status.mode & 0o022) !== 0) throw new BulkheadError('INVALID_ARGUMENT', `${path} can be written by others (mode ${(status.mode & 0o777).toString(8)}); run: chmod 700 '${path}'`);
}

/** Temporary file in the same directory, fsync, rename, fsync of the directory. */
export async function writeFileAtomic(path: string, content: Uint8Array | string, mode: 0o600 | 0o644): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`);
  try {
    const file = await open(temporary, 'wx', mode);
    try {
      await file.chmod(mode);
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw new BulkheadError('UNAVAILABLE', `${path} cannot be written; check free space and permissions of its directory`, { cause: error });
  }
  await syncDirectory(dirname(path));
}

export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
