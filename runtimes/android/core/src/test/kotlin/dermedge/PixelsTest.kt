package dermedge

import java.io.File
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

private fun plane(vararg samples: Int, rowStride: Int): YuvPlane {
    val bytes = ByteArray(samples.size) { samples[it].toByte() }
    return YuvPlane(ByteBuffer.wrap(bytes), rowStride, pixelStride = 1)
}

private fun RgbImage.at(x: Int, y: Int) =
    List(3) { pixels[3 * (y * width + x) + it].toInt() and 0xFF }

/** Frames of cameras, transparency, and names of files. */
class PixelsTest {
    @Test
    fun `YUV has the colours of JFIF`() {
        // Y, Cb, Cr of white, black, red, green, blue and a skin tone by ITU-T T.871.
        val known = mapOf(
            listOf(255, 128, 128) to listOf(255, 255, 255),
            listOf(0, 128, 128) to listOf(0, 0, 0),
            listOf(76, 85, 255) to listOf(254, 0, 0),
            listOf(150, 44, 21) to listOf(0, 255, 1),
            listOf(29, 255, 107) to listOf(0, 0, 254),
            listOf(180, 112, 148) to listOf(208, 171, 152),
        )
        for ((yuv, rgb) in known) {
            val (y, u, v) = yuv.map { plane(it, it, it, it, rowStride = 2) }
            val found = yuvToRgb(2, 2, y, u, v).at(1, 1)
            assertTrue(found.zip(rgb).all { (a, b) -> abs(a - b) <= 1 }, "$yuv is $found, not $rgb")
        }
    }

    @Test
    fun `YUV planes may have strides and offsets`() {
        // Samples of U and V alternate in one buffer, as in NV21; rows are padded.
        val y = plane(10, 20, 30, 0, 40, 50, 60, 0, 70, 80, 90, rowStride = 4)
        val both = ByteArray(12) { 128.toByte() }
        val u = YuvPlane(ByteBuffer.wrap(both).position(1) as ByteBuffer, 6, 2)
        val v = YuvPlane(ByteBuffer.wrap(both), 6, 2)
        val image = yuvToRgb(3, 3, y, u, v)
        assertEquals(listOf(60, 60, 60), image.at(2, 1))
        assertEquals(1, u.buffer.position())
        val turned = yuvToRgb(3, 3, y, u, v, rotation = 90)
        assertEquals(listOf(70, 70, 70), turned.at(0, 0))
        assertEquals(listOf(10, 10, 10), turned.at(2, 0))
        assertEquals(listOf(30, 30, 30), yuvToRgb(3, 3, y, u, v, rotation = 270).at(0, 0))
        assertEquals(listOf(90, 90, 90), yuvToRgb(3, 3, y, u, v, rotation = 180).at(0, 0))
    }

    @Test
    fun `a wrong frame is refused`() {
        val small = plane(1, 2, 3, rowStride = 2)
        val error = assertFailsWith<UsageError> { yuvToRgb(2, 2, small, small, small) }
        assertTrue("Plane Y" in error.message.orEmpty())
        val y = plane(1, 2, 3, 4, rowStride = 2)
        assertFailsWith<UsageError> { yuvToRgb(2, 2, y, y, y, rotation = 45) }
        assertFailsWith<ImageError> { RgbImage(2, 2, ByteArray(11)) }
    }

    @Test
    fun `colours of a bitmap are composed on the background`() {
        val colours = intArrayOf(0xFF102030.toInt(), 0x00FFFFFF, 0x80FF0000.toInt())
        val image = RgbImage.fromArgb(3, 1, colours, Rgb(0, 100, 200))
        assertContentEquals(
            byteArrayOf(16, 32, 48, 0, 100, 200.toByte(), 128.toByte(), 50, 100),
            image.pixels,
        )
    }

    @Test
    fun `system files are those of the Python runtime`() {
        val python = generateSequence(File("").absoluteFile) { it.parentFile }
            .map { File(it, "runtimes/python/dermedge_runtime/system_files.py") }
            .first { it.exists() }.readText()
        fun names(from: String, to: String) = Regex("\"([^\"\n]+)\"")
            .findAll(python.substringAfter(from).substringBefore(to))
            .map { it.groupValues[1].replace("\\r", "\r") }.toList()
        val known = names("_SYSTEM_NAMES = frozenset(", ")\n")
        val prefixes = names("_SYSTEM_PREFIXES = (", ")\n")
        assertTrue(known.size > 30 && prefixes.size > 5)
        assertTrue((known + prefixes.map { it + "x" }).all(::isSystemFile))
        assertTrue(names("_UNFINISHED_SUFFIXES = (", ")\n").all { isUnfinished("a$it") })
        assertTrue(listOf("1.jpg", ".1.jpg", "tmp").none { isSystemFile(it) || isUnfinished(it) })
    }
}
