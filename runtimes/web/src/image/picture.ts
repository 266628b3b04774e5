/** Pictures whose rows are read in parts, so that a large photograph needs little memory. */

import { ImageError } from "../errors";

/** Colour behind transparent pixels. */
export type Rgb = readonly [number, number, number];

/** Smallest side of a photograph in pixels. */
const MIN_SIDE = 16;
/**
 * Largest number of pixels, as in Python. Python reads JPEG of up to 2^27 pixels, because
 * its decoder can reduce them. A browser decodes in full, at four bytes per pixel.
 */
const MAX_PIXELS = Math.floor((1024 * 1024 * 1024) / 4 / 3);

/**
 * Samples of some rows: the red of pixel x in row y is at `start + y * stride + x * step`,
 * green and blue behind it.
 */
export interface Rows {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly start: number;
  readonly stride: number;
  readonly step: 3 | 4;
}

/** An upright opaque picture. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Largest number of rows that one call of `rows` may read. */
  readonly batch: number;
  /** Return a part of the picture, valid until the next call. */
  rows(left: number, top: number, width: number, count: number): Rows;
  /** Free the picture's memory. */
  close(): void;
}

/** A decoded picture, and sentences about signs of damage that are not certain. */
export interface Decoded {
  readonly picture: Picture;
  readonly quality: readonly string[];
}

/** A picture in memory: RGB, row by row. */
export class RgbPicture implements Picture {
  readonly batch: number;

  constructor(
    readonly width: number,
    readonly height: number,
    readonly data: Uint8Array | Uint8ClampedArray,
    private readonly step: 3 | 4 = 3,
  ) {
    this.batch = height;
  }

  rows(left: number, top: number): Rows {
    const stride = this.width * this.step;
    return { data: this.data, start: top * stride + left * this.step, stride, step: this.step };
  }

  close(): void {}
}

/**
 * Refuse a picture that is too large for the memory, or too small to be a photograph.
 *
 * @param name - Name of the image, for messages.
 */
export function checkSize(width: number, height: number, name: string): void {
  if (width * height > MAX_PIXELS) {
    throw new ImageError(
      `${name} has ${width} x ${height} pixels, over the limit of ${MAX_PIXELS}. ` +
        "Pass a smaller one.",
    );
  }
  if (Math.min(width, height) < MIN_SIDE) {
    throw new ImageError(
      `${name} has ${width} x ${height} pixels, too small to be a photograph. ` +
        `Each side needs ${MIN_SIDE} or more.`,
    );
  }
}

/**
 * Compose RGBA samples on a background in place, rounded as Pillow does.
 *
 * @param data - Samples, four bytes per pixel; every alpha becomes 255.
 */
export function compose(data: Uint8Array | Uint8ClampedArray, background: Rgb): void {
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3];
    if (alpha === 255) continue;
    for (let channel = 0; channel < 3; channel++) {
      data[at + channel] = blend(alpha, background[channel], data[at + channel]);
    }
    data[at + 3] = 255;
  }
}

/** Return the rounded mean of two samples, weighted by alpha of 255. */
export function blend(alpha: number, below: number, above: number): number {
  const sum = below * (255 - alpha) + above * alpha + 128;
  return ((sum >> 8) + sum) >> 8;
}
