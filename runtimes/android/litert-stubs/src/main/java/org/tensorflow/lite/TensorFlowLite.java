package org.tensorflow.lite;

/** Stub: the signature that dermedge calls, without LiteRT behind it. */
public final class TensorFlowLite {
    private TensorFlowLite() {}

    public static String runtimeVersion() {
        throw new UnsatisfiedLinkError("this is the stub of LiteRT");
    }
}
