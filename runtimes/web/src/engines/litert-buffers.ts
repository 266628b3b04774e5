/** Move images into LiteRT's memory and outputs out of it. */

import { EngineError } from "../errors";
import type { LiteRtModule } from "./litert-module";

// Constants of WebGPU that TypeScript's DOM library does not declare.
declare const GPUBufferUsage: Record<"COPY_SRC" | "COPY_DST" | "MAP_READ" | "STORAGE", number>;
declare const GPUMapMode: Record<"READ", number>;

export type TensorBuffer = ReturnType<LiteRtModule["LiteRtTensorBuffer"]["createManaged"]>;
type Environment = ReturnType<LiteRtModule["LiteRtEnvironment"]["create"]>;
type TensorType = Parameters<LiteRtModule["LiteRtTensorBuffer"]["createManaged"]>[2];

/** The input buffer of a model, which all calls share, and access to its outputs. */
export interface Buffers {
  readonly input: TensorBuffer;
  write(image: Uint8Array): void;
  /** Return a copy of an output's values. */
  read(output: TensorBuffer): Promise<Float32Array>;
  close(): void;
}

/** Buffers in the memory of the WebAssembly module. */
export class HostBuffers implements Buffers {
  readonly input: TensorBuffer;

  constructor(
    private readonly module: LiteRtModule,
    environment: Environment,
    type: TensorType,
  ) {
    const { LiteRtTensorBuffer, LiteRtTensorBufferType } = module;
    this.input = LiteRtTensorBuffer.createManaged(
      environment,
      LiteRtTensorBufferType.HOST_MEMORY,
      type,
      type.bytes(),
    );
  }

  write(image: Uint8Array): void {
    const { WRITE } = this.module.LiteRtTensorBufferLockMode;
    const address = this.input.lock(WRITE);
    try {
      this.memory(address, image.length).set(image);
    } finally {
      this.input.unlock();
    }
  }

  async read(output: TensorBuffer): Promise<Float32Array> {
    const { READ } = this.module.LiteRtTensorBufferLockMode;
    const address = output.lock(READ);
    try {
      return new Float32Array(this.memory(address, output.packedSize()).slice().buffer);
    } finally {
      output.unlock();
    }
  }

  close(): void {
    this.input.delete();
  }

  private memory(address: number, length: number): Uint8Array {
    const { HEAPU8 } = this.module;
    // A shared memory that another thread enlarged is not visible in this view.
    if (address + length > HEAPU8.length) {
      throw new EngineError("LiteRT's memory grew during a call. Load the bundle again.");
    }
    return HEAPU8.subarray(address, address + length);
  }
}

/** Buffers in the memory of a GPU. */
export class GpuBuffers implements Buffers {
  readonly input: TensorBuffer;
  private readonly image: GPUBuffer;
  private readonly handle: number;

  constructor(
    private readonly module: LiteRtModule,
    environment: Environment,
    type: TensorType,
    private readonly device: GPUDevice,
  ) {
    this.image = device.createBuffer({
      size: align(type.bytes()),
      usage: GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST | GPUBufferUsage.STORAGE,
    });
    this.handle = module.WebGPU.importJsBuffer(this.image);
    this.input = module.LiteRtTensorBuffer.createFromWebGpuBuffer(
      environment,
      type,
      module.LiteRtTensorBufferType.WEB_GPU_BUFFER_PACKED,
      this.handle,
      this.image.size,
    );
  }

  write(image: Uint8Array): void {
    const padded = new Uint8Array(align(image.length));
    padded.set(image);
    this.device.queue.writeBuffer(this.image, 0, padded);
  }

  async read(output: TensorBuffer): Promise<Float32Array> {
    const source = this.module.WebGPU.getJsObject(output.getWebGpuBuffer());
    const copy = this.device.createBuffer({
      size: source.size,
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
    try {
      const encoder = this.device.createCommandEncoder();
      encoder.copyBufferToBuffer(source, 0, copy, 0, source.size);
      this.device.queue.submit([encoder.finish()]);
      await copy.mapAsync(GPUMapMode.READ);
      const values = copy.getMappedRange(output.offset(), output.packedSize());
      return new Float32Array(values.slice(0));
    } finally {
      copy.destroy();
    }
  }

  close(): void {
    this.input.delete();
    this.module.wgpuBufferRelease(this.handle);
    this.image.destroy();
  }
}

/** Return a size that WebGPU can copy: a multiple of 4 bytes. */
function align(bytes: number): number {
  return (bytes + 3) & ~3;
}
