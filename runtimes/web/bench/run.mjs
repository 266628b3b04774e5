/**
 * Measure bundles in Chromium, all in one session and in turns.
 *
 *     npm run build && npm run bench -- BUNDLE... -o DIR [--rounds 20] [--predictions 10000]
 *
 * A bundle is a folder or a zip. Each runs with one thread and with all that a page may
 * use. The plain export, an fp32 ONNX bundle with one thread, is the baseline of the
 * ratios. `--predictions 0` skips the slow measurement of memory. Writes DIR/results.json and DIR/results.md.
 */

import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { availableParallelism, cpus, loadavg, tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { launch } from "../scripts/chromium.mjs";
import { ISOLATION, serve } from "../scripts/server.mjs";
import { markdown, summarize } from "./table.mjs";

const CALLS = 5; // timed calls per turn, after one untimed call
const STARTS = 5;
const PHOTOGRAPH = [600, 450];

const { values, positionals: bundles } = parseArgs({
  allowPositionals: true,
  options: {
    output: { type: "string", short: "o" },
    rounds: { type: "string", default: "20" },
    predictions: { type: "string", default: "10000" },
  },
});
if (!values.output || bundles.length === 0) {
  console.error("Usage: npm run bench -- BUNDLE... -o DIR [--rounds 20] [--predictions 10000]");
  process.exit(2);
}

const here = dirname(fileURLToPath(import.meta.url));
const profile = await mkdtemp(join(tmpdir(), "dermedge-bench-"));
const folders = Object.fromEntries(
  bundles.map((path, index) => [`/bundles/${index}/`, dirname(resolve(path))]),
);
const server = await serve({ "/dist/": join(here, "../dist"), "/bench/": here, ...folders }, ISOLATION);
// Without this feature Chromium measures memory at some later garbage collection only.
const context = await launch(profile, ["--enable-blink-features=ForceEagerMeasureMemory"]);
try {
  const page = await context.newPage();
  await page.goto(server.origin);
  await page.evaluate('(async () => { globalThis.bench = await import("/bench/page.js"); })()');
  const results = await measure(page);
  await mkdir(values.output, { recursive: true });
  await writeFile(join(values.output, "results.json"), `${JSON.stringify(results, null, 2)}\n`);
  await writeFile(join(values.output, "results.md"), markdown(results));
  console.log(markdown(results));
} finally {
  await context.close();
  await server.close();
  await rm(profile, { recursive: true, force: true });
}

async function measure(page) {
  const load = loadavg()[0];
  const models = [];
  for (const [index, path] of bundles.entries()) {
    for (const threads of new Set([1, Math.min(4, availableParallelism())])) {
      const url = `/bundles/${index}/${basename(path)}`;
      models.push(await page.evaluate((options) => bench.open(options), { url, threads }));
    }
  }
  await page.evaluate((size) => bench.draw(...size), PHOTOGRAPH);
  for (let round = 0; round < Number(values.rounds); round++) {
    for (const [index, model] of models.entries()) {
      const times = await page.evaluate(
        ([index, calls]) => bench.turn(index, calls),
        [index, CALLS],
      );
      (model.times ??= []).push(...times);
    }
  }
  for (const [index, model] of models.entries()) {
    if (model.threads > 1) continue;
    model.starts_ms = await page.evaluate(([index, starts]) => bench.start(index, starts), [index, STARTS]);
  }
  const memory = {};
  const engines = Number(values.predictions) ? models.map((model) => model.engine) : [];
  for (const engine of new Set(engines)) {
    // The smallest file of each engine: the growth of a call does not depend on the size.
    const [index, model] = [...models.entries()]
      .filter(([, one]) => one.engine === engine && one.threads === 1)
      .sort(([, one], [, other]) => one.bytes - other.bytes)[0];
    memory[engine] = await page.evaluate(
      ([index, count]) => bench.repeat(index, count),
      [index, Number(values.predictions)],
    );
    memory[engine].bundle = model.name;
  }
  return summarize({
    browser: await page.evaluate(() => navigator.userAgent),
    machine: `${cpus()[0].model.trim()}, ${availableParallelism()} cores`,
    load_average: [load, loadavg()[0]],
    photograph: PHOTOGRAPH,
    memory,
    models,
  });
}
