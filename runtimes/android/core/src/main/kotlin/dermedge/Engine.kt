package dermedge

/** Raw values of an output, row-major, without the batch dimension. */
public class Tensor(public val shape: List<Int>, public val values: FloatArray)

/**
 * An inference engine that has loaded a bundle's artifact.
 *
 * A model never calls [run] after [close], nor closes it during a call. Several threads may
 * call [run] at once; an engine that cannot do that takes a lock.
 */
public interface Engine : AutoCloseable {
    /** Name of the engine, the same in every language: `onnxruntime` or `litert`. */
    public val name: String

    /** Version of the engine's library. */
    public val version: String

    /**
     * Compute the outputs of one image.
     *
     * @param image RGB, uint8 [S, S, 3].
     * @return One tensor per task, by its name.
     * @throws EngineError The engine fails.
     */
    public fun run(image: ByteArray): Map<String, Tensor>

    /** Free the engine's memory. */
    override fun close()
}

/** Loads a bundle's artifact into an engine. */
public fun interface EngineFactory {
    /**
     * Start the engine.
     *
     * @param threads Threads within one operator; null lets the engine choose.
     * @throws MissingExtraError The engine's library is not among the app's dependencies.
     * @throws EngineError The engine refuses the artifact, or does not satisfy its `requires`.
     */
    public fun open(bundle: Bundle, threads: Int?): Engine
}

private val ENGINES: Map<String, EngineFactory> = mapOf(
    "onnx" to OnnxRuntimeEngine,
    "litert" to LiteRtEngine,
)
private val TARGETS = "Export the model for android or android-onnx."

/** The engine for an artifact's format. */
internal fun engineFor(format: String): EngineFactory = ENGINES[format] ?: throw ElsewhereError(
    "A bundle of the format ${quote(format)} cannot run here, only ${ENGINES.keys.joinToString(", ")}. " +
        TARGETS,
)

private val REQUIREMENT = Regex("\\s*([A-Za-z][A-Za-z0-9_.-]*)\\s*((?:>=|<=|==|!=|>|<).*)")
private val COMPARISON = Regex("\\s*(>=|<=|==|!=|>|<)\\s*([0-9]+(?:\\.[0-9]+)*)\\s*")
private val LEADING = Regex("[0-9]+(?:\\.[0-9]+)*")

/**
 * Refuse an engine whose version does not satisfy the artifact's `requires`.
 *
 * Requirements of other things than this engine are ignored.
 */
internal fun checkRequires(requires: List<String>, name: String, version: String) {
    for (text in requires) {
        val found = REQUIREMENT.matchEntire(text) ?: continue
        if (found.groupValues[1] != name) continue
        for (part in found.groupValues[2].split(",")) {
            val comparison = COMPARISON.matchEntire(part) ?: throw EngineError(
                "The requirement ${quote(text)} has no version that dermedge reads. $AGAIN",
            )
            if (!holds(version, comparison.groupValues[1], comparison.groupValues[2])) {
                throw EngineError(
                    "The bundle needs $text, and this is $name $version. " +
                        "Install a version that fits, or export the model for this one.",
                )
            }
        }
    }
}

private fun holds(version: String, comparator: String, wanted: String): Boolean {
    val order = compareVersions(version, wanted)
    return when (comparator) {
        ">=" -> order >= 0
        "<=" -> order <= 0
        "==" -> order == 0
        "!=" -> order != 0
        ">" -> order > 0
        else -> order < 0
    }
}

/** Compare dotted numbers; a missing part is 0 and a text after the numbers is ignored. */
private fun compareVersions(first: String, second: String): Int {
    val (a, b) = listOf(first, second).map { version ->
        LEADING.find(version)?.value.orEmpty().split(".").map { it.toBigIntegerOrNull() ?: 0.toBigInteger() }
    }
    for (index in 0 until maxOf(a.size, b.size)) {
        val order = (a.getOrNull(index) ?: 0.toBigInteger()).compareTo(b.getOrNull(index) ?: 0.toBigInteger())
        if (order != 0) return order
    }
    return 0
}
