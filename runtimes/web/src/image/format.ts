/** Recognise image formats by their first bytes, and what a browser would not refuse. */

/** Formats that Python reads; a browser decodes some of them. */
export type Format =
  | "JPEG"
  | "PNG"
  | "WEBP"
  | "TIFF"
  | "BMP"
  | "GIF"
  | "AVIF"
  | "HEIF"
  | "DICOM"
  | "JPEG 2000"
  | "JPEG XL";

const SIGNATURES: readonly (readonly [Format, string])[] = [
  ["JPEG", "\xff\xd8\xff"],
  ["PNG", "\x89PNG\r\n\x1a\n"],
  ["TIFF", "II*\0"],
  ["TIFF", "MM\0*"],
  ["TIFF", "II+\0"],
  ["TIFF", "MM\0+"],
  ["GIF", "GIF87a"],
  ["GIF", "GIF89a"],
  ["JPEG 2000", "\0\0\0\x0cjP  \r\n\x87\n"],
  ["JPEG 2000", "\xff\x4f\xff\x51"],
  ["JPEG XL", "\0\0\0\x0cJXL \r\n\x87\n"],
  ["JPEG XL", "\xff\x0a"],
];
const AVIF_BRANDS = ["avif", "avis"];
const HEIF_BRANDS = ["heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"];
const BMP_HEADERS = [12, 16, 40, 52, 56, 64, 108, 124];

/** What a file's headers say about its content. */
export interface Content {
  readonly width: number;
  readonly height: number;
  readonly frames: number;
  /** The file ends before its first picture does. */
  readonly truncated: boolean;
}

/** Return the format that a file claims to have; null for other files. */
export function identify(data: Uint8Array): Format | null {
  for (const [format, signature] of SIGNATURES) {
    if (text(data, 0, signature.length) === signature) return format;
  }
  if (text(data, 0, 4) === "RIFF" && text(data, 8, 4) === "WEBP") return "WEBP";
  // Two letters alone are too common, so the size of the second header is checked too.
  if (text(data, 0, 2) === "BM" && BMP_HEADERS.includes(number(data, 14, 4))) return "BMP";
  if (text(data, 128, 4) === "DICM") return "DICOM";
  if (text(data, 4, 4) !== "ftyp") return null;
  // The major brand is followed by four bytes of version, then by compatible brands.
  const brands = [text(data, 8, 4)];
  const end = Math.min(number(data, 0, 4, true), data.length, 160);
  for (let at = 16; at < end; at += 4) brands.push(text(data, at, 4));
  if (AVIF_BRANDS.some((brand) => brands.includes(brand))) return "AVIF";
  return HEIF_BRANDS.some((brand) => brands.includes(brand)) ? "HEIF" : null;
}

/**
 * Return what the headers say; null for a format whose decoder checks it all.
 *
 * Browsers show the first frame of an animation, and the part of a file that has arrived.
 */
export function inspect(data: Uint8Array, format: Format): Content | null {
  if (format === "GIF") return inspectGif(data);
  if (format === "WEBP") return inspectWebp(data);
  if (format === "BMP") return inspectBmp(data);
  return format === "AVIF" || format === "HEIF" ? inspectBoxes(data) : null;
}

/** Return an unsigned number; bytes behind the end count as 0. */
function number(data: Uint8Array, at: number, length: number, big = false): number {
  let value = 0;
  for (let index = 0; index < length; index++) {
    value = value * 256 + (data[at + (big ? index : length - 1 - index)] ?? 0);
  }
  return value;
}

function inspectGif(data: Uint8Array): Content {
  const table = (flags: number): number => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  const skipBlocks = (start: number): number => {
    let at = start;
    while (at < data.length && data[at] !== 0) at += 1 + data[at];
    return at + 1;
  };
  let frames = 0;
  let firstEnd = data.length + 1;
  for (let at = 13 + table(data[10]); at < data.length;) {
    if (data[at] === 0x21) {
      at = skipBlocks(at + 2);
    } else if (data[at] === 0x2c) {
      at = skipBlocks(at + 11 + table(data[at + 9]));
      if (frames++ === 0) firstEnd = at;
    } else {
      break;
    }
  }
  return {
    width: number(data, 6, 2),
    height: number(data, 8, 2),
    frames,
    truncated: firstEnd > data.length,
  };
}

function inspectWebp(data: Uint8Array): Content {
  const end = 8 + number(data, 4, 4);
  let frames = 0;
  for (let at = 12; at + 8 <= end && at < data.length;) {
    if (text(data, at, 4) === "ANMF") frames++;
    const length = number(data, at + 4, 4);
    at += 8 + length + (length & 1);
  }
  const first = text(data, 12, 4);
  const [width, height] =
    first === "VP8X"
      ? [number(data, 24, 3) + 1, number(data, 27, 3) + 1]
      : first === "VP8L"
        ? [(number(data, 21, 2) & 0x3fff) + 1, ((number(data, 22, 3) >> 6) & 0x3fff) + 1]
        : [number(data, 26, 2) & 0x3fff, number(data, 28, 2) & 0x3fff];
  return { width, height, frames, truncated: end > data.length };
}

function inspectBmp(data: Uint8Array): Content {
  const old = number(data, 14, 4) < 40;
  const width = old ? number(data, 18, 2) : number(data, 18, 4);
  const height = old ? number(data, 20, 2) : Math.abs(number(data, 22, 4) | 0);
  const bits = number(data, old ? 24 : 28, 2);
  const packed = !old && [1, 2].includes(number(data, 30, 4));
  const length = packed ? 0 : Math.ceil((width * bits) / 32) * 4 * height;
  return { width, height, frames: 1, truncated: number(data, 10, 4) + length > data.length };
}

/** Read the sizes in an ISO base media file; that of the picture is the largest. */
function inspectBoxes(data: Uint8Array): Content {
  let [width, height] = [0, 0];
  const head = text(data, 0, Math.min(data.length, 1 << 16));
  for (let at = head.indexOf("ispe"); at >= 0; at = head.indexOf("ispe", at + 4)) {
    width = Math.max(width, number(data, at + 8, 4, true));
    height = Math.max(height, number(data, at + 12, 4, true));
  }
  const frames = text(data, 8, 4) === "avis" ? 2 : 1;
  return { width, height, frames, truncated: false };
}

/** Return bytes as a text of the same length; the label `latin1` would map 80 to 9F. */
function text(data: Uint8Array, at: number, length: number): string {
  let result = "";
  for (const byte of data.subarray(at, at + length)) result += String.fromCharCode(byte);
  return result;
}
