/** Advise the photographer, by the measures and the limits of the model's bundle. */

import { type Bundle, describeQuality, measureQuality } from "dermedge";

type Context = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

/**
 * Return what to do about a photo, or null if nothing is wrong.
 *
 * The browser reduces the photo for the canvas, so the measures differ a little from those
 * of the prediction.
 *
 * @param context - Canvas of S x S pixels, filled with what the model sees.
 */
export function advise(context: Context, { quality, spec }: Bundle): string | null {
  if (!quality) return null;
  const { size } = spec.preprocess;
  const { data } = context.getImageData(0, 0, size, size);
  return describeQuality(measureQuality(data, size), quality).at(0) ?? null;
}
