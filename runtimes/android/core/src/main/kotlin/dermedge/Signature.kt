package dermedge

internal const val INPUT: String = "image"

/** Element type of an input or output, and its sizes; [FREE] is open. */
internal class Port(val type: String, val shape: List<Int>) {
    /** The port as text, such as `float32 [N, 3]`. */
    override fun toString(): String = shape
        .mapIndexed { at, size -> if (size != FREE) "$size" else if (at == 0) "N" else "D" }
        .joinToString(", ", "$type [", "]")
}

/**
 * Check a graph's inputs and outputs against the spec of the model that it must compute.
 *
 * @throws EngineError They are not those of the spec.
 */
internal fun checkSignature(inputs: Map<String, Port>, outputs: Map<String, Port>, spec: Spec) {
    val size = spec.preprocess.size
    val input = inputs[INPUT]
    val shape = listOf(size, size, 3)
    if (inputs.size != 1 || input?.type != "uint8" || input.shape.drop(1) != shape) {
        val found = inputs.map { (name, port) -> "${quote(name)} $port" }.joinToString(", ")
        throw EngineError(
            "The graph's inputs are ${found.ifEmpty { "none" }}, " +
                "not one '$INPUT' uint8 [N, $size, $size, 3]. $AGAIN",
        )
    }
    val batch = input.shape[0]
    if (batch != FREE && batch != 1) {
        throw EngineError("The graph takes batches of $batch, not of one or of any size. $AGAIN")
    }
    val names = spec.tasks.map { it.name }.sorted()
    if (outputs.keys.sorted() != names) {
        throw EngineError(
            "The graph's outputs are ${quoteAll(outputs.keys.sorted())}, " +
                "but the tasks are ${quoteAll(names)}. $AGAIN",
        )
    }
    for (task in spec.tasks) {
        val port = outputs.getValue(task.name)
        val expected = listOf(batch) + task.shape(size)
        val fits = port.shape.size == expected.size &&
            port.shape.zip(expected).all { (have, want) ->
                have == want || have == FREE || want == FREE
            }
        if (port.type != "float32" || !fits) {
            val wanted = Port("float32", listOf(FREE) + task.shape(size))
            throw EngineError("Output ${quote(task.name)} is $port, not $wanted. $AGAIN")
        }
    }
}
