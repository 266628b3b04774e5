package dermedge

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor as LiteRtTensor
import org.tensorflow.lite.TensorFlowLite

/**
 * LiteRT interpreter on a bundle's `.tflite` file, on the CPU (XNNPACK).
 *
 * It runs on Android only, because LiteRT has no library for a desktop's JVM. The app brings
 * the library: `com.google.ai.edge.litert:litert` 1.x.
 */
public class LiteRtEngine private constructor(
    private val interpreter: Interpreter,
    private val signature: String,
    spec: Spec,
    override val version: String,
) : Engine {
    override val name: String = NAME
    private val input = ByteBuffer.allocateDirect(spec.preprocess.size * spec.preprocess.size * 3)
    private val outputs: List<Output> = spec.tasks.map {
        Output(it.name, interpreter.getOutputTensorFromSignature(it.name, signature))
    }

    private class Output(val task: String, tensor: LiteRtTensor) {
        val shape: List<Int> = tensor.shape().drop(1)
        val buffer: ByteBuffer =
            ByteBuffer.allocateDirect(tensor.numBytes()).order(ByteOrder.nativeOrder())
    }

    /** An interpreter computes one image at a time. */
    @Synchronized
    override fun run(image: ByteArray): Map<String, Tensor> {
        if (image.size != input.capacity()) {
            throw UsageError(
                "The engine takes ${input.capacity()} bytes, not ${image.size}. " +
                    "Preprocess the image first.",
            )
        }
        input.clear()
        input.put(image).rewind()
        outputs.forEach { it.buffer.clear() }
        try {
            val targets: Map<String, Any> = outputs.associate { it.task to it.buffer }
            interpreter.runSignature(mapOf<String, Any>(INPUT to input), targets, signature)
        } catch (error: RuntimeException) {
            throw EngineError(
                "$NAME $version failed (${error.firstLine()}). Run `verify` on the bundle.",
                error,
            )
        }
        return outputs.associate { output ->
            output.buffer.rewind()
            val values = output.buffer.asFloatBuffer()
            output.task to Tensor(output.shape, FloatArray(values.remaining()).also(values::get))
        }
    }

    @Synchronized
    override fun close(): Unit = interpreter.close()

    /** Opens LiteRT on the CPU. */
    public companion object : EngineFactory {
        internal const val NAME: String = "litert"
        private const val ANDROID = "Dalvik"

        override fun open(bundle: Bundle, threads: Int?): Engine {
            if (System.getProperty("java.vm.name") != ANDROID) {
                throw ElsewhereError(
                    "A LiteRT bundle runs on Android only, and this is another JVM. " +
                        "Run `verify` in the app, or `dermedge verify` of Python here.",
                )
            }
            val version = try {
                TensorFlowLite.runtimeVersion()
            } catch (error: LinkageError) {
                throw MissingExtraError(
                    "A LiteRT bundle needs LiteRT, which the app has not. Add the dependency " +
                        "com.google.ai.edge.litert:litert.",
                    error,
                )
            }
            val model = bundle.read(bundle.artifact.path)
            // The interpreter reads the file's bytes as long as it lives.
            val direct = ByteBuffer.allocateDirect(model.size).order(ByteOrder.nativeOrder())
            direct.put(model).rewind()
            val options = Interpreter.Options()
            if (threads != null) options.setNumThreads(threads)
            val interpreter = try {
                Interpreter(direct, options).also { it.allocateTensors() }
            } catch (error: RuntimeException) {
                throw EngineError(
                    "$NAME $version refuses ${bundle.artifact.path} (${error.firstLine()}). " +
                        "Upgrade it, or export the model again.",
                    error,
                )
            }
            try {
                val signature = checkInterpreter(interpreter, bundle.spec)
                return LiteRtEngine(interpreter, signature, bundle.spec, version)
            } catch (error: EngineError) {
                interpreter.close()
                throw error
            }
        }

        /** Check the model's inputs and outputs; return the signature that names them. */
        private fun checkInterpreter(interpreter: Interpreter, spec: Spec): String {
            val names = interpreter.signatureKeys
            if (names.size != 1) {
                throw EngineError(
                    "The model's signatures are ${quoteAll(names.asList())}, not one. $AGAIN",
                )
            }
            val signature = names[0]
            checkSignature(
                interpreter.getSignatureInputs(signature).associateWith {
                    port(interpreter.getInputTensorFromSignature(it, signature))
                },
                interpreter.getSignatureOutputs(signature).associateWith {
                    port(interpreter.getOutputTensorFromSignature(it, signature))
                },
                spec,
            )
            return signature
        }

        private fun port(tensor: LiteRtTensor): Port {
            val type = when (tensor.dataType()) {
                DataType.UINT8 -> "uint8"
                DataType.FLOAT32 -> "float32"
                else -> tensor.dataType().toString().lowercase()
            }
            return Port(type, tensor.shape().toList())
        }
    }
}
