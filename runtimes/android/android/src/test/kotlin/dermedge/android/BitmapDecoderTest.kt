package dermedge.android

import android.graphics.Bitmap
import android.graphics.ColorSpace
import dermedge.ImageError
import dermedge.Model
import dermedge.Rgb
import dermedge.Size
import embedded.EmbeddedToy
import java.io.ByteArrayOutputStream
import java.io.File
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.json.JSONObject
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

/** Android's own decoders, which Robolectric runs here, against the conformance folder. */
@RunWith(RobolectricTestRunner::class)
class BitmapDecoderTest {
    private val white = Rgb(255, 255, 255)
    private val folder = File("../../../tests/conformance")
    private val model: Model = EmbeddedToy.open(appWithAssets())
    private val cases = JSONObject(File(folder, "images.json").readText()).getJSONArray("cases")
        .let { list -> (0 until list.length()).map(list::getJSONObject) }

    @AfterTest
    fun close() = model.close()

    @Test
    fun `lossy photographs decode as on other platforms, upright and within a few levels`() {
        // Android converts CMYK by a formula of its own.
        val lossy = cases.filter { it.optBoolean("lossy") && it.getString("name") != "cmyk-jpg" }
        assertTrue(lossy.size > 10)
        for (case in lossy) {
            val name = case.getString("name")
            val actual = model.preprocess(read(case, "image"), exact = true)
            val expected = model.preprocess(read(case, "decoded"), exact = true)
            val difference = expected.indices.maxOf {
                abs((actual[it].toInt() and 0xFF) - (expected[it].toInt() and 0xFF))
            }
            assertTrue(difference <= 4, "$name: off by $difference")
        }
    }

    @Test
    fun `damaged files are refused with the messages of every runtime`() {
        // The core decodes PNG, on every machine alike.
        val refused = cases.filter {
            it.optString("error") == "ImageError" && !it.getString("image").endsWith(".png")
        }
        assertTrue(refused.size >= 5)
        for (case in refused) {
            val error = assertFailsWith<ImageError>(case.getString("name")) {
                model.preprocess(read(case, "image"))
            }
            val mentions = case.optJSONArray("mentions")
            for (index in 0 until (mentions?.length() ?: 0)) {
                assertContains(error.message!!, mentions!!.getString(index))
            }
        }
    }

    @Test
    fun `no colour profile is applied`() {
        val wide = Bitmap.createBitmap(
            16,
            16,
            Bitmap.Config.ARGB_8888,
            false,
            ColorSpace.get(ColorSpace.Named.DISPLAY_P3),
        )
        wide.copyPixelsFromBuffer(ByteBuffer.wrap(ByteArray(1024) { bytes(250, 20, 250, 255)[it % 4] }))
        val stream = ByteArrayOutputStream()
        wide.compress(Bitmap.CompressFormat.WEBP_LOSSLESS, 100, stream)
        val pixels = BitmapDecoder.decode(stream.toByteArray(), 1, white).pixels
        assertContentEquals(bytes(250, 20, 250), pixels.copyOf(3))
    }

    @Test
    fun `transparent pixels are composed on the background`() {
        val stream = ByteArrayOutputStream()
        Bitmap.createBitmap(16, 16, Bitmap.Config.ARGB_8888)
            .apply { eraseColor(0x80FF0000.toInt()) }
            .compress(Bitmap.CompressFormat.WEBP_LOSSLESS, 100, stream)
        val pixels = BitmapDecoder.decode(stream.toByteArray(), 1, Rgb(0, 0, 255)).pixels
        assertContentEquals(bytes(128, 0, 127), pixels.copyOf(3))
    }

    @Test
    fun `a large photograph is reduced by the decoder`() {
        val photograph = ByteArrayOutputStream().also { stream ->
            Bitmap.createBitmap(640, 480, Bitmap.Config.ARGB_8888)
                .apply { eraseColor(0xFF805030.toInt()) }
                .compress(Bitmap.CompressFormat.JPEG, 95, stream)
        }.toByteArray()
        assertEquals(Size(640, 480), BitmapDecoder.size(photograph))
        for (scale in listOf(1, 2, 4, 8)) {
            val image = BitmapDecoder.decode(photograph, scale, white)
            assertEquals(640 / scale to 480 / scale, image.width to image.height)
        }
    }

    @Test
    fun `a truncated WEBP is refused`() {
        val stream = ByteArrayOutputStream()
        Bitmap.createBitmap(64, 64, Bitmap.Config.ARGB_8888)
            .compress(Bitmap.CompressFormat.WEBP_LOSSLESS, 100, stream)
        val whole = stream.toByteArray()
        model.predict(whole)
        val error = assertFailsWith<ImageError> { model.predict(whole.copyOf(whole.size - 2)) }
        assertContains(error.message!!, "truncated or damaged")
    }

    private fun read(case: JSONObject, key: String) = File(folder, case.getString(key)).readBytes()
}
