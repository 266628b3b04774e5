/**
 * Use the page in a real Chromium: `node e2e/page.mjs SCENARIO OPTIONS`.
 *
 * OPTIONS is JSON: `url` of a running `dermedge serve`, `chromium` (path), and what the
 * scenario needs. The result is printed as JSON; `tests/examples/test_page.py` checks it.
 */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

import { openPage, predict, ready, shown, startBrowser } from "./browser.mjs";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Load, predict, go offline, reload, predict again, run the self-test, open the camera. */
async function journey(browser, { url, photo, out }) {
  const sharp = out ? { deviceScaleFactor: 2 } : {};
  const { page, context, faults } = await openPage(browser, url, sharp);
  const violations = [];
  const look = async (name) => violations.push(...(await lookAt(page, name, out)));
  await ready(page);
  const isolated = await page.evaluate(() => crossOriginIsolated);
  const offlineText = await page.locator("#offline").innerText();
  await look("start");
  const first = await predict(page, photo);
  const outline = await countOutline(page);
  await look("result");

  await context.setOffline(true);
  await page.reload();
  await ready(page);
  const offline = await predict(page, photo);
  const selfTest = await runSelfTest(page);
  const provenance = await page.locator("#provenance").innerText();
  const about = await page.locator("#about-body").innerText();
  for (const summary of await page.locator("summary").all()) await summary.click();
  await look("all");
  await page.click("#camera");
  await page.locator("#hint:not(:empty)").waitFor();
  await look("camera");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  await context.close();
  const seen = { first, outline, offline, selfTest, provenance, about };
  return { isolated, offlineText, ...seen, faults, violations, wide };
}

/** Return what is not accessible in each colour scheme; save screenshots if there is a folder. */
async function lookAt(page, name, out) {
  const violations = [];
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    violations.push(...(await audit(page)).map((each) => `${name} ${colorScheme}: ${each}`));
    if (!out) continue;
    const path = join(out, `${name}-${colorScheme}.png`);
    await page.screenshot({ path, fullPage: name === "all" });
  }
  return violations;
}

async function audit(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
}

async function runSelfTest(page) {
  await page.click("#self-test");
  await page.locator("#self-test-status").waitFor();
  return {
    status: await page.locator("#self-test-status").innerText(),
    checks: await page.locator(".checks li").allInnerTexts(),
  };
}

/** Return the number of pixels of the photo in the colour of the outline. */
function countOutline(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector("#photo");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (data[i] === 0x5f && data[i + 1] === 0xf0 && data[i + 2] === 0xe0) count++;
    }
    return count;
  });
}

/** Show one result, in both colour schemes. */
async function result(browser, { url, photo, out, name }) {
  const { page, context, faults } = await openPage(browser, url);
  await ready(page);
  const seen = await predict(page, photo);
  const ticks = await page.locator("#decision .tick").count();
  const violations = await lookAt(page, name, out);
  await context.close();
  return { ...seen, ticks, violations, faults };
}

/** Choose files that are no usable photos; after each the model still answers. */
async function files(browser, { url, photo, bad }) {
  const { page, context, faults } = await openPage(browser, url);
  await ready(page);
  const shownFor = {};
  for (const path of bad) {
    const { problem, result } = await predict(page, path);
    shownFor[path] = { problem, result, after: (await predict(page, photo)).json };
  }
  await context.close();
  return { shownFor, faults };
}

/** Load the page where something is damaged or missing; then repair it and try again. */
async function damage(browser, { url, model, photo }) {
  const results = {};
  const tamper = (change) => async (page) =>
    page.route(`**/bundle/${model}`, async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: change(await response.body()) });
    });
  const flip = (body) => Buffer.concat([body.subarray(0, -1), Buffer.from([body.at(-1) ^ 1])]);
  const cases = {
    changed: tamper(flip),
    truncated: tamper((body) => body.subarray(0, body.length / 2)),
    gone: (page) => page.route("**/bundle/**", (route) => route.abort()),
    missing: (page) =>
      page.route(`**/bundle/${model}`, (route) => route.fulfill({ status: 404, body: "none" })),
    other: (page) =>
      page.route("**/bundle/manifest.json", (route) => route.fulfill({ body: "<!doctype html>" })),
  };
  for (const [name, prepare] of Object.entries(cases)) {
    // Requests of a service worker do not pass through these routes.
    const { page, context } = await openPage(browser, url, { serviceWorkers: "block" }, prepare);
    await page.locator("#problem:not([hidden])").waitFor();
    const { problem } = await shown(page);
    const kept = await page.evaluate(async () => await caches.keys());
    await page.unrouteAll();
    await page.click("#retry");
    await ready(page);
    results[name] = { problem, kept, after: (await predict(page, photo)).json };
    await context.close();
  }
  const { page, context } = await openPage(browser, url, {}, (each) =>
    each.addInitScript(() => delete globalThis.WebAssembly),
  );
  await page.locator("#problem:not([hidden])").waitFor();
  results["no WebAssembly"] = await shown(page);
  await context.close();
  return results;
}

