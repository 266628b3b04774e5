/** Read a bundle's files from a folder over HTTP, from a zip, or from a map. */

import { BundleError, DermedgeError, UsageError, firstLine } from "./errors";
import { quote } from "./json";
import { isSystemFile } from "./names";
import { isZip, readZip } from "./zip";

export const MANIFEST = "manifest.json";

const WAIT = "Wait until the bundle is completely copied or synchronised, then try again.";
const LFS_POINTER = "version https://git-lfs.github.com/spec/";

/** A bundle: the URL of a folder or zip, the zip itself, or every file by its path. */
export type Source = string | URL | Blob | ReadonlyMap<string, Uint8Array>;

/** Bytes of one file that have arrived; `total` is null if the server does not tell. */
export type OnBytes = (loaded: number, total: number | null) => void;

/** The files of a bundle. */
export interface Container {
  /** Name of the bundle, for messages. */
  readonly where: string;
  /** Names of all files; null where they cannot be listed, as over HTTP. */
  readonly names: readonly string[] | null;
  /** Names of files that an operating system left; they are never opened. */
  readonly systemFiles: readonly string[];
  /** Return the content of a file; null if it does not exist. */
  read(name: string, onBytes?: OnBytes): Promise<Uint8Array | null>;
}

/** What ends the opening of a bundle, and what hears of a zip's bytes that arrive. */
export interface OpenOptions {
  readonly signal?: AbortSignal;
  readonly onBytes?: OnBytes;
}

/**
 * Open a bundle's files. Nothing outside of the bundle's own URL is fetched.
 *
 * @throws UsageError if there is no bundle.
 * @throws BundleError if the zip is damaged or unsafe.
 */
export async function openContainer(source: Source, options: OpenOptions = {}): Promise<Container> {
  if (source instanceof Map) return new Files("The bundle", source);
  if (source instanceof Blob) {
    const where = "name" in source && source.name ? String(source.name) : "The bundle";
    return unzip(new Uint8Array(await source.arrayBuffer()), where);
  }
  if (typeof source === "string" || source instanceof URL) return openUrl(source, options);
  throw new UsageError(
    `A bundle cannot be loaded from ${quote(source)}. Pass a URL, a File, a Blob or a Map.`,
  );
}

/** Return the error for a file that holds the place of the real one, null if it is real. */
export function absentContent(name: string, data: Uint8Array, where: string): BundleError | null {
  const file = `${quote(name)} in ${where}`;
  if (data.length === 0) return new BundleError(`${file} is empty (0 bytes). ${WAIT}`);
  return isPointer(data) ? lfsPointer(file) : null;
}

class Files implements Container {
  readonly names: readonly string[];
  readonly systemFiles: readonly string[];

  constructor(
    readonly where: string,
    private readonly files: ReadonlyMap<string, Uint8Array>,
  ) {
    const all = [...files.keys()].sort();
    this.names = all.filter((name) => !isSystemFile(name));
    this.systemFiles = all.filter(isSystemFile);
  }

  async read(name: string): Promise<Uint8Array | null> {
    return (!isSystemFile(name) && this.files.get(name)) || null;
  }
}

/** A folder over HTTP; the manifest read when it was opened is kept. */
class HttpFolder implements Container {
  readonly names = null;
  readonly systemFiles: readonly string[] = [];

  constructor(
    private readonly url: URL,
    private readonly manifest: Uint8Array,
    private readonly signal?: AbortSignal,
  ) {}

  get where(): string {
    return this.url.href;
  }

  async read(name: string, onBytes?: OnBytes): Promise<Uint8Array | null> {
    if (name === MANIFEST) return this.manifest;
    if (isSystemFile(name)) return null;
    return download(below(this.url, name), this.signal, onBytes);
  }
}

async function openUrl(source: string | URL, { signal, onBytes }: OpenOptions): Promise<Container> {
  const url = parseUrl(source);
  const isBlob = url.protocol === "blob:"; // It has no files below it.
  const manifest = isBlob ? null : await download(below(url, MANIFEST), signal);
  // A server of single-page applications answers with a page where it has no file.
  if (manifest && !isPage(manifest)) return new HttpFolder(url, manifest, signal);
  const zip = url.pathname.endsWith("/") ? null : await download(url, signal, onBytes);
  if (!zip || isPage(zip)) {
    throw new UsageError(
      `There is no bundle at ${url.href}: it has no ${MANIFEST} and is no zip. Check the URL.`,
    );
  }
  return unzip(zip, url.href);
}

function parseUrl(source: string | URL): URL {
  try {
    return new URL(source);
  } catch {
    throw new UsageError(`${quote(String(source))} is not a URL. Check it.`);
  }
}

/** Return the URL of a bundle's file; a query, such as a signature, is kept. */
function below(folder: URL, name: string): URL {
  const url = new URL(folder);
  const path = name.split("/").map(encodeURIComponent).join("/");
  url.pathname = `${url.pathname.replace(/\/$/, "")}/${path}`;
  return url;
}

/**
 * Return the content of a URL, or null if the server has none.
 *
 * A redirect could lead to another site, so it is an error.
 */
async function download(
  url: URL,
  signal?: AbortSignal,
  onBytes?: OnBytes,
): Promise<Uint8Array | null> {
  try {
    const response = await fetch(url, { redirect: "error", ...(signal && { signal }) });
    if (response.ok) return await readBody(response, onBytes);
    await response.body?.cancel();
    if (response.status === 404 || response.status === 410) return null;
    throw new DermedgeError(
      `The server answered ${response.status} for ${url.href}. Check the URL and the server.`,
    );
  } catch (error) {
    if (error instanceof DermedgeError || signal?.aborted) throw error;
    throw new DermedgeError(
      `Cannot fetch ${url.href} (${firstLine(error)}). Check the connection, and that the server ` +
        "does not redirect and allows this page's origin.",
    );
  }
}

async function readBody(response: Response, onBytes?: OnBytes): Promise<Uint8Array> {
  if (!onBytes || !response.body) return new Uint8Array(await response.arrayBuffer());
  // The length is that of the compressed content if the server compresses.
  const header = response.headers.has("content-encoding")
    ? null
    : response.headers.get("content-length");
  const total = header === null ? null : Number(header);
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let loaded = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    loaded += value.length;
    onBytes(loaded, total);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

function unzip(data: Uint8Array, where: string): Container {
  if (data.length === 0) throw new BundleError(`${where} is empty (0 bytes). ${WAIT}`);
  if (isPointer(data)) throw lfsPointer(where);
  if (!isZip(data)) {
    throw new BundleError(
      `${where} is neither a bundle's folder nor its zip. Name a .dermedge folder or file.`,
    );
  }
  const files = readZip(data, where);
  return new Files(where, files);
}

function isPointer(data: Uint8Array): boolean {
  return startsWith(data, LFS_POINTER);
}

function isPage(data: Uint8Array): boolean {
  return startsWith(data, "<");
}

function startsWith(data: Uint8Array, text: string): boolean {
  return new TextDecoder("latin1").decode(data.subarray(0, text.length)) === text;
}

function lfsPointer(where: string): BundleError {
  return new BundleError(`${where} is a Git LFS pointer, not the file. Run 'git lfs pull'.`);
}
