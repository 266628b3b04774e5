/** Build the library and open it in Chromium. */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import type { BrowserContext, Page } from "playwright-core";
import { build } from "vite";

import { launch } from "../../scripts/chromium.mjs";
import { ISOLATION, serve } from "../../scripts/server.mjs";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CONFORMANCE = fileURLToPath(new URL("../../../../tests/conformance", import.meta.url));

/** The functions that a test calls inside the page. */
declare global {
  var dermedge: typeof import("../../src/index");
  var internals: typeof import("./internals");
}

/** A page with the built library as `dermedge`, and every address that it requested. */
export interface Opened {
  readonly page: Page;
  readonly origin: string;
  readonly requests: readonly string[];
}

/** The built library, served with and without isolation, and a browser. */
export class Browser {
  private readonly servers: { close(): Promise<void> }[] = [];

  private constructor(
    private readonly folder: string,
    private readonly context: BrowserContext,
  ) {}

  static async start(): Promise<Browser> {
    const folder = await mkdtemp(join(tmpdir(), "dermedge-web-"));
    const quiet = { root: ROOT, logLevel: "error" } as const;
    await build({ ...quiet, build: { outDir: join(folder, "dist"), sourcemap: false } });
    const entry = { internals: join(ROOT, "test/browser/internals.ts") };
    await build({
      ...quiet,
      configFile: false,
      build: { outDir: join(folder, "test"), lib: { entry, formats: ["es"] } },
    });
    return new Browser(folder, await launch(join(folder, "profile")));
  }

  /** Open a page; its server sends `headers`. */
  async open(headers: Readonly<Record<string, string>> = ISOLATION): Promise<Opened> {
    const folders = {
      "/dist/": join(this.folder, "dist"),
      "/test/": join(this.folder, "test"),
      "/made/": join(this.folder, "made"),
      "/": CONFORMANCE,
    };
    const server = await serve(folders, headers);
    this.servers.push(server);
    const page = await this.context.newPage();
    const requests: string[] = [];
    page.on("request", (request) => requests.push(request.url()));
    await page.goto(server.origin);
    // As text, because Vite rewrites an `import` of this file.
    await page.evaluate(`(async () => {
      globalThis.dermedge = await import("/dist/index.js");
      globalThis.internals = await import("/test/internals.js");
    })()`);
    return { page, origin: server.origin, requests };
  }

  /** Return the path of a file to write, which the page finds at `/made/`. */
  made(name: string): string {
    return join(this.folder, "made", name);
  }

  async close(): Promise<void> {
    await this.context.close();
    for (const server of this.servers) await server.close();
    await rm(this.folder, { recursive: true, force: true });
  }
}
