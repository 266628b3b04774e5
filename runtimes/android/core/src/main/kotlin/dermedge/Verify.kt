package dermedge

import java.math.BigDecimal
import java.math.MathContext

private val CHECKS = listOf("files", "preprocessing", "engine", "decoding")
private val VOLATILE = setOf("timing", "provenance")
private const val PARITY_REPORT = "reports/parity.json"
private const val SHOWN = 5

/** Failure of one check; the message says what differs and what to do. */
private class Failure(message: String) : Exception(message)

/**
 * Verify that a bundle gives the same results on this device as at its export.
 *
 * The checks are `files`, `preprocessing`, `engine` and `decoding`; the first failure ends
 * them. All files are read again. No data and no network is needed.
 *
 * @param files The bundle's files.
 * @param options As in [Model.load].
 * @throws MissingExtraError The engine's library is not among the app's dependencies.
 */
public fun verify(files: BundleFiles, options: ModelOptions = ModelOptions()): VerifyReport =
    Verification(files).run { bundle -> openEngine(bundle, options) to true }

/** Verify with an engine that is open already, and stays open. */
internal fun verify(files: BundleFiles, engine: Engine): VerifyReport =
    Verification(files).run { bundle ->
        checkEngine(engine.name, engine.version, bundle.artifact.requires)
        engine to false
    }

private class Verification(private val files: BundleFiles) {
    private var identity = files.name
    private var engineName = "not started"
    private val results = ArrayList<Pair<String, String>>()

    /** Run the checks; `open` returns the engine, and whether it must be closed afterwards. */
    fun run(open: (Bundle) -> Pair<Engine, Boolean>): VerifyReport {
        try {
            runChecks(open)
        } catch (failure: Failure) {
            results += "failed" to failure.message.orEmpty()
        }
        while (results.size < CHECKS.size) results += "not_run" to "an earlier check failed"
        val checks = CHECKS.zip(results) { name, (status, detail) -> Check(name, status, detail) }
        val statuses = checks.map { it.status }
        val status = listOf("failed", "not_run").firstOrNull(statuses::contains) ?: "passed"
        return VerifyReport(identity, engineName, status, checks)
    }

    private fun runChecks(open: (Bundle) -> Pair<Engine, Boolean>) {
        val (bundle, cases) = checkFiles(files)
        identity = bundle.id
        val ignored = describeSystemFiles(files)
        pass("${bundle.digests.size} files and ${cases.size} golden cases are intact$ignored")
        pass(checkPreprocessing(bundle, cases))
        try {
            val (engine, own) = start(bundle, open)
            try {
                engineName = "${engine.name} ${engine.version}"
                pass(checkEngine(bundle, cases, engine))
            } finally {
                if (own) engine.close()
            }
        } catch (error: ElsewhereError) {
            results += "not_run" to error.message.orEmpty()
        }
        pass(checkDecoding(bundle, cases))
    }

    private fun pass(detail: String) {
        results += "passed" to detail
    }
}

private fun <T> start(bundle: Bundle, open: (Bundle) -> T): T = try {
    open(bundle)
} catch (error: EngineError) {
    throw Failure(error.message.orEmpty())
} catch (error: BundleError) {
    throw Failure(error.message.orEmpty())
}

/** Open the bundle and its golden cases, and check that the cases fit the model. */
private fun checkFiles(files: BundleFiles): Pair<Bundle, List<GoldenCase>> {
    val (bundle, cases) = try {
        val bundle = Bundle.open(files)
        (bundle to readGolden(bundle)).also { checkParity(bundle) }
    } catch (error: BundleError) {
        throw Failure(error.message.orEmpty())
    }
    val size = bundle.spec.preprocess.size
    for (case in cases) {
        if (case.size != size) {
            throw Failure(
                "Golden case ${quote(case.name)} has a tensor of ${case.size} px, " +
                    "not $size. $AGAIN_GET",
            )
        }
        checkShapes("reference of golden case ${quote(case.name)}", case.reference, bundle.spec)
        checkShapes("expected of golden case ${quote(case.name)}", case.expected, bundle.spec)
    }
    return bundle to cases
}

private const val AGAIN_GET = "Get the bundle again or export the model again."

private fun checkShapes(where: String, outputs: Map<String, Tensor>, spec: Spec) {
    val tasks = spec.tasks.map { it.name }.sorted()
    if (outputs.keys.sorted() != tasks) {
        throw Failure(
            "$where has outputs ${quoteAll(outputs.keys.sorted())}, " +
                "not ${quoteAll(tasks)}. $AGAIN_GET",
        )
    }
    for (task in spec.tasks) {
        val expected = task.shape(spec.preprocess.size)
        val actual = outputs.getValue(task.name).shape
        if (!fits(actual, expected)) {
            throw Failure(
                "${quote(task.name)} in $where has shape $actual, " +
                    "not ${shapeText(expected)}. $AGAIN_GET",
            )
        }
    }
}

