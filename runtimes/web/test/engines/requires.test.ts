import { describe, expect, test } from "vitest";

import { checkRequires } from "../../src/engines/requires";
import { EngineError } from "../../src/errors";
import type { Artifact } from "../../src/spec";

const check = (requires: string[], version: string) =>
  checkRequires({ requires } as unknown as Artifact, "litert", version);

describe("checkRequires", () => {
  test.each([
    [["litert>=1.0"], "2.5.3"],
    [["litert>=2.5.3,<3"], "2.5.3"],
    [["litert == 2.5"], "2.5.0"],
    [["litert>=2.5"], "2.10"],
    [["litert>2.9"], "2.10-rc1"],
    [["litert!=2.4"], "2.5.0-dev.20261101"],
    [["iOS>=99", "onnxruntime>=99", "litert-extra>=99"], "2.5.3"],
    [["litert"], "2.5.3"],
    [[], "2.5.3"],
  ])("accepts %j with %s", (requires, version) => check(requires, version));

  test.each([
    [["litert>=99"], "2.5.3"],
    [["iOS>=1", "litert>=1.0,<2"], "2.5.3"],
    [["litert<2.5.3"], "2.5.3"],
    [["litert!=2.5.3"], "2.5.3"],
  ])("refuses %j with %s", (requires, version) => {
    const refused = expect(() => check(requires, version));
    refused.toThrow(EngineError);
    refused.toThrow(version);
  });
});
