import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { type FileProgress, openBundle } from "../src/bundle";
import { openContainer, type Source } from "../src/container";
import { DermedgeError } from "../src/errors";
import { readGolden } from "../src/golden";
import { readZip } from "../src/zip";
import { type BundleCase, cases, read } from "./conformance";

const TOY = "bundles/toy-onnx.zip";

function open(source: Source, onProgress?: (progress: FileProgress) => void, signal?: AbortSignal) {
  return openContainer(source, signal ? { signal } : {}).then((container) =>
    openBundle(container, (name) => name.startsWith("golden/"), onProgress),
  );
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

  test("from a map ignores and names the files of operating systems", async () => {
    const files = new Map(readZip(read(TOY), "toy"));
    const plain = await open(files);
    files.set("golden/.DS_Store", Uint8Array.of(1)).set("Thumbs.db", Uint8Array.of(1));
    const container = await openContainer(files);
    expect(container.systemFiles).toEqual(["Thumbs.db", "golden/.DS_Store"]);
    expect((await open(files)).bundle.id).toBe(plain.bundle.id);
    files.set("notes.txt", Uint8Array.of(1));
    expect((await failure(open(files))).message).toContain("'notes.txt'");
  });

  test("has golden cases with float32 outputs", async () => {
    const { kept } = await open(zip(TOY));
    const golden = readGolden((name) => kept.get(name)!);
    expect(golden.length).toBeGreaterThan(0);
    for (const { tensor, expected } of golden) {
      expect(tensor.values).toHaveLength(tensor.shape.reduce((product, n) => product * n, 1));
      for (const { values } of Object.values(expected)) expect(values).toBeInstanceOf(Float32Array);
    }
  });
});

describe("a bundle over HTTP", () => {
  const files = readZip(read(TOY), "toy");
  let [asked, damage]: [string[], string] = [[], ""];
  let server: Server;
  let site: string;

  beforeAll(async () => {
    server = createServer(({ url = "" }, response) => {
      asked.push(url);
      const path = decodeURIComponent(new URL(url, "http://toy").pathname);
      if (path === "/moved.dermedge/manifest.json") {
        response.writeHead(302, { location: "/toy.dermedge/manifest.json" }).end();
        return;
      }
      if (path.startsWith("/page/")) {
        response.writeHead(200).end("<!doctype html><title>Page</title>");
        return;
      }
      const data = path === "/toy.zip" ? read(TOY) : files.get(path.replace("/toy.dermedge/", ""));
      if (!data || path === damage) response.writeHead(data ? 500 : 404).end();
      else response.writeHead(200, { "content-length": data.length }).end(data);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    site = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });

  afterAll(() => server.close());

  test("is a folder or a zip, and nothing outside of it is fetched", async () => {
    asked = [];
    const folder = await open(`${site}/toy.dermedge/?key=1`);
    const expected = ["manifest.json", ...Object.keys(folder.bundle.files)];
    expect([...asked].sort()).toEqual(expected.map((name) => `/toy.dermedge/${name}?key=1`).sort());
    const zipped = await open(new URL(`${site}/toy.zip`));
    expect(zipped.bundle.id).toBe(folder.bundle.id);
    expect(folder.bundle.modelcard).toBe(zipped.bundle.modelcard);
  });

  test("reports its progress to the last byte", async () => {
    const seen: FileProgress[] = [];
    const { bundle } = await open(`${site}/toy.dermedge`, (progress) => seen.push(progress));
    const total = Object.keys(bundle.files).length;
    expect(seen.at(-1)).toMatchObject({ filesDone: total, filesTotal: total });
    const model = seen.filter(({ file }) => file === bundle.artifact.path);
    expect(model.at(-1)?.bytes).toBe(files.get(bundle.artifact.path)?.length);
  });

  test("reports the bytes of a zip", async () => {
    const seen: [number, number | null][] = [];
    await openContainer(`${site}/toy.zip`, { onBytes: (...bytes) => seen.push(bytes) });
    const { length } = read(TOY);
    expect(seen.at(-1)).toEqual([length, length]);
  });

  test.each([
    ["/nothing.dermedge", "UsageError", "There is no bundle"],
    ["/page/toy.dermedge", "UsageError", "There is no bundle"],
    ["/moved.dermedge", "DermedgeError", "does not redirect"],
  ])("at %s is refused", async (path, name, text) => {
    const error = await failure(open(`${site}${path}`));
    expect(error.name).toBe(name);
    expect(error.message).toContain(text);
  });

  test("names the file that is missing or changed, and the server that fails", async () => {
    const model = "model.onnx";
    const whole = files.get(model)!;
    try {
      files.delete(model);
      expect((await failure(open(`${site}/toy.dermedge`))).message).toContain(`misses '${model}'`);
      files.set(model, whole.slice(1));
      const error = await failure(open(`${site}/toy.dermedge`));
      expect(error.name).toBe("BundleError");
      expect(error.message).toContain(`'${model}' in ${site}/toy.dermedge is damaged`);
      files.set(model, whole);
      damage = `/toy.dermedge/${model}`;
      expect((await failure(open(`${site}/toy.dermedge`))).message).toContain("500");
    } finally {
      damage = "";
      files.set(model, whole);
    }
  });

  test("is no longer fetched once the signal is aborted", async () => {
    const controller = new AbortController();
    const opening = open(`${site}/toy.dermedge`, () => controller.abort(), controller.signal);
    await expect(opening).rejects.toMatchObject({ name: "AbortError" });
  });
});
