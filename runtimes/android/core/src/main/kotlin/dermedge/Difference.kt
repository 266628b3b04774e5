package dermedge

import kotlin.math.abs
import kotlin.math.ln

// Languages differ in the last digits of exp(); a wrong formula differs by far more.
private const val DECODED_WITHIN = 1e-6
private const val SAME_TEMPERATURE = 1e-4

/**
 * Describe the first difference of two predictions, its cause and what to do; null if none.
 *
 * The golden prediction was decoded at export from the same outputs. If other labels, another
 * temperature or another threshold explain it, the message names them.
 */
internal fun describeDifference(
    actual: JsonObject,
    golden: JsonObject,
    outputs: Map<String, Tensor>,
    bundle: Bundle,
): String? {
    val difference = findDifference(actual, golden) ?: return null
    val (cause, explained) = findCause(actual, golden, outputs, bundle)
    val advice = if (explained) AGAIN else "Install the newest dermedge."
    return listOf("$difference.", cause, advice).filter { it.isNotEmpty() }.joinToString(" ")
}

/**
 * Describe the first difference between two JSON values; null if there is none.
 *
 * A missing key is null, so that fields may be added later.
 */
internal fun findDifference(
    actual: Any?,
    golden: Any?,
    where: String = "",
    within: Double = DECODED_WITHIN,
): String? = when {
    actual is Map<*, *> && golden is Map<*, *> ->
        (actual.keys + golden.keys).map { it as String }.sorted().firstNotNullOfOrNull {
            findDifference(actual[it], golden[it], "$where.$it", within)
        }
    actual is List<*> && golden is List<*> && actual.size == golden.size ->
        actual.indices.firstNotNullOfOrNull {
            findDifference(actual[it], golden[it], "$where[$it]", within)
        }
    actual is Number && golden is Number &&
        abs(actual.toDouble() - golden.toDouble()) <= within -> null
    actual == golden -> null
    else -> where.trimStart('.').ifEmpty { "it" } +
        " is ${jsonText(actual)}, not ${jsonText(golden)}"
}

/** A sentence about the task whose field differs, and whether it explains the difference. */
private fun findCause(
    actual: JsonObject,
    golden: JsonObject,
    outputs: Map<String, Tensor>,
    bundle: Bundle,
): Pair<String, Boolean> {
    val (field, task) = fields(bundle.spec).entries.firstNotNullOfOrNull { (field, task) ->
        task?.takeIf { findDifference(actual[field], golden[field]) != null }?.let { field to it }
    } ?: return "" to false
    if (field == "labels") {
        compareLabels(actual["labels"], golden["labels"], task)?.let { return it to true }
    }
    val fitted = bundle.postprocessing[task.name] ?: Postprocessing()
    val text = "Task ${quote(task.name)} has ${describe(fitted)}"
    val logits = outputs.getValue(task.name).values.map { it.toDouble() }
    val solvable = field == "labels" || field == "malignancy"
    val other = if (solvable) solveTemperature(golden, task, logits) else null
    val own = fitted.temperature ?: 1.0
    if (other != null && abs(other - own) > SAME_TEMPERATURE * maxOf(other, own)) {
        return "$text, but temperature ${rounded(other, 4)} gives the golden prediction." to true
    }
    return "$text." to (field == "threshold")
}

/** The task that gives each field; a field comes after those it follows from. */
private fun fields(spec: Spec): Map<String, Task?> = mapOf(
    "labels" to spec.diagnosis,
    "malignancy" to spec.malignancy,
    "threshold" to spec.malignancy,
    "ood_score" to spec.first(Kind.OOD),
    "ood" to spec.first(Kind.OOD),
    "decision" to spec.malignancy,
    "refer_reason" to spec.malignancy,
    "conformal_set" to spec.diagnosis,
    "severity" to spec.first(Kind.ORDINAL),
    "mask_fraction" to spec.first(Kind.SEGMENT),
    "embedding" to spec.first(Kind.EMBED),
)

