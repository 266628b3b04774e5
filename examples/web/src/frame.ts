/** Draw the part of a photo that the model sees, and the outline of its mask. */

import type { Fit } from "dermedge";

type Context = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

/** Return the width and height of a source in pixels. */
function sizeOf(source: ImageBitmap | HTMLVideoElement): [number, number] {
  return source instanceof HTMLVideoElement
    ? [source.videoWidth, source.videoHeight]
    : [source.width, source.height];
}

/**
 * Fill a square canvas with a source, as the model's `fit` makes it a square.
 *
 * This is for people. The model's own input comes from the contract's integer arithmetic.
 */
export function drawFitted(
  context: Context,
  source: ImageBitmap | HTMLVideoElement,
  fit: Fit,
  background: string,
): void {
  const side = context.canvas.width;
  const [width, height] = sizeOf(source);
  context.fillStyle = background;
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  if (fit === "crop") {
    const cut = Math.min(width, height);
    const [x, y] = [Math.floor((width - cut) / 2), Math.floor((height - cut) / 2)];
    context.drawImage(source, x, y, cut, cut, 0, 0, side, side);
  } else if (fit === "pad") {
    const scale = side / Math.max(width, height);
    const [w, h] = [width * scale, height * scale];
    context.drawImage(source, (side - w) / 2, (side - h) / 2, w, h);
  } else {
    context.drawImage(source, 0, 0, side, side);
  }
}

/**
 * Draw the outline of a mask: a bright line on a dark one, visible on every skin.
 *
 * @param mask - Bytes 0 and 1, [S, S], row-major.
 */
export function outlineMask(context: CanvasRenderingContext2D, mask: Uint8Array): void {
  const size = Math.sqrt(mask.length);
  const scale = context.canvas.width / size;
  const covered = (x: number, y: number): boolean =>
    x >= 0 && y >= 0 && x < size && y < size && mask[y * size + x] === 1;
  context.beginPath();
  for (let y = 0; y <= size; y++) {
    for (let x = 0; x <= size; x++) {
      if (covered(x, y) !== covered(x - 1, y)) line(context, x, y, x, y + 1, scale);
      if (covered(x, y) !== covered(x, y - 1)) line(context, x, y, x + 1, y, scale);
    }
  }
  context.lineCap = "round";
  for (const [colour, width] of [["#06282a", 7], ["#5ff0e0", 3]] as const) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
}

function line(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  endX: number,
  endY: number,
  scale: number,
): void {
  context.moveTo(x * scale, y * scale);
  context.lineTo(endX * scale, endY * scale);
}
