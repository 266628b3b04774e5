package dermedge

import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** The cases that Python, TypeScript and Kotlin share. */
class ConformanceTest {
    @TestFactory
    fun images(): List<DynamicTest> = cases("images") { case ->
        val spec = readCasePreprocess(case)
        val data = file(case.string("image", "case"))
        if (case.containsKey("error")) {
            val decode = { decodeImage(data, spec.background, ImageIoDecoder) }
            checkError(case, assertFailsWith<DermedgeError> { decode() })
            return@cases
        }
        val pixels = case.obj("pixels", "case")
        val exact = case.optional<String>("decoded", "case")?.let(::file) ?: data
        val decoded = decodeImage(exact, spec.background, ImageIoDecoder).picture
        assertEquals(pixels["width"], decoded.width.toLong())
        assertEquals(pixels["height"], decoded.height.toLong())
        assertEquals(pixels["sha256"], sha256(decoded.pixels))
        val tensor = Preprocessor(spec).prepare(decoded)
        assertTrue(tensor.contentEquals(file(case.string("tensor", "case"))), "the tensor differs")
        if (exact !== data) checkNear(case, data, decoded)
    }

    @TestFactory
    fun resize(): DynamicTest = dynamicTest("500 sizes") {
        val wrong = read("resize").filter { case ->
            val width = case.integer("width", "case").toInt()
            val height = case.integer("height", "case").toInt()
            val random = randomBytes(case.integer("seed", "case"), 3 * width * height)
            val image = RgbImage(width, height, random)
            val tensor = Preprocessor(readCasePreprocess(case)).prepare(image)
            sha256(tensor) != case["sha256"]
        }
        assertTrue(wrong.isEmpty(), "${wrong.size} differ, such as ${wrong.firstOrNull()}")
    }

    @TestFactory
    fun quality(): DynamicTest = dynamicTest("measures and sentences") {
        for (case in read("quality").filter { "quality" in it }) {
            val size = case.integer("size", "case").toInt()
            val tensor = case.optional<String>("tensor", "case")?.let(::file) ?: plane(case, size)
            val quality = measureQuality(tensor, size)
            val wanted = case.obj("quality", "case").mapValues { (it.value as Long).toInt() }
            val names = listOf("sharpness", "brightness", "glare")
            val found = listOf(quality.sharpness, quality.brightness, quality.glare)
            assertEquals(names.map { wanted[it] }, found, "$case")
            val sentences = describeQuality(quality, readQuality(case.obj("limits", "case")))
            assertEquals(case["sentences"], sentences, "$case")
        }
    }

    @TestFactory
    fun lesions(): DynamicTest = dynamicTest("measures and sentences of masks") {
        for (case in read("quality").filter { "lesion" in it }) {
            val size = case.integer("size", "case").toInt()
            val (left, upper, right, lower) = case.array("box", "case").map { (it as Long).toInt() }
            val inside = BooleanArray(size * size) {
                it % size in left until right && it / size in upper until lower
            }
            val lesion = measureLesion(Mask(size, inside))
            val wanted = case.obj("lesion", "case").mapValues { (it.value as Long).toInt() }
            assertEquals(wanted, mapOf("share" to lesion.share, "border" to lesion.border), "$case")
            val sentences = describeLesion(lesion, readQuality(case.obj("limits", "case")))
            assertEquals(case["sentences"], sentences, "$case")
        }
    }

    @TestFactory
    fun json(): List<DynamicTest> = cases("json") { case ->
        // A text with half a surrogate pair escaped is JSON, but has no canonical form.
        val text = case.string("text", "case").toByteArray()
        val canonical = { String(canonicalJson(parseJson(text, "text"))) }
        when (val wanted = case["canonical"]) {
            null -> assertFailsWith<DermedgeError> { canonical() }
            else -> assertEquals(wanted, canonical())
        }
    }

    @TestFactory
    fun decode(): List<DynamicTest> = cases("decode") { case ->
        val spec = readSpec(case.obj("spec", "case"))
        val fitted = readPostprocessing(case.obj("postprocessing", "case"), spec)
        val outputs = case.obj("outputs", "case")
            .mapValues { readOutput(asObject(it.value, "output")) }
        if (case.containsKey("error")) {
            checkError(case, assertFailsWith<DermedgeError> { decode(outputs, spec, fitted) })
            return@cases
        }
        val prediction = decode(outputs, spec, fitted)
        val digest = case.obj("prediction", "case")["mask_sha256"] ?: case["mask_sha256"]
        assertSame(prediction, case.obj("prediction", "case") - "mask_sha256", 1e-12)
        val map = case["cam"]?.let { readOutput(asObject(it, "cam")) }
        assertEquals(map?.shape, prediction.cam?.let { listOf(it.height, it.width) })
        assertEquals(map?.values?.asList(), prediction.cam?.values?.asList())
        if (digest != null) {
            val inside = assertNotNull(prediction.mask).inside
            assertEquals(digest, sha256(ByteArray(inside.size) { if (inside[it]) 1 else 0 }))
        }
    }