private fun Spec.first(kind: Kind): Task? = tasks.firstOrNull { it.kind == kind }

/** Name the temperature and the threshold, and the other values that are fitted. */
private fun describe(fitted: Postprocessing): String {
    val sets = fitted.conformal
    val others = mapOf(
        "rule_in" to fitted.ruleIn,
        "ood_threshold" to fitted.oodThreshold,
        "method" to sets?.method?.id,
        "coverage" to sets?.coverage,
        "quantiles" to sets?.quantiles,
        "penalty" to sets?.penalty,
        "free" to sets?.free,
    ).filterValues { it != null }
    val text = "temperature ${jsonText(fitted.temperature)} and " +
        "threshold ${jsonText(fitted.threshold)}"
    return text + others.map { (key, value) ->
        ", $key ${value as? String ?: jsonText(value)}"
    }.joinToString("")
}

/** Describe other ids, names or another order of labels; null if only numbers differ. */
private fun compareLabels(actual: Any?, golden: Any?, task: Task): String? {
    val own = task.labels.associate { it.id to it.name }
    val names = values(golden, "name")
    if (names == null || names.keys != own.keys) {
        val other = names?.let { quoteAll(it.keys.sorted()) } ?: jsonText(golden)
        return "Task ${quote(task.name)} has the labels ${quoteAll(own.keys.sorted())}, " +
            "and the golden case $other."
    }
    names.entries.firstOrNull { it.value != own[it.key] }?.let { (id, name) ->
        return "The label ${quote(id)} is ${jsonText(own[id])}, " +
            "and in the golden case ${jsonText(name)}."
    }
    val ours = probabilities(actual) ?: return null
    val theirs = probabilities(golden) ?: return null
    val moved = own.keys.any { abs(ours.getValue(it) - theirs.getValue(it)) > DECODED_WITHIN }
    val same = ours.values.sorted().zip(theirs.values.sorted())
        .all { abs(it.first - it.second) <= DECODED_WITHIN }
    return if (moved && same) {
        "The labels of task ${quote(task.name)} are in another order than at the export."
    } else {
        null
    }
}

/** One value of each of a prediction's labels by id; null if they are something else. */
private fun values(labels: Any?, key: String): Map<String, Any?>? =
    (labels as? List<*>)?.associate {
        val label = it as? Map<*, *> ?: return null
        (label["id"] as? String ?: return null) to label[key]
    }

private fun probabilities(labels: Any?): Map<String, Double>? =
    values(labels, "probability")?.mapValues { (it.value as? Number ?: return null).toDouble() }

/** The temperature that gives the golden probabilities; null if none does. */
private fun solveTemperature(golden: JsonObject, task: Task, outputs: List<Double>): Double? {
    val score = (golden["malignancy"] as? Number)?.toDouble()
    // A score is the softmax of its logit and 0.
    val binary = task.kind == Kind.BINARY
    val logits = if (binary) listOf(outputs[0], 0.0) else outputs
    val wanted = if (binary) {
        listOf(score ?: return null, 1 - score)
    } else {
        val byId = probabilities(golden["labels"]) ?: return null
        task.labels.map { byId[it.id] ?: 0.0 }
    }
    if (!wanted.all { it > 0 && it < 1 }) return null
    // The logarithm of a ratio of probabilities is a difference of logits, divided by T.
    val high = logits.indices.maxBy { logits[it] }
    val low = logits.indices.minBy { logits[it] }
    val ratio = ln(wanted[high] / wanted[low])
    val temperature = (logits[high] - logits[low]) / ratio
    if (!(ratio > 0 && temperature > 0)) return null
    val again = softmax(logits.toDoubleArray(), temperature)
    val fits = wanted.indices.all { abs(again[it] - wanted[it]) <= DECODED_WITHIN }
    return temperature.takeIf { fits }
}
