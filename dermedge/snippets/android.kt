// Written by `dermedge embed` for {{name}}.
package embedded

import android.content.Context
import dermedge.Model
import dermedge.android.loadAsset

/** The model {{name}}, one file among the app's assets. */
object Embedded{{symbol}} {
    /** SHA-256 that identifies the bundle. */
    const val ID: String = "{{id}}"
    const val INTENDED_USE: String = {{use}}

    /** Id and name of the labels by task, in the task's order. */
    val labels: Map<String, List<Pair<String, String>>> = mapOf(
        {{labels}}
    )

    /**
     * Open the model. Call this outside the main thread, and close the model after use.
     *
     * @throws dermedge.BundleError if the asset was changed.
     */
    fun open(context: Context): Model {
        val model = loadAsset(context.assets, "{{name}}.dermedge")
        if (model.bundle.id == ID) return model
        model.close()
        error("{{name}}.dermedge is another bundle than $ID. Embed the bundle again.")
    }
}