    @TestFactory
    fun bundles(): List<DynamicTest> = cases("bundles") { case ->
        val path = File(FOLDER, case.string("bundle", "case"))
        for (open in listOf({ bundleFiles(path) }, { bundleFiles(path.readBytes(), path.path) })) {
            if (case["error"] == null) {
                Bundle.open(open())
            } else {
                checkError(case, assertFailsWith<DermedgeError> { Bundle.open(open()) })
            }
        }
    }

    @TestFactory
    fun verify(): List<DynamicTest> = cases("verify", "bundle") { case ->
        val report = verify(bundleFiles(File(FOLDER, case.string("bundle", "case"))))
        val wanted = case.array("checks", "case").map { asObject(it, "check") }
        val found = report.checks.map { it.name to it.status }
        assertEquals(wanted.map { it["name"] to it["status"] }, found.map { it }, report.toJson())
        assertEquals(case["status"], report.status)
        val detail = report.checks.firstOrNull { it.status != "passed" }?.detail.orEmpty()
        checkMentions(case, detail)
    }

    @TestFactory
    fun predictions(): List<DynamicTest> = cases("predictions", "image", "bundle") { case ->
        val files = bundleFiles(File(FOLDER, case.string("bundle", "case")))
        val image = file(case.string("image", "case"))
        if (Bundle.open(files).artifact.format == "litert") {
            assertFailsWith<ElsewhereError> { Model.load(files) }
            assertEquals("not_run", verify(files).status)
            assumeTrue(false, "LiteRT has no library for a desktop's JVM")
        }
        Model.load(files, ModelOptions(threads = 1, decoder = ImageIoDecoder)).use { model ->
            val prediction = model.predict(image, exact = true)
            assertSame(prediction, case.obj("prediction", "case"), 1e-6)
            val map = readOutput(case.obj("cam", "case"))
            val found = assertNotNull(prediction.cam)
            assertEquals(map.shape, listOf(found.height, found.width))
            found.values.forEachIndexed { at, value ->
                assertEquals(map.values[at], value, 1e-6f)
            }
        }
    }
}

private val FOLDER: File = generateSequence(File("").absoluteFile) { it.parentFile }
    .map { File(it, "tests/conformance") }
    .first { it.isDirectory }

private fun file(name: String): ByteArray = File(FOLDER, name).readBytes()

private fun read(list: String): List<JsonObject> {
    val content = asObject(parseJson(file("$list.json"), list), list)
    return content.array("cases", list).map { asObject(it, "case") }
}

private fun cases(
    list: String,
    vararg names: String,
    test: (JsonObject) -> Unit,
): List<DynamicTest> = read(list).map { case ->
    val name = names.ifEmpty { arrayOf("name") }.joinToString(" ") { case[it].toString() }
    dynamicTest(name) { test(case) }
}.also { assertTrue(it.isNotEmpty()) }

/** Bytes of the generator that the folder's README defines. */
private fun randomBytes(seed: Long, count: Int): ByteArray {
    var x = seed.toInt()
    return ByteArray(count) {
        x = 1664525 * x + 1013904223
        (x ushr 24).toByte()
    }
}

/** The sloping plane with noise of a quality case. */
private fun plane(case: JsonObject, size: Int): ByteArray {
    val (base, slope, noise) =
        listOf("base", "slope", "noise").map { case.integer(it, "case").toInt() }
    val random = randomBytes(case.integer("seed", "case"), 3 * size * size)
    return ByteArray(random.size) {
        val rise = slope * (it / 3 % size + it / 3 / size) shr 4
        minOf(255, base + rise + (noise * (random[it].toInt() and 0xFF) shr 8)).toByte()
    }
}

private fun readCasePreprocess(case: JsonObject): Preprocess =
    readPreprocess(case.obj("preprocess", "case"))

private fun readOutput(data: JsonObject): Tensor {
    val values = data.array("values", "output").map {
        if (it is String) it.toFloat() else (it as Number).toFloat()
    }
    return Tensor(data.array("shape", "output").map { (it as Long).toInt() }, values.toFloatArray())
}

private fun assertSame(prediction: Prediction, wanted: JsonObject, within: Double) {
    val volatile = setOf("timing", "provenance")
    assertNull(findDifference(prediction.toMap() - volatile, wanted - volatile, within = within))
}

private fun checkError(case: JsonObject, error: DermedgeError) {
    assertEquals(case["error"], error.javaClass.simpleName, error.message)
    checkMentions(case, error.message.orEmpty())
}

private fun checkMentions(case: JsonObject, message: String) {
    for (text in case.optional<List<Any?>>("mentions", "case").orEmpty()) {
        assertTrue(text as String in message, "$text is not in: $message")
    }
}

/** Check that the JVM's own decoder differs from the reference by a few levels only. */
private fun checkNear(case: JsonObject, data: ByteArray, wanted: RgbImage) {
    // Some JDKs refuse CMYK, and others convert it by a profile.
    if ("cmyk" in case.string("name", "case")) return
    val found = decodeImage(data, Rgb(0, 0, 0), ImageIoDecoder).picture
    assertEquals(wanted.width to wanted.height, found.width to found.height)
    val largest = found.pixels.indices.maxOf {
        Math.abs((found.pixels[it].toInt() and 0xFF) - (wanted.pixels[it].toInt() and 0xFF))
    }
    assertTrue(largest <= 4, "off by $largest levels")
}
