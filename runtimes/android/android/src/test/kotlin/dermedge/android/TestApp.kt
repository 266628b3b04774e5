package dermedge.android

import android.content.Context
import java.io.File
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import org.robolectric.RuntimeEnvironment

/**
 * An app with two assets: the toy bundle, and one that was cut off.
 *
 * Without the Android SDK no tool builds an APK. A zip with a folder `assets` is enough for
 * an asset manager.
 */
internal fun appWithAssets(): Context {
    val app = RuntimeEnvironment.getApplication()
    val toy = File("src/test/assets/toy.dermedge").readBytes()
    val apk = File(app.cacheDir, "assets.apk")
    ZipOutputStream(apk.outputStream()).use { zip ->
        for ((name, content) in mapOf("toy" to toy, "corrupted" to toy.copyOf(1000))) {
            zip.putNextEntry(ZipEntry("assets/$name.dermedge"))
            zip.write(content)
            zip.closeEntry()
        }
    }
    @Suppress("DEPRECATION")
    check(app.assets.addAssetPath(apk.path) != 0)
    return app
}
