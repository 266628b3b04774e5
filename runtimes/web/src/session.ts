/** Run a bundle in a worker: its files, its engine and the predictions. */

import { openBundle } from "./bundle";
import { type Container, openContainer, type Source } from "./container";
import { decode } from "./decode";
import type { Engine, EngineOptions } from "./engine";
import { ENGINES } from "./engines";
import { ElsewhereError, EngineError, UsageError } from "./errors";
import { decodeImage, type WorkerImage } from "./image/decode";
import { Resizer } from "./image/resize";
import { quote, quoteAll } from "./json";
import { artifactFiles, type Bundle } from "./manifest";
import type { Prediction, Provenance } from "./prediction";
import type { Progress } from "./protocol";
import { describeQuality, measureQuality } from "./quality";

/** Options of an engine, and its artifact format if it is not that of the bundle. */
export interface SessionOptions extends EngineOptions {
  readonly engine?: string;
}

/** A preprocessed image. */
export interface Prepared {
  /** RGB, uint8 [S, S, 3], valid until the next image is prepared. */
  readonly pixels: Uint8Array;
  readonly quality: readonly string[];
}

/** An opened bundle with an engine that has loaded its model. Calls must not overlap. */
export class Session {
  readonly provenance: Provenance;
  private readonly resizer: Resizer;

  private constructor(
    readonly source: Source,
    readonly bundle: Bundle,
    readonly engine: Engine,
  ) {
    const { spec, artifact } = bundle;
    this.resizer = new Resizer(spec.preprocess);
    this.provenance = {
      bundle: bundle.id,
      name: spec.name,
      version: spec.version,
      target: artifact.target,
      precision: artifact.precision,
      engine: `${engine.name} ${engine.version}`,
    };
  }

  /** Open a bundle, check all of it, and start the engine that runs it. */
  static async open(
    source: Source,
    options: SessionOptions,
    onProgress?: (progress: Progress) => void,
  ): Promise<Session> {
    const container = await openContainer(source, {
      onBytes: (bytes, bytesTotal) =>
        onProgress?.({ stage: "files", file: "", filesDone: 0, filesTotal: 1, bytes, bytesTotal }),
    });
    const { bundle, model } = await openModel(container, onProgress);
    onProgress?.({ stage: "engine" });
    return new Session(source, bundle, await openEngine(bundle, model, options));
  }

  /**
   * Predict one image.
   *
   * @param signal - Stops the work between preprocessing and the engine.
   */
  async predict(image: WorkerImage, signal?: AbortSignal): Promise<Prediction> {
    const start = performance.now();
    const { pixels, quality } = await this.prepare(image);
    signal?.throwIfAborted();
    const prepared = performance.now();
    const outputs = await this.engine.run(pixels);
    const timing = {
      preprocess_ms: prepared - start,
      engine_ms: performance.now() - prepared,
    };
    const { spec, postprocessing, quality: limits } = this.bundle;
    const { provenance } = this;
    return decode(outputs, spec, postprocessing, { timing, quality, provenance, limits });
  }

  /** Convert an image to the network's input. */
  async prepare(image: WorkerImage): Promise<Prepared> {
    const { picture, quality } = await decodeImage(image, this.bundle.spec.preprocess.background);
    try {
      const pixels = this.resizer.resize(picture);
      return { pixels, quality: [...quality, ...this.judge(pixels)] };
    } finally {
      picture.close();
    }
  }

  /** Return a sentence for each of the bundle's limits that an image does not keep. */
  private judge(pixels: Uint8Array): string[] {
    const { quality, spec } = this.bundle;
    return quality ? describeQuality(measureQuality(pixels, spec.preprocess.size), quality) : [];
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

/** Open a bundle, and return the content of its model's file as well. */
export async function openModel(
  container: Container,
  onProgress?: (progress: Progress) => void,
): Promise<{ bundle: Bundle; model: Uint8Array }> {
  const { bundle, kept } = await openBundle(
    container,
    (name, { artifact }) => name === artifact.path,
    (progress) => onProgress?.({ stage: "files", ...progress }),
  );
  // Formats of a browser are one file. `openEngine` refuses the others.
  return { bundle, model: kept.get(bundle.artifact.path) ?? new Uint8Array(0) };
}

/**
 * Load a bundle's model into its engine.
 *
 * @throws UsageError if there is no engine of that name.
 * @throws ElsewhereError if no browser has the engine of the artifact's format.
 * @throws EngineError if the engine refuses the model.
 */
export async function openEngine(
  { spec, artifact, files }: Bundle,
  model: Uint8Array,
  { engine, ...options }: SessionOptions,
): Promise<Engine> {
  const format = engine ?? artifact.format;
  if (!Object.hasOwn(ENGINES, format)) {
    const known = Object.keys(ENGINES);
    if (engine !== undefined) {
      throw new UsageError(`Unknown engine ${quote(engine)}. Use one of ${known.join(", ")}.`);
    }
    throw new ElsewhereError(
      `The bundle is for the target ${quote(artifact.target)} in the format ${quote(format)}, ` +
        `and browsers run ${known.join(", ")}. Export the model with --target web.`,
    );
  }
  const names = artifactFiles({ artifact, files });
  if (names.length !== 1 || names[0] !== artifact.path) {
    throw new EngineError(
      `${artifact.path} holds [${quoteAll(names)}], not one file. Export the model again.`,
    );
  }
  const { open } = await ENGINES[format]();
  return open(model, spec, artifact, options);
}
