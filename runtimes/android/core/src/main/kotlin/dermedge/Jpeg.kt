package dermedge

import java.util.Random

private const val START = 0xD8
private const val END = 0xD9
private const val SCAN = 0xDA
private const val INTERVAL = 0xDD
private const val COEFFICIENTS = 64
private val FRAMES = (0xC0..0xCF).toSet() - setOf(0xC4, 0xC8, 0xCC)
private val PROGRESSIVE = setOf(0xC2, 0xCA)
private val GREY = 127..129
private const val LOST_BLOCK = 512
private const val NOISE = 4096

/** A segment of a JPEG: its marker, and where its content starts and ends. */
internal class Segment(val marker: Int, val start: Int, val end: Int)

/** The segments up to the end of the picture. */
internal fun jpegSegments(data: ByteArray): Sequence<Segment> = sequence {
    var at = 2
    while (true) {
        val found = nextMarker(data, at) ?: return@sequence
        val marker = data.big(found + 1, 1)
        at = found + 2
        if (marker == END) return@sequence
        if (marker == 0x01 || marker == START) continue
        val end = at + data.big(at, 2)
        yield(Segment(marker, at + 2, end))
        at = maxOf(end, at + 2)
    }
}

/**
 * Check that a JPEG holds all of its picture.
 *
 * A decoder fills missing blocks with grey and reports no error. So an upload that broke off
 * decodes as a whole picture. This is `python/dermedge_runtime/jpeg.py` in Kotlin.
 *
 * @param picture The decoded picture as it is stored, at any scale.
 * @return A sentence for each sign of damage that is not certain.
 * @throws IllegalArgumentException Part of the picture is missing.
 */
internal fun checkJpeg(data: ByteArray, picture: RgbImage, decoder: ImageDecoder): List<String> {
    val segments = jpegSegments(data).iterator()
    val jpeg = readHeader(data, segments) ?: return emptyList()
    require(jpeg.hasAllScans(segments)) { "scans are missing" }
    require(hasEnd(data, jpeg.start)) { "the end marker is missing" }
    val end = nextMarker(data, jpeg.start) ?: data.size
    require(jpeg.hasAllRestarts(end)) { "restart markers are missing" }
    require(!endsInGrey(picture) || !wasFilledIn(jpeg, end, decoder)) { "rows are missing" }
    if (findLostBlock(data, jpeg.start, end)) {
        return listOf(
            "The JPEG's data holds a block of zeros, and part of the picture may be wrong.",
        )
    }
    return emptyList()
}

/** The part of a JPEG's headers that tells how much compressed data must follow. */
private class Jpeg(
    val data: ByteArray,
    val frame: Segment,
    val interval: Int,
    val scan: Segment,
) {
    val start: Int get() = scan.end

    /** Sampling factors across and down by component. */
    val sampling: Map<Int, Pair<Int, Int>> =
        (frame.start + 6 until frame.end - 2 step 3).associate {
            val factors = data.big(it + 1, 1)
            data.big(it, 1) to (maxOf(factors shr 4, 1) to maxOf(factors and 15, 1))
        }

    /** Whether the scans hold every coefficient in full precision. */
    fun hasAllScans(rest: Iterator<Segment>): Boolean {
        val progressive = frame.marker in PROGRESSIVE
        if (!progressive && data.big(scan.start, 1) == sampling.size) return true
        val missing = HashSet<Pair<Int, Int>>()
        for (one in sampling.keys) for (k in 0 until COEFFICIENTS) missing += one to k
        var current: Segment? = scan
        while (current != null) {
            val count = data.big(current.start, 1)
            val tail = current.start + 1 + 2 * count
            val first = if (progressive) data.big(tail, 1) else 0
            val last = if (progressive) data.big(tail + 1, 1) else COEFFICIENTS - 1
            if (!progressive || data.big(tail + 2, 1) and 15 == 0) {
                for (index in 0 until count) {
                    val one = data.big(current.start + 1 + 2 * index, 1)
                    for (k in first..last) missing -= one to k
                }
            }
            if (missing.isEmpty()) return true
            current = rest.asSequence().firstOrNull { it.marker == SCAN }
        }
        return false
    }

    /** Whether the first scan, if it holds all components, has every restart marker. */
    fun hasAllRestarts(end: Int): Boolean {
        if (interval == 0 || data.big(scan.start, 1) != sampling.size) return true
        val expected = restarts()
        var found = 0
        var at = start
        while (at + 1 < end && found < expected) {
            val marker = data.big(at + 1, 1)
            if (data.big(at, 1) == 0xFF && marker in 0xD0..0xD7) {
                if (marker != 0xD0 + found % 8) return false
                found++
                at++
            }
            at++
        }
        return found == expected
    }

    private fun restarts(): Int {
        val single = sampling.size == 1
        val across = if (single) 1 else sampling.values.maxOf { it.first }
        val down = if (single) 1 else sampling.values.maxOf { it.second }
        val height = data.big(frame.start + 1, 2)
        val width = data.big(frame.start + 3, 2)
        return (width.ceilDiv(8 * across) * height.ceilDiv(8 * down) - 1) / interval
    }
}

