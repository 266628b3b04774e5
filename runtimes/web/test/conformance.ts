/** Read the cases that every runtime shares, from `tests/conformance/`. */

import { existsSync, readFileSync } from "node:fs";

import type { JsonObject, Preprocess } from "../src/spec";

const FOLDER = new URL("../../../tests/conformance/", import.meta.url);

/** Return the content of a file of the folder. */
export function read(path: string): Uint8Array {
  return new Uint8Array(readFileSync(new URL(path, FOLDER)));
}

/** Return whether the folder has a file. */
export function exists(path: string): boolean {
  return existsSync(new URL(path, FOLDER));
}

/** Return the cases of a list; their types are those that the folder's README gives. */
export function cases<T>(list: string): readonly T[] {
  return (JSON.parse(new TextDecoder().decode(read(list))) as { cases: T[] }).cases;
}

/** Return bytes of the generator that the folder's README defines. */
export function randomBytes(seed: number, count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  let value = seed;
  for (let at = 0; at < count; at++) {
    value = (Math.imul(1664525, value) + 1013904223) >>> 0;
    bytes[at] = value >>> 24;
  }
  return bytes;
}

export interface ImageCase {
  readonly name: string;
  readonly image: string;
  readonly preprocess: Preprocess;
  readonly pixels?: { readonly width: number; readonly height: number; readonly sha256: string };
  readonly lossy?: boolean;
  readonly decoded?: string;
  readonly tensor?: string;
  readonly error?: string;
  readonly mentions?: readonly string[];
}

export interface ResizeCase {
  readonly width: number;
  readonly height: number;
  readonly seed: number;
  readonly preprocess: Preprocess;
  readonly sha256: string;
}

export interface JsonCase {
  readonly name: string;
  readonly text: string;
  readonly canonical: string | null;
}

export interface BundleCase {
  readonly name: string;
  readonly bundle: string;
  readonly error: string | null;
  readonly mentions?: readonly string[];
}

export interface DecodeCase {
  readonly name: string;
  readonly spec: JsonObject;
  readonly postprocessing: JsonObject;
  readonly outputs: Readonly<
    Record<string, { readonly shape: number[]; readonly values: (number | string)[] }>
  >;
  readonly prediction?: JsonObject;
  readonly mask_sha256?: string;
  readonly cam?: { readonly shape: number[]; readonly values: number[] };
  readonly error?: string;
  readonly mentions?: readonly string[];
}
