/** Read typed values from a JSON object, with messages that name the wrong one. */

import { BundleError } from "./errors";
import { quote, quoteAll } from "./json";
import type { Json, JsonObject, Spec } from "./spec";

/** Advice at the end of a message about an incomplete bundle. */
export const AGAIN = "Export the model again.";

interface Types {
  string: string;
  number: number;
  integer: number;
  boolean: boolean;
  list: Json[];
  object: JsonObject;
}

/** Return whether a value is a JSON object. */
export function isObject(value: Json | undefined): value is JsonObject {
  return isRecord(value);
}

/** Return whether a value is an object with keys, and not a list. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Return `data[key]`, which must exist and have a JSON type.
 *
 * @param where - Name of the object, for messages.
 * @throws BundleError if the key is missing or its value has another type.
 */
export function take<K extends keyof Types>(
  data: Json | undefined,
  key: string,
  kind: K,
  where: string,
): Types[K] {
  const value = optional(data, key, kind, where);
  if (value === null) {
    throw new BundleError(`The ${where} has no '${key}': the file is incomplete. ${AGAIN}`);
  }
  return value;
}

/**
 * Return `data[key]` as `take` does, or null if the key is missing or null.
 *
 * @throws BundleError if `data` is not an object or the value has another type.
 */
export function optional<K extends keyof Types>(
  data: Json | undefined,
  key: string,
  kind: K,
  where: string,
): Types[K] | null {
  if (!isObject(data)) {
    throw new BundleError(`The ${where} is ${describe(data)}, not a JSON object. ${AGAIN}`);
  }
  const value = Object.hasOwn(data, key) ? data[key] : null;
  if (value === null) return null;
  if (!fits(value, kind)) {
    throw new BundleError(`${where}.${key} is ${quote(value)}, not a ${kind}. ${AGAIN}`);
  }
  return value as Types[K];
}

function fits(value: Json, kind: keyof Types): boolean {
  switch (kind) {
    case "list":
      return Array.isArray(value);
    case "object":
      return isObject(value);
    case "integer":
      return Number.isInteger(value);
    default:
      return typeof value === kind;
  }
}

function describe(value: Json | undefined): string {
  return Array.isArray(value) ? "a list" : value === null ? "null" : typeof value;
}

/** A text that is one of the allowed values, or another one. */
type Known<T> = { known: true; value: T } | { known: false; value: string };

/** Return a text as one of the allowed values, or as an unknown one. */
export function oneOf<T extends string>(allowed: readonly T[], value: string): Known<T> {
  const found = allowed.find((one) => one === value);
  return found === undefined ? { known: false, value } : { known: true, value: found };
}

/** Convert every value of a JSON object. */
export function mapValues<T>(
  data: JsonObject,
  convert: (name: string, value: Json) => T,
): Record<string, T> {
  return Object.fromEntries(Object.entries(data).map(([key, value]) => [key, convert(key, value)]));
}

/** Check that an object has exactly one entry per task; throw BundleError if not. */
export function checkTasks(data: JsonObject, spec: Spec, where: string): void {
  const found = quoteAll(Object.keys(data).sort());
  const tasks = quoteAll(spec.tasks.map((task) => task.name).sort());
  if (found !== tasks) {
    throw new BundleError(
      `${where} has entries for [${found}], but the tasks are [${tasks}]. ${AGAIN}`,
    );
  }
}
