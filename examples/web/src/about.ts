/** Show what the model is for, where it comes from, and its self-test. */

import type { Check, JsonObject, Model, VerifyReport } from "dermedge";
import { element } from "./dom";
import { section, toNodes } from "./markdown";

const CARD_SECTIONS = ["Limitations", "Not known"];

/** Return the parts of "About this model". */
export function showAbout(model: Model, offline: boolean): Node[] {
  const { spec, modelcard } = model.bundle;
  return [
    element("h3", {}, "Intended use"),
    element("p", {}, spec.intended_use || "The bundle does not state an intended use."),
    element("h3", {}, "Limits"),
    element(
      "p",
      { id: "limits" },
      "The result is not a diagnosis and can be wrong. It must not replace an examination, a " +
        "dermoscopy or a biopsy, and a low score does not rule out a disease.",
    ),
    ...CARD_SECTIONS.flatMap((title) => toNodes(section(modelcard ?? "", title))),
    selfTest(model),
    element("h3", {}, "Provenance"),
    provenance(model, offline),
    ...(modelcard ? [card(modelcard)] : []),
  ];
}

/** Return a status as a badge. Only `passed` is green. */
function badge(status: string): HTMLElement {
  return element("span", { class: `badge ${status}` }, status.replace("_", " "));
}

function provenance({ bundle, engine }: Model, offline: boolean): HTMLElement {
  const { spec, artifact, parity, id } = bundle;
  const list = element("dl", { class: "facts stacked", id: "provenance" });
  const add = (name: string, ...value: (Node | string)[]): void =>
    list.append(element("dt", {}, name), element("dd", {}, ...value));
  add("Model", `${spec.name} ${spec.version}`);
  add("Bundle", element("code", {}, id));
  add("Made for", `${artifact.target}, ${artifact.format}`);
  add("Precision", artifact.precision);
  add("Engine", `${engine.name} ${engine.version}, ${threads(engine.threads)}`);
  add("Parity on the exporting machine", ...parityParts(parity["host"] as JsonObject));
  add("Parity on the device", ...parityParts(parity["device"] as JsonObject));
  add("Loaded from", offline ? "the copy on this device" : "the server");
  return list;
}

function threads(count: number): string {
  return count === 1 ? "1 thread" : `${count} threads`;
}

function parityParts(report: JsonObject): (Node | string)[] {
  const { status, basis, cases, todo } = report;
  const measured = typeof basis === "string" ? ` on ${basis}` : "";
  const count = typeof cases === "number" ? ` (${cases} images)` : "";
  const next = typeof todo === "string" ? ` Left to do: ${todo}` : "";
  return [badge(String(status)), `${measured}${count}${next}`];
}

function card(text: string): HTMLElement {
  // The first line repeats the name of the model.
  return element(
    "details",
    {},
    element("summary", {}, "Model card"),
    element("div", { class: "card-text" }, ...toNodes(text.replace(/^# .*\n/, ""))),
  );
}

function selfTest(model: Model): HTMLElement {
  const button = element("button", { type: "button", id: "self-test" }, "Run the self-test");
  const report = element("div", { id: "self-test-report", role: "status" });
  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true"; // `disabled` would take the keyboard's focus away.
    report.replaceChildren(element("p", { class: "quiet" }, "Running the golden cases …"));
    try {
      report.replaceChildren(...showReport(await model.verify()));
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      report.replaceChildren(element("p", { class: "caution" }, text));
    }
    button.ariaDisabled = "false";
  });
  return element(
    "div",
    { class: "self-test" },
    element("h3", {}, "Self-test"),
    element(
      "p",
      {},
      "Checks on this device that the files are intact, and that images, engine and decoding " +
        "give what the exporting machine computed.",
    ),
    button,
    report,
  );
}

function showReport({ status, checks }: VerifyReport): Node[] {
  const rows = checks.map(({ name, status: result, detail }: Check) =>
    element("li", {}, badge(result), element("strong", {}, name), element("span", {}, detail)),
  );
  return [
    element("p", { id: "self-test-status" }, "Self-test: ", badge(status)),
    element("ul", { class: "checks" }, ...rows),
  ];
}
