/** Entry point of the worker: run the page's calls one after another. */

import { bench } from "./bench";
import type { Engine } from "./engine";
import { EngineError, packError, UsageError } from "./errors";
import type { Calls, LoadArguments, Name, Request, Response } from "./protocol";
import { openEngine, Session, type SessionOptions } from "./session";
import { verify } from "./verify";

interface Context<K extends Name> {
  readonly signal: AbortSignal;
  readonly report: (progress: Calls[K][2]) => void;
}
type Handlers = {
  [K in Name]: (args: Calls[K][0], context: Context<K>) => Promise<Calls[K][1]>;
};

let session: Session | null = null;

const handlers: Handlers = {
  async load({ source, options }, { report }) {
    session = await Session.open(source, complete(options), report);
    const { bundle, engine } = session;
    const { name, version, threads } = engine;
    return { bundle, engine: { name, version, threads, placement: engine.placement() } };
  },
  async predict({ image }, { signal }) {
    const prediction = await opened().predict(image, signal);
    return { fields: { ...prediction }, mask: prediction.mask, cam: prediction.cam };
  },
  async verifyBundle({ source, options }) {
    let engine: Engine | null = null;
    try {
      return await verify(source, async (bundle, model) => {
        engine = await openEngine(bundle, model, complete(options));
        return engine;
      });
    } finally {
      await (engine as Engine | null)?.close();
    }
  },
  async verify() {
    const { source, engine, bundle } = opened();
    return verify(source, async (found) => {
      if (found.id === bundle.id) return engine;
      throw new EngineError("The bundle was changed since it was loaded. Load it again.");
    });
  },
  bench: (options, { report, signal }) => bench(opened(), options, report, signal),
  async close() {
    await session?.close();
    session = null;
    return null;
  },
};

/** Add the default folder of the engines' files, which is beside this script. */
function complete(options: LoadArguments["options"]): SessionOptions {
  return { ...options, assets: options.assets ?? new URL("./engines/", self.location.href).href };
}

function opened(): Session {
  if (session) return session;
  throw new UsageError("The model is closed. Load its bundle again.");
}

const running = new Map<number, AbortController>();
let last: Promise<void> = Promise.resolve();

self.addEventListener("message", ({ data }: MessageEvent<Request>) => {
  if ("abort" in data) {
    running.get(data.abort)?.abort();
    return;
  }
  const { id, name, args } = data;
  const controller = new AbortController();
  running.set(id, controller);
  last = last.then(() => run(id, name, args, controller.signal));
});

async function run<K extends Name>(
  id: number,
  name: K,
  args: Calls[K][0],
  signal: AbortSignal,
): Promise<void> {
  const report = (progress: Calls[K][2]): void => send({ id, progress });
  try {
    signal.throwIfAborted();
    send({ id, result: await handlers[name](args, { signal, report }) });
  } catch (error) {
    send({ id, error: packError(error) });
  } finally {
    running.delete(id);
  }
}

function send(response: Response): void {
  self.postMessage(response);
}
