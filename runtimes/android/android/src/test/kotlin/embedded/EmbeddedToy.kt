// Written by `dermedge embed` for toy.
package embedded

import android.content.Context
import dermedge.Model
import dermedge.android.loadAsset

/** The model toy, one file among the app's assets. */
object EmbeddedToy {
    /** SHA-256 that identifies the bundle. */
    const val ID: String = "fd51c8bac54ca4a27979a61e86b8429c59b00b2222251170464c05027de26a17"
    const val INTENDED_USE: String = "Tests only: its weights are random."

    /** Id and name of the labels by task, in the task's order. */
    val labels: Map<String, List<Pair<String, String>>> = mapOf(
        "diagnosis" to listOf(
            "nv" to "Melanocytic naevus",
            "mel" to "Melanoma",
            "akiec" to "Actinic keratosis or Bowen's disease",
        ),
        "severity" to listOf(
            "0" to "Level 0",
            "1" to "Level 1",
            "2" to "Level 2",
            "3" to "Level 3",
        ),
    )

    /**
     * Open the model. Call this outside the main thread, and close the model after use.
     *
     * @throws dermedge.BundleError if the asset was changed.
     */
    fun open(context: Context): Model {
        val model = loadAsset(context.assets, "toy.dermedge")
        if (model.bundle.id == ID) return model
        model.close()
        error("toy.dermedge is another bundle than $ID. Embed the bundle again.")
    }
}
