package dermedge.cli

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.PrintStream
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

private val ROOT: File = generateSequence(File("").absoluteFile) { it.parentFile }
    .first { File(it, "tests/conformance").isDirectory }
private val TOY = "$ROOT/tests/data/toy.dermedge"
private val IMAGE = "$ROOT/tests/conformance/images/rgb.png"

/** Output and exit codes, which are those of the Python command. */
class MainTest {
    private fun execute(vararg arguments: String): Pair<Int, String> {
        val (out, err) = System.out to System.err
        val written = ByteArrayOutputStream()
        System.setOut(PrintStream(written))
        System.setErr(PrintStream(ByteArrayOutputStream()))
        return try {
            execute(arguments.toList()) to written.toString()
        } finally {
            System.setOut(out)
            System.setErr(err)
        }
    }

    @Test
    fun `predict prints a line per image and goes on after a bad one`() {
        val (code, text) = execute("predict", TOY, "missing.png", IMAGE, "--threads", "1")
        val (bad, good) = text.trim().lines()
        assertEquals(1, code)
        assertTrue("\"error\":\"missing.png" in bad && "\"decision\":\"malignant\"" in good, text)
    }

    @Test
    fun `verify and bench print their report`() {
        val (code, text) = execute("verify", TOY)
        assertTrue(code == 0 && "\"status\":\"passed\"" in text, text)
        val (_, report) = execute("bench", TOY, IMAGE, "--runs", "2")
        assertTrue("\"image\":\"image, 37 x 29 PNG\"" in report && "\"count\":2" in report, report)
    }

    @Test
    fun `a wrong call ends with the exit code of its error`() {
        val damaged = "$ROOT/tests/conformance/bundles/changed.zip"
        assertEquals(5 to "", execute("predict", damaged, IMAGE))
        for (wrong in listOf(
            listOf(),
            listOf("frob", TOY),
            listOf("verify"),
            listOf("predict", TOY),
            listOf("bench", TOY, "--runs", "many"),
            listOf("verify", TOY, "--fast"),
            listOf("verify", "missing.dermedge"),
        )) {
            assertEquals(2 to "", execute(*wrong.toTypedArray()), "$wrong")
        }
    }
}
