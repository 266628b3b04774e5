"""Bundles with every kind of task, and what they predict for images of this folder."""

from conformance.decode_cases import tensor_json
from conformance.toy import (
    FITTED,
    QUALITY,
    SPEC,
    forward,
    litert_artifact,
    onnx_artifact,
    onnx_model,
    toy_zip,
)
from conformance.writing import Files, cases_json, keep
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import drop_volatile
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import describe_quality, measure_quality
from dermedge_runtime.spec import Json

IMAGES = ("rgb.png", "alpha.png", "grey-16.png", "exif-6.png", "crop-320x16.png", "icc.png")
LITERT = "models/toy.tflite"


def prediction_files(images: Files) -> Files:
    """Return `predictions.json` and its bundles.

    Args:
        images: Files of `images.json`.
    """
    litert = keep(LITERT, _litert_model)
    bundles = {
        "bundles/toy-onnx.zip": toy_zip(SPEC, onnx_artifact(), onnx_model(SPEC)),
        "bundles/toy-litert.zip": toy_zip(SPEC, litert_artifact(), litert),
    }
    entries = [
        {"bundle": bundle, "image": f"images/{name}", **predict(images, name)}
        for bundle in bundles
        for name in IMAGES
    ]
    return {"predictions.json": cases_json(entries), **bundles, LITERT: litert}


def _litert_model() -> bytes:
    # The writer needs LiteRT's package, and the file is committed.
    from conformance.toy_litert import litert_model

    return litert_model(SPEC)


def predict(images: Files, name: str) -> Json:
    """Return the prediction for an image, and its map; no engine takes part."""
    tensor = preprocess(images[f"images/{name}"], SPEC.preprocess, exact=True)
    quality = describe_quality(measure_quality(tensor), QUALITY)
    outputs = forward(tensor, SPEC)
    prediction = decode(outputs, SPEC, FITTED, quality=quality, limits=QUALITY)
    assert prediction.cam is not None
    return {
        "prediction": drop_volatile(prediction.to_json()),
        "cam": tensor_json(prediction.cam),
    }
