"""Bundles with every kind of task, and what they predict for images of this folder."""

from conformance.toy import FITTED, SPEC, forward, onnx_artifact, onnx_model, toy_zip
from conformance.writing import Files, cases_json
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import drop_volatile
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Json

IMAGES = ("rgb.png", "alpha.png", "grey-16.png", "exif-6.png", "crop-320x16.png", "icc.png")


def prediction_files(images: Files) -> Files:
    """Return `predictions.json` and its bundles.

    Args:
        images: Files of `images.json`.
    """
    bundles = {"bundles/toy-onnx.zip": toy_zip(SPEC, onnx_artifact(), onnx_model(SPEC))}
    entries = [
        {"bundle": bundle, "image": f"images/{name}", "prediction": predict(images, name)}
        for bundle in bundles
        for name in IMAGES
    ]
    return {"predictions.json": cases_json(entries), **bundles}


def predict(images: Files, name: str) -> Json:
    """Return the prediction for an image; no engine takes part."""
    tensor = preprocess(images[f"images/{name}"], SPEC.preprocess, exact=True)
    return drop_volatile(decode(forward(tensor, SPEC), SPEC, FITTED).to_json())
