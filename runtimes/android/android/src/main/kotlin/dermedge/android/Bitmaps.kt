package dermedge.android

import android.graphics.Bitmap
import dermedge.ImageError
import dermedge.Model
import dermedge.Prediction
import dermedge.Rgb
import dermedge.RgbImage
import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val OPAQUE = 0xFF shl 24

/**
 * Predict a bitmap, with its transparent pixels on the model's background.
 *
 * A photograph's file gives more exact numbers: pass its bytes to [Model.predict].
 *
 * @throws ImageError The bitmap is recycled or too small.
 */
public fun Model.predict(bitmap: Bitmap): Prediction =
    predict(bitmap.toRgbImage(bundle.spec.preprocess.background))

/**
 * Convert a bitmap to opaque RGB.
 *
 * Samples are taken as they are stored. As in every runtime, no colour profile is applied.
 * Other configurations than `ARGB_8888`, such as `HARDWARE`, are copied first.
 *
 * @param background Colour behind transparent pixels; a model's is
 *   `bundle.spec.preprocess.background`.
 * @throws ImageError The bitmap is recycled, or Android cannot copy it.
 */
@JvmOverloads
public fun Bitmap.toRgbImage(background: Rgb = Rgb(255, 255, 255)): RgbImage {
    if (isRecycled) {
        throw ImageError("The bitmap was recycled. Pass one that has its pixels.")
    }
    if (config == Bitmap.Config.ARGB_8888) return readPixels(background)
    val copy = copy(Bitmap.Config.ARGB_8888, false) ?: throw ImageError(
        "A bitmap of the configuration $config cannot be copied. Pass one of ARGB_8888.",
    )
    return try {
        copy.readPixels(background)
    } finally {
        copy.recycle()
    }
}

/**
 * Whether red is the first byte of a stored pixel. It is on Android; where Robolectric runs
 * Android's code on a desktop, blue is first.
 */
private val redFirst: Boolean by lazy {
    val red = Bitmap.createBitmap(1, 1, Bitmap.Config.ARGB_8888)
    red.setPixel(0, 0, 0xFFFF0000.toInt())
    val stored = ByteBuffer.allocate(4)
    red.copyPixelsToBuffer(stored)
    stored.get(0) == 0xFF.toByte()
}

/** Read the pixels of an `ARGB_8888` bitmap as they are stored. */
private fun Bitmap.readPixels(background: Rgb): RgbImage {
    // `getPixels` would convert to sRGB, and the contract ignores colour profiles.
    val stored = ByteBuffer.allocate(rowBytes * height).order(ByteOrder.LITTLE_ENDIAN)
    copyPixelsToBuffer(stored)
    val colours = IntArray(width)
    val pixels = ByteArray(3 * width * height)
    for (row in 0 until height) {
        for (column in 0 until width) {
            val pixel = stored.getInt(row * rowBytes + 4 * column)
            val argb = if (redFirst) swapRedAndBlue(pixel) else pixel
            colours[column] = when {
                !hasAlpha() -> argb or OPAQUE
                isPremultiplied -> unpremultiply(argb)
                else -> argb
            }
        }
        RgbImage.writeArgb(colours, width, background, pixels, 3 * width * row)
    }
    return RgbImage(width, height, pixels)
}

private fun swapRedAndBlue(pixel: Int): Int =
    (pixel and 0xFF00FF00.toInt()) or (pixel and 0xFF shl 16) or (pixel shr 16 and 0xFF)

/** Divide the samples by alpha; each is within half a level of `255 * sample / alpha`. */
private fun unpremultiply(argb: Int): Int {
    val alpha = argb ushr 24
    if (alpha == 0 || alpha == 255) return argb
    var colour = alpha shl 24
    for (shift in intArrayOf(16, 8, 0)) {
        val sample = ((argb shr shift and 0xFF) * 255 + alpha / 2) / alpha
        colour = colour or (minOf(sample, 255) shl shift)
    }
    return colour
}
