package dermedge

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.attribute.BasicFileAttributes

internal const val DAMAGED: String = "Get the bundle again from where it was exported."
internal const val WAIT: String =
    "Wait until the bundle is completely copied or synchronised, then try again."
internal val LFS_POINTER: ByteArray = "version https://git-lfs.github.com/spec/".toByteArray()
internal val ZIP_MAGIC: ByteArray = byteArrayOf(0x50, 0x4B, 3, 4)

/**
 * The files of a bundle, wherever they are: in a folder, in a zip, in an app's assets.
 *
 * Several threads may call it at once. An IOException becomes a [BundleError].
 */
public interface BundleFiles {
    /** Name of the bundle in messages, such as its path. */
    public val name: String

    /** Files and folders that an operating system left beside the bundle's; never opened. */
    public val systemFiles: List<String> get() = emptyList()

    /** The paths of all files, with `/` between their parts. */
    public fun list(): List<String>

    /** Open one of the listed files. */
    public fun open(path: String): InputStream
}

/**
 * The files of a bundle's folder or of its zip.
 *
 * @throws UsageError The path does not exist.
 * @throws BundleError The path is neither form, or the zip is not one that dermedge wrote.
 */
public fun bundleFiles(path: File): BundleFiles {
    if (!path.exists()) throw UsageError("There is no bundle at $path. Check the path.")
    if (path.isDirectory) return FolderFiles(path)
    return try {
        ZipFiles(path.path, FileBytes(path))
    } catch (error: IOException) {
        throw cannotRead(path.path, error)
    }
}

/**
 * The files of a bundle's zip in memory.
 *
 * @throws BundleError The bytes are no zip, or not one that dermedge wrote.
 */
public fun bundleFiles(zip: ByteArray, name: String = "The bundle"): BundleFiles =
    ZipFiles(name, MemoryBytes(zip))

internal fun cannotRead(name: String, error: IOException): BundleError =
    BundleError("Cannot read $name (${error.firstLine()}). $DAMAGED", error)

/** A bundle's folder. Links and devices are refused, because a link could name any file. */
private class FolderFiles(private val root: File) : BundleFiles {
    override val name: String = root.path

    override val systemFiles: List<String> get() = walk(root, "").filter { isIgnored(it) }.sorted()

    override fun list(): List<String> = walk(root, "").filterNot { isIgnored(it) }

    override fun open(path: String): InputStream = File(root, path).inputStream()

    private fun isIgnored(path: String): Boolean = isSystemFile(path.substringAfterLast('/'))

    /** The paths of all files, and of what an operating system left. */
    private fun walk(folder: File, above: String): List<String> {
        val entries = folder.listFiles() ?: throw BundleError("Cannot read $folder. $DAMAGED")
        return entries.flatMap { entry ->
            val path = above + entry.name
            val kind = Files.readAttributes(
                entry.toPath(),
                BasicFileAttributes::class.java,
                LinkOption.NOFOLLOW_LINKS,
            )
            when {
                isSystemFile(entry.name) -> listOf(path)
                kind.isDirectory -> walk(entry, "$path/")
                kind.isRegularFile -> listOf(path)
                else -> throw notRegular(path, name)
            }
        }
    }
}

internal fun notRegular(path: String, where: String): BundleError =
    BundleError("${quote(path)} in $where is a link or not a regular file. $DAMAGED")
