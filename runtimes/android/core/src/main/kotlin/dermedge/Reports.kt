package dermedge

/** One check of `verify`: its name, its status and a text about its measurement. */
public data class Check(val name: String, val status: String, val detail: String)

/**
 * Result of `verify`: the checks in the order in which they run.
 *
 * A status is `passed`, `failed` or `not_run`. [bundle] is the bundle's id, or its name if it
 * could not be opened.
 */
public data class VerifyReport(
    val bundle: String,
    val engine: String,
    val status: String,
    val checks: List<Check>,
) {
    /** Exit code of a command that ends with this report. */
    public val exitCode: Int
        get() = when (status) {
            "passed" -> 0
            "failed" -> 5
            else -> 4
        }

    /** The JSON of every language's runtime, on one line. */
    public fun toJson(): String = jsonText(toMap())

    /** The content of [toJson] as maps, lists and texts. */
    public fun toMap(): Map<String, Any?> = mapOf(
        "bundle" to bundle,
        "engine" to engine,
        "status" to status,
        "checks" to checks.map {
            mapOf("name" to it.name, "status" to it.status, "detail" to it.detail)
        },
    )
}

/** Milliseconds of one stage over all timed calls. */
public data class Percentiles(
    val p50: Double,
    val p90: Double,
    val p99: Double,
    val mean: Double,
    val count: Int,
) {
    internal fun toMap(): Map<String, Any?> =
        mapOf("p50" to p50, "p90" to p90, "p99" to p99, "mean" to mean, "count" to count)
}

/**
 * Result of `bench`: times in milliseconds, memory in bytes.
 *
 * @property endToEnd From encoded bytes to the prediction.
 * @property engineOnly The bare engine call.
 * @property coldStartMs From opening the bundle to the first prediction, in this process.
 * @property residentBytes Null on systems that do not report it.
 * @property sustained The end-to-end median of each tenth of a sustained run.
 */
public data class LatencyReport(
    val bundle: String,
    val engine: String,
    val engineVersion: String,
    val device: Map<String, String>,
    val threads: Int?,
    val image: String,
    val endToEnd: Percentiles,
    val preprocess: Percentiles,
    val engineOnly: Percentiles,
    val coldStartMs: Double,
    val residentBytes: Long?,
    val sustained: List<Double> = emptyList(),
    val cpus: Int? = null,
) {
    /** The JSON of every language's runtime, on one line. */
    public fun toJson(): String = jsonText(toMap())

    /** The content of [toJson] as maps, lists, texts, numbers and null. */
    public fun toMap(): Map<String, Any?> = mapOf(
        "bundle" to bundle,
        "engine" to engine,
        "engine_version" to engineVersion,
        "device" to device,
        "threads" to threads,
        "image" to image,
        "end_to_end" to endToEnd.toMap(),
        "preprocess" to preprocess.toMap(),
        "engine_only" to engineOnly.toMap(),
        "cold_start_ms" to coldStartMs,
        "resident_bytes" to residentBytes,
        "sustained" to sustained,
        "cpus" to cpus,
    )
}