/** Check that the manifest's statuses of parity are those of the reports. */
private fun checkParity(bundle: Bundle) {
    for (side in listOf("host", "device")) {
        val entry = asObject(bundle.parity[side], "parity.$side")
        val named = entry.optional<String>("report", "parity.$side")
        val usual = PARITY_REPORT.takeIf { side == "host" && it in bundle.digests }
        val path = named ?: usual ?: continue
        if (path !in bundle.digests) {
            throw BundleError("parity.$side names ${quote(path)}, which is not a file. $AGAIN_GET")
        }
        val report = asObject(parseJson(bundle.read(path), path), path)
        if (entry["status"] != report["status"]) {
            throw BundleError(
                "parity.$side.status of the manifest is ${jsonText(entry["status"])}, " +
                    "but $path has ${jsonText(report["status"])}. $AGAIN_GET",
            )
        }
    }
}

private fun describeSystemFiles(files: BundleFiles): String {
    val names = files.systemFiles
    if (names.isEmpty()) return ""
    val more = if (names.size > SHOWN) ", ..." else ""
    return "; ignored: ${names.take(SHOWN).joinToString(", ", transform = ::quote)}$more"
}

private fun checkPreprocessing(bundle: Bundle, cases: List<GoldenCase>): String {
    val spec = bundle.spec.preprocess
    val preprocessor = Preprocessor(spec)
    for (case in cases) {
        val tensor = try {
            preprocessor.prepare(decodeImage(case.image, spec.background, NoDecoder).picture)
        } catch (error: DermedgeError) {
            throw Failure(
                "Golden image ${quote(case.name)} cannot be preprocessed: ${error.message}",
            )
        }
        val distances = tensor.indices.map {
            Math.abs((tensor[it].toInt() and 0xFF) - (case.tensor[it].toInt() and 0xFF))
        }
        if (distances.any { it > 0 }) {
            throw Failure(
                "Preprocessing of golden image ${quote(case.name)} differs in " +
                    "${distances.count { it > 0 }} of ${distances.size} values, by up to " +
                    "${distances.max()} of 255. Do not use this device's predictions. " +
                    "Install the newest dermedge.",
            )
        }
    }
    return "${cases.size} golden images, bit for bit"
}

/** Compare the engine's outputs with `expected`; report how far that is from the fp32 student. */
private fun checkEngine(bundle: Bundle, cases: List<GoldenCase>, engine: Engine): String {
    val name = "${engine.name} ${engine.version}"
    val largest = HashMap<String, Double>()
    val drift = HashMap<String, Double>()
    for (case in cases) {
        val outputs = try {
            engine.run(case.tensor)
        } catch (error: DermedgeError) {
            throw Failure("$name failed on golden case ${quote(case.name)}: ${error.message}")
        }
        for ((task, expected) in case.expected) {
            val where = "$name, golden case ${quote(case.name)}, output ${quote(task)}"
            val actual = outputs[task]
            if (actual == null || actual.shape != expected.shape) {
                val found = if (actual == null) "nothing" else "shape ${actual.shape}"
                throw Failure(
                    "$where: $found, not shape ${expected.shape}. Use the engine of the export.",
                )
            }
            val limit = bundle.tolerance.getValue(task)
            val difference = distance(actual, expected)
            if (!(difference <= limit)) { // true for NaN as well
                val requires = bundle.artifact.requires.joinToString(", ").ifEmpty { "the export" }
                throw Failure(
                    "$where: off by ${rounded(difference, 3)}, tolerance ${rounded(limit, 3)}. " +
                        "Use an engine that fits $requires, or export for this one.",
                )
            }
            largest.merge(task, difference, ::maxOf)
            drift.merge(task, distance(expected, case.reference.getValue(task)), ::maxOf)
        }
    }
    return bundle.tolerance.entries.joinToString("; ") { (task, limit) ->
        "$task off by ${rounded(largest.getValue(task), 2)} (tolerance ${rounded(limit, 2)}, " +
            "${rounded(drift.getValue(task), 2)} between export and fp32 student)"
    }
}

/** The largest difference of two tensors; NaN if a value is NaN. */
private fun distance(first: Tensor, second: Tensor): Double {
    if (first.values.size != second.values.size) return Double.NaN
    return first.values.indices.fold(0.0) { largest, index ->
        maxOf(largest, Math.abs(first.values[index].toDouble() - second.values[index]))
    }
}

/** A number with a few digits. */
internal fun rounded(value: Double, digits: Int): String {
    if (!value.isFinite()) return "$value"
    return numberText(BigDecimal(value).round(MathContext(digits)).toDouble())
}

private fun checkDecoding(bundle: Bundle, cases: List<GoldenCase>): String {
    for (case in cases) {
        val prediction = try {
            decode(case.expected, bundle.spec, bundle.postprocessing).toMap()
        } catch (error: DermedgeError) {
            throw Failure("Golden case ${quote(case.name)} cannot be decoded: ${error.message}")
        }
        val golden = case.prediction - VOLATILE
        describeDifference(prediction - VOLATILE, golden, case.expected, bundle)?.let {
            throw Failure("Golden case ${quote(case.name)} decodes differently: $it")
        }
    }
    return "${cases.size} golden predictions, within 1e-06"
}
