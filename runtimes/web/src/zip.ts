/** Read a bundle's zip: stored entries only, as `Bundle.save` writes them. */

import { BundleError } from "./errors";
import { quote } from "./json";
import { DAMAGED, isSystemFile } from "./names";

const LOCAL_HEADER = 0x04034b50;
const CENTRAL_HEADER = 0x02014b50;
const END_OF_DIRECTORY = 0x06054b50;
const END_SIZE = 22;
const LONGEST_COMMENT = 0xffff;
const ENCRYPTED = 1;
const FILE_TYPE = 0o170000;
const REGULAR = 0o100000;
const FOLDER = 0o040000;

/** Return whether data starts like a zip. */
export function isZip(data: Uint8Array): boolean {
  return data.length >= 4 && view(data).getUint32(0, true) === LOCAL_HEADER;
}

/**
 * Return the files of a zip by name; they are views into `data`.
 *
 * @param where - Name of the zip, for messages.
 * @throws BundleError if the zip is damaged, or holds what dermedge never writes.
 */
export function readZip(data: Uint8Array, where: string): Map<string, Uint8Array> {
  try {
    const files = readEntries(data, where);
    if (!files.has("manifest.json")) {
      const below = [...files.keys()].find((name) => name.endsWith("/manifest.json"));
      if (below !== undefined) throw rezipped(below, where);
    }
    return files;
  } catch (error) {
    // DataView throws RangeError for an offset outside of the data.
    if (error instanceof BundleError) throw error;
    throw damaged(where, "an offset is outside of it");
  }
}

function readEntries(data: Uint8Array, where: string): Map<string, Uint8Array> {
  const bytes = view(data);
  const end = findEnd(bytes, where);
  const count = bytes.getUint16(end + 10, true);
  const files = new Map<string, Uint8Array>();
  let at = bytes.getUint32(end + 16, true);
  for (let index = 0; index < count; index++) {
    if (bytes.getUint32(at, true) !== CENTRAL_HEADER)
      throw damaged(where, "its directory is cut off");
    const nameLength = bytes.getUint16(at + 28, true);
    const name = decodeName(data.subarray(at + 46, at + 46 + nameLength), where);
    if (files.has(name)) {
      throw new BundleError(`${where} holds ${quote(name)} twice, which is unsafe. ${DAMAGED}`);
    }
    checkEntry(bytes, at, name, where);
    files.set(name, readContent(data, at, where));
    at += 46 + nameLength + bytes.getUint16(at + 30, true) + bytes.getUint16(at + 32, true);
  }
  return files;
}

/** Return the offset of the record that ends a zip. */
function findEnd(bytes: DataView, where: string): number {
  const last = bytes.byteLength - END_SIZE;
  for (let at = last; at >= Math.max(0, last - LONGEST_COMMENT); at--) {
    if (bytes.getUint32(at, true) !== END_OF_DIRECTORY) continue;
    if (at + END_SIZE + bytes.getUint16(at + 20, true) === bytes.byteLength) return at;
  }
  throw damaged(where, "its end is missing");
}

/** Refuse an entry that `Bundle.save` never writes. */
function checkEntry(bytes: DataView, at: number, name: string, where: string): void {
  const flags = bytes.getUint16(at + 8, true);
  const method = bytes.getUint16(at + 10, true);
  const type = bytes.getUint16(at + 40, true) & FILE_TYPE;
  if (type !== 0 && type !== REGULAR && type !== FOLDER) {
    throw new BundleError(`${quote(name)} in ${where} is a link or not a regular file. ${DAMAGED}`);
  }
  if (name.endsWith("/") || isSystemFile(name) || method !== 0) throw rezipped(name, where);
  if (flags & ENCRYPTED) throw damaged(where, `${quote(name)} is encrypted`);
}

/** Return the content of the entry whose directory record is at an offset. */
function readContent(data: Uint8Array, at: number, where: string): Uint8Array {
  const bytes = view(data);
  const [stored, size] = [bytes.getUint32(at + 20, true), bytes.getUint32(at + 24, true)];
  const local = bytes.getUint32(at + 42, true);
  if (bytes.getUint32(local, true) !== LOCAL_HEADER) throw damaged(where, "a header is missing");
  const start = local + 30 + bytes.getUint16(local + 26, true) + bytes.getUint16(local + 28, true);
  if (stored !== size || start + size > data.length) throw damaged(where, "a size is wrong");
  return data.subarray(start, start + size);
}

function decodeName(name: Uint8Array, where: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(name);
  } catch {
    throw damaged(where, "a name is not UTF-8");
  }
}

function damaged(where: string, reason: string): BundleError {
  return new BundleError(`${where} is a damaged zip (${reason}). ${DAMAGED}`);
}

function rezipped(name: string, where: string): BundleError {
  return new BundleError(
    `${where} has the entry ${quote(name)}, so another program zipped or compressed it. ` +
      "Unzip it and use the folder, or zip that folder with `Bundle.save` in Python.",
  );
}

function view(data: Uint8Array): DataView {
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}
