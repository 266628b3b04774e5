package dermedge

import java.math.BigInteger

// A bound of more digits would be no version, and other languages round it.
private const val BOUND = "(>=|<=|==|!=|>|<)([0-9]{1,9}(?:\\.[0-9]{1,9})*)"
private val BOUNDS = Regex(BOUND)
private val LEADING = Regex("^[0-9]+(?:\\.[0-9]+)*")
private val REQUIREMENT = Regex("([A-Za-z0-9][A-Za-z0-9._-]*)((?:$BOUND(?:,$BOUND)*)?)")

/** Read one entry of an artifact's `requires`, such as `onnxruntime>=1.17,<2`. */
internal fun readRequirement(value: Any?): String {
    if (value !is String || !REQUIREMENT.matches(value)) {
        val shown = if (value is String) quote(value) else jsonText(value)
        throw BundleError(
            "The requirement $shown is not a name with bounds, " +
                "such as 'onnxruntime>=1.17,<2'. $AGAIN",
        )
    }
    return value
}

/**
 * Check that an engine satisfies what an artifact requires of it.
 *
 * Requirements of other names are ignored: an engine cannot know the version of a phone's
 * system. Of the version, the numbers at its beginning count.
 *
 * @throws EngineError The version is outside a bound, or does not begin with a number.
 */
internal fun checkEngine(name: String, version: String, requires: List<String>) {
    for (requirement in requires) {
        val found = REQUIREMENT.matchEntire(requirement) ?: continue
        if (found.groupValues[1] == name && !satisfies(version, found.groupValues[2])) {
            throw EngineError(
                "The bundle requires $requirement, and this is $name $version. " +
                    "Install a version that fits, or export the model again.",
            )
        }
    }
}

private fun satisfies(version: String, bounds: String): Boolean {
    if (bounds.isEmpty()) return true
    val own = LEADING.find(version)?.value ?: return false
    return BOUNDS.findAll(bounds).all {
        val order = compareVersions(own, it.groupValues[2])
        when (it.groupValues[1]) {
            ">=" -> order >= 0
            "<=" -> order <= 0
            "==" -> order == 0
            "!=" -> order != 0
            ">" -> order > 0
            else -> order < 0
        }
    }
}

/** Compare numbers with points; a missing number is 0, so that 1.2 is 1.2.0. */
private fun compareVersions(first: String, second: String): Int {
    val (a, b) = listOf(first, second).map { version -> version.split(".").map(::BigInteger) }
    for (index in 0 until maxOf(a.size, b.size)) {
        val order = (a.getOrNull(index) ?: BigInteger.ZERO)
            .compareTo(b.getOrNull(index) ?: BigInteger.ZERO)
        if (order != 0) return order
    }
    return 0
}
