/** Convert a manifest's JSON to a Bundle, and check everything but the files. */

import { MANIFEST } from "./container";
import { BundleError, UsageError } from "./errors";
import { canonicalJson, quote, quoteAll } from "./json";
import { checkNames, DAMAGED } from "./names";
import { parsePostprocessing } from "./postprocessing";
import { parseQuality, type QualityLimits } from "./quality";
import { sha256Hex } from "./sha256";
import {
  type Artifact,
  diagnosisTask,
  FITS,
  type Json,
  type JsonObject,
  KINDS,
  type Label,
  type Postprocessing,
  type Preprocess,
  type Spec,
  STATUSES,
  type Task,
} from "./spec";
import { AGAIN, checkTasks, mapValues, oneOf, optional, take } from "./take";

const SCHEMA = "dermedge.bundle/1";
const LARGEST_TOLERANCE = 0.5;
const DIGEST = /^[0-9a-f]{64}$/;
/** Form of the names of models, tasks and golden cases. */
export const IDENTIFIER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
const BOUND = String.raw`(?:>=|<=|==|!=|>|<)[0-9]{1,9}(?:\.[0-9]{1,9})*`;
const REQUIREMENT = new RegExp(`^[A-Za-z0-9][A-Za-z0-9._-]*(?:${BOUND}(?:,${BOUND})*)?$`);
// A pickle runs code when it is loaded. PyTorch's pickles are zips; the others start with
// the protocol's opcode.
const PICKLES = /[^/]\.(?:pkl|pickle|pt|pth|ckpt|joblib|dill|cloudpickle)$/i;

/** An opened bundle: the content of its manifest, checked. */
export interface Bundle {
  /** SHA-256 of the manifest's canonical JSON; it covers all files by their digests. */
  readonly id: string;
  readonly spec: Spec;
  readonly artifact: Artifact;
  /** Fitted values by task. */
  readonly postprocessing: Readonly<Record<string, Postprocessing>>;
  /** Largest absolute difference that an engine may show, by task. */
  readonly tolerance: Readonly<Record<string, number>>;
  /** A report or a bare status under `host` and `device`. */
  readonly parity: JsonObject;
  /** SHA-256 of every file by its path. */
  readonly files: Readonly<Record<string, string>>;
  /** Limits that a good photograph keeps; null judges no photograph. */
  readonly quality: QualityLimits | null;
  /** The manifest as it was written. */
  readonly manifest: JsonObject;
  /** The model card in Markdown; null if the bundle has none. */
  readonly modelcard: string | null;
}

/**
 * Convert a manifest to a Bundle; check everything but the files themselves.
 *
 * @param where - Name of the bundle, for messages.
 * @throws BundleError if the manifest is incomplete, changed or too new.
 */
export async function parseManifest(manifest: Json, where: string): Promise<Bundle> {
  checkSchema(take(manifest, "schema", "string", MANIFEST), where);
  const digest = await manifestId(manifest as JsonObject, where);
  if (take(manifest, "id", "string", MANIFEST) !== digest) {
    throw new BundleError(
      `The manifest of ${where} was changed: its id does not fit its content. ${DAMAGED}`,
    );
  }
  const spec = parseSpec(take(manifest, "spec", "object", MANIFEST));
  const limits = optional(manifest, "quality", "object", MANIFEST);
  const bundle: Bundle = {
    id: digest,
    spec,
    artifact: parseArtifact(take(manifest, "artifact", "object", MANIFEST)),
    postprocessing: parsePostprocessing(take(manifest, "postprocessing", "object", MANIFEST), spec),
    tolerance: parseTolerance(take(manifest, "tolerance", "object", MANIFEST), spec),
    parity: parseParity(take(manifest, "parity", "object", MANIFEST)),
    files: parseFiles(take(manifest, "files", "object", MANIFEST), where),
    quality: limits && parseQuality(limits),
    manifest: manifest as JsonObject,
    modelcard: null,
  };
  if (artifactFiles(bundle).length === 0) {
    throw new BundleError(
      `The artifact ${quote(bundle.artifact.path)} is not among the files of ${where}. ${AGAIN}`,
    );
  }
  return bundle;
}

