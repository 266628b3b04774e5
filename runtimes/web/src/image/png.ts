/**
 * Decode PNG without the browser, whose canvas loses precision.
 *
 * A canvas multiplies colours by alpha in 8 bits, and applies gamma and colour profiles that
 * the contract ignores. The rules for depths and transparent colours are those of Pillow.
 */

import { firstLine, ImageError } from "../errors";
import { readOrientation, turn } from "./orientation";
import { blend, checkSize, type Rgb, RgbPicture } from "./picture";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const [GREY, TRUECOLOUR, PALETTE, GREY_ALPHA, TRUECOLOUR_ALPHA] = [0, 2, 3, 4, 6];
const CHANNELS: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const DEPTHS: Readonly<Record<number, readonly number[]>> = {
  0: [1, 2, 4, 8, 16],
  2: [8, 16],
  3: [1, 2, 4, 8],
  4: [8, 16],
  6: [8, 16],
};
/** Start and step of the columns and rows of each pass of an interlaced file. */
const ADAM7 = [
  [0, 8, 0, 8],
  [4, 8, 0, 8],
  [0, 4, 4, 8],
  [2, 4, 0, 4],
  [0, 2, 2, 4],
  [1, 2, 0, 2],
  [0, 1, 1, 2],
] as const;
const WHOLE = [[0, 1, 0, 1]] as const;

interface Header {
  readonly width: number;
  readonly height: number;
  readonly depth: number;
  readonly colour: number;
  readonly interlaced: boolean;
}

/** The chunks of a file that decide its pixels. */
interface Chunks {
  readonly header: Header;
  readonly palette: Uint8Array | null;
  readonly transparency: Uint8Array | null;
  readonly exif: Uint8Array | null;
  readonly animated: boolean;
  readonly compressed: readonly Uint8Array[];
}

/** Return whether data starts like a PNG file. */
export function isPng(data: Uint8Array): boolean {
  return SIGNATURE.every((byte, index) => data[index] === byte);
}

/**
 * Decode a PNG file to upright opaque RGB.
 *
 * @param name - Name of the image, for messages.
 * @throws ImageError if the file is animated, incomplete, damaged, too small or too large.
 */
export async function decodePng(
  data: Uint8Array,
  background: Rgb,
  name: string,
): Promise<RgbPicture> {
  try {
    const chunks = readChunks(data);
    const { header } = chunks;
    checkSize(header.width, header.height, name);
    checkContent(chunks, name);
    const samples = await inflate(chunks.compressed, rawLength(header));
    const picture = paint(chunks, samples, background);
    return turn(picture, chunks.exif ? readOrientation(chunks.exif) : 1);
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError(
      `${name} is truncated or damaged (PNG: ${firstLine(error)}). ` +
        "Fetch or take the photograph again.",
    );
  }
}

function checkContent({ header, transparency, animated }: Chunks, name: string): void {
  if (animated) {
    throw new ImageError(`${name} is animated or has several pages. Pass a single frame.`);
  }
  if (!transparency || ![GREY, TRUECOLOUR].includes(header.colour)) return;
  // A key of 16 bits cannot be compared with samples of which the high byte is taken.
  const deep =
    header.colour === GREY
      ? header.depth === 16
      : readKey(transparency, header).some((value) => value > 255);
  if (deep) {
    throw new ImageError(
      `${name} has 16 bits per sample and a transparent colour. Convert it to 8 bits per sample.`,
    );
  }
}

