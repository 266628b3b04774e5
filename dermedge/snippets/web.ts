// Written by `dermedge embed` for {{name}}.
import { load, type Model } from "dermedge";

/** SHA-256 that identifies the bundle. */
export const ID = "{{id}}";
export const INTENDED_USE = {{use}};

/** Labels by task, in the task's order. */
export const LABELS: Readonly<Record<string, readonly { id: string; name: string }[]>> = {
  {{labels}}
};

/**
 * Load the model {{name}} from the bundle's files.
 *
 * @param folder - Address of the bundle's folder, relative to the page.
 * @throws BundleError if a file is missing or was changed.
 */
export async function load{{symbol}}(folder = "{{name}}.dermedge/"): Promise<Model> {
  const model = await load(new URL(folder, document.baseURI));
  if (model.bundle.id === ID) return model;
  await model.close();
  throw new Error(`${folder} holds another bundle than ${ID}. Embed the bundle again.`);
}
