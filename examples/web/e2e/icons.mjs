/** Draw the PNG icons from icon.svg: `node e2e/icons.mjs`. */

import { readFile } from "node:fs/promises";
import { startBrowser } from "./browser.mjs";

const folder = new URL("../public/", import.meta.url);
const svg = await readFile(new URL("icon.svg", folder), "utf8");
// Launchers cut a maskable icon to a circle, so its ground fills the square, and phones of
// Apple round the corners themselves.
const full = svg.replace(/ rx="112"/, "");
const icons = { "icon-192": [192, svg], "icon-512": [512, svg], "icon-180": [180, full] };
const small = '<g transform="translate(51 51) scale(.8)">';
icons["icon-maskable-512"] = [512, full.replace("/><g", `/>${small}<g`).replace("</svg>", "</g></svg>")];

const browser = await startBrowser(process.env.CHROMIUM);
for (const [name, [size, text]] of Object.entries(icons)) {
  const page = await browser.newPage({ viewport: { width: size, height: size } });
  await page.setContent(`<style>*{margin:0}svg{display:block}</style>${text}`);
  const path = new URL(`${name}.png`, folder).pathname;
  await page.screenshot({ path, omitBackground: true });
  await page.close();
}
await browser.close();
