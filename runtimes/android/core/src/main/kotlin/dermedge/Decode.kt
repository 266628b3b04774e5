package dermedge

import kotlin.math.exp

private val UNFITTED = Postprocessing()
private const val LEVEL_ABOVE = 0.5

/**
 * Decode the outputs of one image.
 *
 * @param outputs One tensor per task, without the batch dimension.
 * @param limits Limits that the size of the lesion must keep; null judges no mask.
 * @throws EngineError An output is missing, has a wrong shape, or holds NaN or infinity.
 */
internal fun decode(
    outputs: Map<String, Tensor>,
    spec: Spec,
    postprocessing: Map<String, Postprocessing>,
    limits: QualityLimits? = null,
): Prediction {
    val diagnosis = spec.diagnosis
    val malignancy = spec.malignancy
    var result = Prediction()
    var maps: List<ClassMap>? = null
    for (task in spec.tasks) {
        val fitted = postprocessing[task.name] ?: UNFITTED
        val temperature = fitted.temperature ?: 1.0
        val values = checked(outputs, task, spec.preprocess.size)
        when {
            task.kind == Kind.SEGMENT -> if (result.mask == null && fitted.threshold != null) {
                val mask = segmentMask(values, spec.preprocess.size, temperature, fitted.threshold)
                result = result.copy(mask = mask)
            }
            task.kind == Kind.CAM ->
                maps = maps ?: mapsOf(outputs.getValue(task.name).shape, values)
            task == diagnosis -> {
                val probabilities = softmax(values, temperature)
                val labels = rank(task, probabilities)
                val members = fitted.conformal?.let { conformalSet(labels, task, it) }
                result = result.copy(labels = labels, conformalSet = members)
                if (task == malignancy) {
                    result = result.copy(malignancy = sumMalignant(task, probabilities))
                }
            }
            task == malignancy ->
                result = result.copy(malignancy = sigmoid(values[0] / temperature))
            task.kind == Kind.ORDINAL && result.severity == null ->
                result = result.copy(severity = ordinalLevel(values, temperature))
            task.kind == Kind.EMBED && result.embedding == null ->
                result = result.copy(embedding = values.asList())
            task.kind == Kind.OOD && result.oodScore == null -> {
                val ood = fitted.oodThreshold?.let { values[0] > it }
                result = result.copy(oodScore = values[0], ood = ood)
            }
        }
    }
    val fitted = malignancy?.let { postprocessing[it.name] } ?: UNFITTED
    val (decision, reason) = decide(result.malignancy, fitted, result.ood)
    val top = diagnosis?.labels?.indexOfFirst { it.id == result.labels[0].id }
    return result.copy(
        cam = top?.let { maps?.get(it) },
        threshold = fitted.threshold,
        decision = decision,
        referReason = reason,
        quality = judgeMask(result.mask, limits),
    )
}

/** A sentence if the lesion does not keep the limits. */
private fun judgeMask(mask: Mask?, limits: QualityLimits?): List<String> =
    if (mask == null || limits == null) emptyList() else describeLesion(measureLesion(mask), limits)

/** The class activation map of each label. */
private fun mapsOf(shape: List<Int>, values: DoubleArray): List<ClassMap> {
    val (count, height, width) = shape
    val size = height * width
    return List(count) { row ->
        ClassMap(height, width, FloatArray(size) { values[row * size + it].toFloat() })
    }
}

/** The decision for a malignancy score, and the reason if it is `refer`. */
private fun decide(score: Double?, fitted: Postprocessing, ood: Boolean?): Pair<String?, String?> =
    when {
        ood == true -> "refer" to "ood"
        score == null || fitted.threshold == null -> null to null
        score < fitted.threshold -> "benign" to null
        fitted.ruleIn == null || score >= fitted.ruleIn -> "malignant" to null
        else -> "refer" to "uncertain"
    }

/**
 * The ids of the labels in the conformal set, in the order of the ranked [labels].
 *
 * `runtimes/python/dermedge_runtime/decode.py` names the sources of the methods.
 */
private fun conformalSet(
    labels: List<ScoredLabel>,
    task: Task,
    conformal: Conformal,
): List<String> {
    val quantiles = task.labels.map { it.id }.zip(conformal.quantiles).toMap()
    var total = 0.0
    return labels.filterIndexed { index, label ->
        total += label.probability
        val score = when (conformal.method) {
            ConformalMethod.LAC -> 1 - label.probability
            ConformalMethod.APS -> total
            ConformalMethod.RAPS ->
                total + conformal.penalty * maxOf(0, index + 1 - conformal.free)
        }
        val quantile = quantiles[label.id]
        quantile == null || score <= quantile
    }.map { it.id }
}

