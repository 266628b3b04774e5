import { expect, test } from "vitest";

import { percentiles } from "../src/bench";
import * as errors from "../src/errors";

const CODES = {
  DermedgeError: 1,
  ImageError: 1,
  EngineError: 1,
  UsageError: 2,
  MissingExtraError: 4,
  ElsewhereError: 4,
  BundleError: 5,
} as const;

test.each(Object.entries(CODES))("a %s crosses from the worker as its class", (name, code) => {
  const kind = errors[name as keyof typeof CODES];
  const wire = structuredClone(errors.packError(new kind("Something is wrong. Do this.")));
  const error = errors.unpackError(wire);
  expect(error).toBeInstanceOf(kind);
  expect(error).toMatchObject({ name, message: "Something is wrong. Do this.", exitCode: code });
});

test("an error that is not on purpose crosses with its name", () => {
  const error = errors.unpackError(errors.packError(new RangeError("too deep")));
  expect(error).toBeInstanceOf(errors.DermedgeError);
  expect(error.message).toBe("RangeError: too deep");
  const aborted = errors.unpackError(errors.packError(new DOMException("ended", "AbortError")));
  expect(aborted.name).toBe("AbortError");
});

test("percentiles are linear between ranks, as in Python", () => {
  const { p50, p90, p99, mean, count } = percentiles([3, 1, 2]);
  expect([p50, mean, count]).toEqual([2, 2, 3]);
  expect(p90).toBeCloseTo(2.8, 12);
  expect(p99).toBeCloseTo(2.98, 12);
});
