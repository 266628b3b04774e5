/**
 * Verify that a bundle gives the same results in this browser as at its export.
 *
 * Four checks run in order, so that a failure identifies its cause.
 */

import { openBundle } from "./bundle";
import { type Container, openContainer, type Source } from "./container";
import { decode, describeShape, fitsShape, type Tensor } from "./decode";
import { DECODED_WITHIN, describeDifference } from "./difference";
import type { Engine } from "./engine";
import { BundleError, DermedgeError, ElsewhereError, firstLine } from "./errors";
import { type GoldenCase, readGolden } from "./golden";
import { decodeImage } from "./image/decode";
import { Resizer } from "./image/resize";
import { parseJson, quote, quoteAll } from "./json";
import type { Bundle } from "./manifest";
import type { Check, CheckStatus, VerifyReport } from "./report";
import { expectedShape } from "./spec";
import { isRecord, optional, take } from "./take";

const CHECKS = ["files", "preprocessing", "engine", "decoding"] as const;
const PARITY_REPORT = "reports/parity.json";
const VOLATILE = ["timing", "provenance"];
const SHOWN = 5;
const AGAIN = "Get the bundle again or export the model again.";

/** Failure of one check; the message says what differs and what to do. */
class Failure extends Error {}

/**
 * Returns the engine to check.
 *
 * @param model - Content of the artifact's file.
 */
export type StartEngine = (bundle: Bundle, model: Uint8Array) => Promise<Engine>;

/**
 * Verify a bundle, whose files are all read again.
 *
 * @param startEngine - Returns the engine to check; it stays open.
 * @throws UsageError if there is no bundle.
 */
export async function verify(source: Source, startEngine: StartEngine): Promise<VerifyReport> {
  let [bundleName, engineName] = ["the bundle", "not started"];
  const results: [CheckStatus, string][] = [];
  try {
    const { bundle, model, cases, where } = await checkFiles(source, (name) => (bundleName = name));
    bundleName = bundle.id;
    results.push(["passed", where]);
    results.push(["passed", await checkPreprocessing(bundle, cases)]);
    const engine = await start(() => startEngine(bundle, model));
    if (engine instanceof ElsewhereError) {
      results.push(["not_run", engine.message]);
    } else {
      engineName = `${engine.name} ${engine.version}`;
      results.push(["passed", await checkEngine(bundle, cases, engine)]);
    }
    results.push(["passed", checkDecoding(bundle, cases)]);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    results.push(["failed", error.message]);
  }
  const checks = CHECKS.map((name, index): Check => {
    const [status, detail] = results[index] ?? ["not_run", "an earlier check failed"];
    return { name, status, detail };
  });
  const has = (status: CheckStatus) => checks.some((check) => check.status === status);
  const status = has("failed") ? "failed" : has("not_run") ? "not_run" : "passed";
  return { bundle: bundleName, engine: engineName, status, checks };
}

/** Open the bundle, and check its golden cases and the status of its parity reports. */
async function checkFiles(source: Source, onName: (name: string) => void) {
  try {
    const container = await openContainer(source);
    onName(container.where);
    const { bundle, kept } = await openBundle(
      container,
      (name, { artifact }) => /^(golden|reports)\//.test(name) || name === artifact.path,
    );
    const read = (name: string): Uint8Array => {
      const data = kept.get(name);
      if (data) return data;
      throw new BundleError(`${container.where} has no file ${quote(name)}. ${AGAIN}`);
    };
    const cases = readGolden(read);
    for (const one of cases) checkCase(one, bundle);
    checkParity(bundle, read);
    const where = describeFiles(bundle, cases, container);
    return { bundle, model: kept.get(bundle.artifact.path) ?? new Uint8Array(0), cases, where };
  } catch (error) {
    if (error instanceof BundleError) throw new Failure(error.message);
    throw error;
  }
}