/** exp(z / T), normalised to a sum of one. */
internal fun softmax(logits: DoubleArray, temperature: Double): DoubleArray {
    val top = logits.max()
    val powers = DoubleArray(logits.size) { exp((logits[it] - top) / temperature) }
    val total = powers.sum()
    return DoubleArray(powers.size) { powers[it] / total }
}

/** 1 / (1 + exp(-z)), without overflow. */
private fun sigmoid(logit: Double): Double {
    if (logit >= 0) return 1 / (1 + exp(-logit))
    val power = exp(logit)
    return power / (1 + power)
}

/** The number of cumulative probabilities above 0.5, made non-increasing by a running minimum. */
private fun ordinalLevel(logits: DoubleArray, temperature: Double): Int {
    var lowest = 1.0
    return logits.count {
        lowest = minOf(lowest, sigmoid(it / temperature))
        lowest > LEVEL_ABOVE
    }
}

/** The sigmoid of the logits, enlarged bilinearly (first along x), at or above a threshold. */
private fun segmentMask(
    logits: DoubleArray,
    size: Int,
    temperature: Double,
    threshold: Double,
): Mask {
    val side = size / 4
    val probability = DoubleArray(logits.size) { sigmoid(logits[it] / temperature) }
    val wide = DoubleArray(side * size)
    for (row in 0 until side) {
        for (x in 0 until size) {
            val place = Place(x, size, side)
            val start = probability[row * side + place.low]
            val end = probability[row * side + place.high]
            wide[row * size + x] = start + (end - start) * place.weight
        }
    }
    val inside = BooleanArray(size * size)
    for (y in 0 until size) {
        val place = Place(y, size, side)
        for (x in 0 until size) {
            val start = wide[place.low * size + x]
            val value = start + (wide[place.high * size + x] - start) * place.weight
            inside[y * size + x] = value >= threshold
        }
    }
    return Mask(size, inside)
}

/** The two samples around an enlarged one, and how near it is to the second; edges repeat. */
private class Place(index: Int, size: Int, count: Int) {
    private val centre =
        ((index + 0.5) * (count.toDouble() / size) - 0.5).coerceIn(0.0, (count - 1).toDouble())
    val low = centre.toInt()
    val high = minOf(low + 1, count - 1)
    val weight = centre - low
}

/** The sum of the malignant labels; labels whose sources disagree (null) count as neither. */
private fun sumMalignant(task: Task, probabilities: DoubleArray): Double {
    val malignant = task.labels.indices.filter { task.labels[it].malignant == true }
    val sum = malignant.sumOf { probabilities[it] }
    return minOf(sum, 1.0) // a sum of rounded probabilities may exceed 1 by 1e-16
}

/** The labels, most probable first; equal ones keep the task's order. */
private fun rank(task: Task, probabilities: DoubleArray): List<ScoredLabel> =
    task.labels
        .mapIndexed { index, label -> ScoredLabel(label.id, label.name, probabilities[index]) }
        .sortedByDescending { it.probability }

private fun checked(outputs: Map<String, Tensor>, task: Task, size: Int): DoubleArray {
    val tensor = outputs[task.name] ?: throw EngineError(
        "The engine gave no output ${quote(task.name)}, " +
            "only ${quoteAll(outputs.keys.sorted())}. $AGAIN",
    )
    val expected = task.shape(size)
    if (!fits(tensor.shape, expected) || tensor.values.size != tensor.shape.fold(1, Int::times)) {
        throw EngineError(
            "Output ${quote(task.name)} has shape ${tensor.shape}, " +
                "not ${shapeText(expected)}. $AGAIN",
        )
    }
    if (!tensor.values.all { it.isFinite() }) {
        throw EngineError(
            "Output ${quote(task.name)} holds NaN or infinity. Run `verify` on the bundle.",
        )
    }
    return DoubleArray(tensor.values.size) { tensor.values[it].toDouble() }
}

internal fun shapeText(shape: List<Int>): String =
    shape.joinToString(", ", "[", "]") { if (it == FREE) "D" else "$it" }