/** Read the segments up to the first scan; null if they are not in order. */
private fun readHeader(data: ByteArray, segments: Iterator<Segment>): Jpeg? {
    var frame: Segment? = null
    var interval = 0
    for (segment in segments) {
        when (segment.marker) {
            in FRAMES -> frame = segment
            INTERVAL -> interval = data.big(segment.start, 2)
            SCAN -> return frame?.let { Jpeg(data, it, interval, segment) }
                ?.takeIf { it.sampling.isNotEmpty() }
        }
    }
    return null
}

/** The place of the next marker that is neither a stuffed byte nor a restart. */
private fun nextMarker(data: ByteArray, start: Int): Int? {
    for (at in start until data.size - 1) {
        if (data[at] != 0xFF.toByte()) continue
        val marker = data[at + 1].toInt() and 0xFF
        if (marker != 0 && marker != 0xFF && marker !in 0xD0..0xD7) return at
    }
    return null
}

private fun hasEnd(data: ByteArray, start: Int): Boolean {
    var at = nextMarker(data, start) ?: return false
    while (data.big(at + 1, 1) != END) at = nextMarker(data, at + 2) ?: return false
    return true
}

/** Whether the last pixel has the grey of a block that was never decoded. */
private fun endsInGrey(picture: RgbImage): Boolean {
    val (red, green, blue) = picture.pixels.takeLast(3).map { it.toInt() and 0xFF }
    return Math.round(0.299 * red + 0.587 * green + 0.114 * blue).toInt() in GREY
}

/**
 * Whether the picture changes when data is added to its first scan.
 *
 * A decoder that has all blocks ignores further data. A picture may end in grey.
 */
private fun wasFilledIn(jpeg: Jpeg, end: Int, decoder: ImageDecoder): Boolean {
    val random = ByteArray(NOISE).also { Random(0).nextBytes(it) }
    for (i in random.indices) if (random[i] == 0xFF.toByte()) random[i] = 0
    var noise = random
    var stop = end
    if (jpeg.interval > 0) {
        // The decoder may wait for any of the eight restart markers.
        val piece = random.copyOf(512)
        noise = (0 until 16).fold(ByteArray(0)) { sum, i ->
            sum + piece + byteArrayOf(0xFF.toByte(), (0xD0 + i % 8).toByte())
        }
    } else {
        // Without an interval, the decoder stops at a restart marker too.
        val stray = (jpeg.start until end - 1).firstOrNull {
            jpeg.data[it] == 0xFF.toByte() && jpeg.data.big(it + 1, 1) in 0xD0..0xD7
        }
        stop = stray ?: end
    }
    val closed = byteArrayOf(0xFF.toByte(), END.toByte())
    val head = jpeg.data.copyOf(stop)
    val black = Rgb(0, 0, 0)
    val plain = decoder.decode(head + closed, 8, black)
    return !plain.pixels.contentEquals(decoder.decode(head + noise + closed, 8, black).pixels)
}

/** Whether compressed data holds a block of zeros, which stands for one that was lost. */
private fun findLostBlock(data: ByteArray, start: Int, end: Int): Boolean {
    var zeros = 0
    for (at in start until end) {
        zeros = if (data[at].toInt() == 0) zeros + 1 else 0
        if (zeros == LOST_BLOCK) return true
    }
    return false
}
