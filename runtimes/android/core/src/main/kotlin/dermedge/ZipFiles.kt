package dermedge

import java.io.ByteArrayInputStream
import java.io.EOFException
import java.io.File
import java.io.InputStream
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32

private const val END_SIZE = 22
private const val ENTRY_SIZE = 46
private const val LOCAL_SIZE = 30
private const val LONGEST_COMMENT = 0xFFFF
private const val ENCRYPTED = 0x0001 or 0x0020 or 0x0040
private const val UTF8_NAME = 0x0800

/** Bytes that can be read from any offset. */
internal interface Bytes {
    val size: Long

    fun read(offset: Long, length: Int): ByteArray
}

internal class MemoryBytes(private val data: ByteArray) : Bytes {
    override val size: Long get() = data.size.toLong()

    override fun read(offset: Long, length: Int): ByteArray {
        if (offset < 0 || length < 0 || offset + length > size) throw EOFException("it is cut off")
        return data.copyOfRange(offset.toInt(), offset.toInt() + length)
    }
}

internal class FileBytes(private val file: File) : Bytes {
    override val size: Long get() = file.length()

    override fun read(offset: Long, length: Int): ByteArray {
        if (offset < 0 || length < 0 || offset + length > size) throw EOFException("it is cut off")
        return RandomAccessFile(file, "r").use { opened ->
            opened.seek(offset)
            ByteArray(length).also(opened::readFully)
        }
    }
}

/**
 * A bundle's zip: every entry is stored. Anything that dermedge does not write is refused.
 *
 * java.util.zip.ZipFile keeps one of two entries with one name and does not show links, so
 * the directory is read here.
 */
internal class ZipFiles(override val name: String, private val bytes: Bytes) : BundleFiles {
    private class Entry(val offset: Long, val size: Int, val checksum: Long)

    private val entries = LinkedHashMap<String, Entry>()

    init {
        val head = bytes.read(0, minOf(bytes.size, LFS_POINTER.size.toLong()).toInt())
        if (head.isEmpty()) throw BundleError("$name is empty (0 bytes). $WAIT")
        if (head.contentEquals(LFS_POINTER)) throw lfsPointer(name)
        if (!head.startsWith(ZIP_MAGIC)) {
            throw BundleError(
                "$name is neither a bundle's folder nor its zip. Name a .dermedge folder or file.",
            )
        }
        try {
            readDirectory()
        } catch (error: EOFException) {
            throw damaged(error.firstLine())
        }
        val below = entries.keys.firstOrNull { it.endsWith("/$MANIFEST") }
        if (MANIFEST !in entries && below != null) throw rezipped(below)
    }

    override fun list(): List<String> = entries.keys.toList()

    override fun open(path: String): InputStream {
        val entry = entries.getValue(path)
        val local = view(entry.offset, LOCAL_SIZE)
        if (local.getInt(0) != LOCAL_MAGIC) throw damaged("${quote(path)} has no header")
        val start = entry.offset + LOCAL_SIZE
        val length = local.short(26)
        if (nameOf(bytes.read(start, length), local.short(6)) != path) {
            throw damaged("the header of ${quote(path)} has another name")
        }
        val content = bytes.read(start + length + local.short(28), entry.size)
        if (CRC32().also { it.update(content) }.value != entry.checksum) {
            throw damaged("the checksum of ${quote(path)} is wrong")
        }
        return ByteArrayInputStream(content)
    }

    private fun readDirectory() {
        val end = findEnd()
        val directory = view(end.uint(16), end.uint(12).toInt())
        var at = 0
        repeat(end.short(10)) {
            if (at + ENTRY_SIZE > directory.limit() || directory.getInt(at) != ENTRY_MAGIC) {
                throw damaged("its directory is cut off")
            }
            val stored = ByteArray(directory.short(at + 28))
            directory.position(at + ENTRY_SIZE)
            if (stored.size > directory.remaining()) throw damaged("its directory is cut off")
            directory.get(stored)
            addEntry(nameOf(stored, directory.short(at + 8)), directory, at)
            at += ENTRY_SIZE + stored.size + directory.short(at + 30) + directory.short(at + 32)
        }
    }

    private fun addEntry(path: String, directory: ByteBuffer, at: Int) {
        if (path in entries) {
            throw BundleError("$name holds ${quote(path)} twice, which is unsafe. $DAMAGED")
        }
        // The upper half of the attributes is the mode of Unix: 8 is a file, 4 a folder.
        val mode = directory.short(at + 40) ushr 12
        if (mode !in setOf(0, 4, 8)) throw notRegular(path, name)
        val method = directory.short(at + 10)
        val foreign = path.endsWith("/") || path.split("/").any(::isSystemFile)
        if (foreign || method != 0) throw rezipped(path)
        if (directory.short(at + 8) and ENCRYPTED != 0) throw damaged("${quote(path)} is encrypted")
        val size = directory.uint(at + 24)
        if (size != directory.uint(at + 20) || size > Int.MAX_VALUE) {
            throw damaged("the size of ${quote(path)} is wrong")
        }
        entries[path] = Entry(directory.uint(at + 42), size.toInt(), directory.uint(at + 16))
    }

    /** The record at the end of the file, which may be followed by a comment. */
    private fun findEnd(): ByteBuffer {
        val length = minOf(bytes.size, (END_SIZE + LONGEST_COMMENT).toLong()).toInt()
        val tail = view(bytes.size - length, length)
        for (at in length - END_SIZE downTo 0) {
            if (tail.getInt(at) == END_MAGIC) {
                tail.position(at)
                return tail.slice().order(ByteOrder.LITTLE_ENDIAN)
            }
        }
        throw damaged("its end is missing")
    }

    private fun view(offset: Long, length: Int): ByteBuffer =
        ByteBuffer.wrap(bytes.read(offset, length)).order(ByteOrder.LITTLE_ENDIAN)

    private fun nameOf(stored: ByteArray, flags: Int): String {
        if (flags and UTF8_NAME == 0 && stored.any { it < 0 }) throw rezipped(String(stored))
        return String(stored, Charsets.UTF_8)
    }

    private fun damaged(problem: String) =
        BundleError("$name is a damaged zip ($problem). $DAMAGED")

    private fun rezipped(path: String) = BundleError(
        "$name has the entry ${quote(path)}, so another program zipped or compressed it. " +
            "Unzip it and use the folder, or zip that folder with `Bundle.save` of Python.",
    )

    private companion object {
        const val LOCAL_MAGIC = 0x04034B50
        const val ENTRY_MAGIC = 0x02014B50
        const val END_MAGIC = 0x06054B50
    }
}

private fun ByteBuffer.short(at: Int): Int = getShort(at).toInt() and 0xFFFF

private fun ByteBuffer.uint(at: Int): Long = getInt(at).toLong() and 0xFFFFFFFFL

internal fun ByteArray.startsWith(prefix: ByteArray): Boolean =
    size >= prefix.size && prefix.indices.all { this[it] == prefix[it] }

internal fun lfsPointer(where: String): BundleError =
    BundleError("$where is a Git LFS pointer, not the file. Run 'git lfs pull'.")
