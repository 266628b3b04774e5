/** Check the names of a bundle's files, and recognise files of operating systems. */

import { BundleError } from "./errors";
import { quote } from "./json";

/** Advice at the end of a message about a damaged bundle. */
export const DAMAGED = "Get the bundle again from where it was exported.";

// Control characters, what Windows reserves, and halves of surrogate pairs.
const FORBIDDEN = /[\x00-\x1f\x7f\\<>:"|?*\ud800-\udfff]/u;

// The lists of `system_files.py`, in lower case, because Windows and macOS do not
// distinguish case.
const SYSTEM_NAMES: ReadonlySet<string> = new Set([
  // macOS
  "__macosx",
  ".ds_store",
  ".appledouble",
  ".apdisk",
  ".com.apple.timemachine.donotpresent",
  ".documentrevisions-v100",
  ".fseventsd",
  ".localized",
  ".metadata_never_index",
  ".spotlight-v100",
  ".temporaryitems",
  ".trash",
  ".trashes",
  ".volumeicon.icns",
  "icon\r",
  "network trash folder",
  "temporary items",
  // Windows
  "$recycle.bin",
  "desktop.ini",
  "ehthumbs.db",
  "ehthumbs_vista.db",
  "recycler",
  "system volume information",
  "thumbs.db",
  // Linux
  ".directory",
  ".thumbnails",
  "lost+found",
  // Network storage by Synology and QNAP
  "#recycle",
  "#snapshot",
  "@eadir",
  "@recently-snapshot",
  "@recycle",
  "@tmp",
  ".@__thumb",
  // Dropbox, Google Drive and Syncthing
  ".dropbox",
  ".dropbox.attr",
  ".dropbox.cache",
  ".stfolder",
  ".stversions",
  ".tmp.driveupload",
  ".tmp.drivedownload",
]);
const SYSTEM_PREFIXES = ["._", ".nfs", ".fuse_hidden", ".trash-", "~$", ".~lock."];

/** Return whether a path has a part that an operating system left in the folder. */
export function isSystemFile(path: string): boolean {
  return path.split("/").some((part) => {
    const lower = part.toLowerCase();
    return SYSTEM_NAMES.has(lower) || SYSTEM_PREFIXES.some((prefix) => lower.startsWith(prefix));
  });
}

/**
 * Check that names are relative paths that every file system keeps apart.
 *
 * @param where - Name of the bundle, for messages.
 * @throws BundleError if a name is unsafe, or two names are one file on some systems.
 */
export function checkNames(names: readonly string[], where: string): void {
  const seen = new Map<string, string>();
  for (const name of names) {
    if (!isSafe(name)) {
      throw new BundleError(
        `${quote(name)} in ${where} is an unsafe path (not relative, plain and NFC). ${DAMAGED}`,
      );
    }
    const folded = foldCase(name);
    const other = seen.get(folded) ?? name;
    if (other !== name) {
      throw new BundleError(
        `${quote(other)} and ${quote(name)} in ${where} are one file on some systems. ${DAMAGED}`,
      );
    }
    seen.set(folded, name);
  }
  for (const name of names) {
    for (let end = name.indexOf("/"); end >= 0; end = name.indexOf("/", end + 1)) {
      const parent = name.slice(0, end);
      if (seen.has(foldCase(parent))) {
        throw new BundleError(
          `${quote(parent)} in ${where} is both a file and a folder. ${DAMAGED}`,
        );
      }
    }
  }
}

/** Return a name in which case is ignored; by way of upper case, `ß` becomes `ss`. */
function foldCase(name: string): string {
  return name.toUpperCase().toLowerCase();
}

// Windows drops a final dot or space and most systems end a name at 255 bytes. macOS stores
// names as NFD, so only NFC gives one spelling everywhere.
function isSafe(name: string): boolean {
  if (FORBIDDEN.test(name) || name.normalize("NFC") !== name) return false;
  return name.split("/").every((part) => {
    const bytes = new TextEncoder().encode(part).length;
    return bytes > 0 && bytes <= 255 && !/[. ]$/.test(part);
  });
}
