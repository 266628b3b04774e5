import { expect } from "vitest";

/** Expect equal JSON, in which numbers may differ by `within` and a missing key is null. */
export function expectClose(actual: unknown, want: unknown, within: number, path = ""): void {
  if (typeof actual === "number" && typeof want === "number") {
    expect(Math.abs(actual - want), `${path}: ${actual}, ${want}`).toBeLessThanOrEqual(within);
  } else if (isRecord(actual) && isRecord(want)) {
    for (const key of new Set([...Object.keys(actual), ...Object.keys(want)])) {
      expectClose(actual[key] ?? null, want[key] ?? null, within, `${path}.${key}`);
    }
  } else if (Array.isArray(actual) && Array.isArray(want)) {
    expect(actual.length, path).toBe(want.length);
    actual.forEach((value, index) => expectClose(value, want[index], within, `${path}[${index}]`));
  } else {
    expect(actual, path).toEqual(want);
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
