import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { BundleError, EngineError, ImageError } from "../src/errors";
import type { JsonObject } from "../src/spec";
import { openEngine, Session } from "../src/session";
import { verify } from "../src/verify";
import { readZip } from "../src/zip";
import { expectClose } from "./close";
import { cases, read } from "./conformance";

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

// ONNX Runtime Web runs in Node too; LiteRT.js needs a browser.
const TOY = "bundles/toy-onnx.zip";
const OPTIONS = { assets: new URL("../node_modules/onnxruntime-web/dist/", import.meta.url).href };

const file = (path: string) => new Blob([read(path) as Uint8Array<ArrayBuffer>]);

/** Verify a bundle with an engine that is closed afterwards. */
async function verifyFile(path: string) {
  const engines: { close(): Promise<void> }[] = [];
  const report = await verify(file(path), async (bundle, model) => {
    const engine = await openEngine(bundle, model, OPTIONS);
    engines.push(engine);
    return engine;
  });
  await Promise.all(engines.map((engine) => engine.close()));
  return report;
}

describe("a session", () => {
  let session: Session;

  beforeAll(async () => {
    session = await Session.open(file(TOY), OPTIONS);
  });

  afterAll(() => session.close());

  test.each(cases<PredictionCase>("predictions.json").filter(({ bundle }) => bundle === TOY))(
    "gives Python's prediction for $image",
    async ({ image, prediction, cam }) => {
      const predicted = await session.predict(file(image));
      const { timing, provenance, ...fields } = predicted;
      expectClose(fields, prediction, 1e-6);
      const { height, width, values } = predicted.cam!;
      expectClose({ shape: [height, width], values: [...values] }, cam, 1e-6);
      expect(timing?.engine_ms).toBeGreaterThan(0);
      expect(provenance).toEqual(session.provenance);
    },
  );

  test("predicts as before after images that it refuses", async () => {
    const before = await session.predict(file("images/alpha.png"));
    for (const image of ["images/truncated.png", "images/huge.png", "images/drawing.svg"]) {
      await expect(session.predict(file(image))).rejects.toThrow(ImageError);
    }
    const { labels, mask } = await session.predict(file("images/alpha.png"));
    expect({ labels, mask }).toEqual({ labels: before.labels, mask: before.mask });
  });

  test("leaves the mask out of the JSON", async () => {
    const prediction = await session.predict(file("images/rgb.png"));
    const { size } = session.bundle.spec.preprocess;
    expect(prediction.mask).toHaveLength(size * size);
    expect(Object.keys(JSON.parse(JSON.stringify(prediction)))).not.toContain("mask");
  });

  test("stops between preprocessing and the engine if the signal is aborted", async () => {
    const controller = new AbortController();
    const predicting = session.predict(file("images/rgb.png"), controller.signal);
    controller.abort();
    await expect(predicting).rejects.toMatchObject({ name: "AbortError" });
  });

  test("refuses a model of a changed bundle before the engine sees it", async () => {
    const files = new Map(readZip(read(TOY), "toy"));
    files.set("model.onnx", files.get("model.onnx")!.slice(0, 100));
    await expect(Session.open(files, OPTIONS)).rejects.toThrow(BundleError);
  });

  test("refuses a bundle that requires another version of the engine", async () => {
    const bundle = file("bundles/verify-requires-more1000.zip");
    const opening = Session.open(bundle, OPTIONS);
    await expect(opening).rejects.toThrow(EngineError);
    await expect(opening).rejects.toThrow("onnxruntime>=1000");
  });
});

describe("verify", () => {
  test.each(cases<VerifyCase>("verify.json"))("of $bundle: $status", async (one) => {
    const report = await verifyFile(one.bundle);
    expect(report.checks.map(({ name, status }) => ({ name, status }))).toEqual(one.checks);
    expect(report.status).toBe(one.status);
    const stopped = report.checks.find(({ status }) => status !== "passed");
    for (const text of one.mentions) expect(stopped?.detail).toContain(text);
  });

  test.each([
    ["verify-labels-temperature", /but temperature [\d.]+ gives the golden prediction/],
    ["verify-score-temperature", /but temperature [\d.]+ gives the golden prediction/],
    ["verify-order-of-labels", /in another order than at the export/],
    ["verify-threshold", /threshold 0\.45\. Export the model again/],
  ])("names why %s decodes differently", async (name, cause) => {
    const { checks } = await verifyFile(`bundles/${name}.zip`);
    expect(checks[3].detail).toMatch(cause);
  });
});
