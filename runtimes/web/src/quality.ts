/** Measure the quality of a photograph and its lesion, as `runtimes/README.md` defines it. */

import { BundleError } from "./errors";
import type { JsonObject } from "./spec";
import { AGAIN, optional } from "./take";

const LINES = 32;
const WHITE = 250;
const DETAIL = 96;

/** Limits that a good photograph keeps; null is not judged. */
export interface QualityLimits {
  /** Smallest sharpness, 0 to 1000. */
  readonly sharpness: number | null;
  /** Smallest brightness, 0 to 255. */
  readonly dark: number | null;
  /** Largest brightness, 0 to 255. */
  readonly bright: number | null;
  /** Largest glare, 0 to 1000. */
  readonly glare: number | null;
  /** Smallest share of the frame that the lesion covers, 0 to 1000. */
  readonly small: number | null;
  /** Largest share of the frame's border that the lesion covers, 0 to 1000. */
  readonly cut: number | null;
}

/** Measures of the pixels of one image. */
export interface Quality {
  /** About 500 in a blurred image, 600 or more in a sharp one. */
  readonly sharpness: number;
  /** Mean of the green values, 0 to 255. */
  readonly brightness: number;
  /** Green values that are white, in parts per 1000. */
  readonly glare: number;
}

/** Measures of the mask of one image. */
export interface LesionSize {
  /** Part of the frame that the lesion covers, in parts per 1000. */
  readonly share: number;
  /** Part of the frame's border, its outermost pixels, that the lesion covers. */
  readonly border: number;
}

/**
 * Measure sharpness, brightness and glare of a square image.
 *
 * @param pixels - RGB [size, size, 3], or RGBA [size, size, 4] of a canvas, row-major.
 */
export function measureQuality(pixels: ArrayLike<number>, size: number): Quality {
  const channels = pixels.length / (size * size);
  const at = Array.from({ length: LINES }, (_, i) =>
    Math.floor(((2 * i + 1) * size) / (2 * LINES)),
  );
  const green = (x: number, y: number): number => pixels[channels * (size * y + x) + 1];
  const rows = at.map((y) => Array.from({ length: size }, (_, x) => green(x, y)));
  const columns = at.map((x) => Array.from({ length: size }, (_, y) => green(x, y)));
  const values = [...rows, ...columns].flat();
  return {
    sharpness: Math.min(sharpness(rows, size), sharpness(columns, size)),
    brightness: Math.floor(values.reduce((sum, value) => sum + value, 0) / values.length),
    glare: Math.floor((1000 * values.filter((value) => value >= WHITE).length) / values.length),
  };
}

/** Return a sentence, and what to do, for each limit that an image does not keep. */
export function describeQuality(quality: Quality, limits: QualityLimits): string[] {
  const { sharpness, dark, bright, glare } = limits;
  const tooBright = bright !== null && quality.brightness > bright;
  const found: string[] = [];
  if (dark !== null && quality.brightness < dark) {
    found.push("The image is too dark. Add light.");
  }
  if (tooBright) found.push("The image is too bright. Reduce the light.");
  // Too much light makes the whole image white; that is no reflection.
  if (glare !== null && quality.glare > glare && !tooBright) {
    found.push("Light reflects in the image. Tilt the phone or the lamp.");
  }
  if (sharpness !== null && quality.sharpness < sharpness) {
    found.push("The image is out of focus. Hold still, or move back a little.");
  }
  return found;
}

/**
 * Measure how much of the frame, and of its border, the lesion covers.
 *
 * @param mask - Bytes 0 and 1, [size, size].
 */
export function measureLesion(mask: Uint8Array, size: number): LesionSize {
  let [inside, border] = [0, 0];
  mask.forEach((value, index) => {
    const [x, y] = [index % size, Math.floor(index / size)];
    inside += value;
    if (x === 0 || y === 0 || x === size - 1 || y === size - 1) border += value;
  });
  return {
    share: Math.floor((1000 * inside) / mask.length),
    border: Math.floor((1000 * border) / (4 * size - 4)),
  };
}

/** Return a sentence, and what to do, if the lesion is too small or cut off. */
export function describeLesion(lesion: LesionSize, { small, cut }: QualityLimits): string[] {
  if (small !== null && lesion.share < small) {
    return ["The lesion is missing or too small in the image. Move closer."];
  }
  if (cut !== null && lesion.border > cut) {
    return ["The lesion is too large or cut off. Move back."];
  }
  return [];
}

/** Read limits from JSON; throw BundleError if one is no integer or out of range. */
export function parseQuality(data: JsonObject): QualityLimits {
  const limit = (name: string, largest: number): number | null => {
    const value = optional(data, name, "integer", "quality");
    if (value !== null && (value < 0 || value > largest)) {
      throw new BundleError(`quality.${name} is ${value}, not within 0..${largest}. ${AGAIN}`);
    }
    return value;
  };
  return {
    sharpness: limit("sharpness", 1000),
    dark: limit("dark", 255),
    bright: limit("bright", 255),
    glare: limit("glare", 1000),
    small: limit("small", 1000),
    cut: limit("cut", 1000),
  };
}

/** Return the differences of neighbours in parts per 1000 of those at twice the distance. */
function sharpness(lines: readonly (readonly number[])[], size: number): number {
  const step = Math.max(1, Math.floor(size / DETAIL));
  let [near, far] = [0, 0];
  for (const line of lines) {
    for (let i = 0; i < size - 2 * step; i++) {
      near += Math.abs(line[i + step] - line[i]);
      far += Math.abs(line[i + 2 * step] - line[i]);
    }
  }
  return far === 0 ? 0 : Math.floor((1000 * near) / far);
}
