/**
 * Measure blur and exposure of a frame. README.md describes the measures and their limits;
 * `e2e/measure.mjs` computes the shares of photographs that each limit flags.
 */

/** Side of the square that is measured, in pixels. */
export const SIDE = 256;
const REACH = 4; // The second blur averages 2 * 4 + 1 pixels, as in the publication.

/** Measures of one frame. */
export interface Quality {
  /** Blur from 0 (sharp) to 1, after Crete et al. 2007, "The blur effect". */
  readonly blur: number;
  /** Mean luminance, 0 to 255. */
  readonly brightness: number;
  /** Share of pixels that are white in all channels, such as reflections. */
  readonly glare: number;
}

// `dark` is low so that a well lit photo of dark skin is not called dark.
const LIMITS = { blur: 0.6, dark: 45, bright: 225, glare: 0.1 };

/**
 * Measure a frame.
 *
 * @param pixels - RGBA, [SIDE, SIDE, 4], row-major.
 */
export function measure(pixels: Uint8ClampedArray): Quality {
  const luminance = new Float32Array(SIDE * SIDE);
  let [sum, white] = [0, 0];
  for (let i = 0; i < luminance.length; i++) {
    const [r, g, b] = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
    luminance[i] = 0.299 * r + 0.587 * g + 0.114 * b;
    sum += luminance[i];
    if (Math.min(r, g, b) >= 250) white++;
  }
  return {
    blur: Math.max(blurAlong(luminance, 1, SIDE), blurAlong(luminance, SIDE, 1)),
    brightness: sum / luminance.length,
    glare: white / luminance.length,
  };
}

/** Return one short instruction for the photographer, or null if nothing is wrong. */
export function advise({ blur, brightness, glare }: Quality): string | null {
  if (brightness < LIMITS.dark) return "Too dark: add light";
  if (brightness > LIMITS.bright) return "Too bright: reduce the light";
  if (glare > LIMITS.glare) return "Reflections: tilt the phone or the lamp";
  if (blur > LIMITS.blur) return "Blurred: hold still, or move back a little";
  return null;
}

/**
 * Return the share of the differences between neighbours that survives a second blur.
 *
 * A sharp frame loses most of them, a blurred one has few left to lose.
 *
 * @param step - Distance of neighbours in the array: 1 along rows, SIDE along columns.
 * @param line - Distance of the lines: the other of the two.
 */
function blurAlong(values: Float32Array, step: number, line: number): number {
  let [total, lost] = [0, 0];
  for (let start = 0; start < SIDE; start++) {
    const at = (i: number): number => values[start * line + i * step];
    let window = 0;
    for (let i = 0; i <= 2 * REACH; i++) window += at(i);
    for (let i = REACH + 1; i < SIDE - REACH; i++) {
      const next = window + at(i + REACH) - at(i - REACH - 1);
      const before = Math.abs(at(i) - at(i - 1));
      const after = Math.abs(next - window) / (2 * REACH + 1);
      total += before;
      lost += Math.max(0, before - after);
      window = next;
    }
  }
  return total === 0 ? 1 : (total - lost) / total;
}