/** Check that the manifest's statuses of parity are those of the reports. */
function checkParity({ parity, files }: Bundle, read: (name: string) => Uint8Array): void {
  for (const side of ["host", "device"]) {
    const named = optional(parity[side], "report", "string", `parity.${side}`);
    const path = named ?? (side === "host" && PARITY_REPORT in files ? PARITY_REPORT : null);
    if (path === null) continue;
    if (!(path in files)) {
      throw new BundleError(`parity.${side} names ${quote(path)}, which is not a file. ${AGAIN}`);
    }
    const report = parseJson(read(path), path, BundleError);
    const status = take(parity[side], "status", "string", `parity.${side}`);
    const reported = isRecord(report) ? report["status"] : undefined;
    if (status !== reported) {
      throw new BundleError(
        `parity.${side}.status of the manifest is ${quote(status)}, but ${path} has ` +
          `${quote(reported)}. ${AGAIN}`,
      );
    }
  }
}

function describeFiles(bundle: Bundle, cases: readonly GoldenCase[], container: Container): string {
  const names = container.systemFiles;
  const more = names.length > SHOWN ? ", ..." : "";
  const ignored = names.length ? `; ignored: ${quoteAll(names.slice(0, SHOWN))}${more}` : "";
  const files = Object.keys(bundle.files).length;
  return `${files} files and ${cases.length} golden cases are intact${ignored}`;
}

function checkCase({ name, tensor, reference, expected }: GoldenCase, { spec }: Bundle): void {
  const { size } = spec.preprocess;
  if (tensor.shape[0] !== size) {
    throw new Failure(
      `Golden case ${quote(name)} has a tensor of ${tensor.shape[0]} px, not ${size}. ${AGAIN}`,
    );
  }
  const tasks = spec.tasks.map((task) => task.name).sort();
  for (const [kind, outputs] of Object.entries({ reference, expected })) {
    const where = `${kind} of golden case ${quote(name)}`;
    const names = Object.keys(outputs).sort();
    if (quoteAll(names) !== quoteAll(tasks)) {
      throw new Failure(
        `${where} has outputs [${quoteAll(names)}], not [${quoteAll(tasks)}]. ${AGAIN}`,
      );
    }
    for (const task of spec.tasks) {
      const { shape } = outputs[task.name];
      const want = expectedShape(task, size);
      if (!fitsShape(shape, want)) {
        throw new Failure(
          `${quote(task.name)} in ${where} has shape ${describeShape(shape)}, ` +
            `not ${describeShape(want)}. ${AGAIN}`,
        );
      }
    }
  }
}

async function checkPreprocessing(bundle: Bundle, cases: readonly GoldenCase[]): Promise<string> {
  const { preprocess } = bundle.spec;
  const resizer = new Resizer(preprocess);
  for (const { name, image, tensor } of cases) {
    let pixels: Uint8Array;
    try {
      const file = new Blob([image as Uint8Array<ArrayBuffer>]);
      const { picture } = await decodeImage(file, preprocess.background);
      pixels = resizer.resize(picture);
      picture.close();
    } catch (error) {
      throw new Failure(`Golden image ${quote(name)} cannot be preprocessed: ${messageOf(error)}`);
    }
    const differences = pixels.map((value, at) => Math.abs(value - tensor.values[at]));
    const count = differences.reduce((sum, value) => sum + (value ? 1 : 0), 0);
    if (count) {
      throw new Failure(
        `Preprocessing of golden image ${quote(name)} differs in ${count} of ${pixels.length} ` +
          `values, by up to ${largest(differences)} of 255. Do not use this browser's ` +
          "predictions. Use another browser, and report this.",
      );
    }
  }
  return `${cases.length} golden images, bit for bit`;
}

/** Start the engine; a browser that cannot have it is no failure. */
async function start(startEngine: () => Promise<Engine>): Promise<Engine | ElsewhereError> {
  try {
    return await startEngine();
  } catch (error) {
    if (error instanceof ElsewhereError) return error;
    if (error instanceof DermedgeError && error.exitCode === 1) throw new Failure(error.message);
    throw error;
  }
}

