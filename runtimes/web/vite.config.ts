import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

import { engineFiles } from "./scripts/engine-files.ts";

/** Removes the comment that keeps this build, and would keep an app's, from the worker. */
const uncover: Plugin = {
  name: "uncover-worker",
  renderChunk(code) {
    const comment = "/* @vite-ignore */";
    // As many spaces keep the source map right.
    return { code: code.replace(comment, " ".repeat(comment.length)), map: null };
  },
};

export default defineConfig({
  plugins: [engineFiles(), uncover],
  build: {
    target: "es2022",
    minify: true,
    sourcemap: true,
    // The worker is a file of its own, because a strict Content-Security-Policy forbids
    // workers from `blob:` and `data:` addresses.
    lib: {
      entry: { index: "src/index.ts", worker: "src/worker.ts" },
      formats: ["es"],
    },
    rolldownOptions: {
      output: {
        // Vite alone leaves the white space of libraries.
        minify: true,
        entryFileNames: "[name].js",
        chunkFileNames: "chunks/[name]-[hash].js",
      },
    },
  },
  test: {
    include: ["test/**/*.test.ts"],
    environment: "node",
    // Machines that build several things at once are slow.
    testTimeout: 60_000,
  },
});
