package dermedge.android

import dermedge.BundleError
import dermedge.UsageError
import embedded.EmbeddedToy
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner

/** The snippet that `dermedge embed` wrote opens its bundle among an app's assets. */
@RunWith(RobolectricTestRunner::class)
class AssetsTest {
    private val app = appWithAssets()

    @Test
    fun `the snippet opens the bundle, and it verifies`() {
        EmbeddedToy.open(app).use { model ->
            assertEquals(EmbeddedToy.ID, model.bundle.id)
            assertEquals("passed", model.verify().status, model.verify().toJson())
            val tasks = model.bundle.spec.tasks.filter { it.labels.isNotEmpty() }
            assertEquals(
                tasks.associate { task -> task.name to task.labels.map { it.id to it.name } },
                EmbeddedToy.labels,
            )
            assertEquals(model.bundle.spec.intendedUse, EmbeddedToy.INTENDED_USE)
        }
    }

    @Test
    fun `a missing asset is named with the command that writes it`() {
        val error = assertFailsWith<UsageError> { loadAsset(app.assets, "absent.dermedge") }
        assertContains(error.message!!, "'absent.dermedge'")
        assertContains(error.message!!, "dermedge embed")
    }

    @Test
    fun `a corrupted asset is refused`() {
        val error = assertFailsWith<BundleError> { loadAsset(app.assets, "corrupted.dermedge") }
        assertContains(error.message!!, "corrupted.dermedge")
    }
}
