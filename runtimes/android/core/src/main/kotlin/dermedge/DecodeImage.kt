package dermedge

/** An upright image, its size at full scale, and sentences about signs of damage. */
internal class Decoded(
    val picture: RgbImage,
    val size: Size,
    val format: String,
    val quality: List<String> = emptyList(),
)

/**
 * Decode an encoded image to upright opaque RGB.
 *
 * @param scale Chooses the divisor (1, 2, 4 or 8) at which a JPEG of a width and a height is
 *   decoded.
 * @throws ImageError The bytes are not a single complete image that dermedge reads, have a
 *   side below 16 pixels, or too many pixels.
 */
internal fun decodeImage(
    data: ByteArray,
    background: Rgb,
    decoder: ImageDecoder,
    scale: (Int, Int) -> Int = { _, _ -> 1 },
): Decoded {
    if (data.isEmpty()) {
        throw ImageError("The image is empty (0 bytes). Fetch or take the photograph again.")
    }
    val format = identify(data)
    if (format !in FORMATS) throw unknown(format, data)
    try {
        if (format == "PNG") {
            val png = Png(data)
            val picture = png.decode(background).upright(png.orientation)
            return Decoded(picture, Size(picture.width, picture.height), format)
        }
        return decodeForeign(data, format!!, background, decoder, scale)
    } catch (error: DermedgeError) {
        throw error
    } catch (error: OutOfMemoryError) {
        throw ImageError(
            "The image needs more memory than the app has. Pass a smaller one.",
            error,
        )
    } catch (error: Exception) {
        throw ImageError(
            "The image is truncated or damaged ($format: ${error.firstLine()}). " +
                "Fetch or take the photograph again.",
            error,
        )
    }
}

private fun decodeForeign(
    data: ByteArray,
    format: String,
    background: Rgb,
    decoder: ImageDecoder,
    scale: (Int, Int) -> Int,
): Decoded {
    val jpeg = format == "JPEG"
    refuseFrames(data, format)
    val stored = decoder.size(data)
    checkSize(stored.width, stored.height, if (jpeg) MAX_JPEG_PIXELS else MAX_PIXELS)
    val divisor = if (jpeg) scale(stored.width, stored.height) else 1
    val picture = decoder.decode(data, divisor, background)
    val expected = Size(stored.width.ceilDiv(divisor), stored.height.ceilDiv(divisor))
    if (Size(picture.width, picture.height) != expected) {
        throw ImageError(
            "The decoder gave ${picture.width} x ${picture.height} pixels for an image of " +
                "${stored.width} x ${stored.height} at a scale of $divisor. Use another decoder.",
        )
    }
    val quality = if (jpeg) checkJpeg(data, picture, decoder) else emptyList()
    val turn = orientation(data, format)
    val size = if (turn > 4) Size(stored.height, stored.width) else stored
    return Decoded(picture.upright(turn), size, format, quality)
}

internal fun Int.ceilDiv(divisor: Int): Int = (this + divisor - 1) / divisor

private fun unknown(format: String?, data: ByteArray): ImageError {
    if (format != null) {
        return ImageError(
            "The image is $format, which dermedge does not read. Convert it to JPEG or PNG.",
        )
    }
    val media = data.ascii(4, 4) == "ftyp"
    val brand = if (media) "a media file of the brand ${quote(data.ascii(8, 4))}, " else ""
    return ImageError(
        "The image is ${brand}not an image that dermedge reads (${FORMATS.joinToString(", ")}). " +
            "Convert it to JPEG or PNG.",
    )
}
