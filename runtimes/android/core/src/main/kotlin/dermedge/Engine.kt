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
    "A bundle of the format ${quote(format)} cannot run here, only " +
        "${ENGINES.keys.joinToString(" or ")}. $TARGETS",
)
