/** Read the values of a bundle that were fitted on validation data. */

import { BundleError } from "./errors";
import { quote } from "./json";
import {
  type Conformal,
  CONFORMAL_METHODS,
  type Json,
  type JsonObject,
  malignancyTask,
  type Postprocessing,
  type Spec,
  type Task,
} from "./spec";
import { AGAIN, checkTasks, mapValues, oneOf, optional, take } from "./take";

/** Read the fitted values of every task; throw BundleError if one cannot be applied. */
export function parsePostprocessing(data: JsonObject, spec: Spec): Record<string, Postprocessing> {
  checkTasks(data, spec, "postprocessing");
  const fitted = mapValues(data, (_, value) => parseFitted(value));
  for (const task of spec.tasks) checkTask(fitted[task.name], task, malignancyTask(spec));
  return fitted;
}

function parseFitted(data: Json): Postprocessing {
  const number = (name: string) => optional(data, name, "number", "postprocessing");
  const sets = optional(data, "conformal", "object", "postprocessing");
  const fitted: Postprocessing = {
    temperature: number("temperature"),
    threshold: number("threshold"),
    rule_in: number("rule_in"),
    conformal: sets && parseConformal(sets),
    ood_threshold: number("ood_threshold"),
  };
  const { temperature, threshold, rule_in: ruleIn } = fitted;
  if (temperature !== null && !(temperature > 0)) {
    throw new BundleError(`Temperature ${temperature} is not a positive number. ${AGAIN}`);
  }
  if (threshold !== null && !(threshold >= 0 && threshold <= 1)) {
    throw new BundleError(`Threshold ${threshold} is not a probability. ${AGAIN}`);
  }
  if (ruleIn !== null && (threshold === null || ruleIn < threshold || ruleIn > 1)) {
    throw new BundleError(
      `rule_in ${ruleIn} is not a probability of at least the threshold ${threshold}. ${AGAIN}`,
    );
  }
  return fitted;
}

function parseConformal(data: JsonObject): Conformal {
  const method = oneOf(CONFORMAL_METHODS, take(data, "method", "string", "conformal"));
  if (!method.known) {
    throw new BundleError(
      `Unknown conformal method ${quote(method.value)}: this dermedge knows ` +
        `${CONFORMAL_METHODS.join(", ")}. Upgrade it.`,
    );
  }
  const coverage = take(data, "coverage", "number", "conformal");
  if (!(coverage > 0 && coverage < 1)) {
    throw new BundleError(`Conformal coverage ${coverage} is not between 0 and 1. ${AGAIN}`);
  }
  const quantiles = take(data, "quantiles", "list", "conformal").map((quantile) =>
    optional({ quantile }, "quantile", "number", "conformal"),
  );
  const penalty = optional(data, "penalty", "number", "conformal") ?? 0;
  const free = optional(data, "free", "integer", "conformal") ?? 0;
  if (![...quantiles, penalty, free].every((value) => value === null || value >= 0)) {
    throw new BundleError(
      `Conformal quantiles ${quote(quantiles)}, penalty ${penalty} and free ${free} are not ` +
        `numbers of 0 or more. ${AGAIN}`,
    );
  }
  return { method: method.value, coverage, quantiles, penalty, free };
}

/** Check that fitted values can be applied to a task. */
function checkTask(fitted: Postprocessing, task: Task, malignancy: Task | null): void {
  const wrong: Partial<Record<keyof Postprocessing, boolean>> = {
    conformal: task.kind !== "classify",
    ood_threshold: task.kind !== "ood",
    rule_in: task !== malignancy,
  };
  for (const name of Object.keys(wrong) as (keyof Postprocessing)[]) {
    if (!wrong[name] || fitted[name] === null) continue;
    throw new BundleError(
      `The ${task.kind} task ${quote(task.name)} has a fitted '${name}', which belongs to ` +
        `another task. ${AGAIN}`,
    );
  }
  const count = fitted.conformal?.quantiles.length ?? task.labels.length;
  if (count !== task.labels.length) {
    throw new BundleError(
      `Task ${quote(task.name)} has ${count} conformal quantiles for ` +
        `${task.labels.length} labels. ${AGAIN}`,
    );
  }
}
