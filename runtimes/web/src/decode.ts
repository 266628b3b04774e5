/** Decode the raw outputs of a network into a prediction, in float64 as in every language. */

import { EngineError } from "./errors";
import { quote, quoteAll } from "./json";
import {
  type ClassMap,
  Prediction,
  type PredictionJson,
  type Provenance,
  type ScoredLabel,
  type Timing,
} from "./prediction";
import { describeLesion, measureLesion, type QualityLimits } from "./quality";
import {
  type Conformal,
  diagnosisTask,
  expectedShape,
  malignancyTask,
  type Postprocessing,
  type Spec,
  type Task,
} from "./spec";
import { AGAIN } from "./take";

/** Values in row-major order. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
}

/** Facts about an image that are stored in its prediction. */
export interface Facts {
  readonly timing?: Timing;
  readonly provenance?: Provenance;
  readonly quality?: readonly string[];
  /** Limits that the size of the lesion must keep; null or missing judges no mask. */
  readonly limits?: QualityLimits | null;
}

const UNFITTED: Postprocessing = {
  temperature: null,
  threshold: null,
  rule_in: null,
  conformal: null,
  ood_threshold: null,
};

/**
 * Decode the outputs of one image.
 *
 * @param outputs - One tensor per task, without the batch dimension.
 * @param postprocessing - Fitted values by task. A task without an entry has none.
 * @throws EngineError if an output is missing, has a wrong shape, or holds NaN or infinity.
 */
export function decode(
  outputs: Readonly<Record<string, Tensor>>,
  spec: Spec,
  postprocessing: Readonly<Record<string, Postprocessing>>,
  facts: Facts = {},
): Prediction {
  const [diagnosis, malignancy] = [diagnosisTask(spec), malignancyTask(spec)];
  let labels: readonly ScoredLabel[] = [];
  let score: number | null = null;
  let conformal_set: readonly string[] | null = null;
  let ood: boolean | null = null;
  let ood_score: number | null = null;
  let severity: number | null = null;
  let embedding: readonly number[] | null = null;
  let mask: Uint8Array | null = null;
  let maps: ClassMap | null = null; // of all labels, one after the other
  for (const task of spec.tasks) {
    const fitted = fittedValues(postprocessing, task);
    const temperature = fitted.temperature ?? 1;
    const values = checkedValues(outputs, task, spec.preprocess.size);
    if (task === diagnosis) {
      const probabilities = softmax(values, temperature);
      labels = rank(task, probabilities);
      if (fitted.conformal) conformal_set = conformalSet(labels, task, fitted.conformal);
      if (task === malignancy) score = sumMalignant(task, probabilities);
    } else if (task === malignancy) {
      score = sigmoid(values[0] / temperature);
    } else if (task.kind === "ordinal") {
      severity ??= ordinalLevel(values, temperature);
    } else if (task.kind === "embed") {
      embedding ??= values;
    } else if (task.kind === "cam") {
      const [, height, width] = outputs[task.name].shape;
      maps ??= { height, width, values: Float32Array.from(values) };
    } else if (task.kind === "ood" && ood_score === null) {
      ood_score = values[0];
      if (fitted.ood_threshold !== null) ood = ood_score > fitted.ood_threshold;
    } else if (task.kind === "segment" && fitted.threshold !== null) {
      mask ??= segmentMask(values, spec.preprocess.size, temperature, fitted.threshold);
    }
  }
  const fitted = malignancy ? fittedValues(postprocessing, malignancy) : UNFITTED;
  const quality = [...(facts.quality ?? []), ...judgeMask(mask, spec, facts.limits)];
  return new Prediction(
    {
      labels,
      malignancy: score,
      threshold: fitted.threshold,
      ...decide(score, fitted, ood),
      conformal_set,
      ood,
      ood_score,
      severity,
      mask_fraction: mask && mask.reduce((sum, value) => sum + value, 0) / mask.length,
      embedding,
      timing: facts.timing ?? null,
      provenance: facts.provenance ?? null,
      ...(quality.length ? { quality } : {}),
    },
    mask,
    maps && diagnosis && topMap(maps, diagnosis, labels),
  );
}

/** Return a sentence if the lesion does not keep the limits. */
function judgeMask(
  mask: Uint8Array | null,
  { preprocess }: Spec,
  limits: QualityLimits | null = null,
): string[] {
  return mask && limits ? describeLesion(measureLesion(mask, preprocess.size), limits) : [];
}

/** Return the class activation map of the most probable label. */
function topMap(
  { height, width, values }: ClassMap,
  diagnosis: Task,
  labels: readonly ScoredLabel[],
): ClassMap {
  const row = diagnosis.labels.findIndex(({ id }) => id === labels[0].id);
  const size = height * width;
  return { height, width, values: values.slice(row * size, (row + 1) * size) };
}

/** Return the decision for a malignancy score, and the reason if it is `refer`. */
function decide(
  score: number | null,
  { threshold, rule_in }: Postprocessing,
  ood: boolean | null,
): Pick<PredictionJson, "decision" | "refer_reason"> {
  if (ood) return { decision: "refer", refer_reason: "ood" };
  if (score === null || threshold === null) return { decision: null, refer_reason: null };
  if (score < threshold) return { decision: "benign", refer_reason: null };
  if (rule_in === null || score >= rule_in) return { decision: "malignant", refer_reason: null };
  return { decision: "refer", refer_reason: "uncertain" };
}

/**
 * Return the ids of the labels in the conformal set, in the order of the ranked `labels`.
 *
 * `runtimes/python/dermedge_runtime/decode.py` names the sources of the methods.
 */
