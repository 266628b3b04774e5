/** Register the service worker, which keeps the page and the engine for offline use. */

const WAIT = 60_000; // Milliseconds; without a service worker the page works, but not offline.

/**
 * Register the service worker, and wait until it answers this page's requests.
 *
 * @param onUpdate - Called when a newer page is ready, with a function that switches to it.
 * @returns True if what the page fetches from now on is kept.
 */
export async function keepPage(onUpdate: (reload: () => void) => void): Promise<boolean> {
  if (!("serviceWorker" in navigator)) return false;
  const container = navigator.serviceWorker;
  try {
    const registration = await container.register("./sw.js");
    watch(registration, onUpdate);
    // A forced reload passes by a worker that is active already.
    if (!container.controller && registration.active?.state !== "activated") {
      await controlled(container, registration.installing);
    }
  } catch {
    return false; // Private windows of some browsers refuse.
  }
  return container.controller !== null;
}

function watch(
  registration: ServiceWorkerRegistration,
  onUpdate: (reload: () => void) => void,
): void {
  const offer = (worker: ServiceWorker | null): void => {
    // The first worker of a page replaces nothing.
    if (!worker || !navigator.serviceWorker.controller) return;
    onUpdate(() => {
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      worker.postMessage("activate");
    });
  };
  offer(registration.waiting);
  registration.addEventListener("updatefound", () => {
    const worker = registration.installing;
    worker?.addEventListener("statechange", () => {
      if (worker.state === "installed") offer(worker);
    });
  });
}

/** Wait until the worker answers this page's requests, or cannot be installed. */
async function controlled(
  container: ServiceWorkerContainer,
  worker: ServiceWorker | null,
): Promise<void> {
  await new Promise<void>((resolve) => {
    worker?.addEventListener("statechange", () => {
      if (worker.state === "redundant") resolve();
    });
    container.addEventListener("controllerchange", () => resolve(), { once: true });
    setTimeout(resolve, WAIT);
  });
}
