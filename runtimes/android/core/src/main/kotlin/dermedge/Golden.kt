package dermedge

import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val GOLDEN_SCHEMA = "dermedge.golden/1"
private const val CASES = "golden/cases.json"

/** An image, and the numbers that every platform must compute from it. */
internal class GoldenCase(
    val name: String,
    val image: ByteArray,
    val size: Int,
    val tensor: ByteArray,
    val reference: Map<String, Tensor>,
    val expected: Map<String, Tensor>,
    val prediction: JsonObject,
)

/** Read the golden cases of a bundle, one or more; throw [BundleError] if they do not fit. */
internal fun readGolden(bundle: Bundle): List<GoldenCase> {
    val data = asObject(parseJson(bundle.read(CASES), CASES), CASES)
    val schema = data.string("schema", CASES)
    if (schema != GOLDEN_SCHEMA) {
        throw BundleError(
            "$CASES has schema ${quote(schema)}, " +
                "and this dermedge reads ${quote(GOLDEN_SCHEMA)}. Upgrade dermedge.",
        )
    }
    val cases = data.array("cases", CASES).map { readCase(asObject(it, "golden case"), bundle) }
    if (cases.isEmpty()) {
        throw BundleError("$CASES lists no case, so verification is not possible. $AGAIN")
    }
    return cases
}

private fun readCase(item: JsonObject, bundle: Bundle): GoldenCase {
    val name = item.string("name", "golden case")
    val where = "golden case ${quote(name)}"
    val tensor = item.obj("tensor", where)
    val shape = readShape(tensor, "uint8", where)
    if (shape.size != 3 || shape[0] != shape[1] || shape[2] != 3) {
        throw BundleError("The tensor of $where has shape $shape, not [S, S, 3]. $AGAIN")
    }

    fun outputs(key: String) = item.obj(key, where).mapValues { (_, entry) ->
        readTensor(asObject(entry, where), where, bundle)
    }
    return GoldenCase(
        name = name,
        tensor = readValues(tensor, shape, "uint8", bundle),
        size = shape[0],
        reference = outputs("reference"),
        expected = outputs("expected"),
        image = bundle.read(item.string("image", where)),
        prediction = item.obj("prediction", where),
    )
}

private fun readTensor(entry: JsonObject, where: String, bundle: Bundle): Tensor {
    val shape = readShape(entry, "float32", where)
    val data = ByteBuffer.wrap(readValues(entry, shape, "float32", bundle))
    val buffer = data.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    val values = FloatArray(buffer.remaining()).also(buffer::get)
    if (!values.all { it.isFinite() }) {
        throw BundleError("${entry["path"]} of $where holds NaN or infinity. $AGAIN")
    }
    return Tensor(shape, values)
}

private fun readShape(entry: JsonObject, dtype: String, where: String): List<Int> {
    val path = entry.string("path", where)
    val sizes = entry.array("shape", where)
    val shape = sizes.filterIsInstance<Long>().filter { it in 1..Int.MAX_VALUE }.map { it.toInt() }
    if (entry.string("dtype", where) != dtype || shape.size != sizes.size) {
        throw BundleError("$path of $where is ${jsonText(entry)}, not a $dtype tensor. $AGAIN")
    }
    return shape
}

private fun readValues(
    entry: JsonObject,
    shape: List<Int>,
    dtype: String,
    bundle: Bundle,
): ByteArray {
    val path = entry["path"] as String
    val data = bundle.read(path)
    val wanted = shape.fold((if (dtype == "uint8") 1 else 4).toBigInteger()) { all, size ->
        all * size.toBigInteger()
    }
    if (data.size.toBigInteger() != wanted) {
        throw BundleError("$path has ${data.size} bytes, which is not $dtype $shape. $AGAIN")
    }
    return data
}
