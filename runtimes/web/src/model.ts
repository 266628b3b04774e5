/** Run a bundle on images: `load` it, and call `predict` of the returned `Model`. */

import type { BenchOptions } from "./bench";
import { Client } from "./client";
import type { Source } from "./container";
import { Prediction } from "./prediction";
import { UsageError } from "./errors";
import type { Bundle } from "./manifest";
import type { EngineInfo, LoadArguments, Progress } from "./protocol";
import type { LatencyReport, VerifyReport } from "./report";
import { type ImageSource, toSendable } from "./source";
import { nextFrame } from "./video";

/** The median of three is not changed by one disturbed start. */
const COLD_STARTS = 3;

/** Options of `load`. */
export interface LoadOptions {
  /** Number of threads; by default all that the page may use, one without isolation. */
  readonly threads?: number;
  /** Part of the machine that computes; by default `wasm`, the CPU. */
  readonly accelerator?: "wasm" | "webgpu";
  /** Artifact format whose engine runs the bundle; by default that of the bundle. */
  readonly engine?: string;
  /** URL of the folder with the engines' files; by default `engines/` beside the worker. */
  readonly assets?: string | URL;
  /** URL of the worker's script; by default `worker.js` beside this module. */
  readonly workerUrl?: string | URL;
  /** Ends the loading. */
  readonly signal?: AbortSignal;
  /** Called while files arrive and when the engine starts. */
  readonly onProgress?: (progress: Progress) => void;
}

/** Options of one call. */
export interface CallSettings {
  /** Ends the call, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/**
 * Open a bundle, check all of it, and start the engine that runs it.
 *
 * Only the bundle and the engine's own files are fetched.
 *
 * @param source - URL of a bundle's folder or zip, the zip as a File or Blob, or every file
 *   by its path.
 * @throws BundleError if the bundle is damaged, unsafe or too new.
 * @throws UsageError if there is no bundle at the URL, or an option is not valid.
 * @throws ElsewhereError if this browser cannot have the engine.
 * @throws EngineError if the engine refuses the model.
 */
export async function load(source: Source, options: LoadOptions = {}): Promise<Model> {
  const client = new Client(options.workerUrl);
  try {
    const { signal, onProgress } = options;
    const loaded = await client.call("load", toArguments(source, options), { signal, onProgress });
    return new Model(client, loaded.bundle, loaded.engine, source, options);
  } catch (error) {
    client.terminate();
    throw error;
  }
}

/**
 * Verify a bundle in this browser, also one that `load` refuses.
 *
 * @returns The result of each check.
 * @throws UsageError if there is no bundle at the URL.
 */
export async function verify(source: Source, options: LoadOptions = {}): Promise<VerifyReport> {
  const client = new Client(options.workerUrl);
  try {
    const { signal } = options;
    return await client.call("verifyBundle", toArguments(source, options), { signal });
  } finally {
    client.terminate();
  }
}

/** An opened bundle with its engine, in a worker. Calls run one after another. */
export class Model {
  private closing: Promise<void> | null = null;

  /** Use `load` instead. */
  constructor(
    private readonly client: Client,
    /** The content of the bundle's manifest, and its model card. */
    readonly bundle: Bundle,
    /** The engine, and where each of its operators runs. */
    readonly engine: EngineInfo,
    private readonly source: Source,
    private readonly options: LoadOptions,
  ) {}

  /**
   * Predict one image.
   *
   * @throws ImageError if the image is not a single readable image; the model stays usable.
   * @throws EngineError if the engine fails, or gives NaN or infinity.
   * @throws UsageError if the model is closed.
   */
  async predict(image: ImageSource, { signal }: CallSettings = {}): Promise<Prediction> {
    this.checkOpen();
    const sendable = await toSendable(image);
    this.checkOpen();
    const { fields, mask, cam } = await this.client.call(
      "predict",
      { image: sendable.image },
      { signal, transfer: sendable.transfer },
    );
    return new Prediction(fields, mask, cam);
  }

  /**
   * Predict the frames of a video or a camera, until it ends or the signal is aborted.
   *
   * Frames that arrive while a prediction runs, or while the caller works, are dropped.
   */
  async *stream(
    video: HTMLVideoElement,
    { signal }: CallSettings = {},
  ): AsyncGenerator<Prediction, void, void> {
    this.checkOpen();
    while (await nextFrame(video, signal)) yield await this.predict(video);
  }

  /** Verify the bundle with the engine that runs; all files are read again. */
  async verify({ signal }: CallSettings = {}): Promise<VerifyReport> {
    this.checkOpen();
    return this.client.call("verify", {}, { signal });
  }

  /**
   * Measure latency and cold start in this browser.
   *
   * @param options - `onProgress` is called with the part that is done, 0 to 1.
   */
  async bench({
    signal,
    onProgress,
    ...options
  }: BenchOptions &
    CallSettings & { onProgress?: (done: number) => void } = {}): Promise<LatencyReport> {
    this.checkOpen();
    const { report, image } = await this.client.call("bench", options, { signal, onProgress });
    const starts: number[] = [];
    for (let count = 0; count < COLD_STARTS; count++) {
      starts.push(await timeFirstPrediction(this.source, this.options, image, signal));
    }
    starts.sort((one, other) => one - other);
    return { ...report, cold_start_ms: starts[Math.floor(COLD_STARTS / 2)] };
  }

  /** Free the engine's memory and end the worker, after the calls that run; idempotent. */
  close(): Promise<void> {
    this.closing ??= this.client
      .call("close", {})
      .catch(() => null) // The worker may have stopped by itself.
      .then(() => this.client.terminate());
    return this.closing;
  }

  private checkOpen(): void {
    if (!this.closing) return;
    throw new UsageError(`The model '${this.bundle.spec.name}' is closed. Load its bundle again.`);
  }
}

async function timeFirstPrediction(
  source: Source,
  { onProgress: _, ...options }: LoadOptions,
  image: Blob,
  signal?: AbortSignal,
): Promise<number> {
  signal?.throwIfAborted();
  const start = performance.now();
  const model = await load(source, options);
  try {
    await model.predict(image);
    return performance.now() - start;
  } finally {
    await model.close();
  }
}

/** Return the source and the options as they cross to the worker. */
function toArguments(
  source: Source,
  { threads, accelerator, engine, assets }: LoadOptions,
): LoadArguments {
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
    throw new UsageError(`threads is ${threads}. Use 1 or more, or leave it out.`);
  }
  return {
    source: typeof source === "string" || source instanceof URL ? resolve(source) : source,
    options: {
      ...(threads !== undefined && { threads }),
      ...(accelerator !== undefined && { accelerator }),
      ...(engine !== undefined && { engine }),
      ...(assets !== undefined && { assets: resolve(assets).replace(/\/?$/, "/") }),
    },
  };
}

/** Return a URL as text; a relative one belongs to the page. */
function resolve(url: string | URL): string {
  try {
    return new URL(url, document.baseURI).href;
  } catch {
    throw new UsageError(`'${url}' is not a URL. Check it.`);
  }
}
