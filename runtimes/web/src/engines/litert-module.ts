/** Load LiteRT.js's WebAssembly module inside a module Worker. */

import type { LiteRt } from "@litertjs/core";

import { EngineError, firstLine } from "../errors";
import { hasRelaxedSimd } from "./webassembly";

/** The functions of LiteRT's WebAssembly module. */
export type LiteRtModule = LiteRt["liteRtWasm"];

interface ModuleOptions {
  locateFile(file: string): string;
  /** Script that each further thread runs. */
  mainScriptUrlOrBlob: string;
  print(line: string): void;
  printErr(line: string): void;
}

type CreateModule = (options: ModuleOptions) => Promise<LiteRtModule>;

interface AmdScope {
  define?: { (names: readonly string[], create: () => CreateModule): void; amd: object };
}

/**
 * Load the module anew; two engines share no memory.
 *
 * @param assets - URL of the folder with the files, ending in `/`.
 * @param threads - Load the build with threads if there is more than one.
 * @param log - Receives each line that the module prints.
 */
export async function loadModule(
  assets: string,
  threads: number,
  log: (line: string) => void,
): Promise<LiteRtModule> {
  const script = `${assets}${scriptName(threads)}`;
  try {
    const create = await importScript(script);
    return await create({
      locateFile: (file) => `${assets}${file}`,
      mainScriptUrlOrBlob: script,
      print: log,
      printErr: log,
    });
  } catch (error) {
    throw new EngineError(
      `LiteRT's file ${script} cannot be loaded (${firstLine(error)}). Serve the package's ` +
        `folder dist/engines at ${assets}.`,
    );
  }
}

/** Return whether LiteRT has a build with threads for this browser. */
export function hasThreads(): boolean {
  return hasRelaxedSimd();
}

function scriptName(threads: number): string {
  if (!hasRelaxedSimd()) return "litert_wasm_compat_internal.js";
  return threads > 1 ? "litert_wasm_threaded_internal.js" : "litert_wasm_internal.js";
}

const scripts = new Map<string, Promise<CreateModule>>();

/**
 * Return the function that the script defines.
 *
 * LiteRT.js's own loader calls `importScripts`, which module Workers do not have
 * (https://github.com/google-ai-edge/LiteRT/pull/7360). The script also knows AMD: it
 * hands its function to a global `define`, if there is one.
 */
function importScript(script: string): Promise<CreateModule> {
  const known = scripts.get(script);
  if (known) return known;
  const imported = (async () => {
    const scope = globalThis as AmdScope;
    let create: CreateModule | undefined;
    scope.define = Object.assign(
      (_names: readonly string[], define: () => CreateModule) => {
        create = define();
      },
      { amd: {} },
    );
    try {
      await import(/* @vite-ignore */ script);
    } finally {
      delete scope.define;
    }
    if (!create) throw new Error("the script defines no module");
    return create;
  })();
  scripts.set(script, imported);
  // A failed download must not last: the next try loads it again.
  imported.catch(() => scripts.delete(script));
  return imported;
}
