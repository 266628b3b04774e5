"""A network with every kind of task, whose outputs float32 holds exactly.

Weights are multiples of 1/32, so sums are exact in every order and in every engine; only
the embedding is rounded. So the expected outputs come from numpy, not from an engine.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conformance.drawing import RGB, RGB_ALPHA, draw, png, random_bytes
from dermedge_runtime.canonical_json import canonical_json, pretty_json
from dermedge_runtime.container import MANIFEST, zip_bytes
from dermedge_runtime.decode import decode
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.golden import Case, drop_volatile, golden_files
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import QualityLimits
from dermedge_runtime.report import PARITY_REPORT
from dermedge_runtime.spec import (
    Artifact,
    Json,
    Label,
    Postprocessing,
    Preprocess,
    Spec,
    Task,
    to_json,
)

CHANNELS, PATCH = 4, 4
MAPS = ("segment", "cam")  # Kinds whose head is applied at every place.
DIAGNOSIS = Task(
    "diagnosis",
    "classify",
    (
        Label("nv", "Melanocytic naevus", malignant=False, codes={"icd11": "2F20"}),
        Label("mel", "Melanoma", malignant=True),
        Label("akiec", "Actinic keratosis or Bowen's disease"),
    ),
)
MALIGNANCY = Task("malignancy", "binary")
SEVERITY = Task("severity", "ordinal", tuple(Label(str(n), f"Level {n}") for n in range(4)))
LESION = Task("lesion", "segment")
EMBEDDING = Task("embedding", "embed")
CAM = Task("diagnosis_cam", "cam", DIAGNOSIS.labels)
WIDTHS = {"diagnosis": 3, "malignancy": 1, "severity": 3, "lesion": 1, "embedding": 5}
FITTED = {
    "diagnosis": Postprocessing(1.3),
    "malignancy": Postprocessing(0.9, 0.45),
    "severity": Postprocessing(1.1),
    "lesion": Postprocessing(0.8, 0.43),
    "embedding": Postprocessing(),
    "diagnosis_cam": Postprocessing(),
}
QUALITY = QualityLimits(sharpness=535, dark=60, bright=215, glare=80, small=300, cut=200)
SPEC = Spec(
    "toy",
    "1.0.0",
    (DIAGNOSIS, MALIGNANCY, SEVERITY, LESION, EMBEDDING, CAM),
    Preprocess(32, background=(20, 200, 90)),
    intended_use="Tests only: its weights are random.",
    lineage={"data": {"name": "none", "licence": "CC0-1.0"}},
)
SMALL_SPEC = Spec("small", "1.0.0", (DIAGNOSIS, MALIGNANCY), Preprocess(16))
Arrays = Mapping[str, np.ndarray]


def weights(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Return the weights by name; each task has its own, and a map those of its diagnosis."""

    def draw_weights(seed: int, *shape: int) -> np.ndarray:
        samples = random_bytes(seed, int(np.prod(shape))).astype(int) >> 5
        return (samples.reshape(shape) - 4).astype(np.float32) / 32

    values = {"patch.weight": draw_weights(21, CHANNELS, 3, PATCH, PATCH)}
    for task in tasks:
        head = DIAGNOSIS.name if task.kind == "cam" else task.name
        width, seed = WIDTHS[head], 30 + sum(head.encode())
        values[f"{task.name}.weight"] = draw_weights(seed, width, CHANNELS) * np.float32(8)
        values[f"{task.name}.bias"] = draw_weights(seed + 1, width) * np.float32(8)
    return values


def forward(tensor: np.ndarray, spec: Spec) -> dict[str, np.ndarray]:
    """Return the outputs for one tensor [S, S, 3], computed in float64."""
    values = {name: value.astype(np.float64) for name, value in weights(spec.tasks).items()}
    side = spec.preprocess.size // PATCH
    scaled = (tensor.astype(np.float64) - 128) / 64
    patches = scaled.reshape(side, PATCH, side, PATCH, 3)
    maps = np.maximum(np.einsum("hiwjc,ocij->ohw", patches, values["patch.weight"]), 0)
    outputs = {}
    for task in spec.tasks:
        weight, bias = values[f"{task.name}.weight"], values[f"{task.name}.bias"]
        if task.kind in MAPS:
            output = np.einsum("chw,oc->ohw", maps, weight) + bias[:, None, None]
        else:
            output = weight @ maps.mean(axis=(1, 2)) + bias
        if task.kind == "embed":
            output = output / np.sqrt((output**2).sum())
        outputs[task.name] = output.astype(np.float32)
    return outputs


