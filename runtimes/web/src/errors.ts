/**
 * Errors that dermedge throws on purpose; the classes have the names of the Python runtime.
 *
 * ```text
 * DermedgeError            1  an operation failed
 * |-- ImageError           1  an input is not a usable image
 * |-- EngineError          1  an inference engine failed
 * |-- UsageError           2  an argument or a name is not valid
 * |-- MissingExtraError    4  an engine is not part of this build
 * |-- ElsewhereError       4  this kind of machine cannot have the engine
 * `-- BundleError          5  a bundle is damaged, unsafe or too new
 * ```
 *
 * A message names the bad value and ends with what to do.
 */

/** Base class of all errors that dermedge throws on purpose. */
export class DermedgeError extends Error {
  override readonly name: string = "DermedgeError";
  /** Exit code of a command that ends with this error. */
  readonly exitCode: number = 1;
}

/** Error for an input that is not an image that a model accepts. */
export class ImageError extends DermedgeError {
  override readonly name: string = "ImageError";
}

/** Error for an engine that refuses the artifact or fails while running it. */
export class EngineError extends DermedgeError {
  override readonly name: string = "EngineError";
}

/** Error for an argument, an option or a name that is not valid. */
export class UsageError extends DermedgeError {
  override readonly name: string = "UsageError";
  override readonly exitCode: number = 2;
}

/** Error for an engine that is not part of this build. */
export class MissingExtraError extends DermedgeError {
  override readonly name: string = "MissingExtraError";
  override readonly exitCode: number = 4;
}

/** Error for an engine that exists on other machines only. */
export class ElsewhereError extends DermedgeError {
  override readonly name: string = "ElsewhereError";
  override readonly exitCode: number = 4;
}

/** Error for a bundle that is damaged, incomplete, unsafe or too new. */
export class BundleError extends DermedgeError {
  override readonly name: string = "BundleError";
  override readonly exitCode: number = 5;
}

/** An error in the form in which it crosses from the worker to the page. */
export interface WireError {
  readonly name: string;
  readonly message: string;
}

const CLASSES: Readonly<Record<string, new (message: string) => DermedgeError>> = {
  DermedgeError,
  ImageError,
  EngineError,
  UsageError,
  MissingExtraError,
  ElsewhereError,
  BundleError,
};

/** Return any thrown value in the form that crosses from the worker to the page. */
export function packError(error: unknown): WireError {
  if (error instanceof Error) return { name: error.name, message: error.message };
  return { name: "Error", message: String(error) };
}

/** Return the error that `packError` packed, as an object of its own class. */
export function unpackError({ name, message }: WireError): Error {
  if (name === "AbortError") return new DOMException(message, name);
  const known = Object.hasOwn(CLASSES, name) ? CLASSES[name] : undefined;
  return known ? new known(message) : new DermedgeError(`${name}: ${message}`);
}

/** Return the first line of an error's text without its full stop, to quote it. */
export function firstLine(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.trim().split("\n")[0].replace(/\.+$/, "");
}
