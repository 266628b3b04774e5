/** Find where a prediction differs from the golden one, and why. */

import { softmax, type Tensor } from "./decode";
import { quote, quoteAll } from "./json";
import { diagnosisTask, malignancyTask, type Postprocessing, type Spec, type Task } from "./spec";
import { AGAIN, isRecord } from "./take";

/** Languages differ in the last digits of exp(); a wrong formula differs by far more. */
export const DECODED_WITHIN = 1e-6;

type Fields = Readonly<Record<string, unknown>>;

/** A sentence about the task whose field differs, and whether it explains the difference. */
interface Cause {
  readonly text: string;
  readonly explained: boolean;
}

/** The outputs of a golden case, and what decodes them. */
export interface Decoding {
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly spec: Spec;
  readonly postprocessing: Readonly<Record<string, Postprocessing>>;
}

/**
 * Describe the first difference of two predictions, its cause and what to do.
 *
 * The golden prediction was decoded at export from the same outputs. If other labels,
 * another temperature or another threshold explain it, the text names them.
 *
 * @returns Sentences, or "" if the predictions are equal. Numbers may differ by 1e-6, and a
 *   missing key is null.
 */
export function describeDifference(actual: Fields, golden: Fields, decoding: Decoding): string {
  const difference = findDifference(actual, golden, "");
  if (!difference) return "";
  const { text, explained } = findCause(actual, golden, decoding);
  const advice = explained ? AGAIN : "Install the newest dermedge.";
  return [`${difference}.`, text, advice].filter(Boolean).join(" ");
}

/** Describe the first difference between two JSON values; "" if there is none. */
function findDifference(actual: unknown, want: unknown, where: string): string {
  if (isRecord(actual) && isRecord(want)) {
    // A missing key is null, so that fields may be added later.
    const keys = new Set([...Object.keys(actual), ...Object.keys(want)]);
    return firstText([...keys].sort(), (key) =>
      findDifference(actual[key] ?? null, want[key] ?? null, `${where}.${key}`),
    );
  }
  if (Array.isArray(actual) && Array.isArray(want) && actual.length === want.length) {
    return firstText([...actual.keys()], (index) =>
      findDifference(actual[index], want[index], `${where}[${index}]`),
    );
  }
  if (actual === want || areClose(actual, want)) return "";
  return `${where.replace(/^\./, "") || "it"} is ${quote(actual)}, not ${quote(want)}`;
}

function areClose(one: unknown, other: unknown): boolean {
  const numbers = typeof one === "number" && typeof other === "number";
  return numbers && Math.abs(one - other) <= DECODED_WITHIN;
}

function firstText<T>(items: readonly T[], describe: (item: T) => string): string {
  for (const item of items) {
    const text = describe(item);
    if (text) return text;
  }
  return "";
}

function findCause(
  actual: Fields,
  golden: Fields,
  { outputs, spec, postprocessing }: Decoding,
): Cause {
  for (const [field, task] of fieldTasks(spec)) {
    if (!task || !findDifference(actual[field] ?? null, golden[field] ?? null, field)) continue;
    const labels = field === "labels" ? compareLabels(actual[field], golden[field], task) : "";
    if (labels) return { text: labels, explained: true };
    const { temperature } = postprocessing[task.name];
    const text = `Task ${quote(task.name)} has ${describeFitted(postprocessing[task.name])}`;
    const solvable = field === "labels" || field === "malignancy";
    const other = solvable ? solveTemperature(golden, task, outputs[task.name].values) : null;
    const own = temperature ?? 1;
    if (other !== null && Math.abs(other - own) > 1e-4 * Math.max(other, own)) {
      const gives = Number(other.toPrecision(4));
      return {
        text: `${text}, but temperature ${gives} gives the golden prediction.`,
        explained: true,
      };
    }
    return { text: `${text}.`, explained: field === "threshold" };
  }
  return { text: "", explained: false };
}

