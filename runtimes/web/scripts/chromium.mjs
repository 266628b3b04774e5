/** Start Chromium without requests of its own. */

import { existsSync } from "node:fs";

import { chromium } from "playwright-core";

/** Chromium's program; the variable DERMEDGE_CHROMIUM names another one. */
export const CHROMIUM = process.env.DERMEDGE_CHROMIUM ?? "/usr/bin/chromium";

/** Whether this machine has Chromium. */
export const hasChromium = existsSync(CHROMIUM);

const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking " +
  "--disable-component-update --disable-sync";

/**
 * Start a browser with a profile in a folder, so that it caches compiled code.
 *
 * @param {string} profile - Folder of the profile; "" is a temporary one.
 * @param {readonly string[]} [flags] - Further flags.
 */
export function launch(profile, flags = []) {
  return chromium.launchPersistentContext(profile, {
    executablePath: CHROMIUM,
    headless: true,
    args: [...FLAGS.split(" "), ...flags],
  });
}
