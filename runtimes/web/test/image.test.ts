import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { ImageError } from "../src/errors";
import { RgbPicture } from "../src/image/picture";
import { decodeImage } from "../src/image/decode";
import { Resizer } from "../src/image/resize";
import { cases, type ImageCase, randomBytes, read, type ResizeCase } from "./conformance";

const sha256 = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");
// A browser decodes the other formats; what is refused before that is tested here.
const images = cases<ImageCase>("images.json").filter(
  ({ image, error }) => image.endsWith(".png") || error !== undefined,
);

function fileOf({ image }: ImageCase): Blob {
  return new Blob([read(image) as Uint8Array<ArrayBuffer>]);
}

describe("resizing", () => {
  test("gives the bytes of Python for 500 random sizes, fits and backgrounds", () => {
    const wrong = cases<ResizeCase>("resize.json").filter(
      ({ width, height, seed, preprocess, sha256: want }) => {
        const picture = new RgbPicture(width, height, randomBytes(seed, width * height * 3));
        return sha256(new Resizer(preprocess).resize(picture)) !== want;
      },
    );
    expect(wrong).toEqual([]);
  });

  test("gives the same bytes for the next picture, whatever came before", () => {
    const spec = { size: 24, fit: "pad", kernel: "triangle", background: [9, 8, 7] } as const;
    const [tall, wide] = [
      new RgbPicture(20, 90, randomBytes(1, 5400)),
      new RgbPicture(70, 30, randomBytes(2, 6300)),
    ];
    const resizer = new Resizer(spec);
    const alone = new Resizer(spec).resize(wide).slice();
    resizer.resize(tall);
    expect(resizer.resize(wide)).toEqual(alone);
  });
});

describe("an image", () => {
  test.each(images)("of the conformance folder: $name", async (one) => {
    const decoding = decodeImage(fileOf(one), one.preprocess.background);
    if (one.error !== undefined) {
      const error = await decoding.catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(ImageError);
      for (const text of one.mentions ?? []) expect(String(error)).toContain(text);
      return;
    }
    const { picture } = await decoding;
    const { width, height } = picture;
    const { data } = picture.rows(0, 0, width, height);
    expect({ width, height, sha256: sha256(data as Uint8Array) }).toEqual(one.pixels);
    expect(new Resizer(one.preprocess).resize(picture)).toEqual(read(one.tensor ?? ""));
  });
});
