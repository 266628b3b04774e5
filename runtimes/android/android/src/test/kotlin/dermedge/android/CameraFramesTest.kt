package dermedge.android

import android.graphics.ImageFormat
import android.graphics.PixelFormat
import android.media.Image
import dermedge.UsageError
import java.nio.ByteBuffer
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

@RunWith(RobolectricTestRunner::class)
class CameraFramesTest {
    private class Plane(
        private val samples: ByteBuffer,
        private val perRow: Int,
        private val perSample: Int,
    ) : Image.Plane() {
        override fun getRowStride(): Int = perRow

        override fun getPixelStride(): Int = perSample

        override fun getBuffer(): ByteBuffer = samples
    }

    private class Frame(private val kind: Int, private val parts: Array<Image.Plane>) : Image() {
        override fun getFormat(): Int = kind

        override fun getWidth(): Int = 4

        override fun getHeight(): Int = 2

        override fun getTimestamp(): Long = 0

        override fun getTransform(): Int = 0

        override fun getScalingMode(): Int = 0

        override fun getPlanes(): Array<Image.Plane> = parts

        override fun close() = Unit
    }

    /** Two blocks of 2 x 2 pixels with a chroma each; U and V alternate in one buffer. */
    private fun frame(kind: Int = ImageFormat.YUV_420_888): Image {
        val luma = ByteBuffer.wrap(bytes(99, 50, 60, 70, 80, 98, 90, 100, 110, 120, 97)).also { it.position(1) }
        val chroma = bytes(128, 128, 90, 240)
        val planes = arrayOf<Image.Plane>(
            Plane(luma, 5, 1),
            Plane(ByteBuffer.wrap(chroma), 4, 2),
            Plane(ByteBuffer.wrap(chroma).also { it.position(1) }, 4, 2),
        )
        return Frame(kind, planes)
    }

    @Test
    fun `strides are applied, and grey stays grey`() {
        val image = frame().toRgbImage()
        assertEquals(4 to 2, image.width to image.height)
        assertContentEquals(bytes(50, 50, 50, 60, 60, 60), image.pixels.copyOf(6))
        assertContentEquals(bytes(90, 90, 90, 100, 100, 100), image.pixels.copyOfRange(12, 18))
    }

    @Test
    fun `colours follow BT_601 in full range`() {
        // Y 70, U 90, V 240: R = 70 + 1.402 * 112, G = 70 + 0.344136 * 38 - 0.714136 * 112.
        assertContentEquals(bytes(227, 3, 3), frame().toRgbImage().pixels.copyOfRange(6, 9))
    }

    @Test
    fun `a turned frame is upright`() {
        val turned = frame().toRgbImage(90)
        assertEquals(2 to 4, turned.width to turned.height)
        // Clockwise: the stored first column, from bottom to top, is the first row.
        assertContentEquals(bytes(90, 90, 90, 50, 50, 50), turned.pixels.copyOf(6))
    }

    @Test
    fun `another format or rotation is refused`() {
        val format = assertFailsWith<UsageError> { frame(PixelFormat.RGBA_8888).toRgbImage() }
        assertContains(format.message!!, "YUV_420_888")
        assertContains(assertFailsWith<UsageError> { frame().toRgbImage(45) }.message!!, "45")
    }
}
