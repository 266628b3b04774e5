package dermedge

import java.text.Normalizer
import java.util.Locale

internal const val MANIFEST: String = "manifest.json"
private const val LONGEST_NAME = 255
private const val WINDOWS_RESERVES = "\\<>:\"|?*"

// The lists of python/dermedge_runtime/system_files.py; a test compares them.
private val SYSTEM_NAMES = setOf(
    "__macosx", ".ds_store", ".appledouble", ".apdisk", ".com.apple.timemachine.donotpresent",
    ".documentrevisions-v100", ".fseventsd", ".localized", ".metadata_never_index",
    ".spotlight-v100", ".temporaryitems", ".trash", ".trashes", ".volumeicon.icns", "icon\r",
    "network trash folder", "temporary items", "\$recycle.bin", "desktop.ini", "ehthumbs.db",
    "ehthumbs_vista.db", "recycler", "system volume information", "thumbs.db", ".directory",
    ".thumbnails", "lost+found", "#recycle", "#snapshot", "@eadir", "@recently-snapshot",
    "@recycle", "@tmp", ".@__thumb", ".dropbox", ".dropbox.attr", ".dropbox.cache", ".stfolder",
    ".stversions", ".tmp.driveupload", ".tmp.drivedownload",
)
private val SYSTEM_PREFIXES = listOf("._", ".nfs", ".fuse_hidden", ".trash-", "~$", ".~lock.")
private val UNFINISHED_SUFFIXES = listOf(
    ".crdownload", ".download", ".filepart", ".icloud", ".opdownload", ".part", ".partial", ".tmp",
)

/** Whether a file or folder, by its name alone, holds no content of a user. */
internal fun isSystemFile(name: String): Boolean {
    val lower = name.lowercase(Locale.ROOT)
    return lower in SYSTEM_NAMES || SYSTEM_PREFIXES.any(lower::startsWith)
}

/** Whether a file, by its name alone, is a download or a copy that has not ended. */
internal fun isUnfinished(name: String): Boolean =
    UNFINISHED_SUFFIXES.any(name.lowercase(Locale.ROOT)::endsWith)

/** Check that names are relative paths that every file system keeps apart. */
internal fun checkNames(names: List<String>, where: String) {
    val seen = HashMap<String, String>()
    for (name in names) {
        if (!isSafe(name)) {
            throw BundleError(
                "${quote(name)} in $where is an unsafe path " +
                    "(not relative, plain and NFC). $DAMAGED",
            )
        }
        val other = seen.getOrPut(fold(name)) { name }
        if (other != name) {
            throw BundleError(
                "${quote(other)} and ${quote(name)} in $where " +
                    "are one file on some systems. $DAMAGED",
            )
        }
    }
    for (name in names) {
        for (end in name.indices.filter { name[it] == '/' }) {
            val folder = name.substring(0, end)
            if (fold(folder) in seen) {
                throw BundleError(
                    "${quote(folder)} in $where is both a file and a folder. $DAMAGED",
                )
            }
        }
    }
}

private fun isSafe(name: String): Boolean {
    if (name.any { it < ' ' || it == '\u007f' || it in WINDOWS_RESERVES }) return false
    // Half a surrogate pair is no character; encoding replaces it.
    if (String(name.toByteArray()) != name) return false
    if (!Normalizer.isNormalized(name, Normalizer.Form.NFC)) return false
    // Windows drops a final dot or space and most systems end a name at 255 bytes.
    return name.split('/').all {
        it.isNotEmpty() && it != "." && it != ".." && it.last() !in ". " &&
            it.toByteArray().size <= LONGEST_NAME
    }
}

/**
 * Text in which names that differ only in case are equal.
 *
 * Java has no case folding. Lower, upper and lower case again unite all that it unites.
 * Single letters are converted, because a sigma at the end of a word has a lower case of its
 * own.
 */
private fun fold(name: String): String {
    val upper = letters(name) { it.lowercase(Locale.ROOT).uppercase(Locale.ROOT) }
    return letters(upper) { it.lowercase(Locale.ROOT) }
}

private fun letters(text: String, convert: (String) -> String): String {
    val result = StringBuilder()
    text.codePoints().forEach { result.append(convert(String(Character.toChars(it)))) }
    return result.toString()
}
