import { describe, expect, test } from "vitest";

import { decodeImage } from "../src/image/decode";
import { checkJpeg, readJpeg } from "../src/image/jpeg";
import { cases, type ImageCase, read } from "./conformance";

const JPEGS = cases<ImageCase>("images.json").filter(
  ({ image, error }) => image.endsWith(".jpg") && error === undefined,
);
const END = Uint8Array.of(0xff, 0xd9);

function check(data: Uint8Array): readonly string[] {
  const header = readJpeg(data);
  if (!header) throw new Error("no header");
  return checkJpeg(data, header).quality;
}

/** Return the data with a part replaced. */
function splice(data: Uint8Array, at: number, count: number, part: Uint8Array): Uint8Array {
  return Uint8Array.from([...data.slice(0, at), ...part, ...data.slice(at + count)]);
}

function indexOfMarker(data: Uint8Array, marker: number, from: number): number {
  return data.findIndex((byte, at) => at >= from && byte === 0xff && data[at + 1] === marker);
}

describe("a JPEG", () => {
  test.each(JPEGS)("of the conformance folder is complete: $name", ({ image, pixels }) => {
    const data = read(image);
    const { width, height } = readJpeg(data)!;
    // EXIF turns some of them.
    expect([width, height].sort()).toEqual([pixels!.width, pixels!.height].sort());
    expect(check(data)).toEqual([]);
  });

  test("without its end, a scan or a restart marker is refused", () => {
    const progressive = read("images/progressive.jpg");
    expect(() => check(progressive.slice(0, -2))).toThrow("end marker");
    const lastScan = progressive.length - 2 - progressive.slice().reverse().indexOf(0xda);
    expect(() => check(splice(progressive, lastScan, progressive.length, END))).toThrow("scans");
    const restarts = read("images/restarts.jpg");
    const { start } = readJpeg(restarts)!;
    const second = indexOfMarker(restarts, 0xd1, start);
    expect(second).toBeGreaterThan(start);
    expect(() => check(splice(restarts, second, 2, new Uint8Array(0)))).toThrow("restart markers");
  });

  test("with a block of zeros gets a sentence about it", () => {
    const data = read("images/grey.jpg");
    const { start } = readJpeg(data)!;
    expect(check(splice(data, start + 20, 0, new Uint8Array(511)))).toEqual([]);
    const [sentence] = check(splice(data, start + 20, 0, new Uint8Array(600)));
    expect(sentence).toContain("block of zeros");
  });

  test("is probed with data that only an incomplete picture shows", () => {
    const data = read("images/grey.jpg");
    const header = readJpeg(data)!;
    const [plain, noisy] = checkJpeg(data, header).probes;
    expect(plain).toEqual(data.slice(0, plain.length));
    expect(noisy.slice(0, plain.length - 2)).toEqual(plain.slice(0, -2));
    expect(noisy.length).toBeGreaterThan(plain.length + 4000);
    expect(noisy.slice(-2)).toEqual(END);
  });

  test("of 100 megapixels is refused before it is decoded", async () => {
    const data = read("images/grey.jpg");
    const frame = indexOfMarker(data, 0xc0, 0);
    const size = Uint8Array.of(8660 >> 8, 8660 & 255, 11547 >> 8, 11547 & 255);
    const file = new Blob([splice(data, frame + 5, 4, size) as Uint8Array<ArrayBuffer>]);
    await expect(decodeImage(file, [0, 0, 0])).rejects.toThrow(
      "11547 x 8660 pixels, over the limit",
    );
  });
});
