/** Serve folders to a browser from this machine, for the browser tests and the benchmark. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

/** Headers of a page that may start threads. */
export const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

/** The strictest policy that the package works with. */
export const POLICY =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; " +
  "connect-src 'self'; img-src 'self' blob:";

/**
 * Serve folders at paths of one origin; `/` is an empty page.
 *
 * @param {Readonly<Record<string, string>>} folders - Folder by path, such as `/dist/`.
 * @param {Readonly<Record<string, string>>} [headers] - Further headers of each response.
 * @returns {Promise<{ origin: string, close: () => Promise<void> }>}
 */
export async function serve(folders, headers = {}) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url ?? "/", "http://x").pathname));
    const all = { "Content-Security-Policy": POLICY, "Cache-Control": "max-age=3600", ...headers };
    if (path === "/") {
      response.writeHead(200, { ...all, "Content-Type": "text/html" });
      response.end("<!doctype html><title>dermedge</title><link rel=icon href=data:,>");
      return;
    }
    const prefix = Object.keys(folders).find((start) => path.startsWith(start));
    const file = prefix && join(folders[prefix], path.slice(prefix.length));
    if (!file || !(await stat(file).then((found) => found.isFile(), () => false))) {
      response.writeHead(404, all).end();
      return;
    }
    const type = TYPES[extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { ...all, "Content-Type": type });
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  const close = () =>
    new Promise((resolve) => {
      server.closeAllConnections();
      server.close(() => resolve(undefined));
    });
  return { origin: `http://127.0.0.1:${address.port}`, close: /** @type {any} */ (close) };
}
