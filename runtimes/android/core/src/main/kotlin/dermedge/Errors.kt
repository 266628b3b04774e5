package dermedge

/**
 * Base class of all errors that dermedge throws on purpose.
 *
 * A message names the bad value and ends with what to do. [exitCode] is the exit code of a
 * command that ends with this error; the classes and codes are those of the Python runtime.
 */
public open class DermedgeError(
    message: String,
    cause: Throwable? = null,
) : RuntimeException(message, cause) {
    /** Exit code of a command that ends with this error. */
    public open val exitCode: Int get() = 1
}

/** Error for an input that is not an image a model accepts. */
public class ImageError(message: String, cause: Throwable? = null) : DermedgeError(message, cause)

/** Error for an engine that refuses the artifact or fails while running it. */
public class EngineError(message: String, cause: Throwable? = null) : DermedgeError(message, cause)

/** Error for an argument, an option or a name that is not valid, or for a closed model. */
public class UsageError(message: String, cause: Throwable? = null) : DermedgeError(message, cause) {
    override val exitCode: Int get() = 2
}

/** Error for an engine whose library is not among the app's dependencies. */
public class MissingExtraError(
    message: String,
    cause: Throwable? = null,
) : DermedgeError(message, cause) {
    override val exitCode: Int get() = 4
}

/** Error for an engine that exists on other machines only. */
public class ElsewhereError(
    message: String,
    cause: Throwable? = null,
) : DermedgeError(message, cause) {
    override val exitCode: Int get() = 4
}

/** Error for a bundle that is damaged, incomplete, unsafe or too new. */
public class BundleError(
    message: String,
    cause: Throwable? = null,
) : DermedgeError(message, cause) {
    override val exitCode: Int get() = 5
}

/** First line of an error's text without its full stop, to quote it. */
internal fun Throwable.firstLine(): String =
    (message ?: javaClass.simpleName).trim().substringBefore('\n').trimEnd('.')

/** Text between quotes, with control characters as escapes. */
internal fun quote(text: String): String {
    val mark = if ('\'' in text && '"' !in text) '"' else '\''
    val shown = StringBuilder().append(mark)
    for (letter in text) {
        when {
            letter == mark || letter == '\\' -> shown.append('\\').append(letter)
            letter == '\n' -> shown.append("\\n")
            letter == '\r' -> shown.append("\\r")
            letter == '\t' -> shown.append("\\t")
            letter.isISOControl() -> shown.append("\\u%04x".format(letter.code))
            else -> shown.append(letter)
        }
    }
    return shown.append(mark).toString()
}

/** Names between brackets, as `['a', 'b']`. */
internal fun quoteAll(names: Iterable<String>): String =
    names.joinToString(", ", "[", "]", transform = ::quote)
