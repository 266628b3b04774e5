/**
 * Types of a manifest, with the keys of its JSON. `runtimes/README.md` defines them.
 *
 * S is the side of the network's input in pixels, K the number of labels of a task.
 */

/** A JSON value. */
export type Json = null | boolean | number | string | Json[] | JsonObject;
/** A JSON object. */
export interface JsonObject {
  [key: string]: Json;
}

export const KINDS = ["classify", "binary", "ordinal", "segment", "embed", "ood", "cam"] as const;
export const FITS = ["crop", "pad", "stretch"] as const;
export const CONFORMAL_METHODS = ["lac", "aps", "raps"] as const;
export const STATUSES = ["passed", "warn", "failed", "insufficient", "not_run"] as const;

export type Kind = (typeof KINDS)[number];
export type Fit = (typeof FITS)[number];
export type ConformalMethod = (typeof CONFORMAL_METHODS)[number];
export type Status = (typeof STATUSES)[number];

/** One class of a task; `malignant` is null if sources disagree or if it does not apply. */
export interface Label {
  readonly id: string;
  readonly name: string;
  readonly malignant: boolean | null;
  readonly codes: Readonly<Record<string, Json>>;
}

/**
 * One output of the network and its meaning; the output tensor has the task's name.
 *
 * Shapes: `classify` [K] logits, `binary` [1] logit, `ordinal` [K-1] cumulative logits,
 * `segment` [1, S/4, S/4] logits, `embed` [D], L2-normalised, `ood` [1], larger for images
 * that are more unlike the training images, `cam` [K, h, w], class activation maps of the
 * diagnosis.
 */
export interface Task {
  readonly name: string;
  readonly kind: Kind;
  readonly labels: readonly Label[];
}

/** Conversion of decoded RGB to the network's uint8 [S, S, 3] input. */
export interface Preprocess {
  readonly size: number;
  readonly fit: Fit;
  readonly kernel: "triangle";
  readonly background: readonly [number, number, number];
}

/** Contract between a model and all code that runs it. */
export interface Spec {
  readonly name: string;
  readonly version: string;
  readonly tasks: readonly Task[];
  readonly preprocess: Preprocess;
  readonly intended_use: string;
  readonly lineage: JsonObject;
}

/** One model for one target; `path` is a file or a folder of the bundle. */
export interface Artifact {
  readonly target: string;
  readonly format: string;
  readonly path: string;
  readonly precision: string;
  readonly requires: readonly string[];
  readonly toolchain: JsonObject;
  readonly details: JsonObject;
  readonly calibration: JsonObject | null;
}

/** Class-conditional conformal sets of a `classify` task. */
export interface Conformal {
  readonly method: ConformalMethod;
  /** Share of the images of each label whose set holds that label, 0 to 1. */
  readonly coverage: number;
  /** Largest score of each label that is in the set; null is a label that is in every set. */
  readonly quantiles: readonly (number | null)[];
  /** RAPS adds this to the score for each rank after `free`. */
  readonly penalty: number;
  readonly free: number;
}

/** Values fitted on validation data for one task; null is not fitted. */
export interface Postprocessing {
  /** Divisor of the logits. */
  readonly temperature: number | null;
  /** Smallest score that is not `benign`, or smallest probability inside a mask. */
  readonly threshold: number | null;
  /** Smallest score that is `malignant`; scores from `threshold` up to it are `refer`. */
  readonly rule_in: number | null;
  readonly conformal: Conformal | null;
  /** Largest score of an `ood` task that is not flagged. */
  readonly ood_threshold: number | null;
}

/** Return the task whose labels are ranked: the first `classify` task. */
export function diagnosisTask(spec: Spec): Task | null {
  return spec.tasks.find((task) => task.kind === "classify") ?? null;
}

/**
 * Return the task that gives the malignancy score.
 *
 * It is the `binary` task `malignancy` if there is one, else the diagnosis if one of its
 * labels is malignant, else null.
 */
export function malignancyTask(spec: Spec): Task | null {
  const own = spec.tasks.find((task) => task.name === "malignancy" && task.kind === "binary");
  if (own) return own;
  const diagnosis = diagnosisTask(spec);
  return diagnosis?.labels.some((label) => label.malignant) ? diagnosis : null;
}

/** Return the first `segment` task, or null. */
export function segmentTask(spec: Spec): Task | null {
  return spec.tasks.find((task) => task.kind === "segment") ?? null;
}

/**
 * Return the shape of a task's output for one image; null is a free width.
 *
 * @param size - S, side of the network's input in pixels.
 */
export function expectedShape(task: Task, size: number): readonly (number | null)[] {
  switch (task.kind) {
    case "classify":
      return [task.labels.length];
    case "ordinal":
      return [task.labels.length - 1];
    case "segment": // Networks predict masks at a quarter of the resolution.
      return [1, Math.floor(size / 4), Math.floor(size / 4)];
    case "binary":
    case "ood":
      return [1];
    case "embed":
      return [null];
    case "cam":
      return [task.labels.length, null, null];
  }
}
