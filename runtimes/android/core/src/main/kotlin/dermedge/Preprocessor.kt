package dermedge

private const val PRECISION = 22
private const val HALF = 1 shl PRECISION - 1
private const val KEPT = 8

/**
 * Resizes images to a network's input, bit for bit as every other runtime.
 *
 * The arithmetic is that of `runtimes/README.md`. Several threads may use one preprocessor.
 */
internal class Preprocessor(private val spec: Preprocess) {
    private val taps = HashMap<Int, Taps>()

    /** Convert RGB to uint8 [S, S, 3]. */
    fun prepare(image: RgbImage): ByteArray {
        val size = spec.size
        val canvas = Canvas(image, spec)
        val across = tapsFor(canvas.width)
        val down = tapsFor(canvas.height)
        val result = ByteArray(size * size * 3)
        // Rows of the first pass, of which the second needs only the last few at a time.
        val rows = Array(down.longest) { IntArray(size * 3) }
        val sum = IntArray(size * 3)
        var ready = 0
        for (i in 0 until size) {
            val first = down.first[i]
            val last = first + down.count[i]
            for (row in maxOf(ready, first) until last) {
                canvas.resizeRow(row, across, rows[row % rows.size])
            }
            ready = maxOf(ready, last)
            sum.fill(HALF)
            for (tap in 0 until down.count[i]) {
                val weight = down.weights[i * down.longest + tap]
                addScaled(rows[(first + tap) % rows.size], weight, sum)
            }
            val start = i * size * 3
            for (x in sum.indices) result[start + x] = minOf(sum[x] shr PRECISION, 255).toByte()
        }
        return result
    }

    /** The weights from a length to S; frames of a camera have one length again and again. */
    private fun tapsFor(length: Int): Taps = synchronized(taps) {
        if (length !in taps && taps.size == KEPT) taps.clear()
        taps.getOrPut(length) { Taps(length, spec.size) }
    }
}

private fun addScaled(row: IntArray, weight: Int, sum: IntArray) {
    for (x in sum.indices) sum[x] += row[x] * weight
}

/** First sample, number of samples and weights (22-bit fixed point) of each output sample. */
private class Taps(length: Int, size: Int) {
    val first = IntArray(size)
    val count = IntArray(size)
    val longest: Int
    val weights: IntArray

    init {
        val scale = length.toDouble() / size
        val reach = maxOf(scale, 1.0)
        for (i in 0 until size) {
            val centre = (i + 0.5) * scale
            first[i] = maxOf((centre - reach + 0.5).toInt(), 0)
            count[i] = minOf((centre + reach + 0.5).toInt(), length) - first[i]
        }
        longest = count.max()
        weights = IntArray(size * longest)
        for (i in 0 until size) {
            val centre = (i + 0.5) * scale
            val real = DoubleArray(count[i]) {
                maxOf(0.0, 1 - Math.abs((it + first[i] - centre + 0.5) * (1 / reach)))
            }
            val total = real.sum()
            for (tap in real.indices) {
                weights[i * longest + tap] = (0.5 + real[tap] / total * (1 shl PRECISION)).toInt()
            }
        }
    }
}

/** The rectangle that is resized: the image, its middle square, or a square around it. */
private class Canvas(private val image: RgbImage, spec: Preprocess) {
    val width: Int
    val height: Int
    private val left: Int
    private val top: Int
    private val colour =
        spec.background.run { byteArrayOf(red.toByte(), green.toByte(), blue.toByte()) }
    private val padded: ByteArray?

    init {
        val side = if (spec.fit == Fit.PAD) {
            maxOf(image.width, image.height)
        } else {
            minOf(image.width, image.height)
        }
        val stretch = spec.fit == Fit.STRETCH
        width = if (stretch) image.width else side
        height = if (stretch) image.height else side
        left = offset(width, image.width)
        top = offset(height, image.height)
        padded = if (spec.fit == Fit.PAD) ByteArray(3 * width) { colour[it % 3] } else null
    }

    /** Where the image starts on the canvas; a margin of half a pixel rounds down. */
    private fun offset(canvas: Int, length: Int): Int =
        if (canvas >= length) (canvas - length) / 2 else -((length - canvas) / 2)

    /** Resize one row of the canvas to the width of the network. */
    fun resizeRow(row: Int, taps: Taps, target: IntArray) {
        val y = row - top
        if (padded == null) {
            resize(image.pixels, 3 * (y * image.width - left), taps, target)
            return
        }
        if (y !in 0 until image.height) {
            // The weights of a sample sum to 1, so a row of one colour keeps it.
            for (i in target.indices) target[i] = colour[i % 3].toInt() and 0xFF
            return
        }
        System.arraycopy(image.pixels, 3 * y * image.width, padded, 3 * left, 3 * image.width)
        resize(padded, 0, taps, target)
    }
}

private fun resize(source: ByteArray, start: Int, taps: Taps, target: IntArray) {
    for (i in taps.first.indices) {
        var at = start + 3 * taps.first[i]
        var red = HALF
        var green = HALF
        var blue = HALF
        val weights = i * taps.longest
        for (tap in weights until weights + taps.count[i]) {
            val weight = taps.weights[tap]
            red += (source[at].toInt() and 0xFF) * weight
            green += (source[at + 1].toInt() and 0xFF) * weight
            blue += (source[at + 2].toInt() and 0xFF) * weight
            at += 3
        }
        target[3 * i] = minOf(red shr PRECISION, 255)
        target[3 * i + 1] = minOf(green shr PRECISION, 255)
        target[3 * i + 2] = minOf(blue shr PRECISION, 255)
    }
}

/**
 * The largest divisor (8, 4, 2 or 1) of the size at which a JPEG is decoded.
 *
 * The decoded short side stays at least twice S, and the crop covers the same pixels.
 */
internal fun reducedScale(width: Int, height: Int, spec: Preprocess): Int {
    val offset = if (spec.fit == Fit.STRETCH) 0 else Math.abs(width - height) / 2
    return listOf(8, 4, 2).firstOrNull {
        width % it == 0 && height % it == 0 && offset % it == 0 &&
            minOf(width, height) / it >= 2 * spec.size
    } ?: 1
}
