package dermedge

/** Width and height in pixels. */
public data class Size(val width: Int, val height: Int)

/**
 * The platform's decoder of JPEG, WEBP, HEIF and other formats than PNG.
 *
 * PNG is decoded by dermedge itself, so that golden images are equal on every device. On
 * Android, `BitmapDecoder` of the module `dermedge-android` implements this.
 *
 * The core applies the EXIF orientation, so a decoder returns the picture as it is stored.
 * An exception of a decoder becomes an [ImageError]. Several threads may call it at once.
 */
public interface ImageDecoder {
    /** The stored size, read from the header alone. */
    public fun size(data: ByteArray): Size

    /**
     * Decode a whole picture.
     *
     * @param data The encoded image.
     * @param scale Divisor of both sides, 1, 2, 4 or 8; above 1 for JPEG only, whose decoder
     *   reduces at no cost.
     * @param background Colour behind transparent pixels.
     */
    public fun decode(data: ByteArray, scale: Int, background: Rgb): RgbImage
}

/** The decoder of an app that gives none: it can decode nothing. */
internal object NoDecoder : ImageDecoder {
    override fun size(data: ByteArray): Size = throw ImageError(
        "The image is no PNG, and the model has no decoder for it. " +
            "Pass an ImageDecoder to ModelOptions, or convert the image to PNG.",
    )

    override fun decode(data: ByteArray, scale: Int, background: Rgb): RgbImage {
        size(data)
        error("unreachable")
    }
}
