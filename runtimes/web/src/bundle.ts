/** Open a bundle: read its manifest, and check all of it with each file's SHA-256. */

import { absentContent, type Container, MANIFEST, type OnBytes } from "./container";
import { BundleError } from "./errors";
import { parseJson, quote, quoteAll } from "./json";
import { artifactFiles, type Bundle, isPickle, parseManifest } from "./manifest";
import { DAMAGED } from "./names";
import { sha256Hex } from "./sha256";
import type { Json } from "./spec";

const LARGEST_MANIFEST = 1 << 24;
const MODELCARD = "modelcard.md";
/** Number of files that are fetched at once. */
const PARALLEL = 4;

/** A file that arrives: files that are complete, and bytes of this one. */
export interface FileProgress {
  /** Path of the file in the bundle; "" for the bundle's zip. */
  readonly file: string;
  readonly filesDone: number;
  readonly filesTotal: number;
  readonly bytes: number;
  /** Size of the file; null if the server does not tell. */
  readonly bytesTotal: number | null;
}

/** An opened bundle with the files that were asked for. */
export interface OpenedBundle {
  readonly bundle: Bundle;
  readonly kept: ReadonlyMap<string, Uint8Array>;
}

/**
 * Open a bundle, and check all of it.
 *
 * @param keep - Says which files to return; the others are dropped once they are checked.
 * @throws BundleError if the bundle is damaged, incomplete, unsafe or too new.
 */
export async function openBundle(
  container: Container,
  keep: (name: string, bundle: Bundle) => boolean,
  onProgress?: (progress: FileProgress) => void,
): Promise<OpenedBundle> {
  const bundle = await parseManifest(await readManifest(container), container.where);
  const names = Object.keys(bundle.files);
  checkListing(names, container);
  const kept = new Map<string, Uint8Array>();
  const queue = names.values();
  let [modelcard, filesDone, failed]: [string | null, number, boolean] = [null, 0, false];

  async function readFiles(): Promise<void> {
    for (const file of queue) {
      if (failed) return;
      const report: OnBytes = (bytes, bytesTotal) =>
        onProgress?.({ file, filesDone, filesTotal: names.length, bytes, bytesTotal });
      const data = await readChecked(container, bundle, file, report);
      if (keep(file, bundle)) kept.set(file, data);
      if (file === MODELCARD) modelcard = new TextDecoder().decode(data);
      filesDone++;
      report(data.length, data.length);
    }
  }

  try {
    // The loops share one iterator, so that each file is read once.
    await Promise.all(Array.from({ length: PARALLEL }, readFiles));
  } finally {
    failed = true;
  }
  return { bundle: { ...bundle, modelcard }, kept };
}

async function readManifest(container: Container): Promise<Json> {
  const { where } = container;
  const data = await container.read(MANIFEST);
  if (!data) throw missing([MANIFEST], where);
  const absent = absentContent(MANIFEST, data, where);
  if (absent) throw absent;
  if (data.length > LARGEST_MANIFEST) {
    throw new BundleError(`${MANIFEST} of ${where} has over ${LARGEST_MANIFEST} bytes. ${DAMAGED}`);
  }
  return parseJson(data, `${where}/${MANIFEST}`, BundleError);
}

/** Refuse files that are missing or not listed, where all files are known. */
function checkListing(listed: readonly string[], { names, where }: Container): void {
  if (!names) return;
  const absent = [...listed, MANIFEST].filter((name) => !names.includes(name)).sort();
  if (absent.length) throw missing(absent, where);
  const extra = names.filter((name) => name !== MANIFEST && !listed.includes(name));
  if (extra.length) {
    throw new BundleError(
      `${where} holds ${quoteAll(extra)}, which its manifest does not list. ${DAMAGED}`,
    );
  }
}

async function readChecked(
  container: Container,
  bundle: Bundle,
  name: string,
  onBytes: OnBytes,
): Promise<Uint8Array> {
  const { where } = container;
  const data = await container.read(name, onBytes);
  if (!data) throw missing([name], where);
  if ((await sha256Hex(data)) !== bundle.files[name]) {
    throw (
      absentContent(name, data, where) ??
      new BundleError(
        `${quote(name)} in ${where} is damaged: its SHA-256 does not fit the manifest. ${DAMAGED}`,
      )
    );
  }
  const artifact = artifactFiles(bundle);
  // Raw weights beside a graph (`.bin` in a folder) may start with any bytes. No other file
  // of an artifact may start like a pickle.
  const isWeights = artifact.length > 1 && name.endsWith(".bin");
  if (artifact.includes(name) && startsLikePickle(data) && !isWeights) throw isPickle(name, where);
  return data;
}

function startsLikePickle(data: Uint8Array): boolean {
  const [first, second, third, fourth] = data;
  const zip = first === 0x50 && second === 0x4b && third === 3 && fourth === 4;
  return zip || (first === 0x80 && second >= 2 && second <= 5);
}

function missing(names: readonly string[], where: string): BundleError {
  return new BundleError(`${where} misses ${quoteAll(names)}. ${DAMAGED}`);
}
