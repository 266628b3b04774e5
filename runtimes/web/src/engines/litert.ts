/** Run LiteRT bundles with LiteRT.js: XNNPACK on the CPU, or WebGPU. */

import { version } from "@litertjs/core/package.json";

import type { Tensor } from "../decode";
import type { Engine, EngineOptions } from "../engine";
import { EngineError, firstLine } from "../errors";
import type { Artifact, Spec } from "../spec";
import { hasThreads, loadModule, type LiteRtModule } from "./litert-module";
import { GpuBuffers, HostBuffers, type Buffers, type TensorBuffer } from "./litert-buffers";
import { checkRequires, describeRefusal } from "./requires";
import { checkSignature, type Port } from "./signature";
import { countThreads, requireWebAssembly } from "./webassembly";

const NAME = "litert";
const SIGNATURE = 0;
const TYPES: Readonly<Record<number, string>> = { 1: "float32", 3: "uint8", 9: "int8" };

type Model = ReturnType<LiteRtModule["loadModel"]>;
type CompiledModel = Awaited<ReturnType<LiteRtModule["compileModel"]>>;
type TensorType = ReturnType<Model["getInputTensorType"]>;
type Vector<T> = { size(): number; get(index: number): T; delete(): void };

/** Load a `.tflite` file into LiteRT.js; see `OpenEngine`. */
export async function open(
  model: Uint8Array,
  spec: Spec,
  artifact: Artifact,
  options: EngineOptions,
): Promise<Engine> {
  requireWebAssembly();
  checkRequires(artifact, NAME, version);
  const { accelerator = "wasm", assets } = options;
  const device = accelerator === "webgpu" ? await requestGpu() : null;
  const threads = device || !hasThreads() ? 1 : countThreads(options.threads);
  const lines: string[] = [];
  const module = await loadModule(assets, threads, (line) => lines.push(line));
  const free: (() => void)[] = [() => device?.destroy()];
  try {
    return await compile(module, model, spec, { device, threads, free });
  } catch (error) {
    free.reverse().forEach((release) => release());
    if (error instanceof EngineError) throw error;
    const cause = lastError(lines) ?? firstLine(error);
    throw new EngineError(describeRefusal(NAME, version, artifact, cause));
  }
}

interface Resources {
  readonly device: GPUDevice | null;
  readonly threads: number;
  /** Functions that free what was allocated, in the order of allocation. */
  readonly free: (() => void)[];
}

async function compile(
  module: LiteRtModule,
  content: Uint8Array,
  spec: Spec,
  { device, threads, free }: Resources,
): Promise<LiteRt> {
  const keep = <T extends { delete(): void }>(object: T): T => {
    free.push(() => object.delete());
    return object;
  };
  module.setupLogging();
  const environment = keep(module.LiteRtEnvironment.create(device));
  const address = module._malloc(content.byteLength);
  free.push(() => module._free(address));
  module.HEAPU8.set(content, address);
  const model = keep(module.loadModel(environment, address, content.byteLength));
  const outputs = outputPorts(model);
  checkSignature(inputPorts(model), outputs, spec);
  const compiled = keep(
    await module.compileModel(environment, model, {
      accelerator: device ? "webgpu" : "wasm",
      // LiteRT.js reads these two keys, which its types do not list here.
      ...{ environment, cpuOptions: { numThreads: threads } },
      // In fp16, sums over an image overflow (https://github.com/google-ai-edge/LiteRT/issues/9249).
      gpuOptions: { precision: "fp32" },
      webNNOptions: {},
    }),
  );
  if (device && !compiled.isFullyAccelerated()) {
    throw new EngineError("WebGPU cannot compute all of this model. Leave `accelerator` out.");
  }
  const type = keep(model.getInputTensorType(SIGNATURE, 0));
  const buffers: Buffers = device
    ? new GpuBuffers(module, environment, type, device)
    : new HostBuffers(module, environment, type);
  free.push(() => buffers.close());
  return new LiteRt(compiled, buffers, outputs, threads, free);
}

class LiteRt implements Engine {
  readonly name = NAME;
  readonly version = version;
  private closed = false;

  constructor(
    private readonly compiled: CompiledModel,
    private readonly buffers: Buffers,
    private readonly ports: readonly Port[],
    readonly threads: number,
    private readonly free: (() => void)[],
  ) {}

  async run(image: Uint8Array): Promise<Record<string, Tensor>> {
    if (this.closed) {
      throw new EngineError("The LiteRT model is closed. Load the bundle again.");
    }
    try {
      this.buffers.write(image);
      const outputs = await this.compiled.run(SIGNATURE, [this.buffers.input]);
      return await this.read(outputs);
    } catch (error) {
      throw new EngineError(
        `${NAME} failed on uint8 [${image.length}] (${firstLine(error)}). Call \`verify\` on ` +
          "the bundle.",
      );
    }
  }

  private async read(outputs: readonly TensorBuffer[]): Promise<Record<string, Tensor>> {
    try {
      const tensors: Record<string, Tensor> = {};
      for (const [index, output] of outputs.entries()) {
        const { name, shape } = this.ports[index];
        // The converter writes fixed shapes; decoding refuses an open size as 0.
        const fixed = shape.slice(1).map((size) => size ?? 0);
        tensors[name] = { shape: fixed, values: await this.buffers.read(output) };
      }
      return tensors;
    } finally {
      for (const output of outputs) output.delete();
    }
  }

  /** Return `{}`: LiteRT.js does not say which operators XNNPACK or WebGPU compute. */
  placement(): Record<string, Record<string, number>> {
    return {};
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.free.reverse().forEach((release) => release());
  }
}

/** Return the inputs of the model's first signature. */
function inputPorts(model: Model): Port[] {
  const signature = model.getSignature(SIGNATURE);
  const names = list(signature.inputNames());
  signature.delete();
  return names.map((name, index) => describe(name, model.getInputTensorType(SIGNATURE, index)));
}

/** Return the outputs of the model's first signature, in their order. */
function outputPorts(model: Model): Port[] {
  const signature = model.getSignature(SIGNATURE);
  const names = list(signature.outputNames());
  signature.delete();
  return names.map((name, index) => describe(name, model.getOutputTensorType(SIGNATURE, index)));
}

function describe(name: string, type: TensorType): Port {
  const layout = type.layout();
  const element = type.elementType().value;
  const shape = list(layout.dimensions()).map((size) => (size < 0 ? null : size));
  layout.delete();
  type.delete();
  return { name, type: TYPES[element] ?? `type ${element}`, shape };
}

/** Return the values of a C++ vector, and free it. */
function list<T>(vector: Vector<T>): T[] {
  const values = Array.from({ length: vector.size() }, (_, index) => vector.get(index));
  vector.delete();
  return values;
}

/** Return the last error that LiteRT printed, without the place in its source code. */
function lastError(lines: readonly string[]): string | undefined {
  return lines
    .filter((line) => line.startsWith("ERROR"))
    .at(-1)
    ?.replace(/^ERROR:\s*(\[[^\]]*\]\s*)?/, "");
}

async function requestGpu(): Promise<GPUDevice> {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new EngineError("This browser has no WebGPU. Leave `accelerator` out.");
  const { maxBufferSize, maxStorageBufferBindingSize, maxStorageBuffersPerShaderStage } =
    adapter.limits;
  const { maxTextureDimension2D } = adapter.limits;
  return adapter.requestDevice({
    requiredLimits: {
      maxBufferSize,
      maxStorageBufferBindingSize,
      maxStorageBuffersPerShaderStage,
      maxTextureDimension2D,
    },
  });
}
