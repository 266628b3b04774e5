/**
 * Service worker: keeps the page and the engine, and answers with them also offline.
 *
 * The page keeps the bundle itself, because it checks the files (`bundle.ts`).
 */

/** Written by vite.config.ts: a digest of the page, its files, and those of the engines. */
declare const BUILD: {
  readonly version: string;
  readonly shell: readonly string[];
  readonly engines: readonly string[];
};

const worker = self as unknown as ServiceWorkerGlobalScope;
const PREFIX = "page-";
const CACHE = PREFIX + BUILD.version;
const ROOT = new URL("./", worker.location.href);

worker.addEventListener("install", (event) => event.waitUntil(install()));
worker.addEventListener("activate", (event) => event.waitUntil(activate()));
worker.addEventListener("message", (event) => {
  if (event.data === "activate") void worker.skipWaiting();
});
worker.addEventListener("fetch", (event) => {
  const name = fileName(event.request);
  if (name !== null) event.respondWith(answer(event.request, name));
});

async function install(): Promise<void> {
  // An engine has megabytes, so that only the one in use is kept: the page's first model
  // load fetches it, and a newer page needs it again before it is offline.
  const used = (await keptNames()).filter((name) => BUILD.engines.includes(name));
  const cache = await caches.open(CACHE);
  const names = [...BUILD.shell, ...used];
  await cache.addAll(names.map((name) => new Request(new URL(name, ROOT), { cache: "reload" })));
}

async function activate(): Promise<void> {
  for (const name of await pageCaches()) if (name !== CACHE) await caches.delete(name);
  await worker.clients.claim();
}

/** Return the name of the page's file that a request is for, or null. */
function fileName({ method, url }: Request): string | null {
  const { origin, pathname } = new URL(url);
  if (method !== "GET" || origin !== ROOT.origin || !pathname.startsWith(ROOT.pathname)) return null;
  const name = decodeURIComponent(pathname.slice(ROOT.pathname.length)) || "index.html";
  return BUILD.shell.includes(name) || BUILD.engines.includes(name) ? name : null;
}

async function answer(request: Request, name: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  const address = new URL(name, ROOT);
  const kept = await cache.match(address);
  if (kept) return kept;
  const response = await fetch(request);
  if (response.ok) await cache.put(address, response.clone());
  return response;
}

async function pageCaches(): Promise<string[]> {
  return (await caches.keys()).filter((name) => name.startsWith(PREFIX));
}

async function keptNames(): Promise<string[]> {
  const names: string[] = [];
  for (const cache of await pageCaches()) {
    const requests = await (await caches.open(cache)).keys();
    names.push(...requests.map(({ url }) => url.slice(ROOT.href.length)));
  }
  return names;
}
