/** Reports that every platform writes as the same JSON. */

/** One check of `verify`: its name, its status and a text about its measurement. */
export interface Check {
  readonly name: "files" | "preprocessing" | "engine" | "decoding";
  readonly status: CheckStatus;
  readonly detail: string;
}

export type CheckStatus = "passed" | "failed" | "not_run";

/**
 * Result of `verify`: the checks in the order in which they run.
 *
 * Checks after a failure are `not_run`. So is the engine's check if this browser cannot have
 * that engine.
 */
export interface VerifyReport {
  /** Id of the bundle, or its name if it could not be opened. */
  readonly bundle: string;
  readonly engine: string;
  readonly status: CheckStatus;
  readonly checks: readonly Check[];
}

/** Milliseconds of one stage over all timed calls. */
export interface Percentiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly mean: number;
  readonly count: number;
}

/** Result of `bench`: times in milliseconds, memory in bytes. */
export interface LatencyReport {
  readonly bundle: string;
  readonly engine: string;
  readonly engine_version: string;
  /** System, machine, cores and browser. */
  readonly device: Readonly<Record<string, string>>;
  readonly threads: number | null;
  readonly image: string;
  /** From encoded bytes to the prediction, within the worker. */
  readonly end_to_end: Percentiles;
  readonly preprocess: Percentiles;
  readonly engine_only: Percentiles;
  /** From a new worker to its first prediction, files from the browser's cache. */
  readonly cold_start_ms: number;
  /** null: a page cannot measure it. */
  readonly resident_bytes: null;
  /** Median of each tenth of a sustained run, which shows throttling. */
  readonly sustained: readonly number[];
  readonly cpus: number | null;
}
