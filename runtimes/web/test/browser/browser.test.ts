/** The built library in Chromium: the cases of the conformance folder, and bad input. */

import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { deflateSync } from "node:zlib";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { CHROMIUM, hasChromium } from "../../scripts/chromium.mjs";
import { ISOLATION, POLICY } from "../../scripts/server.mjs";
import type { JsonObject } from "../../src/spec";
import { expectClose } from "../close";
import { type BundleCase, cases, type ImageCase, read } from "../conformance";
import { Browser, type Opened } from "./pages";

interface PredictionCase {
  readonly bundle: string;
  readonly image: string;
  readonly prediction: JsonObject;
  readonly cam: { readonly shape: number[]; readonly values: number[] };
}

interface VerifyCase {
  readonly bundle: string;
  readonly status: string;
  readonly checks: readonly { readonly name: string; readonly status: string }[];
  readonly mentions: readonly string[];
}

interface Thrown {
  readonly name: string;
  readonly message: string;
}

const TOYS = ["bundles/toy-onnx.zip", "bundles/toy-litert.zip"];
const START = 300_000; // on a machine that builds several things at once

if (!hasChromium) console.warn(`Skipped: this machine has no ${CHROMIUM}. Install chromium.`);

describe.skipIf(!hasChromium)("in Chromium", { timeout: START }, () => {
  let browser: Browser;
  let opened: Opened;

  beforeAll(async () => {
    browser = await Browser.start();
    opened = await browser.open();
  }, START);
  afterAll(async () => browser?.close(), START);

  test.each(TOYS)("predictions of %s equal Python's", async (bundle) => {
    const own = cases<PredictionCase>("predictions.json").filter((one) => one.bundle === bundle);
    const results = await opened.page.evaluate(
      async ({ bundle, images }) => {
        const model = await dermedge.load(bundle);
        try {
          const predictions = [];
          for (const image of images) {
            const blob = await (await fetch(image)).blob();
            const prediction = await model.predict(blob);
            const { height, width, values } = prediction.cam!;
            const cam = { shape: [height, width], values: [...values] };
            predictions.push({ fields: { ...prediction }, cam });
          }
          return { predictions, engine: model.engine };
        } finally {
          await model.close();
        }
      },
      { bundle, images: own.map(({ image }) => image) },
    );
    for (const [index, { image, prediction, cam }] of own.entries()) {
      const { timing, provenance, ...rest } = results.predictions[index].fields;
      expectClose(rest, prediction, 1e-6, image);
      expectClose(results.predictions[index].cam, cam, 1e-6, image);
      expect(timing?.engine_ms).toBeGreaterThan(0);
      expect(provenance?.engine).toBe(`${results.engine.name} ${results.engine.version}`);
    }
    expect(own.length).toBeGreaterThan(0);
    expect(results.engine.threads).toBeGreaterThan(1);
  });

  test("images become Python's tensors, or are refused", async () => {
    const images = cases<ImageCase>("images.json");
    const results = await opened.page.evaluate(
      (all) =>
        Promise.all(
          all.map(async ({ image, decoded, preprocess }) => {
            const blob = await (await fetch(decoded ?? image)).blob();
            try {
              const { picture } = await internals.decodeImage(blob, preprocess.background);
              return { tensor: [...new internals.Resizer(preprocess).resize(picture)] };
            } catch (error) {
              const { name, message } = error as Error;
              return { name, message };
            }
          }),
        ),
      images,
    );
    for (const [index, { name, tensor, error, mentions }] of images.entries()) {
      const result = results[index] as Thrown & { tensor?: number[] };
      if (error) expectThrown(result, error, mentions, name);
      else expect(result.tensor, `${name}: ${result.message}`).toEqual([...read(tensor!)]);
    }
  });

  test("damaged bundles are refused", async () => {
    const bundles = cases<BundleCase>("bundles.json");
    const errors = await opened.page.evaluate(
      (paths) =>
        Promise.all(
          paths.map(async (path) => {
            try {
              const url = new URL(path, document.baseURI);
              await internals.openBundle(await internals.openContainer(url), () => false);
              return null;
            } catch (error) {
              const { name, message } = error as Error;
              return { name, message };
            }
          }),
        ),
      bundles.map(({ bundle }) => bundle),
    );
    for (const [index, { name, error, mentions }] of bundles.entries()) {
      if (error) expectThrown(errors[index], error, mentions, name);
      else expect(errors[index], name).toBeNull();
    }
    const damaged = bundles.find(({ error }) => error)!;
    const [thrown] = await errorsOf([damaged.bundle]);
    expectThrown(thrown, damaged.error!, damaged.mentions, "in the worker");
  });

  test("verify gives Python's checks", async () => {
    // One case of each outcome: every report starts an engine. test/session.test.ts has all.
    const all = [
      ...new Map(
        cases<VerifyCase>("verify.json").map((one) => [JSON.stringify(one.checks), one]),
      ).values(),
    ];
    const reports = await opened.page.evaluate(async (paths) => {
      const reports = [];
      for (const path of paths) reports.push(await dermedge.verify(path));
      return reports;
    }, all.map(({ bundle }) => bundle));
    for (const [index, { bundle, status, checks, mentions }] of all.entries()) {
      const report = reports[index];
      const found = report.checks.map(({ name, status }) => ({ name, status }));
      expect({ status: report.status, checks: found }, bundle).toEqual({ status, checks });
      const detail = report.checks.find((check) => check.status !== "passed")?.detail ?? "";
      for (const text of mentions) expect(detail, bundle).toContain(text);
    }
  });

  test.each(TOYS)("images that nothing can read leave %s usable", async (bundle) => {
    const heic = new TextEncoder().encode("\0\0\0\x18ftypheic\0\0\0\0mif1heic");
    const results = await opened.page.evaluate(
      async ({ bundle, files }) => {
        const model = await dermedge.load(bundle);
        const errors = [];
        for (const file of files) {
          const error = await model.predict(new Uint8Array(file)).catch((reason) => reason);
          errors.push({ name: error.name, message: error.message });
        }
        const blob = await (await fetch("images/rgb.png")).blob();
        const { labels } = await model.predict(blob);
        await model.close();
        return { errors, labels };
      },
      {
        bundle,
        files: [
          [...heic],
          [...new TextEncoder().encode('<svg xmlns="http://www.w3.org/2000/svg"/>')],
          [...hugePng(10_000)],
          [...read("images/rgb.png").slice(0, 200)],
          [],
        ],
      },
    );
    const mentions = [["HEI"], ["JPEG or PNG"], ["10000 x 10000"], [], []];
    for (const [index, error] of results.errors.entries()) {
      expectThrown(error, "ImageError", mentions[index], String(index));
    }
    expect(results.labels[0].id).toBe("mel");
  });

  test("a model that HTTP cut short or changed is refused", async () => {
    const zip = read("bundles/toy-litert.zip");
    const changed = zip.slice();
    changed[changed.length >> 1] ^= 1;
    await make("cut.zip", zip.slice(0, zip.length / 2));
    await make("changed.zip", changed);
    const [cut, flipped, gone] = await errorsOf(["made/cut.zip", "made/changed.zip", "made/no"]);
    expectThrown(cut, "BundleError", [], "cut");
    expectThrown(flipped, "BundleError", [], "changed");
    expectThrown(gone, "UsageError", ["made/no"], "gone");
  });

  test("a page without isolation uses one thread", async () => {
    const { page } = await browser.open({});
    for (const bundle of TOYS) {
      const threads = await page.evaluate(async (path) => {
        const model = await dermedge.load(path);
        await model.predict(await (await fetch("images/rgb.png")).blob());
        await model.close();
        return model.engine.threads;
      }, bundle);
      expect(threads, bundle).toBe(1);
    }
    await page.close();
  });

  test("a browser or a policy without WebAssembly is named", async () => {
    await make("without.js", "delete globalThis.WebAssembly;");
    await make("no-webassembly.js", 'import "./without.js"; import "/dist/worker.js";');
    const strict = { "Content-Security-Policy": POLICY.replace(" 'wasm-unsafe-eval'", "") };
    const { page } = await browser.open({ ...ISOLATION, ...strict });
    for (const bundle of TOYS) {
      const [none] = await errorsOf([bundle], { workerUrl: "/made/no-webassembly.js" });
      expectThrown(none, "ElsewhereError", ["no WebAssembly"], bundle);
      const [forbidden] = await errorsOf([bundle], {}, page);
      expectThrown(forbidden, "ElsewhereError", ["Content-Security-Policy"], bundle);
    }
    await page.close();
  });

  test("an engine without its files names their folder", async () => {
    for (const bundle of TOYS) {
      const [error] = await errorsOf([bundle], { assets: "/nowhere/" });
      expectThrown(error, "EngineError", ["/nowhere/", "dist/engines"], bundle);
    }
  });

  // Vitest runs the tests of a file in their order, so this one sees all requests.
  test("no request leaves the page's origin", () => {
    const others = opened.requests.filter(
      (url) => !url.startsWith(opened.origin) && !/^(data|blob):/.test(url),
    );
    expect(others).toEqual([]);
    expect(opened.requests.length).toBeGreaterThan(100);
  });

  async function make(name: string, content: Uint8Array | string): Promise<void> {
    await mkdir(dirname(browser.made(name)), { recursive: true });
    await writeFile(browser.made(name), content);
  }

  function errorsOf(
    paths: readonly string[],
    options: { workerUrl?: string; assets?: string } = {},
    page = opened.page,
  ): Promise<(Thrown | null)[]> {
    return page.evaluate(
      async ({ paths, options }) => {
        const errors = [];
        for (const path of paths) {
          try {
            await (await dermedge.load(path, options)).close();
            errors.push(null);
          } catch (error) {
            const { name, message } = error as Error;
            errors.push({ name, message });
          }
        }
        return errors;
      },
      { paths, options },
    );
  }
});

function expectThrown(
  error: Thrown | null | undefined,
  name: string,
  mentions: readonly string[] = [],
  label = "",
): void {
  expect(error?.name, `${label}: ${error?.message ?? "no error"}`).toBe(name);
  for (const text of mentions) expect(error?.message, label).toContain(text);
}

/** Return a white square PNG of one bit per pixel, small as a file. */
function hugePng(side: number): Uint8Array {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([1, 0, 0, 0, 0], 8);
  const row = Buffer.alloc(1 + Math.ceil(side / 8), 255);
  row[0] = 0;
  const pixels = deflateSync(Buffer.concat(Array.from({ length: side }, () => row)));
  const chunks = [chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...chunks]);
}

function chunk(name: string, content: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(name, "latin1"), content]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(content.length);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}

function crc32(data: Buffer): number {
  let sum = ~0;
  for (const byte of data) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return ~sum >>> 0;
}
