/** Convert the Markdown of a model card to elements: headings, lists, tables, text. */

import { element } from "./dom";

/** Return the text below a heading of the second level; empty if there is none. */
export function section(text: string, title: string): string {
  const parts = `\n${text}`.split(/\n## /);
  const found = parts.find((part) => part.startsWith(`${title}\n`));
  return found ? found.slice(title.length).trim() : "";
}

/** Convert Markdown to elements. HTML in it stays text. */
export function toNodes(text: string): Node[] {
  return text
    .split(/\n{2,}/)
    .map((block) => block.trim())
    .filter(Boolean)
    .map(toBlock);
}

function toBlock(block: string): Node {
  const lines = block.split("\n");
  const heading = /^(#+) (.*)$/.exec(lines[0]);
  if (heading) {
    // The page's own headings are above those of the card.
    return element(heading[1].length === 1 ? "h3" : "h4", {}, ...inline(heading[2]));
  }
  if (lines.every((line) => /^[-*] /.test(line))) {
    return element("ul", {}, ...lines.map((line) => element("li", {}, ...inline(line.slice(2)))));
  }
  if (lines.length > 1 && lines.every((line) => line.startsWith("|"))) return table(lines);
  return element("p", {}, ...inline(lines.join(" ")));
}

function table([head, , ...rows]: string[]): HTMLElement {
  const cells = (line: string): string[] => line.replace(/^\||\|\s*$/g, "").split("|");
  const row = (line: string, tag: "th" | "td"): HTMLElement =>
    element("tr", {}, ...cells(line).map((cell) => element(tag, {}, ...inline(cell.trim()))));
  return element(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": "Table of the model card" },
    element(
      "table",
      {},
      element("thead", {}, row(head, "th")),
      element("tbody", {}, ...rows.map((line) => row(line, "td"))),
    ),
  );
}

/** Convert `code` and **bold**. */
function inline(text: string): (Node | string)[] {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return element("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return element("strong", {}, part.slice(2, -2));
    return part;
  });
}
