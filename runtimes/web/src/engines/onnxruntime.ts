/** Run ONNX bundles with ONNX Runtime Web, on the CPU or with WebGPU. */

import type { Env, InferenceSession, Tensor } from "onnxruntime-web/wasm";

import type { Engine, EngineOptions } from "../engine";
import { EngineError, firstLine } from "../errors";
import type { Artifact, Spec } from "../spec";
import { checkRequires, describeRefusal } from "./requires";
import { checkSignature, INPUT, type Port } from "./signature";
import { countThreads, requireWebAssembly } from "./webassembly";

const NAME = "onnxruntime";

/** What the builds of ONNX Runtime Web for WebAssembly and for WebGPU have in common. */
interface Build {
  readonly env: Env;
  readonly InferenceSession: typeof InferenceSession;
  readonly Tensor: new (type: "uint8", data: Uint8Array, shape: readonly number[]) => Tensor;
}

/** Load an ONNX file into ONNX Runtime Web; see `OpenEngine`. */
export async function open(
  model: Uint8Array,
  spec: Spec,
  artifact: Artifact,
  options: EngineOptions,
): Promise<Engine> {
  requireWebAssembly();
  const { accelerator = "wasm", assets } = options;
  const build: Build = await (accelerator === "webgpu"
    ? import("onnxruntime-web/webgpu")
    : import("onnxruntime-web/wasm"));
  const version = build.env.versions.web ?? build.env.versions.common;
  checkRequires(artifact, NAME, version);
  const { wasm } = build.env;
  wasm.wasmPaths = assets;
  // The first session of a worker starts the threads; later sessions share them.
  wasm.numThreads ??= countThreads(options.threads);
  let session: InferenceSession;
  try {
    session = await build.InferenceSession.create(model, {
      executionProviders: [accelerator],
      graphOptimizationLevel: "all",
      // The arena keeps the peak memory of one call for the life of the session
      // (https://github.com/microsoft/onnxruntime/issues/11627).
      enableCpuMemArena: false,
      logSeverityLevel: 4,
    });
  } catch (error) {
    const cause = firstLine(error);
    throw new EngineError(
      cause.includes("no available backend")
        ? `ONNX Runtime's files in ${assets} cannot be loaded (${cause}). Serve the package's ` +
            "folder dist/engines there."
        : describeRefusal(NAME, version, artifact, cause),
    );
  }
  checkSignature(
    session.inputMetadata.map(describe),
    session.outputMetadata.map(describe),
    spec,
  );
  return new OnnxRuntime(build, session, spec, version, wasm.numThreads);
}

class OnnxRuntime implements Engine {
  readonly name = NAME;
  private session: InferenceSession | null;
  private readonly shape: readonly number[];

  constructor(
    private readonly build: Build,
    session: InferenceSession,
    spec: Spec,
    readonly version: string,
    readonly threads: number,
  ) {
    this.session = session;
    this.shape = [1, spec.preprocess.size, spec.preprocess.size, 3];
  }

  async run(image: Uint8Array): Promise<Record<string, Float32Array>> {
    if (!this.session) {
      throw new EngineError("The ONNX Runtime session is closed. Load the bundle again.");
    }
    try {
      const input = new this.build.Tensor("uint8", image, this.shape);
      const outputs = await this.session.run({ [INPUT]: input });
      return Object.fromEntries(
        Object.entries(outputs).map(([name, tensor]) => [name, tensor.data as Float32Array]),
      );
    } catch (error) {
      throw new EngineError(
        `${NAME} failed on uint8 [${this.shape.join(", ")}] (${firstLine(error)}). Call ` +
          "`verify` on the bundle.",
      );
    }
  }

  /** Return `{}`: ONNX Runtime Web does not say which provider computes a node. */
  placement(): Record<string, Record<string, number>> {
    return {};
  }

  async close(): Promise<void> {
    const { session } = this;
    this.session = null;
    await session?.release();
  }
}

/** Return the type and sizes of an input or output; ONNX names an open size. */
function describe(value: InferenceSession.ValueMetadata): Port {
  if (!value.isTensor) return { name: value.name, type: "no tensor", shape: [] };
  const shape = value.shape.map((size) => (typeof size === "number" ? size : null));
  return { name: value.name, type: value.type, shape };
}
