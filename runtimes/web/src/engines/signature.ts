/** Check a graph's input and outputs against the model spec, for every engine. */

import { EngineError } from "../errors";
import { expectedShape, type Spec } from "../spec";

/** Name of the one input of every exported graph. */
export const INPUT = "image";

/** Element type of an input or output, and its sizes; null is an open size. */
export interface Port {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly (number | null)[];
}

/**
 * Check a graph's inputs and outputs.
 *
 * @throws EngineError if they are not those of `spec`.
 */
export function checkSignature(
  inputs: readonly Port[],
  outputs: readonly Port[],
  spec: Spec,
): void {
  const { size } = spec.preprocess;
  const image: Port = { name: INPUT, type: "uint8", shape: [1, size, size, 3] };
  if (inputs.length !== 1 || inputs[0].name !== INPUT || !fits(inputs[0], image)) {
    throw new EngineError(
      `The graph's inputs are ${inputs.map(describe).join(", ") || "none"}, not one ` +
        `${describe(image)}. Export the model again.`,
    );
  }
  const names = outputs.map(({ name }) => name);
  const tasks = spec.tasks.map(({ name }) => name);
  if ([...names].sort().join() !== [...tasks].sort().join()) {
    throw new EngineError(
      `The graph's outputs are ${names.join(", ") || "none"}, but the tasks are ` +
        `${tasks.join(", ")}. Export the model again.`,
    );
  }
  for (const task of spec.tasks) {
    const output = outputs.find(({ name }) => name === task.name)!;
    const expected: Port = {
      name: task.name,
      type: "float32",
      shape: [1, ...expectedShape(task, size)],
    };
    if (!fits(output, expected)) {
      throw new EngineError(
        `An output is ${describe(output)}, not ${describe(expected)}. Export the model again.`,
      );
    }
  }
}

function fits(port: Port, expected: Port): boolean {
  return (
    port.type === expected.type &&
    port.shape.length === expected.shape.length &&
    port.shape.every((size, axis) => size === null || [null, size].includes(expected.shape[axis]))
  );
}

function describe({ name, type, shape }: Port): string {
  return `'${name}' ${type} [${shape.map((size) => size ?? "any").join(", ")}]`;
}
