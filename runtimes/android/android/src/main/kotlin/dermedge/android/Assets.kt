package dermedge.android

import android.content.res.AssetManager
import dermedge.BundleError
import dermedge.Model
import dermedge.ModelOptions
import dermedge.UsageError
import dermedge.bundleFiles
import java.io.FileNotFoundException
import java.io.IOException

/**
 * Open a bundle among an app's assets, check all of it, and start its engine.
 *
 * The asset is the bundle as one file, as `dermedge embed --platform android` writes it.
 * Images are decoded by [BitmapDecoder] unless the options name another decoder. The call
 * takes as long as hashing the bundle and loading the model, so make it outside the main
 * thread.
 *
 * @param name Name of the asset, such as `lesions.dermedge`.
 * @throws UsageError There is no such asset.
 * @throws BundleError The asset is not a bundle, or it was changed.
 */
@JvmOverloads
public fun loadAsset(
    assets: AssetManager,
    name: String,
    options: ModelOptions = ModelOptions(),
): Model {
    val bytes = try {
        assets.open(name).use { it.readBytes() }
    } catch (error: FileNotFoundException) {
        throw UsageError(
            "There is no asset '$name'. Write it with 'dermedge embed --platform android'.",
            error,
        )
    } catch (error: IOException) {
        throw BundleError("Cannot read the asset '$name' (${error.message}). Build the app again.", error)
    }
    val decoder = options.decoder ?: BitmapDecoder
    return Model.load(bundleFiles(bytes, name), options.copy(decoder = decoder))
}
