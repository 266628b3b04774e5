/** Build step that copies the engines' WebAssembly files into `dist/engines`. */

import { copyFile, mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { defaultClientConditions, type Plugin } from "vite";

const require = createRequire(import.meta.url);
const ONNXRUNTIME = dirname(require.resolve("onnxruntime-web/wasm"));
const LITERT = join(dirname(require.resolve("@litertjs/core/package.json")), "wasm");

/** The licences of these files, which the npm packages leave out. */
const NOTICE = fileURLToPath(new URL("../engines-notice.txt", import.meta.url));

/** Every file that an engine loads at run time; a page loads one pair of them. */
export const ENGINE_FILES: readonly string[] = [
  ...both(ONNXRUNTIME, "ort-wasm-simd-threaded", "mjs"),
  ...both(LITERT, "litert_wasm_internal", "js"), // one thread, and WebGPU
  ...both(LITERT, "litert_wasm_threaded_internal", "js"),
  ...both(LITERT, "litert_wasm_compat_internal", "js"), // for browsers without relaxed SIMD
];

/** Return the Vite plugin. */
export function engineFiles(): Plugin {
  return {
    name: "engine-files",
    // Leaves ONNX Runtime's WebAssembly outside of the script that loads it; else Vite
    // writes 19 MB of base64 into that script.
    config: () => ({
      resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
    }),
    async writeBundle({ dir }) {
      const folder = join(dir!, "engines");
      await mkdir(folder, { recursive: true });
      for (const file of ENGINE_FILES) await copyFile(file, join(folder, basename(file)));
      await copyFile(NOTICE, join(folder, "NOTICE.txt"));
    },
  };
}

function both(folder: string, stem: string, script: "js" | "mjs"): readonly string[] {
  return [join(folder, `${stem}.${script}`), join(folder, `${stem}.wasm`)];
}
