/** Start Chromium, and record what a page must not do. */

import { chromium } from "playwright-core";

// Without these switches Chromium itself calls its maker's servers.
const QUIET = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
// A busy machine is slow; nothing waits this long otherwise.
const TIMEOUT = 300_000;
const PHONE = { width: 390, height: 844 };

/**
 * Start the installed Chromium with a fake camera.
 *
 * @param answer What the user answers when the page asks for the camera: `allow` or `deny`.
 */
export function startBrowser(executablePath = "/usr/bin/chromium", answer = "allow") {
  const question = `--use-fake-ui-for-media-stream${answer === "deny" ? "=deny" : ""}`;
  const args = [...QUIET, "--use-fake-device-for-media-stream", question];
  return chromium.launch({ executablePath, args });
}

/**
 * Open the page in a context of its own.
 *
 * `faults` collects requests to other origins, errors of the page, and lines of its console.
 */
export async function openPage(browser, url, options = {}, prepare = async () => {}) {
  const context = await browser.newContext({
    viewport: PHONE,
    hasTouch: true,
    isMobile: true,
    reducedMotion: "reduce", // Without a GPU, an animation takes much of a processor.
    ...options,
  });
  const faults = [];
  context.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    const local = ["blob:", "data:"].includes(protocol) || origin === new URL(url).origin;
    if (!local) faults.push(`request to ${request.url()}`);
    if (request.method() !== "GET") faults.push(`${request.method()} ${request.url()}`);
  });
  context.on("weberror", (error) => faults.push(`error: ${error.error().message}`));
  context.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) {
      faults.push(`console ${message.type()}: ${message.text()} ${message.location().url}`);
    }
  });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  page.setDefaultNavigationTimeout(TIMEOUT);
  await prepare(page);
  await page.goto(url);
  return { page, context, faults };
}

/** Wait until the model is loaded; fail early with the message of the page. */
export async function ready(page) {
  const problem = page.locator("#problem:not([hidden])");
  await page.locator("body[data-ready], #problem:not([hidden])").first().waitFor();
  if (await problem.count()) throw new Error(`the page says: ${await problem.innerText()}`);
}

/** Choose a photo and return what the page shows: a result, or a problem. */
export async function predict(page, path) {
  await page.setInputFiles("#file", path);
  await page.locator("body[aria-busy=false]").waitFor();
  return await shown(page);
}

/** Return the result and the problem that the page shows. */
export async function shown(page) {
  const text = async (selector) => {
    const found = page.locator(selector);
    return (await found.isVisible()) ? (await found.innerText()).trim() : null;
  };
  const result = await text("#result");
  return {
    problem: await text("#problem"),
    result,
    announced: await page.locator("#announce").textContent(),
    json: result === null ? null : JSON.parse(await page.locator("#json").textContent()),
    names: await page.locator("#diagnoses .name").allInnerTexts(),
    values: await page.locator("#diagnoses .value").allInnerTexts(),
    hint: await text("#hint"),
  };
}
