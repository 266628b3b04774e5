"""Raw outputs of networks with the predictions that they decode to, or the error."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from conformance.abstain_cases import abstain_cases
from conformance.drawing import random_bytes
from conformance.tasks import (
    BENIGN,
    CAM,
    DIAGNOSIS,
    EMBEDDING,
    LESION,
    LEVELS,
    MALIGNANCY,
    SEVERITY,
)
from conformance.writing import Files, cases_json
from dermedge_runtime.decode import decode
from dermedge_runtime.errors import EngineError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.golden import drop_volatile
from dermedge_runtime.spec import Json, Postprocessing, Preprocess, Spec, Task, to_json

NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}
Outputs = Mapping[str, Any]
Fitted = Mapping[str, Postprocessing]


def decode_files() -> Files:
    """Return `decode.json`."""
    return {"decode.json": cases_json([_case(*case) for case in _cases()])}


def _case(
    name: str,
    tasks: Sequence[Task],
    outputs: Outputs,
    fitted: Fitted,
    mentions: Sequence[str] = (),
    size: int = 16,
) -> Json:
    spec = Spec("toy", "1.0.0", tuple(tasks), Preprocess(size))
    arrays = {task: np.asarray(values, np.float32) for task, values in outputs.items()}
    entry = {
        "name": name,
        "spec": _known(to_json(spec)),
        "postprocessing": _known(
            to_json({task.name: Postprocessing() for task in tasks} | dict(fitted))
        ),
        "outputs": {task: tensor_json(array) for task, array in arrays.items()},
    }
    if mentions:
        return {**entry, "error": EngineError.__name__, "mentions": list(mentions)}
    prediction = decode(arrays, spec, fitted)
    if prediction.mask is not None:
        entry["mask_sha256"] = sha256_hex(prediction.mask.astype(np.uint8).tobytes())
    if prediction.cam is not None:
        entry["cam"] = tensor_json(prediction.cam)
    return {**entry, "prediction": drop_volatile(prediction.to_json())}


def _known(value: Any) -> Any:
    """Return a value without null and empty keys, which mean the same if they miss."""
    if isinstance(value, dict):
        empty = (None, "", {}, [])
        return {key: _known(item) for key, item in value.items() if item not in empty}
    # A list keeps its nulls: a label without a conformal quantile has one.
    return [_known(item) for item in value] if isinstance(value, list) else value


def tensor_json(array: np.ndarray) -> Json:
    """Return an array as its shape and its values in row-major order."""
    return {"shape": list(array.shape), "values": [_number(v) for v in array.ravel()]}


def _number(value: np.float32) -> float | str:
    """Return a value as JSON; strict JSON has no NaN and no infinity."""
    number = float(value)
    return number if math.isfinite(number) else NAMES.get(number, "NaN")


def _cases() -> Iterator[tuple[Any, ...]]:
    yield from _labels()
    yield from _scores()
    yield from _levels()
    yield from _masks()
    yield from _maps()
    yield from _several()
    yield from _refused()
    yield from abstain_cases()


def _labels() -> Iterator[tuple[Any, ...]]:
    def case(name: str, logits: Sequence[float], **fitted: float) -> tuple[Any, ...]:
        return (name, (BENIGN,), {"type": logits}, {"type": Postprocessing(**fitted)})

    yield case("labels", (0.25, 2.5, -1.125))
    yield case("labels, temperature above 1", (0.25, 2.5, -1.125), temperature=2.5)
    yield case("labels, temperature below 1", (0.25, 2.5, -1.125), temperature=0.3)
    yield case("labels, smallest temperature", (0.25, 2.5, -1.125), temperature=1e-300)
    yield case("ties keep the order of the task", (1.5, 1.5, 1.5))
    yield case("a tie behind the first", (-2.0, 3.0, -2.0))
    yield case("a tie in front", (0.5, -4.0, 0.5))
    yield case("large logits", (30000.0, 29999.0, -30000.0))
    yield case("largest floats", (3.4e38, -3.4e38, 0.0))
    yield case("probabilities that vanish", (0.0, 800.0, 799.0))
    yield case("zeros", (0.0, -0.0, 0.0))
    yield case("a threshold without a score", (1.0, 2.0, 3.0), threshold=0.5)


def _scores() -> Iterator[tuple[Any, ...]]:
    def sums(name: str, logits: Sequence[float], **fitted: float) -> tuple[Any, ...]:
        return (name, (DIAGNOSIS,), {"diagnosis": logits}, {"diagnosis": Postprocessing(**fitted)})

    yield sums("sum of malignant labels, nothing fitted", (0.5, 0.25, 1.0, -0.75))
    yield sums("sum of malignant labels", (0.5, 0.25, 1.0, -0.75), temperature=1.4, threshold=0.3)
    yield sums("sum below the threshold", (4.0, 0.25, 1.0, -0.75), threshold=0.3)
    yield sums("sum equal to the threshold", (0.0, 0.0, 0.0, 0.0), threshold=0.5)
    yield sums("threshold 0", (900.0, 0.0, 0.0, 0.0), threshold=0.0)
    yield sums("threshold 1, sum of 1", (-900.0, 0.0, -900.0, 0.0), threshold=1.0)
    # Rounded in float64, these probabilities sum to more than 1.
    yield sums("sum that rounding lifts over 1", _over_one(), threshold=1.0)

    def binary(name: str, logit: float, **fitted: float) -> tuple[Any, ...]:
        return (
            name, (MALIGNANCY,), {"malignancy": [logit]}, {"malignancy": Postprocessing(**fitted)},
        )  # fmt: skip

    yield binary("score", 0.75, temperature=0.5, threshold=0.25)
    yield binary("score, nothing fitted", -0.75)
    yield binary("score without a temperature", -0.75, threshold=0.4)
    yield binary("score without a threshold", 1.25, temperature=3.0)
    yield binary("score equal to the threshold", 0.0, temperature=7.0, threshold=0.5)
    yield binary("score just below the threshold", -1e-6, threshold=0.5)
    yield binary("score of a large logit", 30000.0, threshold=1.0)
    yield binary("score of a large negative logit", -30000.0, threshold=0.0)
    yield binary("smallest score", -745.0, threshold=5e-324)


def _over_one() -> tuple[float, ...]:
    """Return logits whose two malignant probabilities sum to more than 1 if not cut."""
    rows = random_bytes(4, 40000).astype(np.float32).reshape(-1, 2) / np.float32(16)
    for first, second in rows.astype(float):
        total = sum(exponents := [math.exp(first), math.exp(second)])
        if exponents[0] / total + exponents[1] / total > 1:
            return (-900.0, first, -900.0, second)
    return (-900.0, 0.0, -900.0, 0.0)


def _levels() -> Iterator[tuple[Any, ...]]:
    def case(name: str, logits: Sequence[float], **fitted: float) -> tuple[Any, ...]:
        return (name, (SEVERITY,), {"severity": logits}, {"severity": Postprocessing(**fitted)})

    yield case("level", (3.0, 1.0, -2.0, -5.0))
    yield case("lowest level", (-0.5, -1.0, -2.0, -5.0))
    yield case("highest level", (9.0, 3.0, 2.0, 0.5))
    yield case("not monotone", (3.0, -1.0, 2.0, 1.0))
    yield case("not monotone from the start", (-1.0, 5.0, 5.0, 5.0))
    yield case("exactly one half is not above it", (2.0, 0.0, -1.0, -1.0))
    yield case("level with a temperature", (3.0, 1.0, 0.01, -5.0), temperature=100.0)


def _masks() -> Iterator[tuple[Any, ...]]:
    def case(name: str, size: int, logits: np.ndarray, **fitted: float) -> tuple[Any, ...]:
        outputs = {"lesion": logits[None]}
        return (name, (LESION,), outputs, {"lesion": Postprocessing(**fitted)}, (), size)

    def noise(side: int, seed: int) -> np.ndarray:
        return random_bytes(seed, side * side).reshape(side, side) / np.float32(32) - 4

    corner = np.full((4, 4), -3.0)
    corner[0, 3] = 5.0  # upper right: a mask that is transposed shows
    yield case("mask in a corner", 16, corner, threshold=0.5)
    yield case("mask of noise", 32, noise(8, 1), threshold=0.4)
    yield case("mask with a temperature", 32, noise(8, 2), temperature=2.5, threshold=0.6)
    # S is no multiple of 4, so a mask of 4 x 4 is enlarged to 19 x 19.
    yield case("mask of another ratio", 19, noise(4, 3), threshold=0.5)
    yield case("mask equal to the threshold", 16, np.zeros((4, 4)), threshold=0.5)
    yield case("threshold 0 covers everything", 16, np.full((4, 4), -900.0), threshold=0.0)
    yield case("no mask without a threshold", 16, corner, temperature=2.0)
    yield case("empty mask", 16, np.full((4, 4), -30000.0), threshold=0.5)


def _maps() -> Iterator[tuple[Any, ...]]:
    maps = random_bytes(9, 4 * 2 * 3).reshape(4, 2, 3) / np.float32(32) - 4

    def case(name: str, tasks: Sequence[Task], logits: Sequence[float]) -> tuple[Any, ...]:
        return (name, tasks, {"diagnosis": logits, "diagnosis_cam": maps}, {})

    yield case("map of the most probable label", (DIAGNOSIS, CAM), (0.5, 0.25, 1.0, -0.75))
    yield case("map before the diagnosis", (CAM, DIAGNOSIS), (0.5, 0.25, 1.0, 3.0))
    yield case("map of the first of two equal labels", (DIAGNOSIS, CAM), (0.5, 2.0, 2.0, -0.75))
    second = Task("second", "cam", DIAGNOSIS.labels)
    yield (
        "the first map counts",
        (DIAGNOSIS, CAM, second),
        {"diagnosis": (0.5, 0.25, 1.0, 0.0), "diagnosis_cam": maps, "second": -maps[:, :, :1]},
        {},
    )
    logits = {"diagnosis": (0.5, 0.25, 1.0, -0.75)}
    broken = maps.copy()
    broken[0, 1, 2] = np.nan  # not in the map that is returned
    for name, output, mention in (
        ("NaN in a map", broken, "NaN"),
        ("a map of too few labels", maps[:3], "shape"),
        ("a map without rows", maps[:, 0], "shape"),
    ):
        outputs = {**logits, "diagnosis_cam": output}
        yield (name, (DIAGNOSIS, CAM), outputs, {}, ("diagnosis_cam", mention))


def _several() -> Iterator[tuple[Any, ...]]:
    yield (
        "all kinds",
        (LESION, SEVERITY, DIAGNOSIS, EMBEDDING, MALIGNANCY),
        {
            "lesion": [[[1.0, 2.0, -1.0, -2.0]] * 4],
            "severity": (3.0, 1.0, -2.0, -5.0),
            "diagnosis": (0.5, 0.25, 1.0, -0.75),
            "embedding": (0.6, -0.8, 0.0),
            "malignancy": [0.3],
        },
        {
            "lesion": Postprocessing(1.5, 0.5),
            "severity": Postprocessing(0.7),
            "diagnosis": Postprocessing(1.3, 0.9),
            "malignancy": Postprocessing(0.9, 0.55),
        },
    )
    other = Task("second", "classify", BENIGN.labels)
    yield (
        "the first of each kind counts",
        (
            *(DIAGNOSIS, other, SEVERITY, Task("second-severity", "ordinal", LEVELS)),
            *(EMBEDDING, Task("second-embedding", "embed")),
        ),
        {
            "diagnosis": (0.5, 0.25, 1.0, -0.75),
            "second": (9.0, 1.0, 0.0),
            "severity": (3.0, 1.0, -2.0, -5.0),
            "second-severity": (-3.0, -4.0, -5.0, -5.0),
            "embedding": [1.0],
            "second-embedding": [-1.0],
        },
        {},
    )
    # The first mask has no threshold, the second one has.
    yield (
        "the first mask with a threshold",
        (LESION, Task("second", "segment")),
        {"lesion": np.full((1, 4, 4), 3.0), "second": np.full((1, 4, 4), -3.0)},
        {"second": Postprocessing(None, 0.5)},
    )
    yield (
        "a binary task of another name gives no score",
        (Task("ulcerated", "binary"),),
        {"ulcerated": [2.0]},
        {"ulcerated": Postprocessing(1.0, 0.5)},
    )
    yield (
        "a task named malignancy that is not binary",
        (Task("malignancy", "classify", DIAGNOSIS.labels),),
        {"malignancy": (0.5, 0.25, 1.0, -0.75)},
        {"malignancy": Postprocessing(1.0, 0.5)},
    )
    yield (
        "malignant labels of the second classification",
        (BENIGN, DIAGNOSIS),
        {"type": (1.0, 0.0, 0.0), "diagnosis": (0.5, 0.25, 1.0, -0.75)},
        {},
    )
    yield ("an output too many", (MALIGNANCY,), {"malignancy": [0.5], "other": [1.0]}, {})


def _refused() -> Iterator[tuple[Any, ...]]:
    """Yield outputs that an engine must not give."""
    for value in (math.nan, math.inf, -math.inf):
        for task, outputs in (
            (DIAGNOSIS, (0.0, value, 0.0, 0.0)),
            (MALIGNANCY, (value,)),
            (SEVERITY, (0.0, 0.0, 0.0, value)),
            (LESION, [[[0.0, 0.0, value, 0.0]] * 4]),
            (EMBEDDING, (0.0, value)),
        ):
            name = f"{_number(np.float32(value))} in a {task.kind} output"
            yield (name, (task,), {task.name: outputs}, {}, (repr(task.name)[1:-1], "NaN"))
    yield (
        "NaN in a mask that is not returned",
        (LESION, MALIGNANCY),
        {"lesion": np.full((1, 4, 4), np.nan), "malignancy": [0.0]},
        {},
        ("lesion", "NaN"),
    )
    for task, outputs in (
        (DIAGNOSIS, (0.0, 0.0, 0.0)),
        (DIAGNOSIS, [[0.0, 0.0, 0.0, 0.0]]),
        (MALIGNANCY, (0.0, 0.0)),
        (MALIGNANCY, 0.0),
        (SEVERITY, (0.0,) * 5),
        (LESION, [[0.0] * 4] * 4),
        (LESION, [[[0.0] * 5] * 4]),
        (EMBEDDING, [[1.0, 0.0]]),
    ):
        shape = list(np.shape(outputs))
        name = f"shape {shape} of a {task.kind} output"
        yield (name, (task,), {task.name: outputs}, {}, (task.name, "shape"))
    yield ("no output of a task", (MALIGNANCY,), {"other": [0.0]}, {}, ("malignancy", "other"))
