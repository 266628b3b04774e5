/**
 * Make a picture the network's uint8 [S, S, 3] input, bit for bit as the contract says.
 *
 * The weights are integers of 22 bits. They are not negative, and the weights of one pixel
 * have a sum near 2^22. So no sum exceeds 255 * 2^22, and 32-bit integers hold it.
 */

import type { Preprocess } from "../spec";
import type { Picture, Rows } from "./picture";

const PRECISION = 22;
const HALF = 1 << (PRECISION - 1);

/** Weights of one pass from n samples to S: output i reads the samples lo[i] .. hi[i] - 1. */
interface Kernel {
  readonly lo: Int32Array;
  readonly hi: Int32Array;
  /** Weights of output i, from `i * taps`. */
  readonly weights: Int32Array;
  readonly taps: number;
}

/** Part of the picture that is read, and the rectangle it is pasted on. */
interface Frame {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
  /** Position of the part on the rectangle. */
  readonly x: number;
  readonly y: number;
  readonly columns: number;
  readonly rows: number;
}

/** Resizes pictures for one model; its buffers are used again for every picture. */
export class Resizer {
  private readonly kernels = new Map<number, Kernel>();
  private readonly output: Uint8Array;
  private readonly sums: Int32Array;
  private narrow = new Uint8Array(0);
  private line = new Uint8Array(0);

  constructor(private readonly spec: Preprocess) {
    this.output = new Uint8Array(spec.size * spec.size * 3);
    this.sums = new Int32Array(spec.size * 3);
  }

  /** Return the network's input, uint8 [S, S, 3], valid until the next call. */
  resize(picture: Picture): Uint8Array {
    const frame = place(picture.width, picture.height, this.spec);
    this.resizeRows(picture, frame);
    this.resizeColumns(frame.rows);
    return this.output;
  }

  /** Resize every row of the rectangle to S pixels, into `narrow` [rows, S, 3]. */
  private resizeRows(picture: Picture, frame: Frame): void {
    const { size, background } = this.spec;
    const kernel = this.kernel(frame.columns);
    const row = size * 3;
    this.narrow = atLeast(this.narrow, frame.rows * row);
    const pads = frame.columns > frame.width || frame.rows > frame.height;
    if (pads) {
      this.line = atLeast(this.line, frame.columns * 3);
      for (let at = 0; at < frame.columns * 3; at++) this.line[at] = background[at % 3];
      resizeRow(this.line, 0, 3, kernel, this.narrow, 0);
      for (let y = 1; y < frame.rows; y++) this.narrow.copyWithin(y * row, 0, row);
    }
    for (let y = 0; y < frame.height; y += picture.batch) {
      const count = Math.min(picture.batch, frame.height - y);
      const rows = picture.rows(frame.left, frame.top + y, frame.width, count);
      for (let index = 0; index < count; index++) {
        const to = (frame.y + y + index) * row;
        const from = rows.start + index * rows.stride;
        if (pads) {
          paste(rows, from, frame.width, this.line, frame.x * 3);
          resizeRow(this.line, 0, 3, kernel, this.narrow, to);
        } else {
          resizeRow(rows.data, from, rows.step, kernel, this.narrow, to);
        }
      }
    }
  }

  /** Resize every column of `narrow` to S pixels, into `output`. */
  private resizeColumns(height: number): void {
    const { narrow, output, sums } = this;
    const { lo, hi, weights, taps } = this.kernel(height);
    const row = sums.length;
    for (let i = 0; i < this.spec.size; i++) {
      sums.fill(HALF);
      for (let y = lo[i]; y < hi[i]; y++) {
        const weight = weights[i * taps + y - lo[i]];
        for (let at = 0, from = y * row; at < row; at++, from++) {
          sums[at] += narrow[from] * weight;
        }
      }
      for (let at = 0, to = i * row; at < row; at++, to++) output[to] = toByte(sums[at]);
    }
  }

  private kernel(samples: number): Kernel {
    const known = this.kernels.get(samples);
    if (known) return known;
    // A camera and a folder of photographs have few sizes, but a page may live for long.
    if (this.kernels.size >= 8) this.kernels.clear();
    const kernel = computeKernel(samples, this.spec.size);
    this.kernels.set(samples, kernel);
    return kernel;
  }
}

function place(width: number, height: number, { fit }: Preprocess): Frame {
  const whole = { left: 0, top: 0, width, height, x: 0, y: 0, columns: width, rows: height };
  if (fit === "stretch") return whole;
  if (fit === "pad") {
    const side = Math.max(width, height);
    const [x, y] = [(side - width) >> 1, (side - height) >> 1];
    return { ...whole, x, y, columns: side, rows: side };
  }
  const side = Math.min(width, height);
  const [left, top] = [(width - side) >> 1, (height - side) >> 1];
  return { left, top, width: side, height: side, x: 0, y: 0, columns: side, rows: side };
}

function computeKernel(samples: number, size: number): Kernel {
  const scale = samples / size;
  const radius = Math.max(scale, 1);
  const taps = Math.ceil(radius) * 2 + 1;
  const kernel: Kernel = {
    lo: new Int32Array(size),
    hi: new Int32Array(size),
    weights: new Int32Array(size * taps),
    taps,
  };
  const exact = new Float64Array(taps);
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const lo = Math.max(Math.trunc(centre - radius + 0.5), 0);
    const hi = Math.min(Math.trunc(centre + radius + 0.5), samples);
    let sum = 0;
    for (let x = lo; x < hi; x++) {
      const weight = Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / radius)));
      exact[x - lo] = weight;
      sum += weight;
    }
    for (let x = 0; x < hi - lo; x++) {
      kernel.weights[i * taps + x] = Math.trunc(0.5 + (exact[x] / sum) * 2 ** PRECISION);
    }
    kernel.lo[i] = lo;
    kernel.hi[i] = hi;
  }
  return kernel;
}

function resizeRow(
  from: Uint8Array | Uint8ClampedArray,
  start: number,
  step: number,
  { lo, hi, weights, taps }: Kernel,
  to: Uint8Array,
  offset: number,
): void {
  for (let i = 0; i < lo.length; i++) {
    const [first, end] = [lo[i], hi[i]];
    let red = HALF;
    let green = HALF;
    let blue = HALF;
    let at = start + first * step;
    for (let x = first, tap = i * taps; x < end; x++, tap++, at += step) {
      const weight = weights[tap];
      red = (red + from[at] * weight) | 0;
      green = (green + from[at + 1] * weight) | 0;
      blue = (blue + from[at + 2] * weight) | 0;
    }
    to[offset++] = toByte(red);
    to[offset++] = toByte(green);
    to[offset++] = toByte(blue);
  }
}

function toByte(sum: number): number {
  return Math.min(sum >> PRECISION, 255);
}

/** Copy a row of RGB or RGBA pixels to RGB. */
function paste(
  { data, step }: Rows,
  from: number,
  width: number,
  to: Uint8Array,
  at: number,
): void {
  for (let x = 0; x < width; x++, from += step) {
    to[at++] = data[from];
    to[at++] = data[from + 1];
    to[at++] = data[from + 2];
  }
}

/** Return a buffer of at least a length, the given one if it is long enough. */
function atLeast(buffer: Uint8Array<ArrayBuffer>, length: number): Uint8Array<ArrayBuffer> {
  return buffer.length >= length ? buffer : new Uint8Array(length);
}
