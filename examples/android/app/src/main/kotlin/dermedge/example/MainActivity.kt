package dermedge.example

import android.Manifest
import android.app.AlertDialog
import android.os.Bundle
import android.widget.Button
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import dermedge.DermedgeError
import dermedge.Model
import dermedge.Prediction
import dermedge.RgbImage
import dermedge.UsageError
import dermedge.YuvPlane
import dermedge.android.loadAsset
import dermedge.yuvToRgb
import java.util.concurrent.Executors

/** Shows the camera and the model's prediction of what it sees. Nothing is stored or sent. */
class MainActivity : ComponentActivity() {
    // One thread opens, runs and closes the model, so that no step meets a closed one.
    private val worker = Executors.newSingleThreadExecutor()
    private var model: Model? = null
    private val result by lazy { findViewById<TextView>(R.id.result) }

    private val askForCamera =
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
            if (granted) startCamera() else result.setText(R.string.no_camera)
        }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        findViewById<Button>(R.id.self_test).setOnClickListener { selfTest() }
        findViewById<Button>(R.id.about).setOnClickListener { describe() }
        work {
            model = openModel()
            runOnUiThread {
                findViewById<Button>(R.id.self_test).isEnabled = true
                findViewById<Button>(R.id.about).isEnabled = true
                askForCamera.launch(Manifest.permission.CAMERA)
            }
        }
    }

    override fun onDestroy() {
        worker.execute { model?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    /** Open the one bundle among the assets. */
    private fun openModel(): Model {
        val names = assets.list("").orEmpty().filter { it.endsWith(".dermedge") }
        val name = names.singleOrNull() ?: throw UsageError(
            "The app has ${names.size} bundles among its assets, not one. " +
                "Copy one there with 'dermedge embed'.",
        )
        return loadAsset(assets, name)
    }

    private fun startCamera() {
        val future = ProcessCameraProvider.getInstance(this)
        future.addListener({
            val preview = Preview.Builder().build()
            preview.surfaceProvider = findViewById<PreviewView>(R.id.preview).surfaceProvider
            // Frames that arrive during a prediction are dropped.
            val frames = ImageAnalysis.Builder()
                .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
                .build()
            frames.setAnalyzer(worker) { frame -> predict(frame) }
            future.get().unbindAll()
            future.get().bindToLifecycle(this, CameraSelector.DEFAULT_BACK_CAMERA, preview, frames)
        }, mainExecutor)
    }

    private fun predict(frame: ImageProxy) {
        val text = frame.use {
            try {
                model?.predict(it.toRgbImage())?.let { prediction -> summary(prediction) }
            } catch (error: DermedgeError) {
                error.message
            }
        }
        if (text != null) runOnUiThread { result.text = text }
    }

    private fun summary(prediction: Prediction): String {
        val labels = prediction.labels.take(3).joinToString("\n") {
            "${it.name}: %.0f %%".format(100 * it.probability)
        }
        val results = listOfNotNull(labels, conformalSet(prediction), decision(prediction))
        return (results + prediction.quality).joinToString("\n")
    }

    private fun decision(prediction: Prediction): String {
        val score = prediction.malignancy
        val threshold = prediction.threshold
        return when {
            prediction.referReason == "ood" -> getString(R.string.refer_ood)
            prediction.referReason == "uncertain" -> getString(R.string.refer_uncertain, score)
            score != null && threshold != null ->
                getString(R.string.decision, prediction.decision, score, threshold)
            else -> getString(R.string.no_decision)
        }
    }

    /** Name the diagnoses that fit the image; null if the bundle has no conformal sets. */
    private fun conformalSet(prediction: Prediction): String? {
        val ids = prediction.conformalSet ?: return null
        // The coverage does not hold for an image that is unlike the calibration images.
        if (prediction.ood == true) return null
        val bundle = model!!.bundle
        val sets = bundle.spec.diagnosis?.let { bundle.postprocessing[it.name]?.conformal }
        val coverage = 100 * (sets ?: return null).coverage
        if (ids.isEmpty()) return getString(R.string.empty_set, coverage)
        val names = prediction.labels.filter { it.id in ids }.joinToString(", ") { it.name }
        return getString(R.string.set, coverage, names)
    }

    /** Run the bundle's golden cases on this phone. */
    private fun selfTest() = work {
        val report = model!!.verify()
        val checks = report.checks.joinToString("\n\n") { "${it.name}: ${it.status}\n${it.detail}" }
        show("${getString(R.string.self_test)}: ${report.status}", checks)
    }

    /** Show what the model is for, its limitations and its accuracy. */
    private fun describe() = work {
        val bundle = model!!.bundle
        val card = bundle.read("modelcard.md").toString(Charsets.UTF_8)
        show("${bundle.spec.name} ${bundle.spec.version}", card)
    }

    private fun show(title: String, text: String) = runOnUiThread {
        AlertDialog.Builder(this).setTitle(title).setMessage(text).show()
    }

    /** Run a step outside the main thread; show the message of an expected error. */
    private fun work(step: () -> Unit) = worker.execute {
        try {
            step()
        } catch (error: DermedgeError) {
            runOnUiThread { result.text = error.message }
        }
    }
}

/** Convert CameraX's frame to upright RGB. */
private fun ImageProxy.toRgbImage(): RgbImage {
    val (y, u, v) = planes.map { YuvPlane(it.buffer, it.rowStride, it.pixelStride) }
    return yuvToRgb(width, height, y, u, v, imageInfo.rotationDegrees)
}
