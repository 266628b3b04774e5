/** Shorthands for the few ways in which the page changes its document. */

/** Return the element with an id; its absence is a defect of index.html. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no element #${id}`);
  return found as T;
}

/** Create an element. Text is never read as HTML, so that a bundle cannot bring markup. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Readonly<Record<string, string>> = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return an element's bar from 0 to 1. Styles are set from here: the policy forbids `style=`. */
export function bar(fraction: number): HTMLElement {
  const fill = element("span");
  fill.style.inlineSize = `${Math.min(Math.max(fraction, 0), 1) * 100}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, fill);
}

/** Return a probability as text, such as `62.1 %`; values that round to 0 or 1 say so. */
export function percent(value: number): string {
  if (value > 0 && value < 0.0005) return "< 0.1 %";
  if (value < 1 && value >= 0.9995) return "> 99.9 %";
  return `${(value * 100).toFixed(1)} %`;
}
