import { describe, expect, test } from "vitest";

import { openBundle } from "../src/bundle";
import { openContainer } from "../src/container";
import { BundleError, DermedgeError, UsageError } from "../src/errors";
import { readZip } from "../src/zip";
import { type BundleCase, cases, read } from "./conformance";

const TOY = "bundles/toy-onnx.zip";

async function open(source: Parameters<typeof openContainer>[0]) {
  return openBundle(await openContainer(source), (name) => name.startsWith("golden/"));
}

function zip(path: string): File {
  return new File([read(path) as Uint8Array<ArrayBuffer>], "toy.dermedge");
}

async function failure(promise: Promise<unknown>): Promise<DermedgeError> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DermedgeError);
  return error as DermedgeError;
}

describe("a bundle", () => {
  test.each(cases<BundleCase>("bundles.json"))("of the conformance folder: $name", async (one) => {
    if (one.error === null) {
      await open(zip(one.bundle));
      return;
    }
    const error = await failure(open(zip(one.bundle)));
    expect(error.name).toBe(one.error);
    for (const text of one.mentions ?? []) expect(error.message).toContain(text);
  });
});