/** Return the id of a manifest. It cannot cover itself; the digests cover all files. */
async function manifestId(manifest: JsonObject, where: string): Promise<string> {
  const content = { ...manifest };
  delete content["id"];
  try {
    return await sha256Hex(new TextEncoder().encode(canonicalJson(content)));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    throw new BundleError(`${MANIFEST} of ${where} has no canonical form: ${error.message}`);
  }
}

function checkSchema(schema: string, where: string): void {
  if (schema === SCHEMA) return;
  if (/^dermedge\.bundle\/\d+$/.test(schema)) {
    throw new BundleError(
      `${where} has schema ${quote(schema)}, and this dermedge reads ${quote(SCHEMA)}. ` +
        "Upgrade dermedge.",
    );
  }
  throw new BundleError(
    `${where} has schema ${quote(schema)}, which is no dermedge bundle. Name a .dermedge one.`,
  );
}

/** Read a spec from JSON; throw BundleError if a part is missing, unknown or not valid. */
export function parseSpec(data: JsonObject): Spec {
  const spec: Spec = {
    name: take(data, "name", "string", "spec"),
    version: take(data, "version", "string", "spec"),
    tasks: take(data, "tasks", "list", "spec").map(parseTask),
    preprocess: parsePreprocess(take(data, "preprocess", "object", "spec")),
    intended_use: optional(data, "intended_use", "string", "spec") ?? "",
    lineage: optional(data, "lineage", "object", "spec") ?? {},
  };
  if (!IDENTIFIER.test(spec.name)) {
    throw new BundleError(
      `Model name ${quote(spec.name)} is not an identifier. ` +
        "Use letters, digits, '.', '_' and '-'.",
    );
  }
  const names = spec.tasks.map((task) => task.name);
  if (names.length === 0 || new Set(names).size !== names.length) {
    throw new BundleError(
      `A model needs one or more distinct tasks, not [${quoteAll(names)}]. ${AGAIN}`,
    );
  }
  const diagnosed = diagnosisTask(spec)?.labels.map(({ id }) => id) ?? [];
  for (const { name, kind, labels } of spec.tasks) {
    if (kind === "cam" && quoteAll(labels.map(({ id }) => id)) !== quoteAll(diagnosed)) {
      throw new BundleError(
        `Task ${quote(name)} has other labels than the diagnosis, [${quoteAll(diagnosed)}]. ${AGAIN}`,
      );
    }
  }
  return spec;
}

function parseTask(data: Json): Task {
  const kind = oneOf(KINDS, take(data, "kind", "string", "task"));
  if (!kind.known) {
    throw new BundleError(
      `Unknown task kind ${quote(kind.value)}: this dermedge knows ${KINDS.join(", ")}. ` +
        "Upgrade it.",
    );
  }
  const task: Task = {
    name: take(data, "name", "string", "task"),
    kind: kind.value,
    labels: (optional(data, "labels", "list", "task") ?? []).map(parseLabel),
  };
  if (!IDENTIFIER.test(task.name)) {
    throw new BundleError(`Task name ${quote(task.name)} is not an identifier. ${AGAIN}`);
  }
  const ids = task.labels.map((label) => label.id);
  const needsTwo = task.kind === "classify" || task.kind === "ordinal";
  if (new Set(ids).size !== ids.length || (needsTwo && ids.length < 2)) {
    throw new BundleError(
      `Task ${quote(task.name)} needs two or more distinct labels, ` +
        `not [${quoteAll(ids)}]. ${AGAIN}`,
    );
  }
  return task;
}

function parseLabel(data: Json): Label {
  return {
    id: take(data, "id", "string", "label"),
    name: take(data, "name", "string", "label"),
    malignant: optional(data, "malignant", "boolean", "label"),
    codes: optional(data, "codes", "object", "label") ?? {},
  };
}

