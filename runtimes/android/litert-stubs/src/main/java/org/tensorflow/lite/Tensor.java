package org.tensorflow.lite;

/** Stub: the signatures that dermedge calls, without LiteRT behind them. */
public interface Tensor {
    String name();

    DataType dataType();

    int[] shape();

    int numBytes();
}
