/** Test the model of a page: its images, its camera, and how its calls end. */

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { hasChromium } from "../../scripts/chromium.mjs";
import { expectClose } from "../close";
import { Browser, type Opened } from "./pages";

const TOY = "/bundles/toy-onnx.zip";

declare global {
  var model: import("../../src/index").Model;
  var canvas: HTMLCanvasElement;
  /** Return the error of a promise as `NAME: MESSAGE`, and "none" without one. */
  var failure: (promise: Promise<unknown>) => Promise<string>;
}

describe.skipIf(!hasChromium)("the model of a page", { timeout: 300_000 }, () => {
  let browser: Browser;
  let opened: Opened;

  beforeAll(async () => {
    browser = await Browser.start();
    opened = await browser.open();
    await opened.page.evaluate(async (url) => {
      globalThis.model = await dermedge.load(url);
      globalThis.failure = (promise) =>
        promise.then(
          () => "none",
          (error: Error) => `${error.name}: ${error.message}`,
        );
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [80, 60];
      const context = canvas.getContext("2d")!;
      let red = 0;
      const paint = (): void => {
        context.fillStyle = `rgb(${(red += 7) % 256}, 90, 70)`;
        context.fillRect(0, 0, 80, 60);
        setTimeout(paint, 20);
      };
      paint();
      globalThis.canvas = canvas;
    }, TOY);
  }, 300_000);

  afterAll(() => browser?.close(), 300_000);

  test("opaque pixels from every source give the prediction of the file", async () => {
    const predictions = await opened.page.evaluate(async () => {
      const file = await (await fetch("/images/rgb.png")).blob();
      const image = new Image();
      image.src = "/images/rgb.png";
      await image.decode();
      const bitmap = await createImageBitmap(file);
      const drawn = document.createElement("canvas");
      [drawn.width, drawn.height] = [bitmap.width, bitmap.height];
      const context = drawn.getContext("2d")!;
      context.drawImage(bitmap, 0, 0);
      const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
      const offscreen = new OffscreenCanvas(bitmap.width, bitmap.height);
      offscreen.getContext("2d")!.drawImage(bitmap, 0, 0);
      const bytes = await file.arrayBuffer();
      const frame = new VideoFrame(bitmap, { timestamp: 0 });
      const sources = [file, bytes, new Uint8Array(bytes), image, drawn, pixels, offscreen];
      const results = [];
      for (const source of [...sources, bitmap, bitmap, frame]) {
        const { timing, ...fields } = await model.predict(source);
        results.push(fields);
      }
      frame.close();
      return results;
    });
    for (const prediction of predictions) expectClose(prediction, predictions[0], 0);
  });

  test("a stream drops frames, and ends with its signal, its camera or a break", async () => {
    const counts = await opened.page.evaluate(async () => {
      const video = document.createElement("video");
      video.muted = true;
      const camera = canvas.captureStream();
      video.srcObject = camera;
      await video.play();
      const count = async (stop: (seen: number) => boolean, signal?: AbortSignal) => {
        let seen = 0;
        for await (const prediction of model.stream(video, signal ? { signal } : {})) {
          if (prediction.labels.length && stop(++seen)) break;
        }
        return seen;
      };
      const controller = new AbortController();
      return [
        await count((seen) => seen === 2),
        await count((seen) => (seen === 3 ? controller.abort() : null, false), controller.signal),
        await count((seen) => {
          if (seen === 4) for (const track of camera.getTracks()) track.stop();
          return false;
        }),
      ];
    });
    expect(counts).toEqual([2, 3, 4]);
  });

  test("calls that are aborted reject, and later ones succeed", async () => {
    const results = await opened.page.evaluate(async () => {
      const before = AbortSignal.abort(new Error("no longer needed"));
      const controller = new AbortController();
      const running = model.predict(canvas, { signal: controller.signal });
      controller.abort();
      return [
        await failure(model.predict(canvas, { signal: before })),
        await failure(running),
        await failure(dermedge.load("/bundles/toy-onnx.zip", { signal: before })),
        await failure(model.predict(canvas)),
      ];
    });
    expect(results[0]).toBe("Error: no longer needed");
    expect(results[1]).toContain("AbortError");
    expect(results[2]).toBe("Error: no longer needed");
    expect(results[3]).toBe("none");
  });

  test("wrong arguments are named with what to do", async () => {
    const results = await opened.page.evaluate(async () => {
      const url = "/bundles/toy-onnx.zip";
      return [
        await failure(model.predict("lesion.png" as unknown as Blob)),
        await failure(model.predict(document.createElement("video"))),
        await failure(model.predict(Object.assign(new Image(), { src: "/none.png" }))),
        await failure(dermedge.load("/none.dermedge")),
        await failure(dermedge.load(5 as unknown as string)),
        await failure(dermedge.load(url, { threads: 0 })),
        await failure(dermedge.load(url, { engine: "tensorflow" })),
        await failure(dermedge.load(url, { workerUrl: "/none.js" })),
      ];
    });
    const expected = [
      "ImageError: A string is not an image. Pass",
      "ImageError: The video has no frame yet. Wait",
      "/none.png is not loaded or not readable. Check",
      "UsageError: There is no bundle at",
      "UsageError: A bundle cannot be loaded from 5. Pass",
      "UsageError: threads is 0. Use",
      "UsageError: Unknown engine 'tensorflow'. Use",
      "DermedgeError: The worker /none.js does not start",
    ];
    expected.forEach((text, index) => expect(results[index]).toContain(text));
  });

  test("bench reports the keys of Python for an image of the caller", async () => {
    const report = await opened.page.evaluate(async () => {
      const image = await (await fetch("/images/rgb.png")).blob();
      return model.bench({ image, runs: 3, warmup: 1 });
    });
    expect(report.end_to_end.count).toBe(3);
    expect(report.cold_start_ms).toBeGreaterThan(report.engine_only.p50);
    expect(Object.keys(report).sort()).toEqual([
      ...["bundle", "cold_start_ms", "cpus", "device", "end_to_end", "engine"],
      ...["engine_only", "engine_version", "image", "preprocess", "resident_bytes"],
      ...["sustained", "threads"],
    ]);
  });

  test("a closed model ends its calls first, and then says that it is closed", async () => {
    const results = await opened.page.evaluate(async () => {
      const zip = await (await fetch("/bundles/toy-onnx.zip")).blob();
      const other = await dermedge.load(zip);
      const running = other.predict(canvas.getContext("2d")!.getImageData(0, 0, 80, 60));
      await Promise.resolve(); // The image is on its way to the worker.
      const closing = other.close();
      const results = [await failure(running), await failure(other.predict(canvas))];
      await closing;
      await other.close();
      return [...results, await failure(other.verify()), await failure(model.predict(canvas))];
    });
    const closed = "UsageError: The model 'toy' is closed. Load its bundle again.";
    expect(results).toEqual(["none", closed, closed, "none"]);
  });
});