function parsePreprocess(data: JsonObject): Preprocess {
  const size = take(data, "size", "integer", "preprocess");
  const fit = oneOf(FITS, take(data, "fit", "string", "preprocess"));
  const kernel = take(data, "kernel", "string", "preprocess");
  const background = take(data, "background", "list", "preprocess");
  if (size < 16 || size > 4096) {
    throw new BundleError(`Preprocessing size ${size} is outside 16..4096. ${AGAIN}`);
  }
  if (!fit.known || kernel !== "triangle") {
    throw new BundleError(
      `Unknown preprocessing fit ${quote(fit.value)} or kernel ${quote(kernel)}. Upgrade dermedge.`,
    );
  }
  const [red, green, blue] = background;
  if (background.length !== 3 || !isByte(red) || !isByte(green) || !isByte(blue)) {
    throw new BundleError(`Background ${quote(background)} is not an RGB colour. ${AGAIN}`);
  }
  return { size, fit: fit.value, kernel, background: [red, green, blue] };
}

function parseArtifact(data: JsonObject): Artifact {
  return {
    target: take(data, "target", "string", "artifact"),
    format: take(data, "format", "string", "artifact"),
    path: take(data, "path", "string", "artifact"),
    precision: take(data, "precision", "string", "artifact"),
    requires: take(data, "requires", "list", "artifact").map(checkRequirement),
    toolchain: take(data, "toolchain", "object", "artifact"),
    details: optional(data, "details", "object", "artifact") ?? {},
    calibration: optional(data, "calibration", "object", "artifact"),
  };
}

function checkRequirement(requirement: Json): string {
  if (typeof requirement === "string" && REQUIREMENT.test(requirement)) return requirement;
  throw new BundleError(
    `The requirement ${quote(requirement)} is not a name with bounds, such as ` +
      `'onnxruntime>=1.17,<2'. ${AGAIN}`,
  );
}

function parseTolerance(data: JsonObject, spec: Spec): Record<string, number> {
  checkTasks(data, spec, "tolerance");
  return mapValues(data, (name, value) => {
    if (typeof value === "number" && value >= 0 && value <= LARGEST_TOLERANCE) return value;
    throw new BundleError(
      `The tolerance of ${quote(name)} is ${quote(value)}, ` +
        `not within 0..${LARGEST_TOLERANCE}. ${AGAIN}`,
    );
  });
}

function parseParity(data: JsonObject): JsonObject {
  for (const side of ["host", "device"]) {
    const report = take(data, side, "object", "parity");
    const status = oneOf(STATUSES, take(report, "status", "string", `parity.${side}`));
    if (!status.known) {
      throw new BundleError(
        `parity.${side}.status is ${quote(status.value)}, ` +
          `not one of ${STATUSES.join(", ")}. ${AGAIN}`,
      );
    }
  }
  return data;
}

function parseFiles(data: JsonObject, where: string): Record<string, string> {
  checkNames([...Object.keys(data), MANIFEST], where);
  return mapValues(data, (name, digest) => {
    if (name === MANIFEST || typeof digest !== "string" || !DIGEST.test(digest)) {
      throw new BundleError(
        `The digest of ${quote(name)} is ${quote(digest)}, not a SHA-256 of another file. ${AGAIN}`,
      );
    }
    if (PICKLES.test(name)) throw isPickle(name, where);
    return digest;
  });
}

/** Return the artifact's one file, or all files in its folder, sorted. */
export function artifactFiles(bundle: Pick<Bundle, "artifact" | "files">): string[] {
  const entry = bundle.artifact.path.replace(/\/+$/, "");
  return Object.keys(bundle.files)
    .filter((name) => name === entry || name.startsWith(`${entry}/`))
    .sort();
}

/** Return the error for a file that could run code. */
export function isPickle(name: string, where: string): BundleError {
  return new BundleError(
    `${quote(name)} in ${where} is a pickle, which could run code. Export to another format.`,
  );
}

function isByte(value: Json | undefined): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 255;
}
