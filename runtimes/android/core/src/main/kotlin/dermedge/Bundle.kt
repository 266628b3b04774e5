package dermedge

import java.io.IOException
import java.security.MessageDigest
import java.util.Locale

internal const val BUNDLE_SCHEMA: String = "dermedge.bundle/1"
private const val LARGEST_TOLERANCE = 0.5
private const val LARGEST_MANIFEST = 1 shl 24
private const val LARGEST_TEXT = 1 shl 24
private const val BLOCK = 1 shl 18
private val STATUSES = listOf("passed", "warn", "failed", "insufficient", "not_run")
private val DIGEST = Regex("[0-9a-f]{64}")

// A pickle runs code when it is loaded. PyTorch's pickles are zips; the others start with the
// protocol's opcode.
private val PICKLES =
    setOf("pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill", "cloudpickle")
private val PICKLE_HEADS =
    listOf(ZIP_MAGIC) + (2..5).map { byteArrayOf(0x80.toByte(), it.toByte()) }

/**
 * An opened bundle: the content of its manifest, checked.
 *
 * [id] is the SHA-256 of the manifest's canonical JSON; it covers the whole manifest and, by
 * their digests, all files. [postprocessing] and [tolerance] (largest absolute difference that
 * an engine may show) have one entry per task. [digests] maps every path to its SHA-256.
 * [quality] has the limits that a good photograph keeps; null judges no photograph.
 */
public class Bundle private constructor(
    /** The files that the bundle was read from. */
    public val files: BundleFiles,
    public val id: String,
    public val spec: Spec,
    public val artifact: Artifact,
    public val postprocessing: Map<String, Postprocessing>,
    public val tolerance: Map<String, Double>,
    public val parity: Map<String, Any?>,
    public val digests: Map<String, String>,
    public val quality: QualityLimits?,
) {
    /** Name of the bundle in messages. */
    public val name: String get() = files.name

    /**
     * The content of a file; its SHA-256 is checked once more.
     *
     * @throws BundleError The bundle has no such file, or the file changed after the bundle was
     *   opened.
     */
    public fun read(path: String): ByteArray {
        val expected = digests[path] ?: throw BundleError(
            "$name has no file ${quote(path)}; it has ${digests.keys.sorted().joinToString(", ")}.",
        )
        val data = files.read(path)
        if (sha256(data) != expected) {
            throw BundleError(
                "${quote(path)} in $name was changed since the bundle was opened. $DAMAGED",
            )
        }
        return data
    }

    /** The artifact's one file, or all files in its folder, sorted. */
    internal fun artifactFiles(): List<String> {
        val entry = artifact.path.trimEnd('/')
        return digests.keys.filter { it == entry || it.startsWith("$entry/") }.sorted()
    }

    private fun checkFiles() {
        val found = files.list().toSet()
        val listed = digests.keys + MANIFEST
        (listed - found).sorted().takeIf { it.isNotEmpty() }?.let { throw missing(files, it) }
        (found - listed).sorted().takeIf { it.isNotEmpty() }?.let { throw unlisted(files, it) }
        val artifact = artifactFiles()
        for ((path, expected) in digests) {
            val (digest, head) = files.digest(path)
            if (digest != expected) throw changed(files, path, expected)
            // Raw weights beside a graph (`.bin` in a folder) may start with any bytes. No other
            // file of an artifact may start like a pickle.
            val weights = artifact.size > 1 && path.endsWith(".bin")
            if (path in artifact && !weights && PICKLE_HEADS.any(head::startsWith)) {
                throw pickle(path, name)
            }
        }
    }

    public companion object {
        /**
         * Read a bundle and check all of it, with each file's SHA-256.
         *
         * @throws BundleError The bundle is damaged, incomplete, unsafe or too new.
         */
        @JvmStatic
        public fun open(files: BundleFiles): Bundle = try {
            parse(readManifest(files), files).also { it.checkFiles() }
        } catch (error: IOException) {
            throw cannotRead(files.name, error)
        }

        /** Convert a manifest to a bundle; check everything but the files themselves. */
        private fun parse(manifest: JsonObject, files: BundleFiles): Bundle {
            val name = files.name
            checkSchema(manifest.string("schema", MANIFEST), name)
            // The id cannot cover itself; by the digests in `files` it covers all else.
            val id = try {
                sha256(canonicalJson(manifest - "id"))
            } catch (error: UsageError) {
                throw BundleError("$MANIFEST of $name has no canonical form: ${error.message}")
            }
            if (manifest.string("id", MANIFEST) != id) {
                throw BundleError(
                    "The manifest of $name was changed: its id does not fit its content. $DAMAGED",
                )
            }
            val spec = readSpec(manifest.obj("spec", MANIFEST))
            val artifact = readArtifact(manifest.obj("artifact", MANIFEST))
            val bundle = Bundle(
                files = files,
                id = id,
                spec = spec,
                artifact = artifact,
                postprocessing = readPostprocessing(manifest.obj("postprocessing", MANIFEST), spec),
                tolerance = readTolerance(manifest.obj("tolerance", MANIFEST), spec),
                parity = readParity(manifest.obj("parity", MANIFEST)),
                digests = readDigests(manifest.obj("files", MANIFEST), name),
                quality = manifest.optionalObject("quality", MANIFEST)?.let(::readQuality),
            )
            if (bundle.artifactFiles().isEmpty()) {
                throw BundleError(
                    "The artifact ${quote(artifact.path)} is not among the files of $name. $AGAIN",
                )
            }
            return bundle
        }
    }
}

