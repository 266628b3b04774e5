/** Show the camera, advise the photographer, and take a frame. */

import type { Bundle } from "dermedge";
import { drawFitted } from "./frame";
import { advise } from "./quality";

const INTERVAL = 250; // Milliseconds between two measurements.
const STABLE = 3; // Equal results in a row before the hint changes, so that it does not flicker.

/** An open camera. */
export class Camera {
  private timer = 0;

  private constructor(
    private readonly video: HTMLVideoElement,
    private readonly stream: MediaStream,
  ) {}

  /**
   * Open the rear camera and show it.
   *
   * @param bundle - The model's bundle; only the square that the model sees is measured.
   * @param onHint - Called with an instruction, or null if the frame is fine.
   * @throws Error with a message for the user if there is no camera or no permission.
   */
  static async open(
    video: HTMLVideoElement,
    bundle: Bundle,
    onHint: (hint: string | null) => void,
  ): Promise<Camera> {
    const stream = await openStream();
    video.srcObject = stream;
    try {
      await video.play();
    } catch {
      stream.getTracks().forEach((track) => track.stop());
      throw new Error("The camera shows no picture. Close other apps that use it, then try again.");
    }
    const camera = new Camera(video, stream);
    camera.watch(bundle, onHint);
    return camera;
  }

  /** Return the current frame in full resolution. */
  async take(): Promise<ImageBitmap> {
    return await createImageBitmap(this.video);
  }

  /** Switch the camera off. */
  close(): void {
    window.clearTimeout(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
  }

  private watch(bundle: Bundle, onHint: (hint: string | null) => void): void {
    if (!bundle.quality) return;
    const { fit, size } = bundle.spec.preprocess;
    const canvas = new OffscreenCanvas(size, size);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    let [last, repeats]: [string | null, number] = [null, 0];
    const look = (): void => {
      if (context && this.video.videoWidth) {
        drawFitted(context, this.video, fit, "#000");
        const hint = advise(context, bundle);
        repeats = hint === last ? repeats + 1 : 1;
        last = hint;
        if (repeats === STABLE) onHint(hint);
      }
      this.timer = window.setTimeout(look, INTERVAL);
    };
    look();
  }
}

async function openStream(): Promise<MediaStream> {
  if (!navigator.mediaDevices) {
    throw new Error(
      "This browser gives no camera to this page: it needs HTTPS or localhost. Choose a photo.",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { facingMode: { ideal: "environment" }, width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
  } catch (error) {
    throw new Error(explain(error instanceof DOMException ? error.name : ""));
  }
}

function explain(name: string): string {
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return "The camera is not allowed. Allow it in the settings of this site, or choose a photo.";
    case "NotFoundError":
    case "OverconstrainedError":
      return "This device has no camera. Choose a photo.";
    case "NotReadableError":
    case "AbortError":
      return "Another app uses the camera. Close it and try again, or choose a photo.";
    default:
      return "The camera cannot be opened. Choose a photo.";
  }
}
