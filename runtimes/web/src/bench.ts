/** Measure the latency of a bundle in this browser. */

import { openBundle } from "./bundle";
import { openContainer } from "./container";
import { BundleError, UsageError } from "./errors";
import { readGolden } from "./golden";
import type { WorkerImage } from "./image/decode";
import type { LatencyReport, Percentiles } from "./report";
import type { Session } from "./session";

/** The shape of a twelve-megapixel phone photograph. */
const [WIDTH, HEIGHT] = [4032, 3024];
const ROWS = 256;
const NOISE = 4;

/** What `bench` measures, and how often. */
export interface BenchOptions {
  /** An encoded image; by default a 12-megapixel JPEG made from the first golden image. */
  readonly image?: Blob;
  /** Number of timed predictions, by default 100. */
  readonly runs?: number;
  /** Number of predictions before them, not timed; by default 10. */
  readonly warmup?: number;
  /** Seconds of predictions without a pause after that; by default 0, which skips them. */
  readonly sustained?: number;
}

/** A report without the cold start, which needs a new worker, and the image for it. */
export interface WorkerBench {
  readonly report: Omit<LatencyReport, "cold_start_ms">;
  readonly image: Blob;
}

/**
 * Measure a bundle.
 *
 * @param onProgress - Called after every prediction with the part that is done, 0 to 1.
 */
export async function bench(
  session: Session,
  { image, runs = 100, warmup = 10, sustained = 0 }: BenchOptions,
  onProgress: (done: number) => void,
  signal: AbortSignal,
): Promise<WorkerBench> {
  if (!(runs >= 1) || !(warmup >= 0) || !(sustained >= 0)) {
    throw new UsageError(
      `runs ${runs}, warmup ${warmup}, sustained ${sustained}. ` +
        "Use 1 or more runs, and no negative number.",
    );
  }
  const photo = image ? { image, description: describe(image) } : await photograph(session);
  const stages = { end_to_end: [], preprocess: [], engine_only: [] } as Record<Stage, number[]>;
  for (let index = 0; index < warmup + runs; index++) {
    signal.throwIfAborted();
    const times = await timeStages(session, photo.image);
    if (index >= warmup) STAGES.forEach((stage) => stages[stage].push(times[stage]));
    onProgress((index + 1) / (warmup + runs));
  }
  const { engine, bundle } = session;
  return {
    image: photo.image,
    report: {
      bundle: bundle.id,
      engine: engine.name,
      engine_version: engine.version,
      device: describeDevice(),
      threads: engine.threads,
      image: photo.description,
      end_to_end: percentiles(stages.end_to_end),
      preprocess: percentiles(stages.preprocess),
      engine_only: percentiles(stages.engine_only),
      resident_bytes: null,
      sustained: sustained ? await runSustained(session, photo.image, sustained, signal) : [],
      cpus: navigator.hardwareConcurrency ?? null,
    },
  };
}

const STAGES = ["end_to_end", "preprocess", "engine_only"] as const;
type Stage = (typeof STAGES)[number];

/** Time one run in three stages: prediction, preprocessing, engine call. */
async function timeStages(session: Session, image: WorkerImage): Promise<Record<Stage, number>> {
  const start = performance.now();
  await session.predict(image);
  const predicted = performance.now();
  const { pixels } = await session.prepare(image);
  const prepared = performance.now();
  await session.engine.run(pixels);
  return {
    end_to_end: predicted - start,
    preprocess: prepared - predicted,
    engine_only: performance.now() - prepared,
  };
}

/**
 * Return the median of each tenth of the time, in milliseconds. A tenth in which no
 * prediction starts repeats the last one.
 */
async function runSustained(
  session: Session,
  image: WorkerImage,
  seconds: number,
  signal: AbortSignal,
): Promise<number[]> {
  const tenths: number[][] = Array.from({ length: 10 }, () => []);
  const begin = performance.now();
  for (let start = begin; start - begin < seconds * 1000; start = performance.now()) {
    signal.throwIfAborted();
    await session.predict(image);
    const tenth = Math.min(9, Math.floor(((start - begin) / seconds / 1000) * 10));
    tenths[tenth].push(performance.now() - start);
  }
  const medians: number[] = [];
  for (const values of tenths) {
    medians.push(values.length ? percentiles(values).p50 : medians[medians.length - 1]);
  }
  return medians;
}

/** Make a JPEG of a phone's size from the first golden image, with sensor noise. */
async function photograph({ source }: Session): Promise<{ image: Blob; description: string }> {
  const { kept } = await openBundle(await openContainer(source), (name) =>
    name.startsWith("golden/"),
  );
  const [golden] = readGolden((name) => {
    const data = kept.get(name);
    if (data) return data;
    throw new BundleError(`The bundle has no file '${name}'. Export the model again.`);
  });
  const small = await createImageBitmap(new Blob([golden.image as Uint8Array<ArrayBuffer>]));
  const canvas = new OffscreenCanvas(WIDTH, HEIGHT);
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  const band = Math.min(small.height, Math.max(1, Math.round((small.width * HEIGHT) / WIDTH)));
  const top = Math.floor((small.height - band) / 2);
  context.drawImage(small, 0, top, small.width, band, 0, 0, WIDTH, HEIGHT);
  small.close();
  let state = 1;
  for (let y = 0; y < HEIGHT; y += ROWS) {
    const rows = context.getImageData(0, y, WIDTH, Math.min(ROWS, HEIGHT - y));
    for (let at = 0; at < rows.data.length; at += 4) {
      state = (Math.imul(1664525, state) + 1013904223) >>> 0;
      // The difference of two uniform values; its standard deviation is that of the noise.
      const noise = (((state >>> 24) - ((state >>> 16) & 255)) / 256) * NOISE * Math.sqrt(6);
      for (let channel = 0; channel < 3; channel++) rows.data[at + channel] += noise;
    }
    context.putImageData(rows, 0, y);
  }
  return {
    image: await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 }),
    description: `golden ${golden.name}, ${WIDTH} x ${HEIGHT} JPEG`,
  };
}

function describe(image: Blob): string {
  const name = "name" in image && image.name ? String(image.name) : "image";
  return `${name}, ${image.size} bytes ${image.type || "of an unknown type"}`;
}

/** Describe this browser with the keys of Python's report; `browser` is the user agent. */
function describeDevice(): Record<string, string> {
  const { userAgentData } = navigator as { userAgentData?: { platform?: string } };
  return {
    system: userAgentData?.platform ?? "",
    machine: "",
    cpu: "",
    flags: "",
    cores: String(navigator.hardwareConcurrency ?? 1),
    browser: navigator.userAgent,
  };
}

/** Summarise times by p50, p90 and p99 (linear between ranks) and the mean. */
export function percentiles(milliseconds: readonly number[]): Percentiles {
  const sorted = [...milliseconds].sort((one, other) => one - other);
  const at = (part: number): number => {
    const rank = part * (sorted.length - 1);
    const low = Math.floor(rank);
    const high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (sorted[high] - sorted[low]) * (rank - low);
  };
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), mean, count: sorted.length };
}
