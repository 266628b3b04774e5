package dermedge.android

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ImageDecoder as SystemDecoder
import dermedge.ImageDecoder
import dermedge.ImageError
import dermedge.Rgb
import dermedge.RgbImage
import dermedge.Size
import java.nio.ByteBuffer

/**
 * Android's decoders of photographs: JPEG, WEBP, GIF and BMP, and HEIF and AVIF if the device
 * has their codecs.
 *
 * Samples keep the values that the file stores, so no colour profile is applied. Android
 * itself converts a picture whose profile is neither a matrix nor a curve.
 */
public object BitmapDecoder : ImageDecoder {
    override fun size(data: ByteArray): Size =
        if (holdsExif(data)) storedSize(data) else uprightSize(data)

    override fun decode(data: ByteArray, scale: Int, background: Rgb): RgbImage {
        val bitmap = if (holdsExif(data)) decodeStored(data, scale) else decodeUpright(data)
        return try {
            bitmap.toRgbImage(background)
        } finally {
            bitmap.recycle()
        }
    }

    /**
     * JPEG and WEBP, whose orientation the core reads. `BitmapFactory` leaves pictures as they
     * are stored. `ImageDecoder` turns them upright (https://github.com/coil-kt/coil/issues/2950),
     * also by a HEIF's own rotation, and it refuses truncated pictures.
     */
    private fun holdsExif(data: ByteArray): Boolean = isJpeg(data) || riffSize(data) != null

    private fun isJpeg(data: ByteArray): Boolean =
        data.size > 1 && data[0] == 0xFF.toByte() && data[1] == 0xD8.toByte()

    /** Size of a WEBP that its header states, null for other files. */
    private fun riffSize(data: ByteArray): Long? {
        if (data.size < 12 || String(data, 0, 4, Charsets.ISO_8859_1) != "RIFF") return null
        val length = (7 downTo 4).fold(0L) { sum, index -> sum shl 8 or (data[index].toLong() and 0xFF) }
        return length + 8
    }

    private fun storedSize(data: ByteArray): Size {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(data, 0, data.size, options)
        if (options.outWidth < 1 || options.outHeight < 1) throw IllegalArgumentException(UNREADABLE)
        return Size(options.outWidth, options.outHeight)
    }

    private fun decodeStored(data: ByteArray, scale: Int): Bitmap {
        // BitmapFactory fills the missing part of a picture and reports no error. The core
        // checks JPEG files.
        riffSize(data)?.let { require(data.size >= it) { "the end is missing" } }
        val options = BitmapFactory.Options().apply {
            inSampleSize = scale
            inPreferredConfig = Bitmap.Config.ARGB_8888
            inPremultiplied = false
            inScaled = false
            // A preferred colour space would convert the samples.
            inPreferredColorSpace = null
        }
        return BitmapFactory.decodeByteArray(data, 0, data.size, options)
            ?: throw IllegalArgumentException(UNREADABLE)
    }

    private fun uprightSize(data: ByteArray): Size {
        try {
            SystemDecoder.decodeBitmap(source(data)) { _, info, _ ->
                throw HeaderRead(Size(info.size.width, info.size.height))
            }
        } catch (header: HeaderRead) {
            return header.size
        }
        throw ImageError("The image has no header. Convert it to JPEG or PNG.")
    }

    private fun decodeUpright(data: ByteArray): Bitmap =
        SystemDecoder.decodeBitmap(source(data)) { decoder, _, _ ->
            decoder.allocator = SystemDecoder.ALLOCATOR_SOFTWARE
            decoder.isUnpremultipliedRequired = true
        }

    private fun source(data: ByteArray) = SystemDecoder.createSource(ByteBuffer.wrap(data))

    /** Ends a decoding after the header: `ImageDecoder` has no call for the size alone. */
    private class HeaderRead(val size: Size) : RuntimeException(null, null, false, false)

    private const val UNREADABLE = "this Android cannot decode it"
}
