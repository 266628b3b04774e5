/** Read golden cases: an image, and the numbers that every platform must compute. */

import type { Tensor } from "./decode";
import { BundleError } from "./errors";
import { parseJson, quote } from "./json";
import type { Json, JsonObject } from "./spec";
import { AGAIN, take } from "./take";

const SCHEMA = "dermedge.golden/1";
const CASES = "golden/cases.json";
const BYTES = { uint8: 1, float32: 4 } as const;

/** One golden case; outputs are by task and without the batch dimension. */
export interface GoldenCase {
  readonly name: string;
  /** A lossless PNG. */
  readonly image: Uint8Array;
  /** The preprocessed image, uint8 [S, S, 3]. */
  readonly tensor: { readonly shape: readonly number[]; readonly values: Uint8Array };
  /** Outputs of the fp32 student. */
  readonly reference: Readonly<Record<string, Tensor>>;
  /** Outputs of this artifact on the machine that exported it. */
  readonly expected: Readonly<Record<string, Tensor>>;
  /** The decoded `expected`, without `timing` and `provenance`. */
  readonly prediction: JsonObject;
}

/** Function that returns the content of one of the bundle's files. */
type Read = (name: string) => Uint8Array;

/**
 * Read the golden cases of a bundle, one or more.
 *
 * @throws BundleError if there is no case, the schema is unknown, or the size, dtype or
 *   values of a tensor do not fit.
 */
export function readGolden(read: Read): GoldenCase[] {
  const data = parseJson(read(CASES), CASES, BundleError);
  const schema = take(data, "schema", "string", CASES);
  if (schema !== SCHEMA) {
    throw new BundleError(
      `${CASES} has schema ${quote(schema)}, and this dermedge reads ${quote(SCHEMA)}. ` +
        "Upgrade dermedge.",
    );
  }
  const cases = take(data, "cases", "list", CASES).map((item) => readCase(item, read));
  if (cases.length === 0) {
    throw new BundleError(`${CASES} lists no case, so verification is not possible. ${AGAIN}`);
  }
  return cases;
}

function readCase(item: Json, read: Read): GoldenCase {
  const name = take(item, "name", "string", "golden case");
  const where = `golden case ${quote(name)}`;
  const tensor = readTensor(take(item, "tensor", "object", where), "uint8", where, read);
  const [height, width, channels] = tensor.shape;
  if (tensor.shape.length !== 3 || height !== width || channels !== 3) {
    throw new BundleError(
      `The tensor of ${where} has shape [${tensor.shape.join(", ")}], not [S, S, 3]. ${AGAIN}`,
    );
  }
  const outputs = (key: string): Record<string, Tensor> =>
    Object.fromEntries(
      Object.entries(take(item, key, "object", where)).map(([task, entry]) => [
        task,
        readTensor(entry, "float32", where, read),
      ]),
    );
  return {
    name,
    image: read(take(item, "image", "string", where)),
    tensor: { shape: tensor.shape, values: tensor.values as Uint8Array },
    reference: outputs("reference"),
    expected: outputs("expected"),
    prediction: take(item, "prediction", "object", where),
  };
}

function readTensor(entry: Json, dtype: keyof typeof BYTES, where: string, read: Read): Tensor {
  const path = take(entry, "path", "string", where);
  const shape = take(entry, "shape", "list", where).filter(isLength);
  const complete = shape.length === take(entry, "shape", "list", where).length;
  if (take(entry, "dtype", "string", where) !== dtype || !complete) {
    throw new BundleError(
      `${path} of ${where} is ${quote(entry)}, not a ${dtype} tensor. ${AGAIN}`,
    );
  }
  const data = read(path);
  const count = shape.reduce((product, length) => product * length, 1);
  if (data.length !== count * BYTES[dtype]) {
    throw new BundleError(
      `${path} has ${data.length} bytes, which is not ${dtype} [${shape.join(", ")}]. ${AGAIN}`,
    );
  }
  if (dtype === "uint8") return { shape, values: data };
  const bytes = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const values = Float32Array.from({ length: count }, (_, at) => bytes.getFloat32(4 * at, true));
  if (!values.every(Number.isFinite)) {
    throw new BundleError(`${path} of ${where} holds NaN or infinity. ${AGAIN}`);
  }
  return { shape, values };
}

function isLength(value: Json): value is number {
  return typeof value === "number" && Number.isInteger(value) && value > 0;
}