/** Name the temperature and the threshold, and the other values that are fitted. */
function describeFitted({ temperature, threshold, conformal, ...others }: Postprocessing): string {
  const fitted = Object.entries({ ...others, ...conformal }).filter(([, value]) => value !== null);
  const asText = (value: unknown) => (typeof value === "string" ? value : quote(value));
  return [
    `temperature ${temperature} and threshold ${threshold}`,
    ...fitted.map(([name, value]) => `${name} ${asText(value)}`),
  ].join(", ");
}

/** Return the task that gives each field; a field comes after those it follows from. */
function fieldTasks(spec: Spec): readonly (readonly [string, Task | null])[] {
  const first = (kind: Task["kind"]) => spec.tasks.find((task) => task.kind === kind) ?? null;
  const malignancy = malignancyTask(spec);
  return [
    ["labels", diagnosisTask(spec)],
    ["malignancy", malignancy],
    ["threshold", malignancy],
    ["ood_score", first("ood")],
    ["ood", first("ood")],
    ["decision", malignancy],
    ["refer_reason", malignancy],
    ["conformal_set", diagnosisTask(spec)],
    ["severity", first("ordinal")],
    ["mask_fraction", first("segment")],
    ["embedding", first("embed")],
  ];
}

interface GoldenLabel {
  readonly id: string;
  readonly name: unknown;
  readonly probability: unknown;
}

/** Describe other ids, names or another order of labels; "" if only numbers differ. */
function compareLabels(actual: unknown, golden: unknown, task: Task): string {
  const [ours, theirs] = [readLabels(actual), readLabels(golden)];
  const ids = task.labels.map(({ id }) => id).sort();
  const others = [...new Set(theirs?.map(({ id }) => id) ?? [])].sort();
  if (quoteAll(ids) !== quoteAll(others)) {
    return (
      `Task ${quote(task.name)} has the labels [${quoteAll(ids)}], ` +
      `and the golden case [${quoteAll(others)}].`
    );
  }
  for (const { id, name } of theirs ?? []) {
    const own = task.labels.find((label) => label.id === id)?.name;
    if (own !== name) {
      return `The label ${quote(id)} is ${quote(own)}, and in the golden case ${quote(name)}.`;
    }
  }
  const moved = ours?.some(({ id, probability }) => {
    const there = theirs?.find((label) => label.id === id);
    return !areClose(probability, there?.probability);
  });
  const [values, golds] = [sortedNumbers(ours), sortedNumbers(theirs)];
  return moved && values.every((value, index) => areClose(value, golds[index]))
    ? `The labels of task ${quote(task.name)} are in another order than at the export.`
    : "";
}

/** Return the labels of a prediction; null if they are something else. */
function readLabels(labels: unknown): readonly GoldenLabel[] | null {
  if (!Array.isArray(labels) || !labels.every(isRecord)) return null;
  return labels.map(({ id, name, probability }) => ({ id: String(id), name, probability }));
}

function sortedNumbers(labels: readonly GoldenLabel[] | null): number[] {
  return (labels ?? []).map(({ probability }) => Number(probability)).sort((a, b) => a - b);
}

/** Return the temperature that gives the golden probabilities; null if none does. */
function solveTemperature(golden: Fields, task: Task, outputs: ArrayLike<number>): number | null {
  const labels = readLabels(golden["labels"]) ?? [];
  const score = golden["malignancy"];
  const binary = task.kind === "binary";
  // A score is the softmax of its logit and 0.
  const logits = binary ? [outputs[0], 0] : Array.from(outputs);
  const wanted = binary
    ? [Number(score), 1 - Number(score)]
    : task.labels.map(({ id }) => Number(labels.find((label) => label.id === id)?.probability));
  if (!wanted.every((value) => value > 0 && value < 1)) return null;
  // The logarithm of a ratio of probabilities is a difference of logits, divided by T.
  const [top, bottom] = [Math.max(...logits), Math.min(...logits)];
  const ratio = Math.log(wanted[logits.indexOf(top)] / wanted[logits.indexOf(bottom)]);
  const temperature = (top - bottom) / ratio;
  if (!(ratio > 0 && temperature > 0)) return null;
  const again = softmax(logits, temperature);
  return again.every((value, index) => areClose(value, wanted[index])) ? temperature : null;
}
