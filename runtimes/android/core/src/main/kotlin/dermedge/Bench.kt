package dermedge

import java.io.File
import java.io.IOException

private const val TENTHS = 10

/** Measures a model: each run in three stages, then its start and its memory. */
internal class Bench(
    private val model: Model,
    private val options: ModelOptions,
    image: ByteArray?,
) {
    private val golden = if (image == null) readGolden(model.bundle).first() else null
    private val data: ByteArray = image ?: golden!!.image

    fun run(runs: Int, warmup: Int, sustained: Double): LatencyReport {
        if (runs < 1 || warmup < 0 || !(sustained >= 0)) {
            throw UsageError(
                "runs $runs, warmup $warmup, sustained $sustained. " +
                    "Use 1 or more runs, and no negative number.",
            )
        }
        val description = describe()
        val endToEnd = DoubleArray(runs)
        val preprocess = DoubleArray(runs)
        val engineOnly = DoubleArray(runs)
        for (index in -warmup until runs) {
            val start = System.nanoTime()
            model.predict(data)
            val predicted = System.nanoTime()
            val tensor = model.preprocess(data)
            val prepared = System.nanoTime()
            model.engine.run(tensor)
            val end = System.nanoTime()
            if (index >= 0) {
                endToEnd[index] = (predicted - start) / Model.NANOS
                preprocess[index] = (prepared - predicted) / Model.NANOS
                engineOnly[index] = (end - prepared) / Model.NANOS
            }
        }
        val medians = if (sustained > 0) runSustained(sustained) else emptyList()
        return LatencyReport(
            bundle = model.bundle.id,
            engine = model.engine.name,
            engineVersion = model.engine.version,
            device = describeDevice(),
            threads = options.threads,
            image = description,
            endToEnd = percentiles(endToEnd),
            preprocess = percentiles(preprocess),
            engineOnly = percentiles(engineOnly),
            coldStartMs = measureStart(),
            residentBytes = residentBytes(),
            sustained = medians,
            cpus = Runtime.getRuntime().availableProcessors(),
        )
    }

    private fun describe(): String {
        val decoded = model.decode(data, exact = true)
        val name = golden?.let { "golden ${it.name}" } ?: "image"
        return "$name, ${decoded.size.width} x ${decoded.size.height} ${decoded.format}"
    }

    /** Milliseconds from opening the bundle to its first prediction. */
    private fun measureStart(): Double {
        val start = System.nanoTime()
        Model.load(model.bundle.files, options).use { it.predict(data) }
        return (System.nanoTime() - start) / Model.NANOS
    }

    /** The median of each tenth of the time; a tenth without a prediction repeats the last one. */
    private fun runSustained(seconds: Double): List<Double> {
        val tenths = List(TENTHS) { ArrayList<Double>() }
        val begin = System.nanoTime()
        var start = begin
        while ((start - begin) / 1e9 < seconds || tenths[0].isEmpty()) {
            model.predict(data)
            val end = System.nanoTime()
            val tenth = minOf(TENTHS - 1, ((start - begin) / 1e9 / seconds * TENTHS).toInt())
            tenths[tenth] += (end - start) / Model.NANOS
            start = end
        }
        return tenths.runningFold(0.0) { last, values ->
            if (values.isEmpty()) last else percentiles(values.toDoubleArray()).p50
        }.drop(1)
    }
}

/** Summarise times by p50, p90 and p99 (linear between ranks) and the mean. */
internal fun percentiles(milliseconds: DoubleArray): Percentiles {
    val sorted = milliseconds.sortedArray()

    fun at(share: Double): Double {
        val place = share * (sorted.size - 1)
        val low = place.toInt()
        val high = minOf(low + 1, sorted.size - 1)
        return sorted[low] + (sorted[high] - sorted[low]) * (place - low)
    }
    return Percentiles(at(0.5), at(0.9), at(0.99), sorted.average(), sorted.size)
}

private fun describeDevice(): Map<String, String> = mapOf(
    "system" to "${System.getProperty("os.name")} ${System.getProperty("os.version")}",
    "machine" to System.getProperty("os.arch").orEmpty(),
    "cpu" to (field("/proc/cpuinfo", "model name") ?: field("/proc/cpuinfo", "Hardware") ?: ""),
    "cores" to Runtime.getRuntime().availableProcessors().toString(),
    "java" to "${System.getProperty("java.vm.name")} ${System.getProperty("java.version")}",
)

private fun residentBytes(): Long? =
    field("/proc/self/status", "VmRSS")?.substringBefore(' ')?.toLongOrNull()?.times(1024)

/** A field of one of Linux's files of lines `NAME: VALUE`, null without it. */
private fun field(path: String, name: String): String? = try {
    File(path).useLines { lines ->
        lines.firstOrNull { it.substringBefore(':').trim() == name }?.substringAfter(':')?.trim()
    }
} catch (error: IOException) {
    null
}
