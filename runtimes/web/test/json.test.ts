import { describe, expect, test } from "vitest";

import { BundleError, DermedgeError } from "../src/errors";
import { canonicalJson, parseJson } from "../src/json";
import { cases, type JsonCase } from "./conformance";

const encode = (text: string) => new TextEncoder().encode(text);
const canonical = (text: string) => canonicalJson(parseJson(encode(text), "it", BundleError));

describe("JSON", () => {
  test.each(cases<JsonCase>("json.json"))("of the conformance folder: $name", (one) => {
    if (one.canonical === null) expect(() => canonical(one.text)).toThrow(DermedgeError);
    else expect(canonical(one.text)).toBe(one.canonical);
  });

  test("is refused if it is not UTF-8 or too deep, without a crash", () => {
    const latin1 = Uint8Array.of(0x22, 0xe9, 0x22);
    expect(() => parseJson(latin1, "it", BundleError)).toThrow(
      "it is not valid JSON (it is not UTF-8)",
    );
    expect(() => canonical("[".repeat(100_000))).toThrow(BundleError);
  });

  test("names what is wrong and where", () => {
    expect(() => canonical('{"a": 1, "a": 2}')).toThrow("a key is given twice: 'a'");
    expect(() => canonical("[1, x]")).toThrow('unexpected "x" at character 4');
  });
});
