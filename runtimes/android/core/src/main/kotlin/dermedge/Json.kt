package dermedge

import java.io.ByteArrayOutputStream
import java.math.BigDecimal
import java.math.MathContext
import java.math.RoundingMode
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/** A JSON object: values are null, Boolean, Long, Double, String, List or another object. */
internal typealias JsonObject = Map<String, Any?>

private const val LARGEST_INTEGER = (1L shl 53) - 1
private const val LONGEST_INTEGER = "-999999999999999900000".length
private const val DEEPEST = 500

/** What is wrong with a JSON text. */
private class JsonProblem(message: String) : Exception(message)

/**
 * Parse UTF-8 JSON; refuse what languages read differently.
 *
 * That is a duplicate key, NaN, an infinity, and an integer beyond 2^53 - 1 unless RFC 8785
 * writes a float so. `error` makes the error to throw from its message.
 */
internal fun parseJson(
    data: ByteArray,
    where: String,
    error: (String) -> DermedgeError = { BundleError(it) },
): Any? {
    try {
        val text = Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString()
        return JsonReader(text).read()
    } catch (problem: CharacterCodingException) {
        throw error("$where is not valid JSON (it is not UTF-8). Get or write the file again.")
    } catch (problem: JsonProblem) {
        throw error("$where is not valid JSON (${problem.message}). Get or write the file again.")
    }
}

private class JsonReader(private val text: String) {
    private var at = 0

    fun read(): Any? {
        val value = value(0)
        skipSpace()
        if (at < text.length) fail("text follows the value")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > DEEPEST) fail("it is nested too deeply")
        skipSpace()
        return when (peek()) {
            '{' -> readObject(depth)
            '[' -> readArray(depth)
            '"' -> readString()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> readNumber()
        }
    }

    private fun readObject(depth: Int): JsonObject {
        val result = LinkedHashMap<String, Any?>()
        at++
        skipSpace()
        if (taken('}')) return result
        while (true) {
            skipSpace()
            if (peek() != '"') fail("a key is missing")
            val key = readString()
            skipSpace()
            if (!taken(':')) fail("a colon is missing")
            val value = value(depth + 1)
            if (result.containsKey(key)) fail("a key is given twice")
            result[key] = value
            skipSpace()
            if (taken('}')) return result
            if (!taken(',')) fail("a comma is missing")
        }
    }

    private fun readArray(depth: Int): List<Any?> {
        val result = ArrayList<Any?>()
        at++
        skipSpace()
        if (taken(']')) return result
        while (true) {
            result += value(depth + 1)
            skipSpace()
            if (taken(']')) return result
            if (!taken(',')) fail("a comma is missing")
        }
    }

    private fun readString(): String {
        val result = StringBuilder()
        at++
        while (true) {
            val letter = peek()
            at++
            when {
                letter == '"' -> return result.toString()
                letter == '\\' -> result.append(readEscape())
                letter < ' ' -> fail("a text holds a control character")
                else -> result.append(letter)
            }
        }
    }

    private fun readEscape(): Char {
        val letter = peek()
        at++
        return when (letter) {
            '"', '\\', '/' -> letter
            'b' -> '\b'
            'f' -> '\u000c'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                val digits = text.substring(at, minOf(at + 4, text.length))
                if (!HEX.matches(digits)) fail("an escape is not valid")
                at += 4
                digits.toInt(16).toChar()
            }
            else -> fail("an escape is not valid")
        }
    }

    private fun readNumber(): Any {
        val found = NUMBER.find(text, at)
        if (found == null || found.range.first != at) fail("a value is missing or is not JSON")
        at = found.range.last + 1
        val number = found.value
        if (found.groupValues[1].isNotEmpty()) return finite(number)
        if (number.length <= LONGEST_INTEGER) {
            val exact = number.toBigInteger()
            if (exact.abs() <= LARGEST_INTEGER.toBigInteger()) return exact.toLong()
            if (numberText(number.toDouble()) == number) return number.toDouble()
        }
        fail("${number.take(40)} is beyond 2^53 - 1")
    }

    private fun finite(number: String): Double {
        val value = number.toDouble()
        if (!value.isFinite()) fail("${number.take(40)} is not a finite number")
        return value
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("a value is missing or is not JSON")
        at += word.length
        return value
    }

    private fun skipSpace() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun taken(letter: Char): Boolean = (text.getOrNull(at) == letter).also { if (it) at++ }

    private fun peek(): Char = text.getOrNull(at) ?: fail("it ends too early")

    private fun fail(problem: String): Nothing = throw JsonProblem("$problem: character $at")

    private companion object {
        val HEX = Regex("[0-9a-fA-F]{4}")
        // The group holds a fraction and an exponent; without them the number is an integer.
        val NUMBER = Regex("-?(?:0|[1-9][0-9]*)((?:\\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")
    }
}