function conformalSet(
  labels: readonly ScoredLabel[],
  task: Task,
  { method, quantiles, penalty, free }: Conformal,
): string[] {
  let total = 0;
  const members = labels.filter(({ id, probability }, index) => {
    total += probability;
    let score = method === "lac" ? 1 - probability : total;
    if (method === "raps") score += penalty * Math.max(0, index + 1 - free);
    const quantile = quantiles[task.labels.findIndex((label) => label.id === id)];
    return quantile === null || score <= quantile;
  });
  return members.map(({ id }) => id);
}

/** Return exp(z / T), normalised to a sum of one. */
export function softmax(logits: readonly number[], temperature = 1): number[] {
  const top = logits.reduce((largest, logit) => Math.max(largest, logit), -Infinity);
  const powers = logits.map((logit) => Math.exp((logit - top) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** Return 1 / (1 + exp(-z)), without overflow. */
export function sigmoid(logit: number): number {
  if (logit >= 0) return 1 / (1 + Math.exp(-logit));
  const power = Math.exp(logit);
  return power / (1 + power);
}

/** Return how many cumulative probabilities P(y > k) are above 0.5. */
function ordinalLevel(logits: readonly number[], temperature: number): number {
  // P(y > k) cannot grow with k, but independent outputs can. The running minimum corrects
  // that.
  let [level, lowest] = [0, 1];
  for (const logit of logits) {
    lowest = Math.min(lowest, sigmoid(logit / temperature));
    if (lowest > 0.5) level++;
  }
  return level;
}

/**
 * Return the mask of a segment task: the sigmoid of the logits, enlarged bilinearly, at or
 * above the threshold. Columns are interpolated before rows.
 */
function segmentMask(
  logits: readonly number[],
  size: number,
  temperature: number,
  threshold: number,
): Uint8Array {
  const side = Math.floor(size / 4);
  const samples = Float64Array.from(logits, (logit) => sigmoid(logit / temperature));
  const centres = enlarge(side, size);
  const wide = new Float64Array(side * size);
  for (let y = 0; y < side; y++) {
    centres.forEach(({ low, high, weight }, x) => {
      const [left, right] = [samples[y * side + low], samples[y * side + high]];
      wide[y * size + x] = left + (right - left) * weight;
    });
  }
  const mask = new Uint8Array(size * size);
  centres.forEach(({ low, high, weight }, y) => {
    for (let x = 0; x < size; x++) {
      const [above, below] = [wide[low * size + x], wide[high * size + x]];
      mask[y * size + x] = above + (below - above) * weight >= threshold ? 1 : 0;
    }
  });
  return mask;
}

/** Return the two samples and the weight of the second for each position. */
function enlarge(count: number, size: number) {
  return Array.from({ length: size }, (_, index) => {
    // Clipping the centres repeats the edges: outside the samples the weight is 0.
    const centre = Math.min(Math.max((index + 0.5) * (count / size) - 0.5, 0), count - 1);
    const low = Math.floor(centre);
    return { low, high: Math.min(low + 1, count - 1), weight: centre - low };
  });
}

function sumMalignant(task: Task, probabilities: readonly number[]): number {
  // Labels whose sources disagree (null) count as neither.
  const chosen = probabilities.filter((_, index) => task.labels[index].malignant);
  // A sum of rounded probabilities may exceed 1 by 1e-16.
  return Math.min(
    chosen.reduce((sum, probability) => sum + probability, 0),
    1,
  );
}

/** Return the labels, most probable first; equal ones keep the task's order. */
function rank(task: Task, probabilities: readonly number[]): ScoredLabel[] {
  return task.labels
    .map(({ id, name }, index) => ({ id, name, probability: probabilities[index] }))
    .sort((one, other) => other.probability - one.probability);
}

function fittedValues(
  postprocessing: Readonly<Record<string, Postprocessing>>,
  { name }: Task,
): Postprocessing {
  return Object.hasOwn(postprocessing, name) ? postprocessing[name] : UNFITTED;
}

/** Return the values of a task's output; refuse an output that is missing or misshapen. */
function checkedValues(
  outputs: Readonly<Record<string, Tensor>>,
  task: Task,
  size: number,
): number[] {
  if (!Object.hasOwn(outputs, task.name)) {
    throw new EngineError(
      `The engine gave no output ${quote(task.name)}, ` +
        `only [${quoteAll(Object.keys(outputs).sort())}]. ${AGAIN}`,
    );
  }
  const { shape, values } = outputs[task.name];
  const expected = expectedShape(task, size);
  if (!fitsShape(shape, expected)) {
    throw new EngineError(
      `Output ${quote(task.name)} has shape [${shape.join(", ")}], ` +
        `not ${describeShape(expected)}. ${AGAIN}`,
    );
  }
  const numbers = Array.from(values);
  if (!numbers.every(Number.isFinite)) {
    throw new EngineError(
      `Output ${quote(task.name)} holds NaN or infinity. Run verify() on the bundle.`,
    );
  }
  return numbers;
}

/** Return whether a shape is the expected one, of which null is a free width. */
export function fitsShape(shape: readonly number[], expected: readonly (number | null)[]): boolean {
  return (
    shape.length === expected.length &&
    expected.every((length, index) => length === null || length === shape[index])
  );
}

/** Return a shape as text, such as `[1, 56, 56]`. */
export function describeShape(shape: readonly (number | null)[]): string {
  return `[${shape.map((length) => length ?? "D").join(", ")}]`;
}
