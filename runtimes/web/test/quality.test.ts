import { describe, expect, test } from "vitest";

import { describeQuality, measureQuality, type QualityLimits, type Quality } from "../src/quality";
import { cases, randomBytes, read } from "./conformance";

interface QualityCase {
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

function tensorOf({ tensor, size, seed, base, slope, noise }: QualityCase): Uint8Array {
  if (tensor !== undefined) return read(tensor);
  return randomBytes(seed, 3 * size * size).map((byte, index) => {
    const at = Math.floor(index / 3);
    const plane = (slope * ((at % size) + Math.floor(at / size))) >> 4;
    return Math.min(255, base + plane + ((noise * byte) >> 8));
  });
}

describe("quality", () => {
  test.each(cases<QualityCase>("quality.json"))("of the conformance folder: %j", (one) => {
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
});
