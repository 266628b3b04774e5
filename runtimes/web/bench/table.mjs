/** Turn measured times into medians, ratios and a table. */

/** Replace the times of each model by medians, and add ratios to its plain export. */
export function summarize(results) {
  const models = results.models.map(({ times, starts_ms, ...model }) => ({
    ...model,
    engine_ms: median(times.map(({ engine }) => engine)),
    total_ms: median(times.map(({ total }) => total)),
    fastest_engine_ms: Math.min(...times.map(({ engine }) => engine)),
    ...(starts_ms && { first_prediction_ms: median(starts_ms.slice(1)) }),
  }));
  for (const model of models) {
    const plain = models.find(
      (one) =>
        one.model === model.model &&
        one.threads === 1 &&
        one.format === "onnx" &&
        one.precision === "fp32",
    );
    if (!plain) continue;
    model.times_faster = plain.engine_ms / model.engine_ms;
    model.times_faster_fastest = plain.fastest_engine_ms / model.fastest_engine_ms;
    model.times_faster_total = plain.total_ms / model.total_ms;
  }
  return { ...results, models };
}

/** Return the results as Markdown. */
export function markdown({ browser, machine, load_average, memory, models }) {
  const chrome = /Chrome\/[\d.]+/.exec(browser)?.[0] ?? browser;
  const [before, after] = load_average.map((load) => load.toFixed(1));
  const rows = models.map((model) => [
    ...[model.model, model.precision, model.engine, model.threads],
    ...[number(model.engine_ms), number(model.fastest_engine_ms), number(model.total_ms)],
    ...[number(model.times_faster), number(model.times_faster_total)],
    model.first_prediction_ms ? Math.round(model.first_prediction_ms) : "",
  ]);
  const names =
    "model|precision|engine|threads|engine ms|fastest|end to end ms|times faster|end to end|" +
    "first prediction ms";
  const lines = [
    `${chrome}, ${machine}, load average ${before} to ${after}. Medians; in turns.`,
    "",
    `| ${names.split("|").join(" | ")} |`,
    `|${" --- |".repeat(names.split("|").length)}`,
    ...rows.map((row) => `| ${row.join(" | ")} |`),
    "",
  ];
  for (const [engine, { bundle, predictions, before: first, after: last }] of Object.entries(memory)) {
    lines.push(
      `${engine} (${bundle}): ${mebibytes(first)} MiB before and ${mebibytes(last)} MiB after ` +
        `${predictions} predictions.`,
    );
  }
  return `${lines.join("\n")}\n`;
}

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted[sorted.length >> 1];
}

function number(value) {
  return value === undefined ? "" : value.toFixed(2);
}

function mebibytes(bytes) {
  return (bytes / 2 ** 20).toFixed(1);
}
