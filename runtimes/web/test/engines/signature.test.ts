import { expect, test } from "vitest";

import { checkSignature, type Port } from "../../src/engines/signature";
import type { Spec, Task } from "../../src/spec";

const task = (name: string, kind: Task["kind"], count = 0): Task => ({
  name,
  kind,
  labels: Array.from({ length: count }, (_, index) => ({
    id: `l${index}`,
    name: `label ${index}`,
    malignant: null,
    codes: {},
  })),
});
const SPEC = {
  tasks: [task("diagnosis", "classify", 3), task("mask", "segment"), task("vector", "embed")],
  preprocess: { size: 32 },
} as unknown as Spec;
const IMAGE: Port = { name: "image", type: "uint8", shape: [1, 32, 32, 3] };
const OUTPUTS: Port[] = [
  { name: "vector", type: "float32", shape: [1, 17] },
  { name: "diagnosis", type: "float32", shape: [1, 3] },
  { name: "mask", type: "float32", shape: [1, 1, 8, 8] },
];

const withOutput = (change: Partial<Port>) => [OUTPUTS[0], { ...OUTPUTS[1], ...change }, OUTPUTS[2]];

test("accepts outputs in any order, and an open batch size", () => {
  checkSignature([IMAGE], OUTPUTS, SPEC);
  checkSignature([{ ...IMAGE, shape: [null, 32, 32, 3] }], OUTPUTS, SPEC);
});

test.each<[string, Port[], Port[], string]>([
  ["a float input", [{ ...IMAGE, type: "float32" }], OUTPUTS, "'image' float32 [1, 32, 32, 3]"],
  ["another size", [{ ...IMAGE, shape: [1, 48, 48, 3] }], OUTPUTS, "[1, 48, 48, 3]"],
  ["a batch of 8", [{ ...IMAGE, shape: [8, 32, 32, 3] }], OUTPUTS, "[8, 32, 32, 3]"],
  ["channels first", [{ ...IMAGE, shape: [1, 3, 32, 32] }], OUTPUTS, "[1, 3, 32, 32]"],
  ["another name", [{ ...IMAGE, name: "args_0" }], OUTPUTS, "args_0"],
  ["two inputs", [IMAGE, { ...IMAGE, name: "more" }], OUTPUTS, "more"],
  ["no input", [], OUTPUTS, "none"],
  ["a missing output", [IMAGE], OUTPUTS.slice(1), "diagnosis, mask, vector"],
  ["int8 outputs", [IMAGE], withOutput({ type: "int8" }), "'diagnosis' int8 [1, 3]"],
  ["another number of labels", [IMAGE], withOutput({ shape: [1, 4] }), "[1, 4]"],
  ["another rank", [IMAGE], withOutput({ shape: [1, 3, 1] }), "[1, 3, 1]"],
])("refuses %s", (_, inputs, outputs, mention) => {
  expect(() => checkSignature(inputs, outputs, SPEC)).toThrow(mention);
});
