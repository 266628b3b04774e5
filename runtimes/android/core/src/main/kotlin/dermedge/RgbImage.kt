package dermedge

import java.nio.ByteBuffer

internal const val MIN_SIDE: Int = 16
internal const val MAX_PIXELS: Long = 1024L * 1024 * 1024 / 4 / 3
internal const val MAX_JPEG_PIXELS: Long = 1L shl 27

/**
 * An upright opaque image: RGB, one byte per sample, row by row.
 *
 * The image keeps [pixels] and does not copy them.
 *
 * @throws ImageError [pixels] has not 3 x [width] x [height] bytes.
 */
public class RgbImage(public val width: Int, public val height: Int, public val pixels: ByteArray) {
    init {
        if (width < 1 || height < 1 || pixels.size.toLong() != 3L * width * height) {
            throw ImageError(
                "An image of $width x $height pixels has ${pixels.size} bytes. " +
                    "Pass 3 bytes per pixel.",
            )
        }
    }

    /** Turn the image as an EXIF orientation (1 to 8) says. */
    internal fun upright(orientation: Int): RgbImage {
        if (orientation !in 2..8) return this
        // Where the next column and the next row of the upright image are in the stored one.
        val (right, down) = when (orientation) {
            2 -> -1 to width
            3 -> -1 to -width
            4 -> 1 to -width
            5 -> width to 1
            6 -> -width to 1
            7 -> -width to -1
            else -> width to -1
        }
        val (columns, rows) = if (orientation > 4) height to width else width to height
        var start = 0
        if (right < 0) start -= right * (columns - 1)
        if (down < 0) start -= down * (rows - 1)
        val turned = ByteArray(pixels.size)
        var to = 0
        for (row in 0 until rows) {
            var from = 3 * (start + row * down)
            repeat(columns) {
                turned[to] = pixels[from]
                turned[to + 1] = pixels[from + 1]
                turned[to + 2] = pixels[from + 2]
                to += 3
                from += 3 * right
            }
        }
        return RgbImage(columns, rows, turned)
    }

    public companion object {
        /**
         * Make an image of colours as Android's `Bitmap.getPixels` gives them.
         *
         * @param colours 0xAARRGGBB, not premultiplied, row by row.
         * @param background Colour behind transparent pixels.
         */
        @JvmStatic
        public fun fromArgb(width: Int, height: Int, colours: IntArray, background: Rgb): RgbImage {
            val pixels = ByteArray(3 * colours.size)
            writeArgb(colours, colours.size, background, pixels, 0)
            return RgbImage(width, height, pixels)
        }

        /**
         * Write colours as RGB bytes, for decoders that read a picture in bands of rows.
         *
         * @param colours 0xAARRGGBB, not premultiplied.
         * @param count Number of colours to write.
         * @param background Colour behind transparent pixels.
         * @param pixels Where to write.
         * @param start Offset of the first byte in [pixels].
         */
        @JvmStatic
        public fun writeArgb(
            colours: IntArray,
            count: Int,
            background: Rgb,
            pixels: ByteArray,
            start: Int,
        ) {
            var to = start
            for (index in 0 until count) {
                val colour = colours[index]
                val alpha = colour ushr 24
                pixels[to++] = blend(colour shr 16 and 0xFF, background.red, alpha)
                pixels[to++] = blend(colour shr 8 and 0xFF, background.green, alpha)
                pixels[to++] = blend(colour and 0xFF, background.blue, alpha)
            }
        }
    }
}

/** Compose a sample on a background, rounded as the reference does. */
internal fun blend(sample: Int, behind: Int, alpha: Int): Byte {
    if (alpha == 255) return sample.toByte()
    val sum = sample * alpha + behind * (255 - alpha) + 128
    return (sum + (sum shr 8) shr 8).toByte()
}

/**
 * One plane of a YUV_420_888 image.
 *
 * @property buffer Samples from the plane's first one on; its position is not changed.
 * @property rowStride Bytes from one row to the next.
 * @property pixelStride Bytes from one sample to the next.
 */
public class YuvPlane(
    public val buffer: ByteBuffer,
    public val rowStride: Int,
    public val pixelStride: Int,
)

/**
 * Convert a camera frame from YUV_420_888 (BT.601, full range) to upright RGB.
 *
 * A chroma sample colours the four pixels that share it.
 *
 * @param width Width of the stored frame in pixels.
 * @param height Height of the stored frame in pixels.
 * @param rotation Degrees by which the frame must be turned clockwise: 0, 90, 180 or 270.
 * @throws UsageError The rotation is another number, or a plane is too small.
 */
public fun yuvToRgb(
    width: Int,
    height: Int,
    y: YuvPlane,
    u: YuvPlane,
    v: YuvPlane,
    rotation: Int = 0,
): RgbImage {
    val orientation = when (rotation) {
        0 -> 1
        90 -> 6
        180 -> 3
        270 -> 8
        else -> throw UsageError("A rotation of $rotation degrees. Use 0, 90, 180 or 270.")
    }
    checkPlane("Y", y, width, height)
    checkPlane("U", u, (width + 1) / 2, (height + 1) / 2)
    checkPlane("V", v, (width + 1) / 2, (height + 1) / 2)
    val pixels = ByteArray(3 * width * height)
    var to = 0
    for (row in 0 until height) {
        for (column in 0 until width) {
            val luma = y.at(column, row) shl 16
            val blue = u.at(column / 2, row / 2) - 128
            val red = v.at(column / 2, row / 2) - 128
            pixels[to++] = fixed(luma + 91881 * red) // 1.402
            pixels[to++] = fixed(luma - 22554 * blue - 46802 * red) // 0.344136, 0.714136
            pixels[to++] = fixed(luma + 116130 * blue) // 1.772
        }
    }
    return RgbImage(width, height, pixels).upright(orientation)
}

private fun YuvPlane.at(column: Int, row: Int): Int =
    buffer.get(buffer.position() + row * rowStride + column * pixelStride).toInt() and 0xFF

private fun checkPlane(name: String, plane: YuvPlane, columns: Int, rows: Int) {
    val needed = (rows - 1L) * plane.rowStride + (columns - 1L) * plane.pixelStride + 1
    if (columns < 1 || rows < 1 || plane.rowStride < 1 || plane.pixelStride < 1 ||
        plane.buffer.remaining() < needed
    ) {
        throw UsageError(
            "Plane $name has ${plane.buffer.remaining()} bytes, and $columns x $rows samples " +
                "with strides ${plane.rowStride} and ${plane.pixelStride} need $needed. " +
                "Pass the plane from its first sample on.",
        )
    }
}

/** Round a sample of 16.16 bits to a byte. */
private fun fixed(value: Int): Byte = (value + 0x8000 shr 16).coerceIn(0, 255).toByte()

/** Refuse an image that is too large for the memory, or too small to be a photograph. */
internal fun checkSize(width: Int, height: Int, limit: Long = MAX_PIXELS) {
    if (width.toLong() * height > limit) {
        throw ImageError(
            "The image has $width x $height pixels, over the limit of $limit. Pass a smaller one.",
        )
    }
    if (minOf(width, height) < MIN_SIDE) {
        throw ImageError(
            "The image has $width x $height pixels, too small to be a photograph. " +
                "Each side needs $MIN_SIDE or more.",
        )
    }
}
