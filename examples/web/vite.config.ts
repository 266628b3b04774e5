/** Build the page into the Python package, where `dermedge serve` finds it. */

import { createHash } from "node:crypto";
import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

const here = fileURLToPath(new URL(".", import.meta.url));
const library = resolve(here, "../../runtimes/web/dist");
const ENGINES = "engines/";

/** Copy the engines, and write the list of all files into the service worker. */
function addEngines(): Plugin {
  let out = "";
  return {
    name: "add-engines",
    configResolved(config) {
      out = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      cpSync(join(library, ENGINES), join(out, ENGINES), { recursive: true });
      const names = walk(out).filter((name) => name !== "sw.js").sort();
      const digest = createHash("sha256");
      for (const name of names) digest.update(name).update(readFileSync(join(out, name)));
      const isEngine = (name: string): boolean => name.startsWith(ENGINES);
      const build = {
        version: digest.digest("hex").slice(0, 16),
        shell: names.filter((name) => !isEngine(name)),
        engines: names.filter(isEngine),
      };
      const path = join(out, "sw.js");
      const code = readFileSync(path, "utf8");
      writeFileSync(path, `const BUILD = ${JSON.stringify(build)};\n${code}`);
    },
  };
}

function walk(folder: string, root = folder): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return walk(path, root);
    return [relative(root, path).replaceAll("\\", "/")];
  });
}

export default defineConfig({
  root: here,
  base: "./",
  resolve: {
    alias: [
      { find: /^dermedge$/, replacement: join(library, "index.js") },
      { find: /^dermedge\/worker/, replacement: join(library, "worker.js") },
    ],
  },
  plugins: [addEngines()],
  build: {
    outDir: process.env["PAGE_OUT"] ?? resolve(here, "../../dermedge/page"),
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // The policy of `dermedge serve` allows files of the page only.
    modulePreload: { polyfill: false },
    rolldownOptions: {
      input: { index: resolve(here, "index.html"), sw: resolve(here, "src/sw.ts") },
      output: {
        entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js"),
      },
    },
  },
  worker: { format: "es" },
});
