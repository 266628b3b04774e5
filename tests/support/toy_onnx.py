"""Build a tiny ONNX model without torch: convolution, pooling and two linear heads."""

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import Case, drop_volatile, golden_files
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Artifact, Label, Postprocessing, Preprocess, Spec, Task

LABELS = (
    Label("nv", "Melanocytic naevus", malignant=False),
    Label("mel", "Melanoma", malignant=True),
    Label("bcc", "Basal cell carcinoma", malignant=True),
)
CHANNELS = 8
POSTPROCESSING = {"diagnosis": Postprocessing(1.3), "malignancy": Postprocessing(0.9, 0.4)}


def spec(size: int = 48) -> Spec:
    tasks = (Task("diagnosis", "classify", LABELS), Task("malignancy", "binary"))
    return Spec(name="toy-onnx", version="1.0.0", tasks=tasks, preprocess=Preprocess(size=size))


def parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    draw = {
        "conv.weight": (CHANNELS, 3, 3, 3),
        "conv.bias": (CHANNELS,),
        "diagnosis.weight": (CHANNELS, len(LABELS)),
        "diagnosis.bias": (len(LABELS),),
        "malignancy.weight": (CHANNELS, 1),
        "malignancy.bias": (1,),
    }
    values = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in draw.items()}
    values["mean"] = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3) * 255
    values["std"] = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3) * 255
    return values


def forward(images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the same network in numpy, in float64."""
    p = {name: value.astype(np.float64) for name, value in parameters().items()}
    x = ((images.astype(np.float64) - p["mean"]) / p["std"]).transpose(0, 3, 1, 2)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    x = (
        np.einsum("nchwij,ocij->nohw", windows, p["conv.weight"])
        + p["conv.bias"][None, :, None, None]
    )
    pooled = np.maximum(x, 0).mean(axis=(2, 3))
    return {
        task: pooled @ p[f"{task}.weight"] + p[f"{task}.bias"]
        for task in ("diagnosis", "malignancy")
    }


def graph(
    size: int = 48,
    batch: int | str = 1,
    *,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    labels: int = len(LABELS),
    names: tuple[str, str] = ("diagnosis", "malignancy"),
) -> bytes:
    values = parameters()
    values["diagnosis.weight"] = values["diagnosis.weight"][:, :labels]
    values["diagnosis.bias"] = values["diagnosis.bias"][:labels]
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "conv.weight", "conv.bias"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["features"]),
        helper.make_node("Gemm", ["features", "diagnosis.weight", "diagnosis.bias"], [names[0]]),
        helper.make_node("Gemm", ["features", "malignancy.weight", "malignancy.bias"], [names[1]]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info(input_name, input_type, [batch, size, size, 3])],
            [
                helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, labels]),
                helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, 1]),
            ],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write(out: Path, model: bytes, *, size: int = 48, batch: int | str = 1) -> Bundle:
    """Write a bundle around `model`, with one golden case of the numpy network."""
    image, _ = draw_image(3)
    tensor = preprocess(image, Preprocess(size=size), exact=True)
    outputs = {name: values[0].astype(np.float32) for name, values in forward(tensor[None]).items()}
    prediction = drop_volatile(decode(outputs, spec(size), POSTPROCESSING).to_json())
    cases = [Case("lesion-3", image, tensor, outputs, outputs, prediction)]
    return write_bundle(
        out,
        spec=spec(size),
        artifact=Artifact(
            "cpu", "onnx", "model.onnx", "fp32", ("onnxruntime>=1.17",), {}, {"batch": batch}
        ),
        postprocessing=POSTPROCESSING,
        tolerance={"diagnosis": 1e-3, "malignancy": 1e-3},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={"model.onnx": model, **golden_files(cases)},
    )


def draw_image(seed: int, size: int = 96) -> tuple[bytes, np.ndarray]:
    """Return a procedural lesion as PNG bytes and as pixels."""
    lesion = draw_lesion(seed, height=size, width=size)
    buffer = io.BytesIO()
    Image.fromarray(lesion.image).save(buffer, "PNG")
    return buffer.getvalue(), lesion.image
