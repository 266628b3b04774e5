import { defineConfig } from "vitest/config";

import { engineFiles } from "./scripts/engine-files.ts";

export default defineConfig({
  plugins: [engineFiles()],
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
        entryFileNames: "[name].js",
        chunkFileNames: "chunks/[name]-[hash].js",
      },
    },
  },
  test: {
    include: ["test/**/*.test.ts"],
    environment: "node",
  },
});
