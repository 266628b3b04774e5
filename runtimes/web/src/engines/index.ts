/** Engines by artifact format and by name; each is loaded when a bundle needs it. */

import type { OpenEngine } from "../engine";

/** Functions that load an engine's code. */
export const ENGINES: Readonly<Record<string, () => Promise<{ open: OpenEngine }>>> = {};
