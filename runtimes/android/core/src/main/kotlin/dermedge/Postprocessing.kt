package dermedge

/** Score that decides whether a label is in a set; [id] is its name in the manifest. */
public enum class ConformalMethod(public val id: String) {
    /** 1 - the label's probability. */
    LAC("lac"),

    /** The sum of the probabilities down to the label. */
    APS("aps"),

    /** [APS] with a penalty for each further rank. */
    RAPS("raps"),
}

/**
 * Class-conditional conformal sets of a `classify` task.
 *
 * @property coverage Share of the images of each label whose set holds that label, 0 to 1.
 * @property quantiles Largest score of each label that is in the set, in the task's order; null
 *   is a label that is in every set.
 * @property penalty RAPS adds this to the score for each rank after [free].
 * @property free Number of first ranks that RAPS does not penalize.
 */
public data class Conformal(
    val method: ConformalMethod,
    val coverage: Double,
    val quantiles: List<Double?>,
    val penalty: Double = 0.0,
    val free: Long = 0,
)

/**
 * Values fitted on validation data for one task; null is not fitted.
 *
 * @property temperature Divisor of the logits.
 * @property threshold Smallest score that is not `benign`, or smallest probability inside a mask.
 * @property ruleIn Smallest score that is `malignant`; from [threshold] up to it is `refer`.
 * @property conformal Conformal sets of a `classify` task.
 * @property oodThreshold Largest score of an `ood` task that is not flagged.
 */
public data class Postprocessing(
    val temperature: Double? = null,
    val threshold: Double? = null,
    val ruleIn: Double? = null,
    val conformal: Conformal? = null,
    val oodThreshold: Double? = null,
)

/** Read the fitted values of every task. */
internal fun readPostprocessing(data: JsonObject, spec: Spec): Map<String, Postprocessing> {
    checkTasks(data, spec, "postprocessing")
    val fitted = data.mapValues { readFitted(it.value) }
    for (task in spec.tasks) checkTask(fitted.getValue(task.name), task, spec.malignancy)
    return fitted
}

private fun readFitted(value: Any?): Postprocessing {
    val data = asObject(value, "postprocessing")
    fun number(name: String) = data.optional<Number>(name, "postprocessing")?.toDouble()
    val fitted = Postprocessing(
        temperature = number("temperature"),
        threshold = number("threshold"),
        ruleIn = number("rule_in"),
        conformal = data.optionalObject("conformal", "postprocessing")?.let(::readConformal),
        oodThreshold = number("ood_threshold"),
    )
    val (temperature, threshold, ruleIn) = fitted
    if (temperature != null && temperature <= 0) {
        throw BundleError("Temperature $temperature is not a positive number. $AGAIN")
    }
    if (threshold != null && threshold !in 0.0..1.0) {
        throw BundleError("Threshold $threshold is not a probability. $AGAIN")
    }
    if (ruleIn != null && (threshold == null || ruleIn !in threshold..1.0)) {
        throw BundleError(
            "rule_in $ruleIn is not a probability of at least the threshold $threshold. $AGAIN",
        )
    }
    return fitted
}

private fun readConformal(data: JsonObject): Conformal {
    val id = data.string("method", "conformal")
    val method = ConformalMethod.entries.firstOrNull { it.id == id } ?: throw BundleError(
        "Unknown conformal method ${quote(id)}: this dermedge knows " +
            "${ConformalMethod.entries.joinToString(", ") { it.id }}. Upgrade it.",
    )
    val coverage = data.take<Number>("coverage", "conformal").toDouble()
    if (coverage <= 0 || coverage >= 1) {
        throw BundleError("Conformal coverage $coverage is not between 0 and 1. $AGAIN")
    }
    val quantiles = data.array("quantiles", "conformal").map {
        mapOf("quantile" to it).optional<Number>("quantile", "conformal")?.toDouble()
    }
    val penalty = data.optional<Number>("penalty", "conformal")?.toDouble() ?: 0.0
    val free = data.optional<Long>("free", "conformal") ?: 0
    if (!quantiles.all { it == null || it >= 0 } || penalty < 0 || free < 0) {
        throw BundleError(
            "Conformal quantiles ${jsonText(quantiles)}, penalty $penalty and free $free are not " +
                "numbers of 0 or more. $AGAIN",
        )
    }
    return Conformal(method, coverage, quantiles, penalty, free)
}

/** Check that fitted values can be applied to a task. */
private fun checkTask(fitted: Postprocessing, task: Task, malignancy: Task?) {
    val wrong = when {
        fitted.conformal != null && task.kind != Kind.CLASSIFY -> "conformal"
        fitted.oodThreshold != null && task.kind != Kind.OOD -> "ood_threshold"
        fitted.ruleIn != null && task != malignancy -> "rule_in"
        else -> null
    }
    if (wrong != null) {
        throw BundleError(
            "The ${task.kind.id} task ${quote(task.name)} has a fitted ${quote(wrong)}, which " +
                "belongs to another task. $AGAIN",
        )
    }
    val count = fitted.conformal?.quantiles?.size ?: return
    if (count != task.labels.size) {
        throw BundleError(
            "Task ${quote(task.name)} has $count conformal quantiles for " +
                "${task.labels.size} labels. $AGAIN",
        )
    }
}

/** Check that an object has exactly one entry per task. */
internal fun checkTasks(data: JsonObject, spec: Spec, where: String) {
    val tasks = spec.tasks.map { it.name }.sorted()
    if (data.keys.sorted() != tasks) {
        throw BundleError(
            "$where has entries for ${quoteAll(data.keys.sorted())}, " +
                "but the tasks are ${quoteAll(tasks)}. $AGAIN",
        )
    }
}
