/** The result of a model for one image, with the JSON keys of every language. */

/** A label and its probability. */
export interface ScoredLabel {
  readonly id: string;
  readonly name: string;
  readonly probability: number;
}

/** Milliseconds spent on one image. */
export interface Timing {
  readonly preprocess_ms: number;
  readonly engine_ms: number;
}

/** Bundle and engine that computed a prediction. */
export interface Provenance {
  readonly bundle: string;
  readonly name: string;
  readonly version: string;
  readonly target: string;
  readonly precision: string;
  readonly engine: string;
}

/**
 * A prediction as JSON, with the keys that every language writes.
 *
 * A field is null (`labels` empty) if the model has no such task, or if the value it needs
 * was not fitted.
 */
export interface PredictionJson {
  /** Labels of the diagnosis, most probable first. */
  readonly labels: readonly ScoredLabel[];
  /** Score that `threshold` turns into `decision`. */
  readonly malignancy: number | null;
  readonly threshold: number | null;
  /** `refer` means that a person must decide. */
  readonly decision: "malignant" | "benign" | "refer" | null;
  /** Why the decision is `refer`; `uncertain` is a score between `threshold` and `rule_in`. */
  readonly refer_reason: "ood" | "uncertain" | null;
  /** Ids of the labels that fit the image, most probable first; it may be empty. */
  readonly conformal_set: readonly string[] | null;
  /** Whether the image is unlike the training images. */
  readonly ood: boolean | null;
  /** Larger for images that are more unlike the training images. */
  readonly ood_score: number | null;
  /** Level of the ordinal task, counted from 0. */
  readonly severity: number | null;
  /** Part of the frame that the mask covers. */
  readonly mask_fraction: number | null;
  /** L2-normalised. */
  readonly embedding: readonly number[] | null;
  readonly timing: Timing | null;
  readonly provenance: Provenance | null;
  /** Reasons to take the photograph again, with what to do; absent if there are none. */
  readonly quality?: readonly string[];
}

/** Class activation map of a label; its mean is the label's logit. */
export interface ClassMap {
  readonly height: number;
  readonly width: number;
  /** Row by row over the preprocessed frame; larger values raise the logit more. */
  readonly values: Float32Array;
}

/** Decoded outputs of a model for one image. `JSON.stringify` leaves mask and map out. */
export interface Prediction extends PredictionJson {}
export class Prediction {
  /** Mask of the segment task, bytes 0 and 1, [S, S] in the preprocessed frame. */
  readonly mask!: Uint8Array | null;

  /** Class activation map of the most probable label. */
  readonly cam!: ClassMap | null;

  constructor(fields: PredictionJson, mask: Uint8Array | null, cam: ClassMap | null) {
    Object.assign(this, fields);
    Object.defineProperty(this, "mask", { value: mask, enumerable: false });
    Object.defineProperty(this, "cam", { value: cam, enumerable: false });
  }
}