/** Open a page whose model the engine refuses. */
async function refused(browser, { url }) {
  const { page, context, faults } = await openPage(browser, url);
  await page.locator("#problem:not([hidden])").waitFor();
  const result = { ...(await shown(page)), faults };
  await context.close();
  return result;
}

/** Take a photo with the fake camera; stop it; then open it without permission. */
async function camera(browser, { url, photo, chromium }) {
  const { page, context, faults } = await openPage(browser, url);
  await ready(page);
  await page.click("#camera");
  await page.locator("#hint:not(:empty)").waitFor();
  const hint = await page.locator("#hint").innerText();
  const focused = await page.evaluate(() => document.activeElement.id);
  await page.click("#shoot");
  await page.locator("#result:not([hidden])").waitFor();
  const taken = await shown(page);
  const live = () => page.evaluate(() => document.querySelector("#video").srcObject !== null);
  const afterShot = await live();
  await page.click("#camera");
  await page.locator("#stop").waitFor();
  const whileOpen = await live();
  await page.click("#stop");
  const afterStop = await live();
  await context.close();

  const strict = await startBrowser(chromium, "deny");
  const denied = await openPage(strict, url);
  await ready(denied.page);
  await denied.page.click("#camera");
  await denied.page.locator("#problem:not([hidden])").waitFor();
  const { problem } = await shown(denied.page);
  const after = await predict(denied.page, photo);
  await strict.close();
  return {
    hint,
    focused,
    taken,
    live: { afterShot, whileOpen, afterStop },
    denied: { problem, after: after.json, afterProblem: after.problem },
    faults: [...faults, ...denied.faults],
  };
}

/** Use the page with the keyboard only. */
async function keyboard(browser, { url, photo }) {
  const { page, context, faults } = await openPage(browser, url, { isMobile: false });
  // Asked for here, because Chromium needs a moment until it reports a file chooser.
  const asked = page.waitForEvent("filechooser");
  await ready(page);
  const order = [];
  for (let count = 0; count < 6; count++) {
    await page.keyboard.press("Tab");
    order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.className));
  }
  await page.locator("#file").focus();
  await page.keyboard.press("Enter");
  await (await asked).setFiles(photo);
  await page.locator("#result:not([hidden])").waitFor();
  const focused = await page.evaluate(() => document.activeElement.id);
  await page.locator("#self-test").focus();
  await page.keyboard.press("Enter");
  await page.locator("#self-test-status").waitFor();
  const still = await page.evaluate(() => document.activeElement.id);
  const { announced } = await shown(page);
  await context.close();
  return { order, focused, still, announced, faults };
}

/** Load a bundle; then the same address with another one, first offline, then online. */
async function update(browser, { url, nextUrl }) {
  const { page, context, faults } = await openPage(browser, url);
  await ready(page);
  const read = async () => ({
    provenance: await page.locator("#provenance").innerText(),
    caches: await page.evaluate(async () => (await caches.keys()).sort()),
  });
  const before = await read();
  await context.setOffline(true);
  await page.reload();
  await ready(page);
  const offline = await read();
  await context.setOffline(false);
  // The other server stands for this one with a newer bundle.
  await context.route("**/bundle/**", async (route) => {
    const address = route.request().url().replace(new URL(url).origin, new URL(nextUrl).origin);
    await route.fulfill({ response: await route.fetch({ url: address }) });
  });
  await page.reload();
  await ready(page);
  const after = await read();
  await context.close();
  return { before, offline, after, faults };
}

const scenarios = { journey, result, files, damage, refused, camera, keyboard, update };
const [name, options] = [process.argv[2], JSON.parse(process.argv[3])];
const browser = await startBrowser(options.chromium);
try {
  console.log(JSON.stringify(await scenarios[name](browser, options)));
} finally {
  await browser.close();
}
