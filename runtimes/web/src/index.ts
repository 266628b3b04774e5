/** Run dermedge bundles in a browser, with the same predictions as Python. */

export type { BenchOptions } from "./bench";
export type { FileProgress } from "./bundle";
export type { Source } from "./container";
export type { Engine, EngineOptions, OpenEngine } from "./engine";
export {
  BundleError,
  DermedgeError,
  ElsewhereError,
  EngineError,
  ImageError,
  MissingExtraError,
  UsageError,
} from "./errors";
export type { Bundle } from "./manifest";
export { load, Model, verify } from "./model";
export type { CallSettings, LoadOptions } from "./model";
export { Prediction } from "./prediction";
export type { ClassMap, PredictionJson, Provenance, ScoredLabel, Timing } from "./prediction";
export type { EngineInfo, Progress } from "./protocol";
export { describeLesion, describeQuality, measureLesion, measureQuality } from "./quality";
export type { LesionSize, Quality, QualityLimits } from "./quality";
export type { Check, CheckStatus, LatencyReport, Percentiles, VerifyReport } from "./report";
export type { ImageSource } from "./source";
export type * from "./spec";
