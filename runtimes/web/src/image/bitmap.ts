/** Read the pixels of what the browser has decoded, through a canvas of the same scale. */

import { ElsewhereError, ImageError } from "../errors";
import { compose, type Picture, type Rgb, type Rows } from "./picture";

/** Pixels that are read at once: 16 MB, a quarter of a large photograph. */
const BATCH_PIXELS = 1 << 22;

let canvas: OffscreenCanvas | null = null;

/** A decoded picture that the browser holds. */
export class BitmapPicture implements Picture {
  readonly width: number;
  readonly height: number;
  readonly batch: number;

  /** The picture takes the bitmap over, and closes it. */
  constructor(
    private readonly bitmap: ImageBitmap,
    private readonly background: Rgb,
  ) {
    this.width = bitmap.width;
    this.height = bitmap.height;
    this.batch = Math.max(1, Math.floor(BATCH_PIXELS / this.width));
  }

  rows(left: number, top: number, width: number, count: number): Rows {
    const { data } = readPixels(this.bitmap, left, top, width, count);
    compose(data, this.background);
    return { data, start: 0, stride: width * 4, step: 4 };
  }

  close(): void {
    this.bitmap.close();
  }
}

/** Return a part of a bitmap as RGBA. Nothing is scaled. */
export function readPixels(
  bitmap: ImageBitmap,
  left: number,
  top: number,
  width: number,
  height: number,
): ImageData {
  const context = openCanvas(width, height);
  context.globalCompositeOperation = "copy";
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  try {
    return context.getImageData(0, 0, width, height);
  } catch (error) {
    throw new ImageError(
      `The browser cannot read ${width} x ${height} pixels (${String(error)}). ` +
        "Pass a smaller image.",
    );
  }
}

function openCanvas(width: number, height: number): OffscreenCanvasRenderingContext2D {
  if (typeof OffscreenCanvas === "undefined") {
    throw new ElsewhereError(
      "This browser has no OffscreenCanvas, so it cannot decode images in a worker. Update it.",
    );
  }
  canvas ??= new OffscreenCanvas(1, 1);
  if (canvas.width < width) canvas.width = width;
  if (canvas.height < height) canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new ImageError("The browser has no memory for a canvas. Close other pages.");
  return context;
}
