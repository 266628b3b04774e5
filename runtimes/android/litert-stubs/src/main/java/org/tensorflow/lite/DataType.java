package org.tensorflow.lite;

/** Stub: the values that dermedge compares. */
public enum DataType {
    FLOAT32,
    UINT8
}