/** Read every chunk up to the end, and check its checksum. */
function readChunks(data: Uint8Array): Chunks {
  const bytes = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const found = new Map<string, Uint8Array>();
  const compressed: Uint8Array[] = [];
  let [frames, previous, ended] = [0, "", false];
  for (let at = 8; !ended;) {
    if (at + 12 > data.length) throw new Error("the end chunk is missing");
    const length = bytes.getUint32(at);
    if (at + 12 + length > data.length) throw new Error("a chunk is cut off");
    const type = String.fromCharCode(...data.subarray(at + 4, at + 8));
    const content = data.subarray(at + 8, at + 8 + length);
    if (crc32(data.subarray(at + 4, at + 8 + length)) !== bytes.getUint32(at + 8 + length)) {
      throw new Error("a checksum is wrong");
    }
    const isFirst = compressed.length === 0;
    if (type === "IDAT" && (isFirst || previous === "IDAT")) compressed.push(content);
    else if (type === "acTL" && isFirst && length >= 8) frames = bytes.getUint32(at + 8);
    // Only the EXIF block may come after the pixels.
    else if (type !== "IDAT" && (isFirst || type === "eXIf")) found.set(type, content);
    ended = type === "IEND";
    previous = type;
    at += 12 + length;
  }
  return {
    header: readHeader(found.get("IHDR")),
    palette: found.get("PLTE") ?? null,
    transparency: found.get("tRNS") ?? null,
    exif: found.get("eXIf") ?? null,
    // A first image without a frame of its own comes before the animation.
    animated: frames > 1 || (frames === 1 && !found.has("fcTL")),
    compressed,
  };
}

function readHeader(content: Uint8Array | undefined): Header {
  if (!content || content.length < 13) throw new Error("the header is missing");
  const bytes = new DataView(content.buffer, content.byteOffset);
  const [depth, colour, , filter, interlace] = content.subarray(8, 13);
  if (!DEPTHS[colour]?.includes(depth) || filter) {
    throw new Error(`the header is not valid: depth ${depth}, colour type ${colour}`);
  }
  return {
    width: bytes.getUint32(0),
    height: bytes.getUint32(4),
    depth,
    colour,
    interlaced: interlace !== 0,
  };
}

/** Return the transparent colour: one value of grey, or three. */
function readKey(transparency: Uint8Array, { colour }: Header): number[] {
  const count = colour === TRUECOLOUR ? 3 : 1;
  if (transparency.length < 2 * count) throw new Error("the transparent colour is cut off");
  return Array.from(
    { length: count },
    (_, index) => transparency[2 * index] * 256 + transparency[2 * index + 1],
  );
}

/** The columns, rows and bytes per row of each pass that has pixels. */
function* passes(header: Header) {
  const bits = header.depth * CHANNELS[header.colour];
  for (const [left, across, top, down] of header.interlaced ? ADAM7 : WHOLE) {
    const columns = Math.ceil((header.width - left) / across);
    const rows = Math.ceil((header.height - top) / down);
    if (columns > 0 && rows > 0) {
      yield { left, across, top, down, columns, rows, bytes: Math.ceil((columns * bits) / 8) };
    }
  }
}

function rawLength(header: Header): number {
  let length = 0;
  for (const { rows, bytes } of passes(header)) length += rows * (1 + bytes);
  return length;
}

/** Decompress a known number of bytes; what follows them is ignored. */
async function inflate(parts: readonly Uint8Array[], length: number): Promise<Uint8Array> {
  const blob = new Blob(parts as Uint8Array<ArrayBuffer>[]);
  const reader = blob.stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const result = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const { done, value } = await reader.read();
    if (done) throw new Error("rows are missing");
    const piece = value.subarray(0, length - filled);
    result.set(piece, filled);
    filled += piece.length;
  }
  await reader.cancel();
  return result;
}

/** Undo the filters, and write the pixels of every pass on an opaque picture. */
function paint(chunks: Chunks, samples: Uint8Array, background: Rgb): RgbPicture {
  const { header } = chunks;
  const { width, height } = header;
  const rgb = new Uint8Array(width * height * 3);
  const put = painter(chunks, rgb, background);
  const pixelBytes = Math.max(1, (header.depth * CHANNELS[header.colour]) >> 3);
  let at = 0;
  for (const { left, across, top, down, columns, rows, bytes } of passes(header)) {
    let above: Uint8Array = new Uint8Array(bytes);
    for (let row = 0; row < rows; row++) {
      const line = samples.subarray(at + 1, at + 1 + bytes);
      unfilter(samples[at], line, above, pixelBytes);
      const start = (top + row * down) * width + left;
      for (let column = 0; column < columns; column++) {
        put(line, column, (start + column * across) * 3);
      }
      above = line;
      at += 1 + bytes;
    }
  }
  return new RgbPicture(width, height, rgb);
}