internal fun sha256(data: ByteArray): String =
    hex(MessageDigest.getInstance("SHA-256").digest(data))

private fun hex(data: ByteArray): String =
    data.joinToString("") { (it.toInt() and 0xFF or 0x100).toString(16).substring(1) }

private fun BundleFiles.read(path: String): ByteArray = try {
    open(path).use { it.readBytes() }
} catch (error: IOException) {
    throw cannotRead("${quote(path)} in $name", error)
}

/** The SHA-256 of a file, and its first 16 bytes. */
private fun BundleFiles.digest(path: String): Pair<String, ByteArray> = open(path).use { stream ->
    val digest = MessageDigest.getInstance("SHA-256")
    val block = ByteArray(BLOCK)
    var head: ByteArray? = null
    while (true) {
        val count = stream.read(block)
        if (count < 0) break
        if (head == null) head = block.copyOf(minOf(count, 16))
        digest.update(block, 0, count)
    }
    hex(digest.digest()) to (head ?: ByteArray(0))
}

private fun readManifest(files: BundleFiles): JsonObject {
    if (MANIFEST !in files.list()) throw missing(files, listOf(MANIFEST))
    val data = files.read(MANIFEST)
    absent(files, MANIFEST, data)?.let { throw it }
    if (data.size > LARGEST_MANIFEST) {
        throw BundleError("$MANIFEST of ${files.name} has over $LARGEST_MANIFEST bytes. $DAMAGED")
    }
    return asObject(parseJson(data, "${files.name}/$MANIFEST"), MANIFEST)
}

private fun checkSchema(schema: String, name: String) {
    if (schema == BUNDLE_SCHEMA) return
    val (kind, major) = schema.substringBefore('/') to schema.substringAfter('/', "")
    val own = BUNDLE_SCHEMA.substringBefore('/')
    if (kind == own && major.isNotEmpty() && major.all(Char::isDigit)) {
        throw BundleError(
            "$name has schema ${quote(schema)}, and this dermedge reads ${quote(BUNDLE_SCHEMA)}. " +
                "Upgrade dermedge.",
        )
    }
    throw BundleError(
        "$name has schema ${quote(schema)}, which is no dermedge bundle. Name a .dermedge one.",
    )
}

