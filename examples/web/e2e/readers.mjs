/**
 * Use the page of a reader study in a real Chromium: `node e2e/readers.mjs SCENARIO OPTIONS`.
 *
 * OPTIONS is JSON: `url` of a page that `dermedge readers kit` wrote, `chromium` (path), and
 * what the scenario needs. `tests/readers/test_kit.py` checks the result.
 */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

import { openPage, startBrowser } from "./browser.mjs";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const DAY = 86_400_000;

/** Open the page as a file, on a desk, without a network. */
async function open(browser, url) {
  const opened = await openPage(browser, url, {
    viewport: { width: 1280, height: 800 },
    isMobile: false,
    hasTouch: false,
    acceptDownloads: true,
  });
  await opened.context.setOffline(true);
  return opened;
}

async function signIn(page, name, group = "") {
  await page.locator("#reader").fill(name);
  await page.locator("#group").fill(group);
  await page.keyboard.press("Enter");
}

/** Answer one case with the keyboard only. */
async function answer(page, letter, digit) {
  const before = await page.locator("#announce").textContent();
  await page.keyboard.press(letter);
  await page.keyboard.press(digit);
  await page.keyboard.press("Enter");
  await page.waitForFunction(
    (text) => document.querySelector("#reading").hidden || document.querySelector("#announce").textContent !== text,
    before,
  );
}

async function audit(page, name, out) {
  const found = [];
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    // The policy of the page allows no script of others, so the audit comes by the debugger.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document));
    found.push(...violations.map(({ id, nodes }) => `${name} ${colorScheme} ${id}: ${nodes[0].html}`));
    if (out) await page.screenshot({ path: join(out, `readers-${name}-${colorScheme}.png`), fullPage: true });
  }
  return found;
}

/** Let readers answer both lists with the keyboard, and save their answers. */
async function study(browser, { url, readers, save, out }) {
  const faults = [];
  const violations = [];
  const predictions = { "first list": 0, "second list": 0 };
  let wide = false;
  let malignant = 0;
  let total = 0;
  for (const [index, name] of readers.entries()) {
    const { page, context, faults: found } = await open(browser, url);
    const look = async (what) => {
      if (index === 0) violations.push(...(await audit(page, what, out)));
    };
    await look("start");
    await signIn(page, name, index === 0 ? 'residents, "A"' : "");
    for (const list of ["first list", "second list"]) {
      await look(list.replace(" ", "-"));
      wide ||= await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      while (await page.locator("#reading").isVisible()) {
        if (await page.locator("#prediction").isVisible()) predictions[list] += 1;
        const letter = total % 3 === 0 ? "a" : "b";
        if (letter === "a") malignant += 1;
        await answer(page, letter, String(1 + (total % 5)));
        total += 1;
      }
      await look(`${list.replace(" ", "-")}-done`);
      if (list === "first list") {
        await page.locator("#go-on").focus();
        await page.keyboard.press("Enter");
      }
    }
    const download = page.waitForEvent("download");
    await page.locator("#save").focus();
    await page.keyboard.press("Enter");
    const file = await download;
    await file.saveAs(join(save, file.suggestedFilename()));
    faults.push(...found);
    await context.close();
  }
  return { faults, violations, wide, predictions, malignant: malignant / total };
}

/** Reload in the middle, come back before and after the wash-out, and use two windows. */
async function washout(browser, { url, days }) {
  const { page, context, faults } = await open(browser, url);
  await page.clock.install();
  await page.reload();
  await signIn(page, "anna");
  await answer(page, "a", "3");
  await answer(page, "b", "4");
  await page.reload();
  await signIn(page, "anna");
  const afterReload = await page.locator("#count").innerText();
  const other = await context.newPage();
  await other.goto(url);
  await signIn(other, "anna");
  await answer(other, "a", "1");
  await other.close();
  await answer(page, "a", "1");
  const otherTab = await page.locator("#problem").innerText();
  while (await page.locator("#reading").isVisible()) await answer(page, "a", "2");
  const early = await page.locator("#pause-text").innerText();
  const openEarly = await page.locator("#go-on").isVisible();
  const come = async (time) => {
    await page.clock.setFixedTime(time);
    await page.reload();
    await signIn(page, "anna");
    return page.locator("#go-on").isVisible();
  };
  const now = Date.now();
  const openDayBefore = await come(now + (days - 1) * DAY);
  const openLater = await come(now + days * DAY + DAY / 24);
  await page.locator("#go-on").click();
  const second = await page.locator("#list").innerText();
  await context.close();
  return { afterReload, otherTab, early, openEarly, openDayBefore, openLater, second, faults };
}

const scenarios = { study, washout };
const [name, options] = [process.argv[2], JSON.parse(process.argv[3])];
const browser = await startBrowser(options.chromium);
try {
  console.log(JSON.stringify(await scenarios[name](browser, options)));
} finally {
  await browser.close();
}
