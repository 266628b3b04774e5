package dermedge

import java.util.zip.CRC32
import java.util.zip.Inflater

internal val PNG_MAGIC: ByteArray =
    byteArrayOf(0x89.toByte(), 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A)
private const val HEADER_LENGTH = 13
private const val GREY = 0
private const val RGB = 2
private const val PALETTE = 3
private const val GREY_ALPHA = 4
private const val RGBA = 6
private val CHANNELS = mapOf(GREY to 1, RGB to 3, PALETTE to 1, GREY_ALPHA to 2, RGBA to 4)
private val DEPTHS = mapOf(
    GREY to listOf(1, 2, 4, 8, 16),
    RGB to listOf(8, 16),
    PALETTE to listOf(1, 2, 4, 8),
    GREY_ALPHA to listOf(8, 16),
    RGBA to listOf(8, 16),
)

/** Start and step of the columns and rows of a pass. */
private class Pass(val left: Int, val across: Int, val top: Int, val down: Int)

private val WHOLE = listOf(Pass(0, 1, 0, 1))
private val INTERLACED = listOf(
    Pass(0, 8, 0, 8),
    Pass(4, 8, 0, 8),
    Pass(0, 4, 4, 8),
    Pass(2, 4, 0, 4),
    Pass(0, 2, 2, 4),
    Pass(1, 2, 0, 2),
    Pass(0, 1, 1, 2),
)

/**
 * A PNG file whose chunks are complete.
 *
 * Java has a decoder of its own and Android another one; both change 16-bit and transparent
 * samples in ways that differ. Golden images must give the same samples everywhere.
 */
internal class Png(private val data: ByteArray) {
    private class Chunk(val start: Int, val length: Int)

    private val width: Int
    private val height: Int
    private val depth: Int
    private val colour: Int
    private val interlaced: Boolean
    private val pixels = ArrayList<Chunk>()
    private var palette = ByteArray(0)
    private var transparency: ByteArray? = null

    /** The stored EXIF orientation, 1 to 8. */
    var orientation: Int = 1
        private set

    init {
        val header = data.big(8, 4) == HEADER_LENGTH && data.ascii(12, 4) == "IHDR"
        require(header) { "it has no header" }
        width = data.big(16, 4)
        height = data.big(20, 4)
        depth = data.big(24, 1)
        colour = data.big(25, 1)
        interlaced = data.big(28, 1) != 0
        readChunks()
        require(depth in DEPTHS[colour].orEmpty()) { "colour type $colour has no $depth bits" }
        require(width > 0 && height > 0) { "its size is not valid" }
        require(data.big(26, 2) == 0) { "its compression is unknown" }
        checkSize(width, height)
        refuseDeepKey()
        require(colour != PALETTE || palette.isNotEmpty()) { "its palette is missing" }
    }

    /** Read all chunks up to the end chunk, and check their checksums. */
    private fun readChunks() {
        var at = PNG_MAGIC.size
        var frames = 0
        var framed = false
        while (true) {
            val length = data.big(at, 4)
            val kind = data.ascii(at + 4, 4)
            val start = at + 8
            require(length >= 0 && start + length + 4L <= data.size) { "a chunk is cut off" }
            val checksum = CRC32().also { it.update(data, at + 4, length + 4) }.value.toInt()
            require(checksum == data.big(start + length, 4)) { "a checksum is wrong" }
            when (kind) {
                "PLTE" -> palette = data.copyOfRange(start, start + length)
                "tRNS" -> transparency = data.copyOfRange(start, start + length)
                "eXIf" -> orientation = readOrientation(data.copyOfRange(start, start + length))
                "acTL" -> frames = data.big(start, 4)
                "fcTL" -> framed = framed || pixels.isEmpty()
                "IDAT" -> pixels += Chunk(start, length)
                "IEND" -> break
            }
            at = start + length + 4
        }
        // A picture that is not itself a frame is shown where animations are unknown.
        if (frames > 0 && frames + (if (framed) 0 else 1) > 1) throw severalFrames()
    }

    private fun refuseDeepKey() {
        val key = transparency ?: return
        val deep = depth == 16 && colour == GREY ||
            colour == RGB && (0 until 3).any { key.big(2 * it, 2) > 255 }
        if (deep) {
            throw ImageError(
                "The image has 16 bits per sample and a transparent colour. " +
                    "Convert it to 8 bits per sample.",
            )
        }
    }

    /** Decode the pixels; transparent ones are composed on [background]. */
    fun decode(background: Rgb): RgbImage {
        val target = ByteArray(Math.multiplyExact(3 * width, height))
        val painter = Painter(target, background)
        val bits = depth * CHANNELS.getValue(colour)
        val rows = RowReader((bits + 7) / 8)
        rows.use {
            for (pass in if (interlaced) INTERLACED else WHOLE) {
                val columns = count(width, pass.left, pass.across)
                if (columns == 0) continue
                rows.begin((columns.toLong() * bits + 7).div(8).toInt())
                for (row in pass.top until height step pass.down) {
                    painter.paint(rows.next(), columns, pass, row)
                }
            }
        }
        return RgbImage(width, height, target)
    }

    private fun count(length: Int, start: Int, step: Int) =
        (length - start).coerceAtLeast(0).ceilDiv(step)