/**
 * Compare the engine's outputs with `expected`.
 *
 * The distance of `expected` to the fp32 student is reported, not checked: the gate has
 * already checked the loss of accuracy at export.
 */
async function checkEngine(
  { spec, tolerance, artifact }: Bundle,
  cases: readonly GoldenCase[],
  engine: Engine,
): Promise<string> {
  const [errors, drifts] = [new Map<string, number>(), new Map<string, number>()];
  for (const { name, tensor, expected, reference } of cases) {
    const outputs = await runCase(name, tensor.values, engine);
    for (const { name: task } of spec.tasks) {
      const where =
        `${engine.name} ${engine.version}, ` +
        `golden case ${quote(name)}, output ${quote(task)}`;
      const actual = outputs[task];
      const want = expected[task];
      if (!actual || !fitsShape(actual.shape, want.shape)) {
        const described = actual ? `shape ${describeShape(actual.shape)}` : "nothing";
        throw new Failure(
          `${where}: ${described}, not shape ${describeShape(want.shape)}. ` +
            "Use the engine of the export.",
        );
      }
      const error = distance(actual.values, want.values);
      if (!(error <= tolerance[task])) {
        throw new Failure(
          `${where}: off by ${round(error)}, tolerance ${round(tolerance[task])}. Use an engine ` +
            `that fits ${artifact.requires.join(", ") || "the export"}, or export for this one.`,
        );
      }
      errors.set(task, Math.max(errors.get(task) ?? 0, error));
      const drift = distance(want.values, reference[task].values);
      drifts.set(task, Math.max(drifts.get(task) ?? 0, drift));
    }
  }
  return Array.from(
    errors,
    ([task, error]) =>
      `${task} off by ${round(error)} (tolerance ${round(tolerance[task])}, ` +
      `${round(drifts.get(task) ?? 0)} between export and fp32 student)`,
  ).join("; ");
}

async function runCase(name: string, pixels: Uint8Array, engine: Engine) {
  try {
    return await engine.run(pixels);
  } catch (error) {
    throw new Failure(
      `${engine.name} ${engine.version} failed on golden case ${quote(name)}: ${messageOf(error)}`,
    );
  }
}

function checkDecoding(bundle: Bundle, cases: readonly GoldenCase[]): string {
  for (const { name, expected, prediction } of cases) {
    const { spec, postprocessing } = bundle;
    let decoded: Record<string, unknown>;
    try {
      decoded = dropVolatile({ ...decode(expected, spec, postprocessing) });
    } catch (error) {
      throw new Failure(`Golden case ${quote(name)} cannot be decoded: ${messageOf(error)}`);
    }
    const decoding = { outputs: expected, spec, postprocessing };
    const text = describeDifference(decoded, dropVolatile(prediction), decoding);
    if (text) throw new Failure(`Golden case ${quote(name)} decodes differently: ${text}`);
  }
  return `${cases.length} golden predictions, within ${DECODED_WITHIN}`;
}

function dropVolatile(prediction: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(prediction).filter(([key]) => !VOLATILE.includes(key)));
}

function distance(left: Tensor["values"], right: Tensor["values"]): number {
  let result = 0;
  for (let at = 0; at < left.length; at++) {
    const difference = Math.abs(left[at] - right[at]);
    if (!(difference <= result)) result = difference; // true for NaN as well
    if (Number.isNaN(result)) return result;
  }
  return result;
}

function largest(values: Uint8Array): number {
  return values.reduce((most, value) => Math.max(most, value), 0);
}

function round(value: number): string {
  return String(Number(value.toPrecision(3)));
}

function messageOf(error: unknown): string {
  return error instanceof DermedgeError ? error.message : firstLine(error);
}
