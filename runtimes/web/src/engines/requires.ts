/** Check an engine's version against a manifest's `artifact.requires`. */

import { EngineError } from "../errors";
import type { Artifact } from "../spec";

const TESTS: Readonly<Record<string, (order: number) => boolean>> = {
  ">=": (order) => order >= 0,
  "<=": (order) => order <= 0,
  "==": (order) => order === 0,
  "!=": (order) => order !== 0,
  ">": (order) => order > 0,
  "<": (order) => order < 0,
};

/**
 * Check that an engine's version satisfies what an artifact requires.
 *
 * Entries for other names, such as `iOS>=17`, are ignored.
 *
 * @param name - Name of the engine, such as `onnxruntime`.
 * @param version - Dotted numbers; a suffix such as `-dev` is ignored.
 * @throws EngineError if the version does not satisfy an entry.
 */
export function checkRequires({ requires }: Artifact, name: string, version: string): void {
  for (const entry of requires) {
    const [, required, bounds] = /^\s*([\w.-]*\w)\s*(.*?)\s*$/.exec(entry) ?? [];
    if (required !== name || !bounds) continue;
    if (!bounds.split(",").every((bound) => satisfies(version, bound))) {
      throw new EngineError(
        `The bundle requires ${entry}, but this page has ${name} ${version}. ` +
          "Use a release of the dermedge package with that engine, or export the model again.",
      );
    }
  }
}

/** Return the message for an artifact that an engine cannot load. */
export function describeRefusal(
  name: string,
  version: string,
  { path, requires }: Artifact,
  cause: string,
): string {
  return (
    `${name} ${version} refuses ${path} (${cause}): it needs ` +
    `${requires.join(", ") || "another version"}. Use a release of the dermedge package that ` +
    "has it, or export the model again."
  );
}

/** Return whether a version satisfies a bound such as `>=1.17`, which the reader checked. */
function satisfies(version: string, bound: string): boolean {
  const [, test, least] = /^\s*([<>=!]+)\s*(.*)$/.exec(bound)!;
  return TESTS[test](compare(numbers(version), numbers(least)));
}

function numbers(version: string): number[] {
  return (/^\d+(\.\d+)*/.exec(version)?.[0] ?? "0").split(".").map(Number);
}

function compare(left: readonly number[], right: readonly number[]): number {
  for (let index = 0; index < Math.max(left.length, right.length); index++) {
    const difference = (left[index] ?? 0) - (right[index] ?? 0);
    if (difference) return difference;
  }
  return 0;
}
