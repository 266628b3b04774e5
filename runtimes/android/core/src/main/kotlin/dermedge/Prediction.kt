package dermedge

/** A label and its probability. */
public data class ScoredLabel(val id: String, val name: String, val probability: Double)

/** Milliseconds spent on one image: in preprocessing, and in the engine. */
public data class Timing(val preprocessMs: Double, val engineMs: Double)

/** Bundle and engine that computed a prediction. */
public data class Provenance(
    val bundle: String,
    val name: String,
    val version: String,
    val target: String,
    val precision: String,
    val engine: String,
)

/** Outline of a lesion in the preprocessed frame; true is inside. Row by row, [size] x [size]. */
public class Mask(public val size: Int, public val inside: BooleanArray) {
    /** The part of the frame that the mask covers. */
    public val fraction: Double get() = inside.count { it }.toDouble() / inside.size
}

/**
 * Class activation map of a label; its mean is the label's logit.
 *
 * @property values Row by row over the preprocessed frame, [height] x [width]. Larger values
 *   raise the logit more.
 */
public class ClassMap(public val height: Int, public val width: Int, public val values: FloatArray)

/**
 * Decoded outputs of a model for one image.
 *
 * A field is null ([labels] empty) if the model has no such task, or if the value it needs was
 * not fitted.
 *
 * @property labels Those of the diagnosis task, most probable first.
 * @property malignancy Score that [threshold] turns into [decision].
 * @property decision `malignant`, `benign` or `refer`: a person must decide.
 * @property referReason Why the decision is `refer`: `ood`, or `uncertain` for a score that is
 *   neither clearly benign nor clearly malignant.
 * @property conformalSet Ids of the labels that fit the image, most probable first; it may be
 *   empty.
 * @property ood Whether the image is unlike the training images.
 * @property oodScore Larger for images that are more unlike the training images.
 * @property severity Level of the ordinal task, counted from 0.
 * @property cam Class activation map of the most probable label; not in the JSON.
 * @property embedding L2-normalised vector of the embedding task.
 * @property quality Reasons to take the photograph again, with what to do, if any.
 */
public data class Prediction(
    val labels: List<ScoredLabel> = emptyList(),
    val malignancy: Double? = null,
    val threshold: Double? = null,
    val decision: String? = null,
    val referReason: String? = null,
    val conformalSet: List<String>? = null,
    val ood: Boolean? = null,
    val oodScore: Double? = null,
    val severity: Int? = null,
    val mask: Mask? = null,
    val cam: ClassMap? = null,
    val embedding: List<Double>? = null,
    val timing: Timing? = null,
    val provenance: Provenance? = null,
    val quality: List<String> = emptyList(),
) {
    /** The JSON of every language's runtime, on one line. */
    public fun toJson(): String = jsonText(toMap())

    /** The content of [toJson] as maps, lists, texts, numbers and null. */
    public fun toMap(): Map<String, Any?> {
        val content = linkedMapOf(
            "labels" to labels.map {
                mapOf("id" to it.id, "name" to it.name, "probability" to it.probability)
            },
            "malignancy" to malignancy,
            "threshold" to threshold,
            "decision" to decision,
            "refer_reason" to referReason,
            "conformal_set" to conformalSet,
            "ood" to ood,
            "ood_score" to oodScore,
            "severity" to severity,
            "mask_fraction" to mask?.fraction,
            "embedding" to embedding,
            "timing" to timing?.let {
                mapOf("preprocess_ms" to it.preprocessMs, "engine_ms" to it.engineMs)
            },
            "provenance" to provenance?.let {
                mapOf(
                    "bundle" to it.bundle,
                    "name" to it.name,
                    "version" to it.version,
                    "target" to it.target,
                    "precision" to it.precision,
                    "engine" to it.engine,
                )
            },
        )
        if (quality.isNotEmpty()) content["quality"] = quality
        return content
    }
}