private fun readTolerance(data: JsonObject, spec: Spec): Map<String, Double> {
    checkTasks(data, spec, "tolerance")
    return data.mapValues { (task, value) ->
        val limit = (value as? Number)?.toDouble()
        if (limit == null || limit !in 0.0..LARGEST_TOLERANCE) {
            throw BundleError(
                "The tolerance of ${quote(task)} is ${jsonText(value)}, " +
                    "not within 0..$LARGEST_TOLERANCE. $AGAIN",
            )
        }
        limit
    }
}

private fun readParity(data: JsonObject): JsonObject {
    for (side in listOf("host", "device")) {
        val status = data.obj(side, "parity").string("status", "parity.$side")
        if (status !in STATUSES) {
            throw BundleError(
                "parity.$side.status is ${quote(status)}, " +
                    "not one of ${STATUSES.joinToString(", ")}. $AGAIN",
            )
        }
    }
    return data
}

private fun readDigests(data: JsonObject, name: String): Map<String, String> {
    checkNames(data.keys + MANIFEST, name)
    return data.mapValues { (path, digest) ->
        if (path == MANIFEST || digest !is String || !DIGEST.matches(digest)) {
            throw BundleError(
                "The digest of ${quote(path)} is ${jsonText(digest)}, " +
                    "not a SHA-256 of another file. $AGAIN",
            )
        }
        val file = path.substringAfterLast('/')
        // As pathlib: a leading dot starts no suffix.
        val suffix = file.drop(1).substringAfterLast('.', "").lowercase(Locale.ROOT)
        if (suffix in PICKLES) throw pickle(path, name)
        digest
    }
}

private fun checkNames(names: Set<String>, where: String) = checkNames(names.toList(), where)

private fun pickle(path: String, name: String) = BundleError(
    "${quote(path)} in $name is a pickle, which could run code. Export to another format.",
)

private fun missing(files: BundleFiles, names: List<String>): BundleError {
    for (path in names) {
        // iCloud writes such a file for one that is not on the disk.
        val file = path.substringAfterLast('/')
        val placeholder = "${path.dropLast(file.length)}.$file.icloud"
        if (placeholder in files.list()) {
            return BundleError(
                "${quote(path)} in ${files.name} is not downloaded: there is only " +
                    "${quote(placeholder)}. $WAIT",
            )
        }
    }
    val listed = names.joinToString(", ", transform = ::quote)
    return BundleError("${files.name} misses $listed. $DAMAGED")
}

private fun unlisted(files: BundleFiles, names: List<String>): BundleError {
    val unfinished = names.filter { isUnfinished(it.substringAfterLast('/')) }
    if (unfinished.isNotEmpty()) {
        return BundleError(
            "${files.name} holds ${unfinished.joinToString(", ", transform = ::quote)}, " +
                "a download or copy that has not ended. $WAIT",
        )
    }
    return BundleError(
        "${files.name} holds ${names.joinToString(", ", transform = ::quote)}, " +
            "which its manifest does not list. $DAMAGED",
    )
}

/** The error for a file whose content is not the one of the export. */
private fun changed(files: BundleFiles, path: String, expected: String): BundleError {
    val data = files.read(path)
    absent(files, path, data)?.let { return it }
    if (data.size <= LARGEST_TEXT) {
        val unix = String(data, Charsets.ISO_8859_1).replace("\r\n", "\n")
        if (sha256(unix.toByteArray(Charsets.ISO_8859_1)) == expected) {
            return BundleError(
                "${quote(path)} in ${files.name} has Windows line ends, as Git writes them. Add " +
                    "'*.dermedge/** -text' to .gitattributes and check the bundle out again.",
            )
        }
    }
    return BundleError(
        "${quote(path)} in ${files.name} is damaged: " +
            "its SHA-256 does not fit the manifest. $DAMAGED",
    )
}

/** The error for a file that only holds the place of the real one, if it does. */
private fun absent(files: BundleFiles, path: String, data: ByteArray): BundleError? {
    val where = "${quote(path)} in ${files.name}"
    if (data.isEmpty()) return BundleError("$where is empty (0 bytes). $WAIT")
    return if (data.startsWith(LFS_POINTER)) lfsPointer(where) else null
}
