import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { decode } from "../src/decode";
import { EngineError } from "../src/errors";
import { parseSpec } from "../src/manifest";
import { parsePostprocessing } from "../src/postprocessing";
import type { Prediction } from "../src/prediction";
import { cases, type DecodeCase } from "./conformance";
import { expectClose } from "./close";

function run({ spec, postprocessing, outputs }: DecodeCase): Prediction {
  const parsed = parseSpec(spec);
  const tensors = Object.entries(outputs).map(
    ([name, { shape, values }]) => [name, { shape, values: values.map(Number) }] as const,
  );
  return decode(Object.fromEntries(tensors), parsed, parsePostprocessing(postprocessing, parsed));
}

describe("outputs", () => {
  test.each(cases<DecodeCase>("decode.json"))("of the conformance folder: $name", (one) => {
    if (one.error !== undefined) {
      expect(() => run(one)).toThrow(EngineError);
      for (const text of one.mentions ?? []) expect(() => run(one)).toThrow(text);
      return;
    }
    const prediction = run(one);
    expectClose(JSON.parse(JSON.stringify(prediction)), one.prediction, 1e-12);
    const { cam } = prediction;
    expect(cam && { shape: [cam.height, cam.width], values: [...cam.values] }).toEqual(
      one.cam ?? null,
    );
    if (one.mask_sha256 !== undefined) {
      const digest = createHash("sha256")
        .update(prediction.mask ?? "")
        .digest("hex");
      expect(digest).toBe(one.mask_sha256);
    }
  });
});
