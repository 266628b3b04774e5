package dermedge

private val IDENTIFIER = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
internal const val AGAIN: String = "Export the model again."

/** Meaning of an output; [id] is its name in the manifest. */
public enum class Kind(public val id: String) {
    /** Logits [K] of classes that exclude each other. */
    CLASSIFY("classify"),

    /** One logit. */
    BINARY("binary"),

    /** Cumulative logits [K-1] of ordered levels. */
    ORDINAL("ordinal"),

    /** Logits [1, S/4, S/4] of a mask. */
    SEGMENT("segment"),

    /** A vector [D], L2-normalised. */
    EMBED("embed"),

    /** One score, larger for images that are more unlike the training images. */
    OOD("ood"),

    /** Class activation maps [K, h, w] of the diagnosis, whose means are its logits. */
    CAM("cam"),
}

/** How a rectangle becomes a square; [id] is its name in the manifest. */
public enum class Fit(public val id: String) {
    /** Cut the largest square from the middle. */
    CROP("crop"),

    /** Fill up with the background. */
    PAD("pad"),

    /** Resize the two sides by different factors. */
    STRETCH("stretch"),
}

/** An RGB colour; each part is 0 to 255. */
public data class Rgb(val red: Int, val green: Int, val blue: Int)

/** One class of a task; [malignant] is null if sources disagree or if it does not apply. */
public data class Label(
    val id: String,
    val name: String,
    val malignant: Boolean? = null,
    val codes: Map<String, Any?> = emptyMap(),
)

/** One output of the network and its meaning; the output tensor has the task's name. */
public data class Task(val name: String, val kind: Kind, val labels: List<Label> = emptyList()) {
    /** Shape of the output for one image of side [size]; -1 is a free width. */
    internal fun shape(size: Int): List<Int> = when (kind) {
        Kind.CLASSIFY -> listOf(labels.size)
        Kind.BINARY, Kind.OOD -> listOf(1)
        Kind.ORDINAL -> listOf(labels.size - 1)
        // Networks predict masks at a quarter of the resolution.
        Kind.SEGMENT -> listOf(1, size / 4, size / 4)
        Kind.EMBED -> listOf(FREE)
        Kind.CAM -> listOf(labels.size, FREE, FREE)
    }
}

internal const val FREE: Int = -1

/** Whether a shape is the one that a task needs; [FREE] fits every size. */
internal fun fits(actual: List<Int>, expected: List<Int>): Boolean =
    actual.size == expected.size &&
        actual.zip(expected).all { (have, want) -> want == FREE || have == want }

/**
 * Conversion of decoded RGB to the network's uint8 [S, S, 3] input.
 *
 * [size] is S. Alpha is composed on [background], which [Fit.PAD] also fills with.
 */
public data class Preprocess(
    val size: Int,
    val fit: Fit = Fit.CROP,
    val background: Rgb = Rgb(255, 255, 255),
)

/** Contract between a model and all code that runs it. */
public data class Spec(
    val name: String,
    val version: String,
    val tasks: List<Task>,
    val preprocess: Preprocess,
    val intendedUse: String = "",
    val lineage: Map<String, Any?> = emptyMap(),
) {
    /** First `classify` task, whose labels are ranked. */
    val diagnosis: Task? get() = tasks.firstOrNull { it.kind == Kind.CLASSIFY }

    /**
     * Task that gives the malignancy score: the `binary` task `malignancy`, else the diagnosis
     * if one of its labels is malignant, else null.
     */
    val malignancy: Task?
        get() = tasks.firstOrNull { it.name == "malignancy" && it.kind == Kind.BINARY }
            ?: diagnosis?.takeIf { task -> task.labels.any { it.malignant == true } }
}

/** One model file for one target; [path] is its entry point inside the bundle. */
public data class Artifact(
    val target: String,
    val format: String,
    val path: String,
    val precision: String,
    val requires: List<String> = emptyList(),
    val toolchain: Map<String, Any?> = emptyMap(),
    val details: Map<String, Any?> = emptyMap(),
    val calibration: Map<String, Any?>? = null,
)

internal fun readSpec(data: JsonObject): Spec {
    val spec = Spec(
        name = data.string("name", "spec"),
        version = data.string("version", "spec"),
        tasks = data.array("tasks", "spec").map(::readTask),
        preprocess = readPreprocess(data.obj("preprocess", "spec")),
        intendedUse = data.optional("intended_use", "spec") ?: "",
        lineage = data.optionalObject("lineage", "spec") ?: emptyMap(),
    )
    if (!IDENTIFIER.matches(spec.name)) {
        throw BundleError(
            "Model name ${quote(spec.name)} is not an identifier. " +
                "Use letters, digits, '.', '_' and '-'.",
        )
    }
    val names = spec.tasks.map { it.name }
    if (names.isEmpty() || names.distinct() != names) {
        throw BundleError(
            "A model needs one or more distinct tasks, not ${quoteAll(names)}. $AGAIN",
        )
    }
    val diagnosed = spec.diagnosis?.labels.orEmpty().map { it.id }
    for (task in spec.tasks.filter { it.kind == Kind.CAM }) {
        if (task.labels.map { it.id } != diagnosed) {
            throw BundleError(
                "Task ${quote(task.name)} has other labels than the diagnosis, " +
                    "${quoteAll(diagnosed)}. $AGAIN",
            )
        }
    }
    return spec
}