/**
 * Write a JSON value as RFC 8785 does: the one text that every language agrees on.
 *
 * Throws [UsageError] for a number that is not finite, an integer beyond 2^53 - 1 and half a
 * surrogate pair, which JSON cannot carry exactly.
 */
internal fun canonicalJson(value: Any?): ByteArray {
    val text = StringBuilder().also { write(value, it, sorted = true) }
    val encoder = Charsets.UTF_8.newEncoder()
    try {
        val bytes = encoder.encode(java.nio.CharBuffer.wrap(text))
        return ByteArrayOutputStream(bytes.limit())
            .also { it.write(bytes.array(), 0, bytes.limit()) }
            .toByteArray()
    } catch (problem: CharacterCodingException) {
        throw UsageError("A text holds half a surrogate pair. Write valid Unicode.", problem)
    }
}

/**
 * Write maps, lists, texts, numbers, booleans and null as JSON on one line.
 *
 * @throws UsageError A number is not finite, or a value is of another type.
 */
public fun toJsonText(value: Any?): String = jsonText(value)

/** Write a JSON value on one line, with the keys in their order. */
internal fun jsonText(value: Any?): String =
    StringBuilder().also { write(value, it, sorted = false) }.toString()

private fun write(value: Any?, to: StringBuilder, sorted: Boolean) {
    when (value) {
        null -> to.append("null")
        is Boolean -> to.append(value)
        is String -> writeString(value, to)
        is Int -> to.append(value)
        is Long -> to.append(exact(value))
        is Float -> to.append(numberText(value.toDouble()))
        is Double -> to.append(numberText(value))
        is List<*> -> {
            to.append('[')
            value.forEachIndexed { index, item ->
                if (index > 0) to.append(',')
                write(item, to, sorted)
            }
            to.append(']')
        }
        is Map<*, *> -> {
            // Java and RFC 8785 both order texts by UTF-16 code units.
            val keys = value.keys.map { it as String }.let { if (sorted) it.sorted() else it }
            to.append('{')
            keys.forEachIndexed { index, key ->
                if (index > 0) to.append(',')
                writeString(key, to)
                to.append(':')
                write(value[key], to, sorted)
            }
            to.append('}')
        }
        else -> throw UsageError(
            "A ${value.javaClass.simpleName} is not a JSON value. Convert it to a plain type.",
        )
    }
}

private fun exact(value: Long): Long {
    if (value !in -LARGEST_INTEGER..LARGEST_INTEGER) {
        throw UsageError(
            "The integer $value is beyond 2^53 - 1 and not exact in JSON. Write it as text.",
        )
    }
    return value
}

private fun writeString(text: String, to: StringBuilder) {
    to.append('"')
    for (letter in text) {
        when (letter) {
            '\b' -> to.append("\\b")
            '\t' -> to.append("\\t")
            '\n' -> to.append("\\n")
            '\u000c' -> to.append("\\f")
            '\r' -> to.append("\\r")
            '"' -> to.append("\\\"")
            '\\' -> to.append("\\\\")
            in '\u0000'..'\u001f' -> to.append("\\u%04x".format(letter.code))
            else -> to.append(letter)
        }
    }
    to.append('"')
}

/** Write a number as ECMAScript's Number::toString does: the fewest digits that round-trip. */
internal fun numberText(value: Double): String {
    if (!value.isFinite()) {
        throw UsageError("$value is not a JSON number. Write null where there is no value.")
    }
    if (value == 0.0) return "0"
    val sign = if (value < 0) "-" else ""
    val shortest = shortest(Math.abs(value)).stripTrailingZeros()
    val digits = shortest.unscaledValue().toString()
    val point = digits.length - shortest.scale()
    if (point in digits.length..21) return sign + digits.padEnd(point, '0')
    if (point in 1..21) return sign + digits.substring(0, point) + "." + digits.substring(point)
    if (point in -5..0) return sign + "0." + "0".repeat(-point) + digits
    val tail = if (digits.length > 1) "." + digits.substring(1) else ""
    val exponent = if (point > 0) "+${point - 1}" else "${point - 1}"
    return "$sign${digits[0]}${tail}e$exponent"
}

/**
 * The decimal with the fewest digits that reads as the value; the nearest of several.
 *
 * Double.toString gives too many digits for some values before JDK 19
 * (https://bugs.openjdk.org/browse/JDK-4511638).
 */
private fun shortest(value: Double): BigDecimal {
    val exact = BigDecimal(value)
    for (digits in 1..16) {
        // Of two that are as near, the even one, which comes first in this list.
        val fitting = listOf(RoundingMode.HALF_EVEN, RoundingMode.DOWN, RoundingMode.UP)
            .map { exact.round(MathContext(digits, it)) }
            .filter { it.toDouble() == value }
        fitting.minByOrNull { (it - exact).abs() }?.let { return it }
    }
    return exact.round(MathContext(17, RoundingMode.HALF_EVEN))
}
