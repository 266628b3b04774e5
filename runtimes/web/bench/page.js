/** The part of the benchmark that runs in the page. */

import { load } from "/dist/index.js";

const models = [];
let photograph;

/** Load a bundle; return what identifies it. */
export async function open({ url, threads }) {
  const model = await load(url, { threads });
  models.push({ model, url, threads });
  const { spec, artifact } = model.bundle;
  const { name, version } = model.engine;
  return {
    name: `${spec.name} ${artifact.format} ${artifact.precision}`,
    model: spec.name,
    format: artifact.format,
    precision: artifact.precision,
    engine: `${name} ${version}`,
    threads: model.engine.threads,
    bytes: await sizeOf(url, artifact.path),
  };
}

/** Draw the image that every model predicts. */
export function draw(width, height) {
  photograph = new ImageData(width, height);
  let value = 1;
  for (let at = 0; at < photograph.data.length; at++) {
    value = (Math.imul(1664525, value) + 1013904223) >>> 0;
    photograph.data[at] = at % 4 === 3 ? 255 : (value >>> 27) + ((at / width) % 200);
  }
}

/** Predict a few times after one call that is not timed; return milliseconds. */
export async function turn(index, calls) {
  const { model } = models[index];
  await model.predict(photograph);
  const times = [];
  for (let call = 0; call < calls; call++) {
    const start = performance.now();
    const { timing } = await model.predict(photograph);
    times.push({ engine: timing.engine_ms, total: performance.now() - start });
  }
  return times;
}

/** Return milliseconds from `load` to the first prediction, files in the cache. */
export async function start(index, count) {
  const { url, threads } = models[index];
  const times = [];
  for (let call = 0; call < count; call++) {
    const begin = performance.now();
    const model = await load(url, { threads });
    await model.predict(photograph);
    times.push(performance.now() - begin);
    await model.close();
  }
  return times;
}

/** Predict many times; return the bytes of the page and its workers before and after. */
export async function repeat(index, count) {
  const { model } = models[index];
  const small = new ImageData(64, 64);
  const bytes = async () => (await performance.measureUserAgentSpecificMemory()).bytes;
  for (let call = 0; call < 100; call++) await model.predict(small);
  const before = await bytes();
  for (let call = 0; call < count; call++) await model.predict(small);
  return { predictions: count, before, after: await bytes() };
}

async function sizeOf(url, path) {
  const answer = await fetch(url.endsWith(".zip") ? url : `${url}/${path}`);
  return (await answer.arrayBuffer()).byteLength;
}
