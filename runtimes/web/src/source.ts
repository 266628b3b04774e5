/** Turn the images of a page into what a worker can take. */

import { firstLine, ImageError } from "./errors";
import type { WorkerImage } from "./image/decode";

/**
 * An image: an encoded file (Blob, File or its bytes) or pixels.
 *
 * Only an encoded PNG with transparent pixels is bit-exact: canvases and bitmaps of a
 * browser multiply colours by alpha in 8 bits. Opaque pixels are exact from any source.
 */
export type ImageSource =
  | Blob
  | ArrayBuffer
  | Uint8Array
  | ImageData
  | ImageBitmap
  | HTMLImageElement
  | HTMLCanvasElement
  | OffscreenCanvas
  | HTMLVideoElement
  | VideoFrame;

const OPTIONS: ImageBitmapOptions = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

/** An image for the worker, and what is transferred to it instead of copied. */
export interface Sendable {
  readonly image: WorkerImage;
  readonly transfer: Transferable[];
}

/**
 * Return an image in a form that crosses to the worker. The caller keeps its own image.
 *
 * @throws ImageError if the source is not an image, or has none yet.
 */
export async function toSendable(source: ImageSource): Promise<Sendable> {
  if (isWorkerImage(source)) return { image: source, transfer: [] };
  if (source instanceof ArrayBuffer || source instanceof Uint8Array) {
    return { image: new Blob([source as Uint8Array<ArrayBuffer>]), transfer: [] };
  }
  const drawable = await checkDrawable(source);
  try {
    const bitmap = await createImageBitmap(drawable, OPTIONS);
    return { image: bitmap, transfer: [bitmap] };
  } catch (error) {
    throw new ImageError(
      `The ${drawable.constructor.name} cannot be read (${firstLine(error)}). ` +
        "Pass one that has a picture and comes from the page's own origin.",
    );
  }
}

type Drawable = Exclude<ImageSource, WorkerImage | ArrayBuffer | Uint8Array<ArrayBufferLike>>;

function isWorkerImage(source: ImageSource): source is WorkerImage {
  return source instanceof Blob || isA(source, "ImageData") || isA(source, "ImageBitmap");
}

async function checkDrawable(source: Drawable): Promise<Drawable> {
  if (isA(source, "HTMLImageElement")) {
    const image = source as HTMLImageElement;
    await image.decode().catch(() => {
      throw new ImageError(
        `The image ${image.currentSrc || image.src || "without a source"} is not loaded or not ` +
          "readable. Check its address.",
      );
    });
  } else if (isA(source, "HTMLVideoElement")) {
    const video = source as HTMLVideoElement;
    if (video.readyState < video.HAVE_CURRENT_DATA) {
      throw new ImageError("The video has no frame yet. Wait for its event 'loadeddata'.");
    }
  } else if (
    !["HTMLCanvasElement", "OffscreenCanvas", "VideoFrame"].some((name) => isA(source, name))
  ) {
    throw new ImageError(
      `${describe(source)} is not an image. Pass a File, a Blob, ImageData, an ImageBitmap, ` +
        "or an <img>, <canvas> or <video>.",
    );
  }
  return source;
}

/** Return whether a value is an object of a class that only some browsers have. */
function isA(value: unknown, name: string): boolean {
  const known = (globalThis as Record<string, unknown>)[name];
  return typeof known === "function" && value instanceof known;
}

function describe(value: unknown): string {
  if (typeof value === "object" && value !== null) return `A ${value.constructor?.name ?? "value"}`;
  return `A ${value === null ? "null" : typeof value}`;
}
