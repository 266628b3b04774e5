/** Engines by artifact format; each is loaded when a bundle needs it. */

import type { OpenEngine } from "../engine";

/** Functions that load an engine's code. */
export const ENGINES: Readonly<Record<string, () => Promise<{ open: OpenEngine }>>> = {
  onnx: () => import("./onnxruntime"),
  litert: () => import("./litert"),
};
