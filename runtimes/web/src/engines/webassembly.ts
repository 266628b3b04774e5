/** Find out what WebAssembly of this browser an engine can use. */

import { ElsewhereError, UsageError } from "../errors";

// Modules with one function that uses one instruction: i8x16.popcnt, i8x16.relaxed_swizzle.
const HEADER = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10];
const SIMD = [10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const RELAXED = [15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11];
const MOST_THREADS = 4;

/**
 * Check that this page may run WebAssembly with SIMD, which every engine needs.
 *
 * @throws ElsewhereError if the browser has none, or the page's policy forbids it.
 */
export function requireWebAssembly(): void {
  if (typeof WebAssembly === "undefined" || !validate(SIMD)) {
    throw new ElsewhereError(
      "This browser has no WebAssembly with SIMD, which every engine needs. Use another " +
        "browser, or allow WebAssembly: iOS switches it off in Lockdown Mode.",
    );
  }
  try {
    new WebAssembly.Module(bytes(SIMD));
  } catch {
    throw new ElsewhereError(
      "The page's Content-Security-Policy forbids WebAssembly. Add 'wasm-unsafe-eval' to its " +
        "script-src.",
    );
  }
}

/** Return whether the browser has relaxed SIMD instructions. */
export function hasRelaxedSimd(): boolean {
  return validate(RELAXED);
}

/**
 * Return the number of threads that an engine may start.
 *
 * Threads share memory, which a browser allows only to a page that is cross-origin
 * isolated; other pages have one. More than four slow down networks this small: small cores
 * of a phone then hold up the others.
 *
 * @param requested - Number that the caller wants; undefined means all.
 * @throws UsageError if `requested` is not a whole number above 0.
 */
export function countThreads(requested: number | undefined): number {
  if (requested !== undefined && !(Number.isInteger(requested) && requested > 0)) {
    throw new UsageError(`threads is ${requested}. Use 1 or more, or leave it out.`);
  }
  if (!globalThis.crossOriginIsolated) return 1;
  return requested ?? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1);
}

function validate(code: readonly number[]): boolean {
  return WebAssembly.validate(bytes(code));
}

function bytes(code: readonly number[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array([...HEADER, ...code]);
}