/** Undo the filter of a row in place. */
function unfilter(kind: number, line: Uint8Array, above: Uint8Array, step: number): void {
  const { length } = line;
  switch (kind) {
    case 0:
      return;
    case 1:
      for (let x = step; x < length; x++) line[x] += line[x - step];
      return;
    case 2:
      for (let x = 0; x < length; x++) line[x] += above[x];
      return;
    case 3:
      for (let x = 0; x < step && x < length; x++) line[x] += above[x] >> 1;
      for (let x = step; x < length; x++) line[x] += (line[x - step] + above[x]) >> 1;
      return;
    case 4:
      for (let x = 0; x < step && x < length; x++) line[x] += above[x];
      for (let x = step; x < length; x++) {
        line[x] += paeth(line[x - step], above[x], above[x - step]);
      }
      return;
    default:
      throw new Error(`a row has the unknown filter ${kind}`);
  }
}

function paeth(left: number, above: number, corner: number): number {
  const [toLeft, toAbove] = [Math.abs(above - corner), Math.abs(left - corner)];
  const toCorner = Math.abs(left + above - 2 * corner);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}

/** Write the pixel of a column of a row at an offset of the picture. */
type Put = (line: Uint8Array, column: number, to: number) => void;

function painter({ header, palette, transparency }: Chunks, rgb: Uint8Array, below: Rgb): Put {
  const { depth, colour } = header;
  const bytes = depth === 16 ? 2 : 1; // Of 16-bit samples the high byte comes first.
  const keyed = transparency && [GREY, TRUECOLOUR].includes(colour);
  const key = keyed ? readKey(transparency, header) : [];
  const set = (to: number, red: number, green: number, blue: number, alpha: number): void => {
    rgb[to] = alpha === 255 ? red : blend(alpha, below[0], red);
    rgb[to + 1] = alpha === 255 ? green : blend(alpha, below[1], green);
    rgb[to + 2] = alpha === 255 ? blue : blend(alpha, below[2], blue);
  };
  switch (colour) {
    case GREY: {
      const scale = depth < 8 ? 255 / (2 ** depth - 1) : 1;
      // Of the key, the bits of a sample count. NaN, which no sample equals, is no key.
      const hidden = (key.length ? key[0] & (2 ** depth - 1) : NaN) * scale;
      return (line, column, to) => {
        const grey = depth === 16 ? line[column * 2] : bitsAt(line, column, depth) * scale;
        set(to, grey, grey, grey, grey === hidden ? 0 : 255);
      };
    }
    case TRUECOLOUR:
      return (line, column, to) => {
        const at = column * 3 * bytes;
        const [red, green, blue] = [line[at], line[at + bytes], line[at + 2 * bytes]];
        const hidden = red === key[0] && green === key[1] && blue === key[2];
        set(to, red, green, blue, hidden ? 0 : 255);
      };
    case PALETTE: {
      if (!palette) throw new Error("the palette is missing");
      return (line, column, to) => {
        const index = bitsAt(line, column, depth);
        const [red, green, blue] = [
          palette[3 * index],
          palette[3 * index + 1],
          palette[3 * index + 2],
        ];
        set(to, red ?? 0, green ?? 0, blue ?? 0, transparency?.[index] ?? 255);
      };
    }
    case GREY_ALPHA:
      return (line, column, to) => {
        const at = column * 2 * bytes;
        set(to, line[at], line[at], line[at], line[at + bytes]);
      };
    case TRUECOLOUR_ALPHA:
    default:
      return (line, column, to) => {
        const at = column * 4 * bytes;
        set(to, line[at], line[at + bytes], line[at + 2 * bytes], line[at + 3 * bytes]);
      };
  }
}

/** Return a sample of 1, 2, 4 or 8 bits. */
function bitsAt(line: Uint8Array, column: number, depth: number): number {
  if (depth === 8) return line[column];
  const bit = column * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(data: Uint8Array): number {
  let value = 0xffffffff;
  for (let at = 0; at < data.length; at++)
    value = CRC_TABLE[(value ^ data[at]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
