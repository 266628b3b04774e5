/** Run ONNX bundles with ONNX Runtime Web on the CPU. */

import { env, InferenceSession, Tensor as OrtTensor } from "onnxruntime-web/wasm";

import type { Tensor } from "../decode";
import type { Engine, EngineOptions } from "../engine";
import { EngineError, firstLine } from "../errors";
import type { Artifact, Spec } from "../spec";
import { checkRequires, describeRefusal } from "./requires";
import { checkSignature, INPUT, type Port } from "./signature";
import { countThreads, requireWebAssembly } from "./webassembly";

const NAME = "onnxruntime";

/** Load an ONNX file into ONNX Runtime Web; see `OpenEngine`. */
export async function open(
  model: Uint8Array,
  spec: Spec,
  artifact: Artifact,
  options: EngineOptions,
): Promise<Engine> {
  requireWebAssembly();
  if (options.accelerator === "webgpu") {
    // Version 1.30 computes a ResNet wrongly with WebGPU, where LiteRT is right to 1e-6
    // (both on SwiftShader), and its WebGPU build adds 27 MB to the package.
    throw new EngineError(
      "ONNX bundles do not run with WebGPU. Leave `accelerator` out, or export with " +
        "--target web-webgpu.",
    );
  }
  const version = env.versions.web ?? env.versions.common;
  checkRequires(artifact, NAME, version);
  const { assets } = options;
  env.wasm.wasmPaths = assets;
  // The first session of a worker starts the threads; later sessions share them.
  env.wasm.numThreads ??= countThreads(options.threads);
  let session: InferenceSession;
  try {
    session = await InferenceSession.create(model, {
      executionProviders: ["wasm"],
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
  try {
    const { inputMetadata, outputMetadata } = session;
    checkSignature(inputMetadata.map(describe), outputMetadata.map(describe), spec);
  } catch (error) {
    await session.release();
    throw error;
  }
  return new OnnxRuntime(session, spec, version, env.wasm.numThreads);
}

class OnnxRuntime implements Engine {
  readonly name = NAME;
  private session: InferenceSession | null;
  private readonly shape: readonly number[];

  constructor(
    session: InferenceSession,
    spec: Spec,
    readonly version: string,
    readonly threads: number,
  ) {
    this.session = session;
    this.shape = [1, spec.preprocess.size, spec.preprocess.size, 3];
  }

  async run(image: Uint8Array): Promise<Record<string, Tensor>> {
    if (!this.session) {
      throw new EngineError("The ONNX Runtime session is closed. Load the bundle again.");
    }
    try {
      const input = new OrtTensor("uint8", image, this.shape);
      const outputs = await this.session.run({ [INPUT]: input });
      return Object.fromEntries(
        Object.entries(outputs).map(([name, { dims, data }]) => [
          name,
          { shape: dims.slice(1), values: data as Float32Array },
        ]),
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
