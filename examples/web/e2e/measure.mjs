/**
 * Measure how many photos get each hint: `node e2e/measure.mjs FOLDER [COUNT]`.
 *
 * Each photo is measured as it is, and after a Gaussian blur, more light or less light.
 * Prints the share of photos by hint.
 */

import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { transformWithOxc } from "vite";

import { startBrowser } from "./browser.mjs";

// Standard deviation of the blur in pixels of the measured square of 256 pixels.
const CHANGES = {
  "as it is": "none",
  "blur 1": "blur(1px)",
  "blur 2": "blur(2px)",
  "blur 3": "blur(3px)",
  "light / 4": "brightness(0.25)",
  "light x 2": "brightness(2)",
};

const [folder, count = "200"] = process.argv.slice(2);
const names = (await readdir(folder)).filter((name) => /\.(png|jpe?g)$/i.test(name)).sort();
const stride = Math.max(1, Math.floor(names.length / Number(count)));
const chosen = names.filter((_, index) => index % stride === 0).slice(0, Number(count));
const source = await readFile(new URL("../src/quality.ts", import.meta.url), "utf8");
const { code } = await transformWithOxc(source, "quality.ts");

const browser = await startBrowser(process.env.CHROMIUM);
const page = await browser.newPage();
await page.evaluate(`globalThis.quality = (() => {
  ${code.replace(/export (const|function)/g, "$1").replace(/export \{[^}]*\};?/g, "")}
  return { SIDE, measure, advise };
})()`);
const hints = Object.fromEntries(Object.keys(CHANGES).map((name) => [name, {}]));
const measures = Object.fromEntries(Object.keys(CHANGES).map((name) => [name, []]));
for (const name of chosen) {
  const photo = (await readFile(join(folder, name))).toString("base64");
  const found = await page.evaluate(measureChanges, { photo, changes: CHANGES });
  for (const [change, { hint, ...quality }] of Object.entries(found)) {
    hints[change][hint] = (hints[change][hint] ?? 0) + 1;
    measures[change].push(quality);
  }
}
await browser.close();
for (const [change, counts] of Object.entries(hints)) {
  const range = (name) => {
    const values = measures[change].map((quality) => quality[name]).sort((a, b) => a - b);
    const at = (share) => values[Math.floor(share * (values.length - 1))].toFixed(2);
    return `${name} ${at(0.05)} to ${at(0.95)}`;
  };
  const shares = Object.entries(counts).map(
    ([hint, number]) => `${hint} ${((100 * number) / chosen.length).toFixed(1)} %`,
  );
  console.log(`${change}: ${[range("blur"), range("brightness"), ...shares].join("; ")}`);
}

async function measureChanges({ photo, changes }) {
  const { SIDE, measure, advise } = globalThis.quality;
  const bytes = Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const cut = Math.min(bitmap.width, bitmap.height);
  const found = {};
  for (const [name, filter] of Object.entries(changes)) {
    const context = new OffscreenCanvas(SIDE, SIDE).getContext("2d");
    context.filter = filter;
    context.imageSmoothingQuality = "high";
    const [x, y] = [(bitmap.width - cut) / 2, (bitmap.height - cut) / 2];
    context.drawImage(bitmap, x, y, cut, cut, 0, 0, SIDE, SIDE);
    const quality = measure(context.getImageData(0, 0, SIDE, SIDE).data);
    found[name] = { ...quality, hint: advise(quality) ?? "fine" };
  }
  return found;
}
