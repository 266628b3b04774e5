/** Run dermedge bundles in a browser, with the same predictions as Python. */

export * from "./errors";
export type * from "./engine";
export type * from "./spec";
