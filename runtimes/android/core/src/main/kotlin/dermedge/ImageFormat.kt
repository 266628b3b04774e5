package dermedge

/** Formats that [decodeImage] reads, if the platform's decoder does. */
internal val FORMATS: List<String> = listOf("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "HEIF")

private val AVIF = setOf("avif", "avis")
private val HEIF = setOf("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
private val SEQUENCES = setOf("avis", "msf1", "hevc", "hevx")
private val BMP_HEADERS = setOf(12, 16, 40, 52, 56, 64, 108, 124)
private const val ORIENTATION_TAG = 0x0112
private const val LONG = 4

/** The name of an image format by a file's first bytes, null for other files. */
internal fun identify(data: ByteArray): String? = when {
    data.starts(0xFF, 0xD8, 0xFF) -> "JPEG"
    data.startsWith(PNG_MAGIC) -> "PNG"
    data.ascii(0, 6) == "GIF87a" || data.ascii(0, 6) == "GIF89a" -> "GIF"
    data.ascii(0, 4) == "RIFF" && data.ascii(8, 4) == "WEBP" -> "WEBP"
    // Two letters alone are too common, so the size of the second header is checked too.
    data.ascii(0, 2) == "BM" && data.little(14, 4) in BMP_HEADERS -> "BMP"
    data.ascii(0, 4) in setOf("II*\u0000", "MM\u0000*", "II+\u0000", "MM\u0000+") -> "TIFF"
    data.starts(0, 0, 0, 0x0C) && data.ascii(4, 4) == "jP  " -> "JPEG 2000"
    data.starts(0xFF, 0x4F, 0xFF, 0x51) -> "JPEG 2000"
    data.starts(0, 0, 0, 0x0C) && data.ascii(4, 4) == "JXL " || data.starts(0xFF, 0x0A) -> "JPEG XL"
    data.ascii(128, 4) == "DICM" -> "DICOM"
    data.ascii(4, 4) == "ftyp" -> brands(data).let {
        if (it.any(AVIF::contains)) "AVIF" else if (it.any(HEIF::contains)) "HEIF" else null
    }
    else -> null
}

/** The major brand of an ISO base media file, then its compatible ones. */
private fun brands(data: ByteArray): List<String> {
    val end = minOf(data.big(0, 4), data.size, 160)
    return listOf(data.ascii(8, 4)) + (16 until end step 4).map { data.ascii(it, 4) }
}

/** Refuse an animation, of which a decoder would show the first frame only. */
internal fun refuseFrames(data: ByteArray, format: String) {
    val several = when (format) {
        "GIF" -> gifFrames(data) > 1
        // The flag of an animation, in the header of an extended file.
        "WEBP" -> data.ascii(12, 4) == "VP8X" && data.little(20, 1) and 0x02 != 0
        "AVIF", "HEIF" -> data.ascii(8, 4) in SEQUENCES
        else -> false
    }
    if (several) throw severalFrames()
}

internal fun severalFrames(): ImageError =
    ImageError("The image is animated or has several pages. Pass a single frame.")

/** The number of frames of a GIF, up to 2; the file may be cut off. */
private fun gifFrames(data: ByteArray): Int {
    var at = 13
    if (data.little(10, 1) and 0x80 != 0) at += 3 shl (data.little(10, 1) and 7) + 1
    var frames = 0
    while (at < data.size && frames < 2) {
        when (data.little(at, 1)) {
            0x2C -> {
                frames++
                val flags = data.little(at + 9, 1)
                at += 11 + if (flags and 0x80 != 0) 3 shl (flags and 7) + 1 else 0
            }
            0x21 -> at += 2
            else -> return frames
        }
        while (data.little(at, 1) > 0) at += data.little(at, 1) + 1
        at++
    }
    return frames
}

/** The stored EXIF orientation of a JPEG or WEBP, 1 to 8; 1 if there is none. */
internal fun orientation(data: ByteArray, format: String): Int {
    val exif = when (format) {
        "JPEG" -> jpegSegments(data)
            .firstOrNull { it.marker == 0xE1 && data.ascii(it.start, 6) == EXIF }
            ?.let { data.copyOfRange(it.start, minOf(it.end, data.size)) }
        "WEBP" -> webpChunk(data, "EXIF")
        else -> null
    }
    return exif?.let(::readOrientation) ?: 1
}

private fun webpChunk(data: ByteArray, name: String): ByteArray? {
    var at = 12
    while (at + 8 <= data.size) {
        val length = data.little(at + 4, 4)
        if (length < 0) return null
        if (data.ascii(at, 4) == name) {
            return data.copyOfRange(at + 8, minOf(at + 8L + length, data.size.toLong()).toInt())
        }
        val next = at + 8L + length + (length and 1)
        if (next > data.size) return null
        at = next.toInt()
    }
    return null
}

internal const val EXIF: String = "Exif\u0000\u0000"

/** The orientation in an EXIF block, 1 to 8; 1 if there is none or it is broken. */
internal fun readOrientation(exif: ByteArray): Int {
    var base = 0
    while (exif.ascii(base, EXIF.length) == EXIF) base += EXIF.length
    val big = exif.ascii(base, 2) == "MM"

    fun number(at: Int, length: Int): Long {
        var value = 0L
        for (index in 0 until length) {
            val place = base + at + if (big) index else length - 1 - index
            val byte = exif.getOrNull(place) ?: continue
            value = value shl 8 or (byte.toLong() and 0xFF)
        }
        return value
    }

    val entries = number(4, 4) + 2
    val size = exif.size.toLong()
    val count = number(minOf(entries - 2, size).toInt(), 2)
    val end = minOf(entries + 12 * count, size)
    for (entry in entries until end step 12) {
        val at = entry.toInt()
        if (number(at, 2) == ORIENTATION_TAG.toLong()) {
            val value = number(at + 8, if (number(at + 2, 2) == LONG.toLong()) 4 else 2)
            return if (value in 1..8) value.toInt() else 1
        }
    }
    return 1
}

private fun ByteArray.starts(vararg bytes: Int): Boolean =
    size >= bytes.size && bytes.indices.all { this[it].toInt() and 0xFF == bytes[it] }

/** Text of some bytes; shorter where the data ends. */
internal fun ByteArray.ascii(start: Int, length: Int): String {
    val from = start.coerceIn(0, size)
    return String(this, from, minOf(length, size - from), Charsets.ISO_8859_1)
}

/** A little-endian number; bytes beyond the end are 0. */
internal fun ByteArray.little(start: Int, length: Int): Int =
    (length - 1 downTo 0).fold(0) { sum, index -> sum shl 8 or byteAt(start + index) }

/** A big-endian number; bytes beyond the end are 0. */
internal fun ByteArray.big(start: Int, length: Int): Int =
    (0 until length).fold(0) { sum, index -> sum shl 8 or byteAt(start + index) }

private fun ByteArray.byteAt(index: Int): Int = (getOrNull(index)?.toInt() ?: 0) and 0xFF
