/** Show a prediction: the decision first, then the ordered diagnoses. */

import type { Bundle, Prediction, ScoredLabel } from "dermedge";
import { bar, element, percent } from "./dom";

/** Title and explanation of each reason to refer. */
const REFERRALS = {
  ood: {
    title: "The model does not know such images",
    because: "this image is unlike the images that the model knows, so its results may be wrong",
    advice: "Take the photo again. If this stays, see a dermatologist.",
  },
  uncertain: {
    title: "The model cannot tell",
    because: "the malignancy score is neither clearly low nor clearly high",
    advice: "See a dermatologist.",
  },
} as const;

/** Return the parts of a prediction, in the order in which they are read. */
export function showPrediction(prediction: Prediction, bundle: Bundle): Node[] {
  const parts = [
    ...decision(prediction, bundle),
    ...diagnoses(prediction.labels, isCalibrated(bundle, "classify")),
    ...conformalSet(prediction, bundle),
    facts(prediction, bundle),
    ...(prediction.quality ?? []).map((text) => element("p", { class: "caution" }, text)),
    json(prediction),
  ];
  return parts;
}

/** Return one sentence for screen readers and for the page's live region. */
export function summarize({ decision, refer_reason, labels, malignancy }: Prediction): string {
  if (refer_reason !== null) {
    const { because, advice } = REFERRALS[refer_reason];
    return `Result: The decision is refer: ${because}. ${advice}`;
  }
  const top = labels.at(0);
  const first = top ? `${top.name}, ${percent(top.probability)}. ` : "";
  const second = decision ? `The decision is ${decision}. ` : "";
  const score = malignancy === null ? "" : `The malignancy score is ${percent(malignancy)}.`;
  return `Result: ${first}${second}${score}`.trim();
}

function decision(prediction: Prediction, bundle: Bundle): Node[] {
  const { malignancy, threshold, decision: word, refer_reason } = prediction;
  if (refer_reason !== null) return [referral(prediction, refer_reason, bundle)];
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

/** Explain why the model decides nothing itself. */
function referral(
  { malignancy, threshold }: Prediction,
  reason: keyof typeof REFERRALS,
  { postprocessing }: Bundle,
): HTMLElement {
  const { title, because, advice } = REFERRALS[reason];
  const box = element(
    "div",
    { class: "decision refer", id: "decision" },
    element("p", { class: "verdict" }, title),
  );
  const text = element("p", {}, "The decision is ", element("strong", {}, "refer"), `: ${because}. `);
  box.append(text, element("p", {}, advice));
  if (reason === "uncertain" && malignancy !== null) {
    // Only the task of the malignancy score can have this value.
    const fitted = Object.values(postprocessing).find(({ rule_in }) => rule_in !== null);
    const upper = fitted?.rule_in ?? null;
    text.before(scale(malignancy, threshold, upper));
    text.append(
      `The score is ${percent(malignancy)}; below ${percent(threshold ?? 0)} is benign, ` +
        `from ${percent(upper ?? 1)} on malignant.`,
    );
  }
  return box;
}

/** Draw a score from 0 to 1 with its thresholds. */
function scale(score: number, ...thresholds: readonly (number | null)[]): HTMLElement {
  const drawn = element("div", { class: "scale", "aria-hidden": "true" }, bar(score));
  for (const threshold of thresholds) {
    if (threshold === null) continue;
    const tick = element("span", { class: "tick" });
    tick.style.insetInlineStart = `${threshold * 100}%`;
    drawn.append(tick);
  }
  return drawn;
}

/** Name the diagnoses that fit the image, and say what that means. */
function conformalSet({ conformal_set: ids, labels, ood }: Prediction, bundle: Bundle): Node[] {
  const task = bundle.spec.tasks.find(({ kind }) => kind === "classify");
  const fitted = task && bundle.postprocessing[task.name].conformal;
  if (ids === null || !fitted) return [];
  const coverage = `${Number((100 * fitted.coverage).toFixed(1))} %`;
  const names = ids.map((id) => labels.find((label) => label.id === id)?.name ?? id);
  const scope = ood
    ? "This coverage does not hold for an image that is unlike those that the model knows."
    : `For about ${coverage} of images like those of the calibration, the set has the true ` +
      "diagnosis.";
  const empty =
    `The set at ${coverage} coverage is empty: no diagnosis is probable enough. ` +
    "The lesion may be none of these diagnoses, or the photo may be unclear.";
  return [
    element(
      "div",
      { class: "set", id: "set" },
      names.length > 0
        ? element(
            "p",
            {},
            `With ${coverage} coverage${names.length > 1 ? " one of" : ""}: `,
            element("strong", {}, names.join(", ")),
          )
        : element("p", {}, empty),
      element("p", { class: "quiet" }, scope),
    ),
  ];
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

function facts(prediction: Prediction, bundle: Bundle): Node {
  const { severity, mask_fraction, embedding, timing, ood, ood_score } = prediction;
  const list = element("dl", { class: "facts" });
  const add = (name: string, value: string): void =>
    list.append(element("dt", {}, name), element("dd", {}, value));
  if (ood !== null && ood_score !== null) {
    add("Unlike known images", `${ood ? "yes" : "no"}, score ${Number(ood_score.toPrecision(4))}`);
  }
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
