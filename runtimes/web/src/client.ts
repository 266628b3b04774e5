/** Call the worker from the page. */

import { DermedgeError, EngineError, firstLine, unpackError } from "./errors";
import type { Calls, Name, Request, Response } from "./protocol";

interface Pending {
  readonly resolve: (result: Calls[Name][1]) => void;
  readonly reject: (error: unknown) => void;
  readonly report: (progress: Calls[Name][2]) => void;
}

/** Settings of one call. */
export interface CallOptions<K extends Name> {
  readonly signal?: AbortSignal | undefined;
  readonly transfer?: Transferable[];
  readonly onProgress?: ((progress: Calls[K][2]) => void) | undefined;
}

/** A worker, and the calls that it has not answered. */
export class Client {
  private readonly worker: Worker;
  private readonly pending = new Map<number, Pending>();
  private count = 0;
  private failure: Error | null = null;

  /** @param url - Script of the worker; by default the one beside this module. */
  constructor(url?: string | URL) {
    this.worker = startWorker(url);
    this.worker.addEventListener("message", ({ data }) => this.receive(data as Response));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      // A script that cannot be fetched, or that the policy forbids, gives no message.
      this.fail(
        event.message
          ? new EngineError(`The worker stopped (${event.message}). Load the bundle again.`)
          : cannotStart(url, "it cannot be fetched, or is no script"),
      );
    });
    this.worker.addEventListener("messageerror", () => {
      this.fail(
        new DermedgeError("A message of the worker cannot be read. Load the bundle again."),
      );
    });
  }

  /** Call the worker; an aborted call rejects at once with the signal's reason. */
  call<K extends Name>(
    name: K,
    args: Calls[K][0],
    { signal, transfer = [], onProgress }: CallOptions<K> = {},
  ): Promise<Calls[K][1]> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.failure) return Promise.reject(this.failure);
    const id = this.count++;
    return new Promise<Calls[Name][1]>((resolve, reject) => {
      const abort = (): void => {
        this.send({ abort: id }, []);
        this.settle(id)?.reject(signal?.reason);
      };
      const ended = (): void => signal?.removeEventListener("abort", abort);
      signal?.addEventListener("abort", abort);
      this.pending.set(id, {
        resolve: (result) => (ended(), resolve(result)),
        reject: (error) => (ended(), reject(error)),
        report: (progress) => onProgress?.(progress as Calls[K][2]),
      });
      try {
        this.send({ id, name, args }, transfer);
      } catch (error) {
        this.settle(id)?.reject(error);
      }
    });
  }

  /** End the worker; calls that it has not answered reject. */
  terminate(): void {
    this.fail(new DermedgeError("The worker was ended. Load the bundle again."));
  }

  private send(request: Request, transfer: Transferable[]): void {
    this.worker.postMessage(request, transfer);
  }

  private receive(response: Response): void {
    if ("progress" in response) this.pending.get(response.id)?.report(response.progress);
    else if ("error" in response) this.settle(response.id)?.reject(unpackError(response.error));
    else this.settle(response.id)?.resolve(response.result);
  }

  private settle(id: number): Pending | undefined {
    const pending = this.pending.get(id);
    this.pending.delete(id);
    return pending;
  }

  private fail(error: Error): void {
    this.failure ??= error;
    this.worker.terminate();
    for (const id of [...this.pending.keys()]) this.settle(id)?.reject(this.failure);
  }
}

function startWorker(url?: string | URL): Worker {
  try {
    // Bundlers of apps find the worker by the whole expression `new Worker(new URL(...))`.
    // The comment keeps our own build from doing so; it is not in the built package.
    return url === undefined
      ? new Worker(new URL(/* @vite-ignore */ "./worker.js", import.meta.url), { type: "module" })
      : new Worker(url, { type: "module" });
  } catch (error) {
    throw cannotStart(url, firstLine(error));
  }
}

function cannotStart(url: string | URL | undefined, reason: string): DermedgeError {
  return new DermedgeError(
    `The worker ${url ?? "worker.js"} does not start (${reason}). Serve it from the page's own ` +
      "origin, allow it in the Content-Security-Policy (worker-src 'self'), or pass workerUrl.",
  );
}
