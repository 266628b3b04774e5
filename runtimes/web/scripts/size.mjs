/** Check that the package without its engines stays small; run it after the build. */

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";

const LIMIT = 30_000;
const folder = join(import.meta.dirname, "../dist");

/** Return the script and those that it imports; engines are imported when they are needed. */
function withImports(name, found = new Set()) {
  if (found.has(name)) return found;
  found.add(name);
  const code = readFileSync(join(folder, name), "utf8");
  for (const [, path] of code.matchAll(/\b(?:from|import)\s*["'`](\.[^"'`]+)["'`]/g)) {
    withImports(join(dirname(name), path), found);
  }
  return found;
}

const scripts = withImports("worker.js", withImports("index.js"));
let total = 0;
for (const name of [...scripts].sort()) {
  const { length } = gzipSync(readFileSync(join(folder, name)), { level: 9 });
  console.log(`${String(length).padStart(7)} ${name}`);
  total += length;
}
console.log(`${String(total).padStart(7)} bytes with gzip, of ${LIMIT}`);
const engines = readdirSync(folder).includes("engines") ? "with" : "without";
console.log(`The build is ${engines} the engines' files.`);
if (total > LIMIT) {
  console.error(`The package is ${total - LIMIT} bytes too large. Make it smaller.`);
  process.exitCode = 1;
}
