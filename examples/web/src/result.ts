/** Show a prediction: the decision first, then the ordered diagnoses. */

import type { Bundle, Prediction, ScoredLabel } from "dermedge";
import { bar, element, percent } from "./dom";

/** Return the parts of a prediction, in the order in which they are read. */
export function showPrediction(prediction: Prediction, bundle: Bundle): Node[] {
  const parts = [
    ...decision(prediction),
    ...diagnoses(prediction.labels, isCalibrated(bundle, "classify")),
    facts(prediction, bundle),
    ...(prediction.quality ?? []).map((text) => element("p", { class: "caution" }, text)),
    json(prediction),
  ];
  return parts;
}

/** Return one sentence for screen readers and for the page's live region. */
export function summarize({ decision, labels, malignancy }: Prediction): string {
  const top = labels.at(0);
  const first = top ? `${top.name}, ${percent(top.probability)}. ` : "";
  const second = decision ? `The decision is ${decision}. ` : "";
  const score = malignancy === null ? "" : `The malignancy score is ${percent(malignancy)}.`;
  return `Result: ${first}${second}${score}`.trim();
}

function decision({ malignancy, threshold, decision: word }: Prediction): Node[] {
  if (malignancy === null) return [];
  const score = percent(malignancy);
  if (threshold === null || word === null) {
    return [
      element(
        "div",
        { class: "decision" },
        element("p", { class: "verdict" }, `Malignancy score ${score}`),
        scale(malignancy, null),
        element("p", {}, "No threshold was fitted, so the model decides nothing."),
      ),
    ];
  }
  const above = malignancy >= threshold;
  return [
    element(
      "div",
      { class: `decision ${above ? "above" : "below"}`, id: "decision" },
      element("p", { class: "verdict" }, above ? "Above the threshold" : "Below the threshold"),
      scale(malignancy, threshold),
      element(
        "p",
        {},
        `The decision is `,
        element("strong", {}, word),
        `: the malignancy score ${score} is ${above ? "at or above" : "below"} ` +
          `the threshold ${percent(threshold)}.`,
      ),
    ),
  ];
}

/** Draw a score from 0 to 1 with its threshold. */
function scale(score: number, threshold: number | null): HTMLElement {
  const drawn = element("div", { class: "scale", "aria-hidden": "true" }, bar(score));
  if (threshold !== null) {
    const tick = element("span", { class: "tick" });
    tick.style.insetInlineStart = `${threshold * 100}%`;
    drawn.append(tick);
  }
  return drawn;
}

function diagnoses(labels: readonly ScoredLabel[], calibrated: boolean): Node[] {
  if (labels.length === 0) return [];
  const rows = labels.map(({ name, probability }) =>
    element(
      "li",
      {},
      element("span", { class: "name" }, name),
      element("span", { class: "value" }, percent(probability)),
      bar(probability),
    ),
  );
  return [
    element("h3", {}, "Diagnoses, most probable first"),
    element("ol", { class: "diagnoses", id: "diagnoses" }, ...rows),
    element(
      "p",
      { class: "quiet" },
      calibrated
        ? "The probabilities are calibrated on validation images."
        : "The probabilities are not calibrated.",
    ),
  ];
}

function facts({ severity, mask_fraction, embedding, timing }: Prediction, bundle: Bundle): Node {
  const list = element("dl", { class: "facts" });
  const add = (name: string, value: string): void =>
    list.append(element("dt", {}, name), element("dd", {}, value));
  if (severity !== null) {
    const task = bundle.spec.tasks.find(({ kind }) => kind === "ordinal");
    const last = (task?.labels.length ?? 1) - 1;
    add("Severity", `${task?.labels[severity].name}: ${severity} on a scale from 0 to ${last}`);
  }
  if (mask_fraction !== null) add("Outlined lesion", `${percent(mask_fraction)} of the frame`);
  if (embedding !== null) add("Embedding", `${embedding.length} values`);
  if (timing !== null) {
    const total = timing.preprocess_ms + timing.engine_ms;
    add("Computed in", `${total.toFixed(0)} ms, engine ${timing.engine_ms.toFixed(0)} ms`);
  }
  return list;
}

function json(prediction: Prediction): Node {
  return element(
    "details",
    {},
    element("summary", {}, "The same result as JSON"),
    element("pre", { id: "json", tabindex: "0" }, JSON.stringify(prediction, null, 2)),
  );
}

/** Return whether the first task of a kind has a fitted temperature. */
function isCalibrated({ spec, postprocessing }: Bundle, kind: string): boolean {
  const task = spec.tasks.find((each) => each.kind === kind);
  return task !== undefined && postprocessing[task.name].temperature !== null;
}
