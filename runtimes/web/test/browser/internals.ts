/** Parts of the library that its own page does not export, for the browser tests. */

export { decodeImage } from "../../src/image/decode";
export { Resizer } from "../../src/image/resize";
export { openBundle } from "../../src/bundle";
export { openContainer } from "../../src/container";
