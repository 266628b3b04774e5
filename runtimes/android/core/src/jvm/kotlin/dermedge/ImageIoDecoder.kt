package dermedge

import java.awt.image.BufferedImage
import java.awt.image.ComponentColorModel
import java.awt.image.DataBufferByte
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import javax.imageio.ImageIO
import javax.imageio.ImageReader
import javax.imageio.stream.MemoryCacheImageInputStream

private const val START_OF_SCAN = 0xDA
private const val PROFILE = 0xE2

/**
 * The decoder of a desktop's JVM, for JPEG, GIF and BMP.
 *
 * It is not part of the core, because Android has no javax.imageio. The tests and the command
 * line compile it.
 */
public object ImageIoDecoder : ImageDecoder {
    override fun size(data: ByteArray): Size =
        withReader(data) { Size(it.getWidth(0), it.getHeight(0)) }

    override fun decode(data: ByteArray, scale: Int, background: Rgb): RgbImage {
        val image = withReader(withoutProfile(data)) { it.read(0) }
        val full = toRgb(image, background)
        return if (scale == 1) full else reduce(full, scale)
    }

    private fun <T> withReader(data: ByteArray, read: (ImageReader) -> T): T =
        MemoryCacheImageInputStream(ByteArrayInputStream(data)).use { stream ->
            val reader = ImageIO.getImageReaders(stream).asSequence().firstOrNull()
                ?: throw ImageError("This JVM cannot decode the image. Convert it to JPEG or PNG.")
            try {
                reader.setInput(stream)
                read(reader)
            } finally {
                reader.dispose()
            }
        }

    private fun toRgb(image: BufferedImage, background: Rgb): RgbImage {
        val (width, height) = image.width to image.height
        val bands = image.raster.numBands
        if (image.colorModel !is ComponentColorModel || bands != 1 && bands != 3) {
            val colours = image.getRGB(0, 0, width, height, null, 0, width)
            return RgbImage.fromArgb(width, height, colours, background)
        }
        val pixels = ByteArray(3 * width * height)
        val samples = (image.raster.dataBuffer as? DataBufferByte)?.data
        if (image.type == BufferedImage.TYPE_3BYTE_BGR && samples?.size == pixels.size) {
            for (at in pixels.indices step 3) {
                pixels[at] = samples[at + 2]
                pixels[at + 1] = samples[at + 1]
                pixels[at + 2] = samples[at]
            }
            return RgbImage(width, height, pixels)
        }
        val row = IntArray(bands * width)
        for (y in 0 until height) {
            image.raster.getPixels(0, y, width, 1, row)
            for (i in 0 until 3 * width) {
                pixels[3 * width * y + i] = row[if (bands == 1) i / 3 else i].toByte()
            }
        }
        return RgbImage(width, height, pixels)
    }

    /** The file without its colour profile, by which ImageIO would convert the samples. */
    private fun withoutProfile(data: ByteArray): ByteArray {
        fun byte(at: Int) = data.getOrElse(at) { 0 }.toInt() and 0xFF
        if (byte(0) != 0xFF || byte(1) != 0xD8) return data
        val kept = ByteArrayOutputStream(data.size)
        kept.write(data, 0, 2)
        var at = 2
        while (byte(at) == 0xFF && byte(at + 1) != START_OF_SCAN && at + 4 <= data.size) {
            val length = minOf(2 + (byte(at + 2) shl 8) + byte(at + 3), data.size - at)
            if (byte(at + 1) != PROFILE) kept.write(data, at, length)
            at += length
        }
        kept.write(data, at, data.size - at)
        return kept.toByteArray()
    }

    /** Average squares of pixels; ImageIO cannot decode a part of the frequencies. */
    private fun reduce(image: RgbImage, scale: Int): RgbImage {
        val width = (image.width + scale - 1) / scale
        val height = (image.height + scale - 1) / scale
        val pixels = ByteArray(3 * width * height)
        for (at in pixels.indices) {
            val left = at / 3 % width * scale
            val top = at / 3 / width * scale
            var sum = 0
            var count = 0
            for (y in top until minOf(top + scale, image.height)) {
                for (x in left until minOf(left + scale, image.width)) {
                    sum += image.pixels[3 * (y * image.width + x) + at % 3].toInt() and 0xFF
                    count++
                }
            }
            pixels[at] = ((sum + count / 2) / count).toByte()
        }
        return RgbImage(width, height, pixels)
    }
}
