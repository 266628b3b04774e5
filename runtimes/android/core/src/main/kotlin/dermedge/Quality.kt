package dermedge

private const val LINES = 32
private const val WHITE = 250
private const val DETAIL = 96

/**
 * Limits that a good photograph keeps; null is not judged.
 *
 * @property sharpness Smallest sharpness, 0 to 1000.
 * @property dark Smallest brightness, 0 to 255.
 * @property bright Largest brightness, 0 to 255.
 * @property glare Largest glare, 0 to 1000.
 * @property small Smallest share of the frame that the lesion covers, 0 to 1000.
 * @property cut Largest share of the frame's border that the lesion covers, 0 to 1000.
 */
public data class QualityLimits(
    val sharpness: Int? = null,
    val dark: Int? = null,
    val bright: Int? = null,
    val glare: Int? = null,
    val small: Int? = null,
    val cut: Int? = null,
)

/**
 * Measures of the pixels of one image.
 *
 * @property sharpness About 500 in a blurred image, 600 or more in a sharp one.
 * @property brightness Mean of the green values, 0 to 255.
 * @property glare Green values that are white, in parts per 1000.
 */
public data class Quality(val sharpness: Int, val brightness: Int, val glare: Int)

/**
 * Measure sharpness, brightness and glare of a preprocessed image.
 *
 * @param pixels RGB, uint8 [S, S, 3].
 * @param size S.
 */
public fun measureQuality(pixels: ByteArray, size: Int): Quality {
    val at = List(LINES) { (2 * it + 1) * size / (2 * LINES) }
    fun green(x: Int, y: Int): Int = pixels[3 * (size * y + x) + 1].toInt() and 0xFF
    val rows = at.map { y -> IntArray(size) { x -> green(x, y) } }
    val columns = at.map { x -> IntArray(size) { y -> green(x, y) } }
    val lines = rows + columns
    val count = lines.size.toLong() * size
    return Quality(
        sharpness = minOf(sharpness(rows, size), sharpness(columns, size)),
        brightness = (lines.sumOf { it.sum().toLong() } / count).toInt(),
        glare = (1000 * lines.sumOf { line -> line.count { it >= WHITE }.toLong() } / count).toInt(),
    )
}

/** A sentence, and what to do, for each limit that an image does not keep. */
public fun describeQuality(quality: Quality, limits: QualityLimits): List<String> {
    val tooBright = limits.bright != null && quality.brightness > limits.bright
    return buildList {
        if (limits.dark != null && quality.brightness < limits.dark) {
            add("The image is too dark. Add light.")
        }
        if (tooBright) add("The image is too bright. Reduce the light.")
        // Too much light makes the whole image white; that is no reflection.
        if (limits.glare != null && quality.glare > limits.glare && !tooBright) {
            add("Light reflects in the image. Tilt the phone or the lamp.")
        }
        if (limits.sharpness != null && quality.sharpness < limits.sharpness) {
            add("The image is out of focus. Hold still, or move back a little.")
        }
    }
}

/**
 * Measures of the mask of one image.
 *
 * @property share Part of the frame that the lesion covers, in parts per 1000.
 * @property border Part of the frame's border, its outermost pixels, that the lesion covers.
 */
public data class LesionSize(val share: Int, val border: Int)

/** Measure how much of the frame, and of its border, the lesion covers. */
public fun measureLesion(mask: Mask): LesionSize {
    val size = mask.size
    val inside = mask.inside.count { it }
    val border = mask.inside.indices.count {
        val (x, y) = it % size to it / size
        mask.inside[it] && (x == 0 || y == 0 || x == size - 1 || y == size - 1)
    }
    return LesionSize(
        share = (1000L * inside / mask.inside.size).toInt(),
        border = 1000 * border / (4 * size - 4),
    )
}

/** A sentence, and what to do, if the lesion is too small or cut off. */
public fun describeLesion(lesion: LesionSize, limits: QualityLimits): List<String> = when {
    limits.small != null && lesion.share < limits.small ->
        listOf("The lesion is missing or too small in the image. Move closer.")
    limits.cut != null && lesion.border > limits.cut ->
        listOf("The lesion is too large or cut off. Move back.")
    else -> emptyList()
}

internal fun readQuality(data: JsonObject): QualityLimits = QualityLimits(
    sharpness = data.limit("sharpness", 1000),
    dark = data.limit("dark", 255),
    bright = data.limit("bright", 255),
    glare = data.limit("glare", 1000),
    small = data.limit("small", 1000),
    cut = data.limit("cut", 1000),
)

private fun JsonObject.limit(name: String, largest: Int): Int? {
    val value = optional<Long>(name, "quality") ?: return null
    if (value !in 0..largest) {
        throw BundleError("quality.$name is $value, not within 0..$largest. $AGAIN")
    }
    return value.toInt()
}

/** Differences of neighbours in parts per 1000 of those at twice the distance. */
private fun sharpness(lines: List<IntArray>, size: Int): Int {
    val step = maxOf(1, size / DETAIL)
    var near = 0L
    var far = 0L
    for (line in lines) {
        for (i in 0 until size - 2 * step) {
            near += Math.abs(line[i + step] - line[i])
            far += Math.abs(line[i + 2 * step] - line[i])
        }
    }
    return if (far == 0L) 0 else (1000 * near / far).toInt()
}
