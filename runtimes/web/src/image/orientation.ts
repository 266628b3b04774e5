/** Read the EXIF orientation, and turn pictures upright. */

import { RgbPicture } from "./picture";

const ORIENTATION_TAG = 0x0112;
const LONG = 4;

/** Return the orientation of an EXIF block, 1 to 8; 1 if there is none or it is broken. */
export function readOrientation(exif: Uint8Array): number {
  let data = exif;
  while (new TextDecoder("latin1").decode(data.subarray(0, 6)) === "Exif\0\0") {
    data = data.subarray(6);
  }
  const little = data[0] !== 0x4d || data[1] !== 0x4d;
  const number = (start: number, length: number): number => {
    const bytes = [...data.subarray(start, start + length)];
    if (little) bytes.reverse();
    return bytes.reduce((value, byte) => value * 256 + byte, 0);
  };
  const entries = number(4, 4) + 2;
  const end = Math.min(entries + 12 * number(entries - 2, 2), data.length);
  for (let entry = entries; entry < end; entry += 12) {
    if (number(entry, 2) !== ORIENTATION_TAG) continue;
    const value = number(entry + 8, number(entry + 2, 2) === LONG ? 4 : 2);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/** Return a picture turned or mirrored as its EXIF orientation says. */
export function turn(picture: RgbPicture, orientation: number): RgbPicture {
  if (orientation === 1) return picture;
  const { width, height, data } = picture;
  const [swapped, mirrored, flipped] = [
    orientation > 4,
    [2, 3, 7, 8].includes(orientation),
    [3, 4, 6, 7].includes(orientation),
  ];
  const [columns, rows] = swapped ? [height, width] : [width, height];
  const turned = new Uint8Array(data.length);
  let to = 0;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const [u, v] = swapped ? [row, column] : [column, row];
      const x = mirrored ? width - 1 - u : u;
      const y = flipped ? height - 1 - v : v;
      const from = (y * width + x) * 3;
      turned[to++] = data[from];
      turned[to++] = data[from + 1];
      turned[to++] = data[from + 2];
    }
  }
  return new RgbPicture(columns, rows, turned);
}
