/** The page: load the model, take or choose a photo, show the result. */

import { load, type Model } from "dermedge";
import workerUrl from "dermedge/worker?worker&url";
import { showAbout } from "./about";
import { fetchBundle } from "./bundle";
import { Camera } from "./camera";
import { byId } from "./dom";
import { drawFitted, outlineMask } from "./frame";
import { keepPage } from "./offline";
import { showPrediction, summarize } from "./result";

const finder = byId("finder");
const video = byId<HTMLVideoElement>("video");
const photo = byId<HTMLCanvasElement>("photo");
const hint = byId("hint");
const loading = byId("loading");
const loadingBar = byId<HTMLProgressElement>("loading-bar");
const result = byId("result");
const problem = byId("problem");
const file = byId<HTMLInputElement>("file");
const buttons = {
  camera: byId<HTMLButtonElement>("camera"),
  shoot: byId<HTMLButtonElement>("shoot"),
  stop: byId<HTMLButtonElement>("stop"),
  retry: byId<HTMLButtonElement>("retry"),
};

let model: Model | null = null;
let camera: Camera | null = null;
/** Number of the newest photo; the result of an older one is not shown. */
let newest = 0;

/** Load the model that the server offers, or the copy on this device. */
async function start(): Promise<void> {
  showProblem(null);
  busy("Loading the model");
  let bundle;
  try {
    checkBrowser();
    const kept = await keepPage(offerUpdate);
    bundle = await fetchBundle((done, total) => {
      loadingBar.max = total;
      loadingBar.value = done;
    });
    loadingBar.removeAttribute("value");
    model = await load(bundle.files, { assets: "engines/", workerUrl });
    byId("model-name").textContent = `${model.bundle.spec.name} ${model.bundle.spec.version}`;
    byId("about-body").replaceChildren(...showAbout(model, bundle.offline));
    byId("offline").textContent = await keepBundle(bundle.keep, kept);
    finder.dataset["fit"] = model.bundle.spec.preprocess.fit;
    byId("actions").hidden = false;
    document.body.dataset["ready"] = "true";
  } catch (error) {
    await bundle?.forget();
    showProblem(error, true);
  }
  busy(null);
}

/** Keep the bundle, and return what the user may rely on. */
async function keepBundle(keep: () => Promise<void>, pageKept: boolean): Promise<string> {
  try {
    await keep();
    return pageKept ? "Works offline" : "Online only";
  } catch {
    return "Online only"; // The storage is full, or the browser keeps nothing.
  }
}

/** Throw the reason why this browser cannot run a model, if there is one. */
function checkBrowser(): void {
  if (!window.isSecureContext) {
    throw new Error(
      "This address is not secure, so the browser cannot check the model's files. " +
        "Open the page over HTTPS, or on localhost.",
    );
  }
  if (typeof WebAssembly !== "object") {
    throw new Error(
      "This browser has no WebAssembly, which the model needs. Update the browser, or switch " +
        "off Lockdown Mode for this page.",
    );
  }
}

/** Run the model on a photo and show it with the result. */
async function predict(source: Blob | ImageBitmap): Promise<void> {
  if (!model) return;
  const turn = ++newest;
  showProblem(null);
  result.hidden = true;
  busy("Computing");
  try {
    // A frame of the camera is shown at once, a file only if the model can read it.
    if (source instanceof ImageBitmap) showPhoto(source, model);
    const prediction = await model.predict(source);
    if (turn !== newest) return;
    if (source instanceof Blob) await showFile(source, model);
    const context = photo.getContext("2d");
    if (prediction.mask && context) outlineMask(context, prediction.mask);
    byId("result-body").replaceChildren(...showPrediction(prediction, model.bundle));
    result.hidden = false;
    byId("announce").textContent = summarize(prediction);
    byId("result-title").focus({ preventScroll: true });
    // On a phone the photo and the decision fit on the screen together.
    (byId("result-body").firstElementChild ?? result).scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (turn === newest) showProblem(error);
  } finally {
    if (source instanceof ImageBitmap) source.close();
    if (turn === newest) busy(null);
  }
}

/** Show a file as the model sees it, if the browser can draw it. */
async function showFile(blob: Blob, { bundle }: Model): Promise<void> {
  try {
    const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
    showPhoto(bitmap, { bundle });
    bitmap.close();
  } catch {
    show("empty"); // The result is valid; only the preview is missing.
  }
}

function showPhoto(bitmap: ImageBitmap, { bundle }: Pick<Model, "bundle">): void {
  const { fit, background } = bundle.spec.preprocess;
  const context = photo.getContext("2d");
  if (!context) return;
  drawFitted(context, bitmap, fit, `rgb(${background.join(" ")})`);
  show("photo");
  showHint(null);
}

async function openCamera(): Promise<void> {
  if (!model) return;
  showProblem(null);
  result.hidden = true;
  try {
    camera = await Camera.open(video, model.bundle, showHint);
    showHint(null);
    show("camera");
    buttons.shoot.focus();
  } catch (error) {
    showProblem(error);
  }
}

function closeCamera(): void {
  camera?.close();
  camera = null;
}

async function shoot(): Promise<void> {
  if (!camera) return;
  const frame = await camera.take();
  closeCamera();
  await predict(frame);
}

/** Show one of the states of the finder, with the buttons that fit it. */
function show(state: "empty" | "camera" | "photo"): void {
  finder.dataset["state"] = state;
  const live = state === "camera";
  buttons.camera.hidden = live;
  buttons.shoot.hidden = buttons.stop.hidden = !live;
  byId("choose").hidden = live;
  if (state === "empty") showHint(null);
}

function showHint(text: string | null): void {
  hint.textContent = text ?? (finder.dataset["state"] === "camera" ? "Sharp and well lit" : "");
  hint.classList.toggle("warn", text !== null);
}

function busy(text: string | null): void {
  loading.hidden = text === null;
  document.body.ariaBusy = String(text !== null);
  if (text === null) return;
  byId("loading-text").textContent = text;
  loadingBar.removeAttribute("value");
}

function showProblem(error: unknown, canRetry = false): void {
  problem.hidden = error === null;
  buttons.retry.hidden = !canRetry;
  if (error === null) return;
  byId("problem-text").textContent = error instanceof Error ? error.message : String(error);
}

function offerUpdate(reload: () => void): void {
  byId("update").hidden = false;
  byId("update-now").addEventListener("click", reload, { once: true });
}

buttons.camera.addEventListener("click", () => void openCamera());
buttons.shoot.addEventListener("click", () => void shoot());
buttons.retry.addEventListener("click", () => void start());
buttons.stop.addEventListener("click", () => {
  closeCamera();
  show("empty");
  buttons.camera.focus();
});
file.addEventListener("change", () => {
  const chosen = file.files?.item(0);
  file.value = ""; // So that the same file can be chosen again.
  if (chosen) void predict(chosen);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden || !camera) return;
  closeCamera();
  show("empty");
});

void start();