private fun readTask(value: Any?): Task {
    val data = asObject(value, "task")
    val id = data.string("kind", "task")
    val kind = Kind.entries.firstOrNull { it.id == id } ?: throw BundleError(
        "Unknown task kind ${quote(id)}: this dermedge knows " +
            "${Kind.entries.joinToString(", ") { it.id }}. Upgrade it.",
    )
    val labels = data.optional<List<Any?>>("labels", "task") ?: emptyList()
    val task = Task(data.string("name", "task"), kind, labels.map(::readLabel))
    if (!IDENTIFIER.matches(task.name)) {
        throw BundleError("Task name ${quote(task.name)} is not an identifier. $AGAIN")
    }
    val ids = task.labels.map { it.id }
    val tooFew = kind in setOf(Kind.CLASSIFY, Kind.ORDINAL) && ids.size < 2
    if (ids.distinct() != ids || tooFew) {
        throw BundleError(
            "Task ${quote(task.name)} needs two or more distinct labels, " +
                "not ${quoteAll(ids)}. $AGAIN",
        )
    }
    return task
}

private fun readLabel(value: Any?): Label {
    val data = asObject(value, "label")
    return Label(
        id = data.string("id", "label"),
        name = data.string("name", "label"),
        malignant = data.optional("malignant", "label"),
        codes = data.optionalObject("codes", "label") ?: emptyMap(),
    )
}

internal fun readPreprocess(data: JsonObject): Preprocess {
    val size = data.integer("size", "preprocess")
    val fit = data.string("fit", "preprocess")
    val kernel = data.string("kernel", "preprocess")
    val background = data.array("background", "preprocess")
    if (size !in 16..4096) {
        throw BundleError("Preprocessing size $size is outside 16..4096. $AGAIN")
    }
    val known = Fit.entries.firstOrNull { it.id == fit }
    if (known == null || kernel != "triangle") {
        throw BundleError(
            "Unknown preprocessing fit ${quote(fit)} or kernel ${quote(kernel)}. Upgrade dermedge.",
        )
    }
    val colour = background.filterIsInstance<Long>().filter { it in 0..255 }.map { it.toInt() }
    if (background.size != 3 || colour.size != 3) {
        throw BundleError("Background ${jsonText(background)} is not an RGB colour. $AGAIN")
    }
    return Preprocess(size.toInt(), known, Rgb(colour[0], colour[1], colour[2]))
}

internal fun readArtifact(data: JsonObject): Artifact = Artifact(
    target = data.string("target", "artifact"),
    format = data.string("format", "artifact"),
    path = data.string("path", "artifact"),
    precision = data.string("precision", "artifact"),
    requires = data.array("requires", "artifact").map(::readRequirement),
    toolchain = data.obj("toolchain", "artifact"),
    details = data.optionalObject("details", "artifact") ?: emptyMap(),
    calibration = data.optionalObject("calibration", "artifact"),
)

internal fun asObject(value: Any?, where: String): JsonObject {
    if (value !is Map<*, *>) {
        throw BundleError("The $where is ${kindOf(value)}, not a JSON object. $AGAIN")
    }
    @Suppress("UNCHECKED_CAST")
    return value as JsonObject
}

/** The value of a key, or null if the key is missing or null; its type must be `T`. */
internal inline fun <reified T : Any> JsonObject.optional(key: String, where: String): T? {
    val value = this[key] ?: return null
    return value as? T ?: throw wrongType(value, key, where, T::class.java.simpleName)
}

/** The value of a key, which must exist and have the type `T`. */
internal inline fun <reified T : Any> JsonObject.take(key: String, where: String): T =
    optional<T>(key, where) ?: throw missingKey(key, where)

internal fun JsonObject.string(key: String, where: String): String = take(key, where)

internal fun JsonObject.integer(key: String, where: String): Long = take(key, where)

internal fun JsonObject.array(key: String, where: String): List<Any?> = take(key, where)

internal fun JsonObject.obj(key: String, where: String): JsonObject =
    optionalObject(key, where) ?: throw missingKey(key, where)

internal fun JsonObject.optionalObject(key: String, where: String): JsonObject? {
    val value = optional<Map<*, *>>(key, where) ?: return null
    return asObject(value, "$where.$key")
}

internal fun missingKey(key: String, where: String): BundleError =
    BundleError("The $where has no ${quote(key)}: the file is incomplete. $AGAIN")

internal fun wrongType(value: Any, key: String, where: String, kind: String): BundleError {
    val wanted = when (kind) {
        "Long" -> "integer"
        "Map" -> "object"
        "List" -> "array"
        else -> kind.lowercase()
    }
    val shown = if (value is String) quote(value) else jsonText(value)
    return BundleError("$where.$key is $shown, not a JSON $wanted. $AGAIN")
}

private fun kindOf(value: Any?): String = when (value) {
    null -> "null"
    is Boolean -> "a boolean"
    is String -> "a string"
    is List<*> -> "an array"
    is Map<*, *> -> "an object"
    else -> "a number"
}
