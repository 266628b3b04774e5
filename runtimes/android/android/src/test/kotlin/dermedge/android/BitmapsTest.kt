package dermedge.android

import android.graphics.Bitmap
import android.graphics.ColorSpace
import dermedge.ImageError
import dermedge.Rgb
import dermedge.RgbImage
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

@RunWith(RobolectricTestRunner::class)
class BitmapsTest {
    @Test
    fun `an opaque bitmap keeps its samples, row by row`() {
        val bitmap = Bitmap.createBitmap(3, 2, Bitmap.Config.ARGB_8888)
        bitmap.setPixel(1, 0, 0xFF102030.toInt())
        bitmap.setPixel(2, 1, 0xFFFE0102.toInt())
        bitmap.setHasAlpha(false)
        val image = bitmap.toRgbImage()
        assertEquals(3 to 2, image.width to image.height)
        assertContentEquals(bytes(0, 0, 0, 0x10, 0x20, 0x30, 0, 0, 0), image.pixels.copyOf(9))
        assertContentEquals(bytes(0xFE, 1, 2), image.pixels.copyOfRange(15, 18))
    }

    @Test
    fun `transparent pixels are composed on the background`() {
        val background = Rgb(200, 100, 7)
        for (alpha in listOf(0, 1, 2, 64, 127, 128, 200, 254, 255)) {
            for (premultiplied in listOf(false, true)) {
                val bitmap = Bitmap.createBitmap(1, 1, Bitmap.Config.ARGB_8888)
                bitmap.isPremultiplied = premultiplied
                bitmap.setPixel(0, 0, (alpha shl 24) or 0x00F04010)
                val exact = RgbImage.fromArgb(
                    1,
                    1,
                    intArrayOf((alpha shl 24) or 0x00F04010),
                    background,
                )
                val actual = bitmap.toRgbImage(background)
                // Premultiplied samples were rounded once when they were stored.
                val within = if (premultiplied) 1 else 0
                for (index in 0 until 3) {
                    val difference = abs(
                        (actual.pixels[index].toInt() and 0xFF) -
                            (exact.pixels[index].toInt() and 0xFF),
                    )
                    assertTrue(difference <= within, "alpha $alpha, $premultiplied: off by $difference")
                }
            }
        }
    }

    @Test
    fun `no colour profile is applied`() {
        val wide = Bitmap.createBitmap(
            1,
            1,
            Bitmap.Config.ARGB_8888,
            true,
            ColorSpace.get(ColorSpace.Named.DISPLAY_P3),
        )
        // Red and blue are equal, because their order in memory is not the same everywhere.
        wide.copyPixelsFromBuffer(ByteBuffer.wrap(bytes(250, 20, 250, 255)))
        assertContentEquals(bytes(250, 20, 250), wide.toRgbImage().pixels)
    }

    @Test
    fun `bitmaps of other configurations are copied`() {
        val small = Bitmap.createBitmap(2, 1, Bitmap.Config.RGB_565)
        small.eraseColor(0xFFFF0000.toInt())
        assertContentEquals(bytes(255, 0, 0, 255, 0, 0), small.toRgbImage().pixels)
        val wide = Bitmap.createBitmap(1, 1, Bitmap.Config.RGBA_F16)
        wide.eraseColor(0xFF804020.toInt())
        assertContentEquals(bytes(0x80, 0x40, 0x20), wide.toRgbImage().pixels)
    }

    @Test
    fun `a recycled bitmap is refused`() {
        val bitmap = Bitmap.createBitmap(16, 16, Bitmap.Config.ARGB_8888)
        bitmap.recycle()
        assertContains(assertFailsWith<ImageError> { bitmap.toRgbImage() }.message!!, "recycled")
    }
}

internal fun bytes(vararg values: Int): ByteArray = ByteArray(values.size) { values[it].toByte() }
