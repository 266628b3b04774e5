import { describe, expect, test } from "vitest";

import {
  describeLesion,
  describeQuality,
  type LesionSize,
  measureLesion,
  measureQuality,
  type Quality,
  type QualityLimits,
} from "../src/quality";
import { cases, randomBytes, read } from "./conformance";

interface PixelCase {
  readonly tensor?: string;
  readonly size: number;
  readonly seed: number;
  readonly base: number;
  readonly slope: number;
  readonly noise: number;
  readonly limits: QualityLimits;
  readonly quality: Quality;
  readonly sentences: readonly string[];
}

interface MaskCase {
  readonly size: number;
  readonly box: readonly [left: number, upper: number, right: number, lower: number];
  readonly limits: QualityLimits;
  readonly lesion: LesionSize;
  readonly sentences: readonly string[];
}

const every = cases<PixelCase | MaskCase>("quality.json");
const pixelCases = every.filter((one): one is PixelCase => "quality" in one);
const maskCases = every.filter((one): one is MaskCase => "lesion" in one);

function tensorOf({ tensor, size, seed, base, slope, noise }: PixelCase): Uint8Array {
  if (tensor !== undefined) return read(tensor);
  return randomBytes(seed, 3 * size * size).map((byte, index) => {
    const at = Math.floor(index / 3);
    const plane = (slope * ((at % size) + Math.floor(at / size))) >> 4;
    return Math.min(255, base + plane + ((noise * byte) >> 8));
  });
}

describe("quality", () => {
  test.each(pixelCases)("of the conformance folder: %j", (one) => {
    const pixels = tensorOf(one);
    const quality = measureQuality(pixels, one.size);
    expect(quality).toEqual(one.quality);
    expect(describeQuality(quality, one.limits)).toEqual(one.sentences);
    // A canvas has a fourth channel, which does not count.
    const canvas = new Uint8ClampedArray(4 * one.size * one.size).map((_, index) =>
      index % 4 === 3 ? 255 : pixels[3 * (index >> 2) + (index % 4)],
    );
    expect(measureQuality(canvas, one.size)).toEqual(quality);
  });

  test.each(maskCases)("of a mask of the conformance folder: %j", ({ size, box, ...one }) => {
    const [left, upper, right, lower] = box;
    const mask = new Uint8Array(size * size).map((_, index) => {
      const [x, y] = [index % size, Math.floor(index / size)];
      return Number(x >= left && x < right && y >= upper && y < lower);
    });
    const lesion = measureLesion(mask, size);
    expect(lesion).toEqual(one.lesion);
    expect(describeLesion(lesion, one.limits)).toEqual(one.sentences);
  });
});
