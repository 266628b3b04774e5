package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.util.Map;

/** Stub: the methods that dermedge calls, without LiteRT behind them. */
public final class Interpreter implements AutoCloseable {
    public Interpreter(ByteBuffer model, Options options) {
        throw new UnsatisfiedLinkError("this is the stub of LiteRT");
    }

    /** Stub. */
    public static class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    public void allocateTensors() {}

    public String[] getSignatureKeys() {
        throw new UnsupportedOperationException();
    }

    public String[] getSignatureInputs(String signature) {
        throw new UnsupportedOperationException();
    }

    public String[] getSignatureOutputs(String signature) {
        throw new UnsupportedOperationException();
    }

    public Tensor getInputTensorFromSignature(String input, String signature) {
        throw new UnsupportedOperationException();
    }

    public Tensor getOutputTensorFromSignature(String output, String signature) {
        throw new UnsupportedOperationException();
    }

    public void runSignature(
            Map<String, Object> inputs, Map<String, Object> outputs, String signature) {}

    @Override
    public void close() {}
}
