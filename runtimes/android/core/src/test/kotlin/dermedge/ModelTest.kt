package dermedge

import java.io.ByteArrayInputStream
import java.io.File
import java.io.InputStream
import java.util.concurrent.Callable
import java.util.concurrent.Executors
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

private val TOY: File = generateSequence(File("").absoluteFile) { it.parentFile }
    .map { File(it, "tests/data/toy.dermedge") }
    .first { it.exists() }

/** What an app relies on: refusals, threads, memory. */
class ModelTest {
    private val files = bundleFiles(TOY)
    private val bundle = Bundle.open(files)
    private val image = readGolden(bundle).first().image

    private fun load() = Model.load(files, ModelOptions(threads = 1))

    @Test
    fun `a model predicts and says what computed`(): Unit = load().use { model ->
        val prediction = model.predict(image)
        assertEquals(3, prediction.labels.size)
        assertEquals(1.0, prediction.labels.sumOf { it.probability }, 1e-12)
        assertTrue(prediction.decision in setOf("malignant", "benign"))
        val read = asObject(parseJson(prediction.toJson().toByteArray(), "JSON"), "JSON")
        assertEquals(bundle.id, read.obj("provenance", "JSON")["bundle"])
    }

    @Test
    fun `bytes and pixels give the same prediction`(): Unit = load().use { model ->
        val pixels = decodeImage(image, bundle.spec.preprocess.background, NoDecoder).picture
        assertEquals(model.predict(image).labels, model.predict(pixels).labels)
    }

    @Test
    fun `verify passes, also on an open model`(): Unit = load().use { model ->
        assertEquals("passed", model.verify().status, model.verify().toJson())
        assertEquals("passed", verify(files).status)
    }

    @Test
    fun `bench reports each stage`(): Unit = load().use { model ->
        val report = model.bench(runs = 3, warmup = 1)
        assertEquals(3, report.endToEnd.count)
        assertTrue(report.engineOnly.p50 > 0 && report.coldStartMs > 0)
        assertFailsWith<UsageError> { model.bench(runs = 0) }
    }

    @Test
    fun `a closed model refuses, and closing again does nothing`() {
        val model = load()
        model.close()
        model.close()
        val error = assertFailsWith<UsageError> { model.predict(image) }
        assertTrue("closed" in error.message.orEmpty())
        assertFailsWith<UsageError> { model.verify() }
        assertFailsWith<UsageError> { model.bench() }
    }

    @Test
    fun `closing waits for calls in other threads`() {
        val threads = Executors.newFixedThreadPool(2)
        val model = load()
        val calls = List(2) {
            threads.submit(
                Callable {
                    assertFailsWith<UsageError> { while (true) model.predict(image) }
                },
            )
        }
        model.predict(image)
        model.close()
        calls.forEach { assertTrue("closed" in it.get().message.orEmpty()) }
        threads.shutdown()
    }

    @Test
    fun `two threads get the numbers of one`(): Unit = load().use { model ->
        val images = readGolden(bundle).take(2).map { it.image }
        val wanted = images.map { model.predict(it).copy(timing = null) }
        val threads = Executors.newFixedThreadPool(2)
        val found = images.map { image ->
            threads.submit(Callable { List(300) { model.predict(image).copy(timing = null) } })
        }.map { it.get() }
        threads.shutdown()
        assertTrue(wanted[0] != wanted[1])
        found.zip(wanted).forEach { (all, one) -> assertTrue(all.all { it == one }) }
    }

    @Test
    fun `predictions do not fill the heap`(): Unit = load().use { model ->
        fun used(): Long {
            System.gc()
            return Runtime.getRuntime().let { it.totalMemory() - it.freeMemory() }
        }
        repeat(200) { model.predict(image) }
        val before = used()
        repeat(2000) { model.predict(image) }
        assertTrue(used() - before < 1 shl 20, "the heap grew from $before to ${used()} bytes")
    }

    @Test
    fun `a corrupted asset is refused and named`() {
        val path = bundle.artifact.path
        val error = assertFailsWith<BundleError> { Model.load(Corrupted(files, path)) }
        assertTrue(path in error.message.orEmpty() && error.exitCode == 5)
        assertEquals("failed", verify(Corrupted(files, "golden/cases.json")).status)
    }

    @Test
    fun `a bad image is refused, and the model still works`(): Unit = load().use { model ->
        for (data in listOf(ByteArray(0), ByteArray(100), image.copyOf(image.size / 2))) {
            assertFailsWith<ImageError> { model.predict(data) }
        }
        val jpeg = assertFailsWith<ImageError> { model.predict(byteArrayOf(-1, -40, -1, -32)) }
        assertTrue("ImageDecoder" in jpeg.message.orEmpty())
        assertFailsWith<ImageError> { model.predict(RgbImage(15, 40, ByteArray(15 * 40 * 3))) }
        model.predict(image)
    }

    @Test
    fun `an engine outside the requirements is closed and refused`() {
        var closed = false
        val old = object : Engine {
            override val name = "onnxruntime"
            override val version = "1.2.3"

            override fun run(image: ByteArray): Map<String, Tensor> = emptyMap()

            override fun close() {
                closed = true
            }
        }
        val error = assertFailsWith<EngineError> {
            Model.load(files, ModelOptions(engine = { _, _ -> old }))
        }
        assertTrue("1.2.3" in error.message.orEmpty() && closed, error.message)
        assertFailsWith<UsageError> { Model.load(files, ModelOptions(threads = 0)) }
        assertFailsWith<UsageError> { Model.load(File("missing.dermedge")) }
    }
}

/** A bundle of which one file has another last byte. */
private class Corrupted(files: BundleFiles, private val path: String) : BundleFiles by files {
    private val source = files

    override fun open(path: String): InputStream {
        val data = source.open(path).readBytes()
        if (path == this.path) data[data.size - 1] = (data[data.size - 1] + 1).toByte()
        return ByteArrayInputStream(data)
    }
}