    /** Reads the rows of a pass: inflates them and removes their filters. */
    private inner class RowReader(private val pixelBytes: Int) : AutoCloseable {
        private val inflater = Inflater()
        private var chunk = 0
        private var filter = ByteArray(1)
        private var current = ByteArray(0)
        private var previous = ByteArray(0)

        fun begin(length: Int) {
            current = ByteArray(length)
            previous = ByteArray(length)
        }

        fun next(): ByteArray {
            val row = previous
            previous = current
            current = row
            inflate(filter)
            inflate(row)
            unfilter(filter[0].toInt(), row, previous, pixelBytes)
            return row
        }

        private fun inflate(target: ByteArray) {
            var done = 0
            while (done < target.size) {
                val count = inflater.inflate(target, done, target.size - done)
                done += count
                if (count > 0) continue
                val more = inflater.needsInput() && chunk < pixels.size
                require(more && !inflater.finished()) { "rows are missing" }
                pixels[chunk++].let { inflater.setInput(data, it.start, it.length) }
            }
        }

        override fun close() = inflater.end()
    }

    /** Converts the samples of a row to RGB and writes them to their places. */
    private inner class Painter(private val target: ByteArray, private val background: Rgb) {
        private val opaque = colour == RGB && transparency == null
        private val scale = if (colour == PALETTE || depth > 8) 1 else 255 / ((1 shl depth) - 1)
        private val stride = CHANNELS.getValue(colour)
        private val key = transparency.takeIf { colour == GREY || colour == RGB }
            ?.let { key -> IntArray(stride) { key.big(2 * it, 2) * scale } }
        private val alphas = transparency.takeIf { colour == PALETTE }

        fun paint(samples: ByteArray, columns: Int, pass: Pass, row: Int) {
            if (opaque && depth == 8 && !interlaced) {
                System.arraycopy(samples, 0, target, 3 * width * row, samples.size)
                return
            }
            var to = 3 * (width * row + pass.left)
            for (column in 0 until columns) {
                paintPixel(samples, column * stride, to)
                to += 3 * pass.across
            }
        }

        private fun paintPixel(samples: ByteArray, from: Int, to: Int) {
            val first = sample(samples, from)
            when (colour) {
                GREY -> put(to, first, first, first, if (first == key?.get(0)) 0 else 255)
                GREY_ALPHA -> put(to, first, first, first, sample(samples, from + 1))
                PALETTE -> put(
                    to,
                    palette.big(3 * first, 1),
                    palette.big(3 * first + 1, 1),
                    palette.big(3 * first + 2, 1),
                    alphas?.getOrNull(first)?.let { it.toInt() and 0xFF } ?: 255,
                )
                else -> {
                    val green = sample(samples, from + 1)
                    val blue = sample(samples, from + 2)
                    val alpha = when {
                        colour == RGBA -> sample(samples, from + 3)
                        key == null -> 255
                        first == key[0] && green == key[1] && blue == key[2] -> 0
                        else -> 255
                    }
                    put(to, first, green, blue, alpha)
                }
            }
        }

        private fun sample(samples: ByteArray, index: Int): Int = when (depth) {
            8 -> samples[index].toInt() and 0xFF
            16 -> samples[2 * index].toInt() and 0xFF
            else -> {
                val bit = index * depth
                val shift = 8 - depth - (bit and 7)
                (samples[bit shr 3].toInt() shr shift and (1 shl depth) - 1) * scale
            }
        }

        private fun put(to: Int, red: Int, green: Int, blue: Int, alpha: Int) {
            target[to] = blend(red, background.red, alpha)
            target[to + 1] = blend(green, background.green, alpha)
            target[to + 2] = blend(blue, background.blue, alpha)
        }
    }
}

/** Remove a row's filter in place. */
private fun unfilter(filter: Int, row: ByteArray, above: ByteArray, pixelBytes: Int) {
    when (filter) {
        0 -> return
        1 -> for (i in pixelBytes until row.size) row[i] = (row[i] + row[i - pixelBytes]).toByte()
        2 -> for (i in row.indices) row[i] = (row[i] + above[i]).toByte()
        3 -> {
            for (i in row.indices) {
                val left = if (i < pixelBytes) 0 else row[i - pixelBytes].toInt() and 0xFF
                row[i] = (row[i] + (left + (above[i].toInt() and 0xFF) shr 1)).toByte()
            }
        }
        4 -> {
            for (i in 0 until minOf(pixelBytes, row.size)) row[i] = (row[i] + above[i]).toByte()
            for (i in pixelBytes until row.size) {
                val left = row[i - pixelBytes].toInt() and 0xFF
                val up = above[i].toInt() and 0xFF
                val corner = above[i - pixelBytes].toInt() and 0xFF
                row[i] = (row[i] + paeth(left, up, corner)).toByte()
            }
        }
        else -> throw IllegalArgumentException("filter $filter is unknown")
    }
}

/** The neighbour that is nearest to left + up - corner. */
private fun paeth(left: Int, up: Int, corner: Int): Int {
    val toLeft = Math.abs(up - corner)
    val toUp = Math.abs(left - corner)
    val toCorner = Math.abs(left + up - 2 * corner)
    return if (toLeft <= toUp && toLeft <= toCorner) left else if (toUp <= toCorner) up else corner
}
