/** Messages between the page and the worker. */

import type { BenchOptions, WorkerBench } from "./bench";
import type { FileProgress } from "./bundle";
import type { Source } from "./container";
import type { ClassMap, PredictionJson } from "./prediction";
import type { WireError } from "./errors";
import type { WorkerImage } from "./image/decode";
import type { Bundle } from "./manifest";
import type { VerifyReport } from "./report";
import type { SessionOptions } from "./session";

/** Progress of `load`: files that arrive, then the engine that starts. */
export type Progress = ({ readonly stage: "files" } & FileProgress) | { readonly stage: "engine" };

/** Facts about the engine of a loaded model. */
export interface EngineInfo {
  readonly name: string;
  readonly version: string;
  readonly threads: number;
  /** Number of operators by provider and operator; `{}` if unknown. */
  readonly placement: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** A bundle's source, and options of its engine. */
export interface LoadArguments {
  readonly source: string | Exclude<Source, URL>;
  readonly options: Omit<SessionOptions, "assets"> & { readonly assets?: string };
}

/** Arguments, result and progress of each call that the page may make. */
export interface Calls {
  load: [LoadArguments, { bundle: Bundle; engine: EngineInfo }, Progress];
  predict: [
    { image: WorkerImage },
    { fields: PredictionJson; mask: Uint8Array | null; cam: ClassMap | null },
    never,
  ];
  verifyBundle: [LoadArguments, VerifyReport, never];
  verify: [Record<never, never>, VerifyReport, never];
  bench: [BenchOptions, WorkerBench, number];
  close: [Record<never, never>, null, never];
}

/** Name of a call. */
export type Name = keyof Calls;

/** A message to the worker. */
export type Request =
  | { readonly id: number; readonly name: Name; readonly args: Calls[Name][0] }
  | { readonly abort: number };

/** A message to the page. */
export type Response =
  | { readonly id: number; readonly result: Calls[Name][1] }
  | { readonly id: number; readonly error: WireError }
  | { readonly id: number; readonly progress: Calls[Name][2] };
