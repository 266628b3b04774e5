package dermedge

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.ByteBuffer
import java.util.concurrent.ConcurrentLinkedQueue

/**
 * ONNX Runtime session on a bundle's graph.
 *
 * The app brings the library: `com.microsoft.onnxruntime:onnxruntime-android` on Android,
 * `com.microsoft.onnxruntime:onnxruntime` on a JVM.
 */
public class OnnxRuntimeEngine private constructor(
    private val environment: OrtEnvironment,
    private val session: OrtSession,
    spec: Spec,
    override val version: String,
) : Engine {
    override val name: String = NAME
    private val size = spec.preprocess.size
    private val outputs: Set<String> = spec.tasks.map { it.name }.toSet()

    // An input tensor is memory outside the Java heap that is freed late. So it is used again.
    private val inputs = ConcurrentLinkedQueue<Input>()

    private inner class Input : AutoCloseable {
        val bytes: ByteBuffer = ByteBuffer.allocateDirect(size * size * 3)
        val tensor: OnnxTensor = OnnxTensor.createTensor(
            environment,
            bytes,
            longArrayOf(1, size.toLong(), size.toLong(), 3),
            OnnxJavaType.UINT8,
        )

        override fun close() = tensor.close()
    }

    override fun run(image: ByteArray): Map<String, Tensor> {
        if (image.size != size * size * 3) {
            throw UsageError(
                "The engine takes uint8 [$size, $size, 3], not ${image.size} bytes. " +
                    "Preprocess the image first.",
            )
        }
        val input = inputs.poll() ?: Input()
        try {
            input.bytes.clear()
            input.bytes.put(image)
            session.run(mapOf(INPUT to input.tensor), outputs).use { result ->
                return result.associate { (name, value) -> name to read(value as OnnxTensor) }
            }
        } catch (error: OrtException) {
            throw EngineError(
                "$NAME $version failed (${error.firstLine()}). Run `verify` on the bundle.",
                error,
            )
        } finally {
            inputs.add(input)
        }
    }

    override fun close() {
        generateSequence { inputs.poll() }.forEach { it.close() }
        session.close()
    }

    private fun read(tensor: OnnxTensor): Tensor {
        val buffer = tensor.floatBuffer
        val values = FloatArray(buffer.remaining()).also(buffer::get)
        return Tensor((tensor.info as TensorInfo).shape.drop(1).map { it.toInt() }, values)
    }

    /** Opens ONNX Runtime on the CPU. */
    public companion object : EngineFactory {
        internal const val NAME: String = "onnxruntime"

        override fun open(bundle: Bundle, threads: Int?): Engine {
            forbidTelemetry()
            val environment = try {
                val level = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL
                OrtEnvironment.getEnvironment(level, "dermedge")
            } catch (error: LinkageError) {
                throw MissingExtraError(
                    "An ONNX bundle needs ONNX Runtime, which the app has not. Add the " +
                        "dependency com.microsoft.onnxruntime:onnxruntime-android " +
                        "(on a JVM: onnxruntime).",
                    error,
                )
            }
            val version = environment.version
            val graph = bundle.read(bundle.artifact.path)
            val session = try {
                environment.setTelemetry(false)
                options(threads).use { environment.createSession(graph, it) }
            } catch (error: OrtException) {
                throw EngineError(
                    "$NAME $version refuses ${bundle.artifact.path} (${error.firstLine()}). " +
                        "Upgrade it, or export the model again.",
                    error,
                )
            }
            try {
                checkSignature(ports(session.inputInfo), ports(session.outputInfo), bundle.spec)
            } catch (error: EngineError) {
                session.close()
                throw error
            }
            return OnnxRuntimeEngine(environment, session, bundle.spec, version)
        }

        private fun options(threads: Int?) = OrtSession.SessionOptions().apply {
            setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT)
            setExecutionMode(OrtSession.SessionOptions.ExecutionMode.SEQUENTIAL)
            setIntraOpNumThreads(threads ?: 0)
            setInterOpNumThreads(1)
            // The arena keeps the peak memory of one call for the life of the process
            // (https://github.com/microsoft/onnxruntime/issues/11627).
            setCPUArenaAllocator(false)
            setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
        }

        private fun ports(nodes: Map<String, NodeInfo>): Map<String, Port> =
            nodes.mapValues { (_, node) ->
                val info = node.info as? TensorInfo
                val type = when (info?.type) {
                    OnnxJavaType.UINT8 -> "uint8"
                    OnnxJavaType.FLOAT -> "float32"
                    else -> info?.type.toString().lowercase()
                }
                Port(type, info?.shape?.map { it.toInt() } ?: emptyList())
            }

        /**
         * Disable ONNX Runtime's telemetry before its library is loaded.
         *
         * From 1.29 on it sends, and reads this variable once, when it starts
         * (https://github.com/microsoft/onnxruntime/issues/25573). Only Android can set a
         * variable of its own process; without the INTERNET permission nothing is sent
         * either. The Maven build uses 1.28 on the JVM.
         */
        private fun forbidTelemetry() {
            try {
                val text = String::class.java
                Class.forName("android.system.Os")
                    .getMethod("setenv", text, text, Boolean::class.java)
                    .invoke(null, "ORT_DISABLE_TELEMETRY", "1", true)
            } catch (error: ReflectiveOperationException) {
                return
            }
        }
    }
}
