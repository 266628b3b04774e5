package dermedge.cli

import dermedge.DermedgeError
import dermedge.ImageError
import dermedge.ImageIoDecoder
import dermedge.Model
import dermedge.ModelOptions
import dermedge.UsageError
import dermedge.bundleFiles
import dermedge.toJsonText
import dermedge.verify
import java.io.File
import java.io.IOException
import kotlin.system.exitProcess

private const val USAGE = """
Usage: dermedge COMMAND BUNDLE [IMAGE...] [--threads N] [--runs N] [--exact]

Commands:
  verify   Verify BUNDLE on this machine.
  predict  Run BUNDLE on IMAGES; print one JSON object per image and line.
  bench    Measure BUNDLE; IMAGE is by default its first golden image.
  soak     Predict IMAGE --runs times; print the heap after each tenth, in bytes."""
private const val TENTHS = 10

/** Run a command, print its JSON, and end with its exit code. */
public fun main(arguments: Array<String>): Unit = exitProcess(execute(arguments.toList()))

/** Run a command, print its JSON, and return its exit code. */
internal fun execute(arguments: List<String>): Int = try {
    run(Arguments(arguments))
} catch (error: DermedgeError) {
    System.err.println("Error: ${error.message}")
    error.exitCode
}

private class Arguments(arguments: List<String>) {
    val exact = "--exact" in arguments
    val threads: Int? = number(arguments, "--threads")
    val runs: Int = number(arguments, "--runs") ?: 100
    private val words: List<String> = words(arguments)
    val command: String = words.firstOrNull() ?: throw UsageError(USAGE)
    val bundle = File(words.getOrNull(1) ?: throw UsageError(USAGE))
    val images: List<String> = words.drop(2)
    val options = ModelOptions(threads = threads, decoder = ImageIoDecoder)

    private fun number(arguments: List<String>, option: String): Int? {
        val at = arguments.indexOf(option)
        if (at < 0) return null
        val text = arguments.getOrNull(at + 1)
        return text?.toIntOrNull() ?: throw UsageError("$option is $text. Give a number.")
    }

    private fun words(arguments: List<String>): List<String> {
        val values = setOf("--threads", "--runs")
        val rest = arguments.filterIndexed { at, _ -> arguments.getOrNull(at - 1) !in values }
        val unknown = rest.firstOrNull { it.startsWith("--") && it != "--exact" && it !in values }
        if (unknown != null) throw UsageError("Unknown option $unknown. $USAGE")
        return rest.filterNot { it.startsWith("--") }
    }
}

private fun run(arguments: Arguments): Int = when (arguments.command) {
    "verify" -> verify(bundleFiles(arguments.bundle), arguments.options).let {
        println(it.toJson())
        it.exitCode
    }
    "predict" -> predict(arguments)
    "bench" -> Model.load(arguments.bundle, arguments.options).use { model ->
        val image = arguments.images.firstOrNull()?.let(::readImage)
        println(model.bench(image, runs = arguments.runs, warmup = arguments.runs).toJson())
        0
    }
    "soak" -> soak(arguments)
    else -> throw UsageError("Unknown command ${arguments.command}. $USAGE")
}

private fun predict(arguments: Arguments): Int {
    if (arguments.images.isEmpty()) throw UsageError("No image is given. $USAGE")
    var code = 0
    Model.load(arguments.bundle, arguments.options).use { model ->
        for (name in arguments.images) {
            val content = try {
                model.predict(readImage(name), arguments.exact).toMap()
            } catch (error: ImageError) {
                System.err.println("Error: ${error.message}")
                code = error.exitCode
                mapOf("error" to error.message)
            }
            println(toJsonText(mapOf("image" to name) + content))
        }
    }
    return code
}

/** Print the bytes of the heap that are in use after each tenth of the predictions. */
private fun soak(arguments: Arguments): Int {
    val name = arguments.images.firstOrNull() ?: throw UsageError("No image is given. $USAGE")
    val image = readImage(name)
    Model.load(arguments.bundle, arguments.options).use { model ->
        val heap = (1..TENTHS).map {
            repeat(arguments.runs / TENTHS) { model.predict(image) }
            System.gc()
            Runtime.getRuntime().let { it.totalMemory() - it.freeMemory() }
        }
        println(toJsonText(mapOf("predictions" to arguments.runs, "heap_bytes" to heap)))
    }
    return 0
}

private fun readImage(name: String): ByteArray = try {
    File(name).readBytes()
} catch (error: IOException) {
    throw ImageError("$name cannot be read. Check the path.", error)
}