def onnx_model(spec: Spec) -> bytes:
    """Return the network as ONNX, for a batch of one."""
    size, side = spec.preprocess.size, spec.preprocess.size // PATCH
    values = weights(spec.tasks)
    values |= {"mean": np.float32(128), "scale": np.float32(1 / 64)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "patch.weight"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Relu", ["patches"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    outputs = []
    for task in spec.tasks:
        name = task.name
        parameters = [f"{name}.weight", f"{name}.bias"]
        width = len(values[parameters[1]])
        shape = [1, width]
        if task.kind in MAPS:
            values[parameters[0]] = values[parameters[0]].reshape(width, CHANNELS, 1, 1)
            nodes.append(helper.make_node("Conv", ["maps", *parameters], [name]))
            shape = [1, width, side, side]
        elif task.kind == "embed":
            nodes += [
                helper.make_node("Gemm", ["features", *parameters], ["long"], transB=1),
                helper.make_node("ReduceL2", ["long"], ["length"], axes=[1], keepdims=1),
                helper.make_node("Div", ["long", "length"], [name]),
            ]
        else:
            nodes.append(helper.make_node("Gemm", ["features", *parameters], [name], transB=1))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, size, size, 3])
    initializers = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "toy", [image], outputs, initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def golden(spec: Spec, fitted: Mapping[str, Postprocessing]) -> list[Case]:
    """Return a case that is smaller than most inputs, and one with alpha."""
    alpha = random_bytes(6, 18 * 20).reshape(18, 20, 1)
    images = {
        "small": png(draw(24, 17), RGB),
        "alpha": png(np.dstack((draw(20, 18), alpha)), RGB_ALPHA),
    }
    return [_golden_case(name, image, spec, fitted) for name, image in images.items()]


def _golden_case(name: str, image: bytes, spec: Spec, fitted: Mapping[str, Postprocessing]) -> Case:
    tensor = preprocess(image, spec.preprocess, exact=True)
    outputs = forward(tensor, spec)
    prediction = drop_volatile(decode(outputs, spec, fitted).to_json())
    return Case(name, image, tensor, outputs, outputs, prediction)


def toy_files(spec: Spec, model: bytes, path: str) -> dict[str, bytes]:
    """Return the files of a bundle, without its manifest."""
    return {
        path: model,
        "modelcard.md": f"# {spec.name}\n\nFor tests.\n".encode(),
        PARITY_REPORT: pretty_json({"status": "passed", "basis": "drawings", "cases": 2}),
        **golden_files(golden(spec, FITTED)),
    }


def toy_content(spec: Spec, artifact: Artifact) -> Json:
    """Return a manifest without `id` and `files`."""
    names = [task.name for task in spec.tasks]
    passed = {"status": "passed", "report": PARITY_REPORT}
    return {
        "schema": "dermedge.bundle/1",
        "spec": to_json(spec),
        "artifact": to_json(artifact),
        "postprocessing": {name: to_json(FITTED[name]) for name in names},
        "tolerance": dict.fromkeys(names, 0.0001),
        "parity": {"host": passed, "device": {"status": "not_run", "todo": "Run verify on it."}},
    }


def sealed(content: Json) -> bytes:
    """Return a manifest with its id."""
    return pretty_json({**content, "id": sha256_hex(canonical_json(content))})


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the manifest's `files`."""
    return {name: sha256_hex(data) for name, data in files.items()}


def toy_zip(spec: Spec, artifact: Artifact, model: bytes) -> bytes:
    """Return a bundle as a zip."""
    files = toy_files(spec, model, artifact.path)
    content = {**toy_content(spec, artifact), "quality": to_json(QUALITY)}
    manifest = sealed({**content, "files": digests(files)})
    return zip_bytes({**files, MANIFEST: manifest})


def onnx_artifact() -> Artifact:
    """Return the entry of an ONNX model."""
    return Artifact(
        "web-onnx", "onnx", "model.onnx", "fp32", ("onnxruntime>=1.17",), {}, {"batch": 1}
    )


def litert_artifact() -> Artifact:
    """Return the entry of a LiteRT model."""
    return Artifact("android", "litert", "model.tflite", "fp32", ("litert>=1.0",), {}, {"batch": 1})
