/** Interface between dermedge and an inference engine. */

import type { Tensor } from "./decode";
import type { Artifact, Spec } from "./spec";

/** An engine that has loaded a bundle's model. */
export interface Engine {
  /** Name of the engine, as `artifact.requires` names it. */
  readonly name: string;
  readonly version: string;
  /** Number of threads that the engine computes with. */
  readonly threads: number;

  /**
   * Return the outputs of one image by task, without the batch dimension.
   *
   * @param image - RGB, uint8 [S, S, 3], row-major. The engine does not keep it.
   * @throws EngineError if the engine fails.
   */
  run(image: Uint8Array): Promise<Record<string, Tensor>>;

  /** Return the number of operators by provider and operator; `{}` if unknown. */
  placement(): Record<string, Record<string, number>>;

  /** Free the engine's memory; closing again does nothing. */
  close(): Promise<void>;
}

/** Options of an engine. */
export interface EngineOptions {
  /** Number of threads; by default all that the page may use. */
  threads?: number;
  /** Part of the machine that computes; by default `wasm`, the CPU. */
  accelerator?: "wasm" | "webgpu";
  /** URL of the folder that holds the engine's `.wasm` files, ending in `/`. */
  assets: string;
}

/**
 * Load a model into an engine.
 *
 * @param model - Content of the artifact's file, its SHA-256 checked.
 * @throws EngineError if the engine refuses the model, or its version does not satisfy
 *   `artifact.requires`.
 */
export type OpenEngine = (
  model: Uint8Array,
  spec: Spec,
  artifact: Artifact,
  options: EngineOptions,
) => Promise<Engine>;
