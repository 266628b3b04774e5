/** Decode an image from any source to an upright opaque picture. */

import { firstLine, ImageError } from "../errors";
import { BitmapPicture, readPixels } from "./bitmap";
import { type Format, identify, inspect } from "./format";
import { checkJpeg, readJpeg } from "./jpeg";
import { checkSize, compose, type Decoded, type Rgb, RgbPicture } from "./picture";
import { decodePng } from "./png";

/** An image that can be passed to a worker: an encoded file, or decoded pixels. */
export type WorkerImage = Blob | ImageData | ImageBitmap;

/** Formats that some browser decodes, with their media types. */
const TYPES: Readonly<Partial<Record<Format, string>>> = {
  JPEG: "image/jpeg",
  WEBP: "image/webp",
  GIF: "image/gif",
  BMP: "image/bmp",
  AVIF: "image/avif",
  HEIF: "image/heic",
};
/** Formats that every browser decodes, so that an error is a fault of the file. */
const COMMON: readonly Format[] = ["JPEG", "WEBP", "GIF", "BMP"];
const OPTIONS: ImageBitmapOptions = {
  imageOrientation: "from-image",
  colorSpaceConversion: "none",
  premultiplyAlpha: "none",
};
const AGAIN = "Fetch or take the photograph again.";

/**
 * Decode an image to upright opaque RGB.
 *
 * @param background - Colour behind transparent pixels.
 * @throws ImageError if the source is not a single complete image that this browser reads,
 *   has a side below 16 pixels, or has too many pixels.
 */
export async function decodeImage(source: WorkerImage, background: Rgb): Promise<Decoded> {
  if (source instanceof Blob) {
    const name = "name" in source && source.name ? String(source.name) : "The image";
    return decodeFile(await readBlob(source, name), background, name);
  }
  if ("data" in source) return { picture: fromImageData(source, background), quality: [] };
  checkSize(source.width, source.height, "The image");
  return { picture: new BitmapPicture(source, background), quality: [] };
}

function fromImageData({ width, height, data }: ImageData, background: Rgb): RgbPicture {
  checkSize(width, height, "The image");
  if (!(data instanceof Uint8ClampedArray)) {
    throw new ImageError("The ImageData has floats. Pass 8 bits per sample.");
  }
  compose(data, background);
  return new RgbPicture(width, height, data, 4);
}

async function readBlob(blob: Blob, name: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (error) {
    throw new ImageError(`${name} cannot be read (${firstLine(error)}). Choose the file again.`);
  }
}

async function decodeFile(
  data: Uint8Array<ArrayBuffer>,
  background: Rgb,
  name: string,
): Promise<Decoded> {
  if (data.length === 0) throw new ImageError(`${name} is empty (0 bytes). ${AGAIN}`);
  const format = identify(data);
  if (format === "PNG") return { picture: await decodePng(data, background, name), quality: [] };
  const type = format && TYPES[format];
  if (!type) {
    throw new ImageError(
      format
        ? `${name} is ${format}, which browsers do not decode. Convert it to JPEG or PNG.`
        : `${name} is not an image that dermedge reads (JPEG, PNG, WEBP, GIF, BMP, AVIF). ` +
            "Convert it to JPEG or PNG.",
    );
  }
  if (format === "JPEG") return decodeJpeg(data, background, name);
  const content = inspect(data, format);
  if (content) {
    if (content.width) checkSize(content.width, content.height, name);
    if (content.frames > 1) {
      throw new ImageError(`${name} is animated or has several pages. Pass a single frame.`);
    }
    if (content.truncated) throw damaged(name, format, "the file ends early");
  }
  const bitmap = await decodeBitmap(data, format, name);
  return { picture: checked(bitmap, background, name), quality: [] };
}

async function decodeJpeg(
  data: Uint8Array<ArrayBuffer>,
  background: Rgb,
  name: string,
): Promise<Decoded> {
  const header = readJpeg(data);
  if (!header) throw damaged(name, "JPEG", "no picture follows its headers");
  checkSize(header.width, header.height, name);
  let check: ReturnType<typeof checkJpeg>;
  try {
    check = checkJpeg(data, header);
  } catch (error) {
    throw damaged(name, "JPEG", firstLine(error));
  }
  const bitmap = await decodeBitmap(data, "JPEG", name);
  // The grey of four components is another colour in RGB.
  const suspect = header.sampling.size === 4 || hasGreyCorner(bitmap);
  if (suspect && (await differ(check.probes, name))) {
    bitmap.close();
    throw damaged(name, "JPEG", "rows are missing");
  }
  return { picture: checked(bitmap, background, name), quality: check.quality };
}

async function decodeBitmap(data: Uint8Array, format: Format, name: string): Promise<ImageBitmap> {
  try {
    const file = new Blob([data as Uint8Array<ArrayBuffer>], { type: TYPES[format] ?? "" });
    return await createImageBitmap(file, OPTIONS);
  } catch (error) {
    if (COMMON.includes(format)) throw damaged(name, format, firstLine(error));
    throw new ImageError(
      `${name} is ${format}, which this browser cannot decode. Convert it to JPEG or PNG.`,
    );
  }
}

function checked(bitmap: ImageBitmap, background: Rgb, name: string): BitmapPicture {
  checkSize(bitmap.width, bitmap.height, name);
  return new BitmapPicture(bitmap, background);
}

/**
 * Return whether a corner has the grey of a block that was never decoded.
 *
 * The last block of a file is in a corner of the upright picture.
 */
function hasGreyCorner(bitmap: ImageBitmap): boolean {
  const [right, bottom] = [bitmap.width - 1, bitmap.height - 1];
  const corners = [
    [0, 0],
    [right, 0],
    [0, bottom],
    [right, bottom],
  ];
  return corners.some(([x, y]) => {
    const [red, green, blue] = readPixels(bitmap, x, y, 1, 1).data;
    // Colour of a neighbouring block may spread, so only the lightness is compared.
    return Math.abs(Math.round(0.299 * red + 0.587 * green + 0.114 * blue) - 128) <= 1;
  });
}

/** Return whether two JPEG files show different pictures. */
async function differ([one, other]: readonly [Uint8Array, Uint8Array], name: string) {
  const [first, second] = [
    await decodeBitmap(one, "JPEG", name),
    await decodeBitmap(other, "JPEG", name),
  ];
  try {
    const { width, height } = first;
    const batch = Math.max(1, Math.floor((1 << 20) / width));
    for (let top = 0; top < height; top += batch) {
      const count = Math.min(batch, height - top);
      const [left, right] = [first, second].map(
        (bitmap) => new Uint32Array(readPixels(bitmap, 0, top, width, count).data.buffer),
      );
      if (left.some((value, index) => value !== right[index])) return true;
    }
    return false;
  } finally {
    first.close();
    second.close();
  }
}

function damaged(name: string, format: Format, reason: string): ImageError {
  return new ImageError(`${name} is truncated or damaged (${format}: ${reason}). ${AGAIN}`);
}
