/** Fetch the bundle that the server offers, and keep a copy of it on the device. */

const FOLDER = new URL("bundle/", document.baseURI);
const MANIFEST = "manifest.json";
const PREFIX = "bundle-";
const PARALLEL = 4;

/** A bundle's files, ready for `load`. */
export interface BundleFiles {
  readonly files: Map<string, Uint8Array>;
  /** True if the server did not answer, and the copy on the device is used. */
  readonly offline: boolean;
  /** Keep these files for offline use, and delete older bundles. Call it after `load`. */
  keep(): Promise<void>;
  /** Delete the copy of this bundle, which is damaged. */
  forget(): Promise<void>;
}

/**
 * Fetch all files of the bundle. A file that the device has already is not fetched again.
 *
 * Nothing is kept before `load` has checked the SHA-256 of every file. A new bundle
 * replaces the old one only then, so that a lost connection leaves a model that works.
 *
 * @param onProgress - Called with the number of files that have arrived, and of all.
 */
export async function fetchBundle(
  onProgress: (done: number, total: number) => void,
): Promise<BundleFiles> {
  const answer = await ask(MANIFEST);
  const manifest = answer ?? (await keptManifest());
  if (!manifest) {
    throw new Error(
      "The server does not answer, and this device has no copy of the model. " +
        "Connect to the server, then try again.",
    );
  }
  const { id, names } = readManifest(await manifest.clone().text());
  const cacheName = PREFIX + id;
  const arrived = new Map<string, Blob>([[MANIFEST, await manifest.blob()]]);
  const queue = names.values();

  async function fetchFiles(): Promise<void> {
    for (const name of queue) {
      const response = (await findKept(cacheName, name)) ?? (await fetch(address(name)));
      if (!response.ok) throw new Error(`${name}: ${(await response.text()).trim()}`);
      arrived.set(name, await response.blob());
      onProgress(arrived.size, names.length + 1);
    }
  }

  await Promise.all(Array.from({ length: PARALLEL }, fetchFiles));
  const files = new Map<string, Uint8Array>();
  for (const [name, blob] of arrived) files.set(name, new Uint8Array(await blob.arrayBuffer()));
  return {
    files,
    offline: answer === undefined,
    async keep() {
      const cache = await caches.open(cacheName);
      try {
        for (const [name, blob] of arrived) {
          if (await cache.match(address(name))) continue;
          await cache.put(address(name), new Response(blob));
        }
      } catch (error) {
        await caches.delete(cacheName); // A part of a bundle is no use.
        throw error;
      }
      for (const name of await bundleCaches()) {
        if (name !== cacheName) await caches.delete(name);
      }
    },
    async forget() {
      if ((await bundleCaches()).includes(cacheName)) await caches.delete(cacheName);
    },
  };
}

function address(name: string): string {
  return new URL(name.split("/").map(encodeURIComponent).join("/"), FOLDER).href;
}

async function ask(name: string): Promise<Response | undefined> {
  try {
    const response = await fetch(address(name), { cache: "no-cache" });
    return response.ok ? response : undefined;
  } catch {
    return undefined; // The device is offline, or the server has ended.
  }
}

async function keptManifest(): Promise<Response | undefined> {
  for (const name of await bundleCaches()) {
    const kept = await findKept(name, MANIFEST);
    if (kept) return kept;
  }
  return undefined;
}

/** Read the id and the names of a manifest. `load` checks them and everything else. */
function readManifest(text: string): { id: string; names: string[] } {
  try {
    const { id, files } = JSON.parse(text) as { id: unknown; files: object };
    return { id: String(id), names: Object.keys(files) };
  } catch {
    return { id: "unreadable", names: [] };
  }
}

async function bundleCaches(): Promise<string[]> {
  try {
    return (await caches.keys()).filter((name) => name.startsWith(PREFIX));
  } catch {
    return [];
  }
}

/** Return a file's copy on the device. Unlike `caches.open`, this creates no cache. */
async function findKept(cacheName: string, name: string): Promise<Response | undefined> {
  try {
    return await caches.match(address(name), { cacheName });
  } catch {
    return undefined; // Private windows of some browsers refuse.
  }
}
