/** Compute digests with the browser's SubtleCrypto. */

import { ElsewhereError } from "./errors";

/** Return the SHA-256 of bytes as 64 lower-case hexadecimal digits. */
export async function sha256Hex(data: Uint8Array): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new ElsewhereError(
      `The page at ${globalThis.location?.origin} is not a secure context, so the browser cannot ` +
        "compute SHA-256. Serve it over HTTPS or from localhost.",
    );
  }
  const digest = await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
