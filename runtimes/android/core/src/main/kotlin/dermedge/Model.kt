package dermedge

import java.io.File
import java.util.concurrent.locks.ReentrantReadWriteLock
import kotlin.concurrent.read
import kotlin.concurrent.write

/**
 * How to load a model.
 *
 * @property threads Threads within one operator of the engine; null lets the engine choose.
 * @property decoder Decoder of images other than PNG; `BitmapDecoder` of `dermedge-android`.
 * @property engine Engine to use; null chooses it by the artifact's format.
 */
public data class ModelOptions(
    val threads: Int? = null,
    val decoder: ImageDecoder? = null,
    val engine: EngineFactory? = null,
)

/**
 * An opened bundle with an engine; [predict] is its main method.
 *
 * Threads may share a model; they get the same numbers as one thread. Close the model to free
 * the engine's memory.
 *
 * ```kotlin
 * Model.load(File("lesions.dermedge"), ModelOptions(threads = 2)).use { model ->
 *     println(model.predict(File("lesion.png").readBytes()).toJson())
 * }
 * ```
 */
public class Model private constructor(
    /** The opened bundle: its spec, artifact and fitted values. */
    public val bundle: Bundle,
    private val options: ModelOptions,
) : AutoCloseable {
    /** The engine that computes; the model closes it. */
    public val engine: Engine = openEngine(bundle, options)
    private val decoder = options.decoder ?: NoDecoder
    private val preprocessor = Preprocessor(bundle.spec.preprocess)
    private val lock = ReentrantReadWriteLock()
    private var closed = false
    private val provenance = Provenance(
        bundle = bundle.id,
        name = bundle.spec.name,
        version = bundle.spec.version,
        target = bundle.artifact.target,
        precision = bundle.artifact.precision,
        engine = "${engine.name} ${engine.version}",
    )

    /**
     * Predict an encoded image.
     *
     * @param exact Decode large JPEGs at full scale: slower, and bit for bit what other
     *   platforms compute from equal samples.
     * @throws ImageError The bytes are not a single readable image.
     * @throws EngineError The engine fails, or gives NaN or infinity.
     * @throws UsageError The model is closed.
     */
    @JvmOverloads
    public fun predict(image: ByteArray, exact: Boolean = false): Prediction = whileOpen {
        val start = System.nanoTime()
        val decoded = decode(image, exact)
        predict(preprocessor.prepare(decoded.picture), start, decoded.quality)
    }

    /**
     * Predict a decoded image, such as a camera's frame.
     *
     * @throws ImageError The image has a side below 16 pixels, or too many pixels.
     * @throws EngineError As for encoded images.
     * @throws UsageError The model is closed.
     */
    public fun predict(image: RgbImage): Prediction = whileOpen {
        val start = System.nanoTime()
        checkSize(image.width, image.height)
        predict(preprocessor.prepare(image), start, emptyList())
    }

    /**
     * Convert an encoded image to the network's input, uint8 [S, S, 3].
     *
     * @throws ImageError As for [predict].
     */
    @JvmOverloads
    public fun preprocess(image: ByteArray, exact: Boolean = false): ByteArray =
        preprocessor.prepare(decode(image, exact).picture)

    /**
     * Verify that the bundle gives the same results on this device as at its export.
     *
     * @throws UsageError The model is closed.
     */
    public fun verify(): VerifyReport = whileOpen { verify(bundle.files, engine) }

    /**
     * Measure the bundle on this device.
     *
     * @param image Encoded image; by default the bundle's first golden image.
     * @param runs Number of timed predictions.
     * @param warmup Number of predictions before them, not timed.
     * @param sustained Seconds of predictions without a pause after that, which show
     *   throttling; 0 skips them.
     * @throws UsageError A number is out of range, or the model is closed.
     */
    @JvmOverloads
    public fun bench(
        image: ByteArray? = null,
        runs: Int = 100,
        warmup: Int = 10,
        sustained: Double = 0.0,
    ): LatencyReport = whileOpen { Bench(this, options, image).run(runs, warmup, sustained) }

    /** Free the engine's memory; calls that still run end first. Closing again does nothing. */
    override fun close(): Unit = lock.write {
        if (!closed) {
            closed = true
            engine.close()
        }
    }

    internal fun decode(image: ByteArray, exact: Boolean): Decoded {
        val spec = bundle.spec.preprocess
        return decodeImage(image, spec.background, decoder) { width, height ->
            if (exact) 1 else reducedScale(width, height, spec)
        }
    }

    private fun predict(tensor: ByteArray, start: Long, quality: List<String>): Prediction {
        val found = bundle.quality?.let {
            describeQuality(measureQuality(tensor, bundle.spec.preprocess.size), it)
        }
        val prepared = System.nanoTime()
        val outputs = engine.run(tensor)
        val done = System.nanoTime()
        val prediction = decode(outputs, bundle.spec, bundle.postprocessing, bundle.quality)
        return prediction.copy(
            timing = Timing((prepared - start) / NANOS, (done - prepared) / NANOS),
            provenance = provenance,
            quality = quality + found.orEmpty() + prediction.quality,
        )
    }

    private inline fun <T> whileOpen(block: () -> T): T = lock.read {
        if (closed) {
            throw UsageError(
                "The model ${quote(bundle.spec.name)} is closed. Load its bundle again.",
            )
        }
        block()
    }

    public companion object {
        internal const val NANOS = 1e6

        /**
         * Open a bundle's folder or zip, check all of it, and start the engine that runs it.
         *
         * @throws BundleError The bundle is damaged, unsafe or too new.
         * @throws UsageError The path does not exist, or `threads` is not positive.
         * @throws MissingExtraError The engine's library is not among the app's dependencies.
         * @throws ElsewhereError This kind of machine cannot have the engine.
         * @throws EngineError The engine refuses the artifact.
         */
        @JvmStatic
        @JvmOverloads
        public fun load(path: File, options: ModelOptions = ModelOptions()): Model =
            load(bundleFiles(path), options)

        /** Load a bundle from anywhere, such as an app's assets; see the other `load`. */
        @JvmStatic
        @JvmOverloads
        public fun load(files: BundleFiles, options: ModelOptions = ModelOptions()): Model =
            Model(Bundle.open(files), options)
    }
}

internal fun openEngine(bundle: Bundle, options: ModelOptions): Engine {
    val threads = options.threads
    if (threads != null && threads < 1) {
        throw UsageError("threads is $threads. Use 1 or more, or leave it out.")
    }
    val engine = (options.engine ?: engineFor(bundle.artifact.format)).open(bundle, threads)
    try {
        checkEngine(engine.name, engine.version, bundle.artifact.requires)
    } catch (error: EngineError) {
        engine.close()
        throw error
    }
    return engine
}
