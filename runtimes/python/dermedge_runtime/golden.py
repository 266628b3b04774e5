"""Read and write golden cases: an image, and the numbers every platform must compute.

`golden/cases.json` lists them. Tensors are files beside it: raw little-endian values,
row-major. The JSON has their dtype and shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermedge_runtime.canonical_json import parse_json, pretty_json
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.spec import AGAIN, IDENTIFIER, Json, take

SCHEMA = "dermedge.golden/1"
CASES = "golden/cases.json"
# These fields of a prediction differ from run to run, or hold the id of a bundle that
# is not yet written.
VOLATILE = ("timing", "provenance")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One golden case.

    `image` is a lossless PNG, `tensor` its preprocessed uint8 [S, S, 3]. `reference`
    are the outputs of the fp32 student, `expected` those of this artifact on the
    exporting host, by task and without the batch dimension. `prediction` is the decoded
    `expected` as JSON, without `timing` and `provenance`.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> Bundle.open("toy.dermedge").golden()[0].tensor.shape
        (48, 48, 3)
    """

    name: str
    image: bytes
    tensor: npt.NDArray[np.uint8]
    reference: Mapping[str, Array]
    expected: Mapping[str, Array]
    prediction: Mapping[str, Any]


def drop_volatile(prediction: Mapping[str, Any]) -> Json:
    """Return a prediction's JSON without `timing` and `provenance`, which vary by run.

    Example:
        >>> drop_volatile({"malignancy": 0.5, "timing": {"engine_ms": 3.1}})
        {'malignancy': 0.5}
    """
    return {key: value for key, value in prediction.items() if key not in VOLATILE}


def golden_files(cases: Sequence[Case]) -> dict[str, bytes]:
    """Return the files of `golden/` by path; equal cases give equal bytes.

    Raises:
        UsageError: There is no case, a name is given twice or is not a file name, or a
            value is not finite.
    """
    names = [case.name for case in cases]
    if not names or len({name.lower() for name in names}) != len(names):
        raise UsageError(f"Golden cases need one or more distinct names, not {names}. Rename them.")
    files: dict[str, bytes] = {}
    listed = [_describe(case, files) for case in cases]
    return {CASES: pretty_json({"schema": SCHEMA, "cases": listed}), **files}


def _describe(case: Case, files: dict[str, bytes]) -> Json:
    """Return the entry of a case in `cases.json`, and put its tensors into `files`."""
    if not IDENTIFIER.fullmatch(case.name):
        raise UsageError(
            f"Golden case name {case.name!r} is not a file name. "
            "Use letters, digits, '.', '_' and '-'."
        )

    def put(path: str, array: npt.NDArray[Any], dtype: str) -> Json:
        if not np.isfinite(array).all():
            raise UsageError(
                f"Golden case {case.name!r} has NaN or infinity in {path}. "
                "Check the model's outputs."
            )
        files[path] = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
        return {"path": path, "dtype": dtype, "shape": list(array.shape)}

    base = f"golden/{case.name}"
    files[f"{base}.png"] = case.image
    return {
        "name": case.name,
        "image": f"{base}.png",
        "tensor": put(f"{base}.tensor.bin", case.tensor, "uint8"),
        "reference": {
            task: put(f"{base}.reference.{task}.bin", values, "float32")
            for task, values in sorted(case.reference.items())
        },
        "expected": {
            task: put(f"{base}.expected.{task}.bin", values, "float32")
            for task, values in sorted(case.expected.items())
        },
        "prediction": drop_volatile(case.prediction),
    }


def read_golden(read: Callable[[str], bytes]) -> list[Case]:
    """Read the golden cases of a bundle, one or more.

    Args:
        read: Returns the content of one of the bundle's files.

    Raises:
        BundleError: There is no case, the schema is unknown, or the size, dtype or
            values of a tensor do not fit.
    """
    data = parse_json(read(CASES), CASES, BundleError)
    schema = take(data, "schema", str, CASES)
    if schema != SCHEMA:
        raise BundleError(
            f"{CASES} has schema {schema!r}, and this dermedge reads {SCHEMA!r}. Upgrade dermedge."
        )
    cases = [_read_case(item, read) for item in take(data, "cases", list, CASES)]
    if not cases:
        raise BundleError(f"{CASES} lists no case, so verification is not possible. {AGAIN}")
    return cases


def _read_case(item: Json, read: Callable[[str], bytes]) -> Case:
    name = take(item, "name", str, "golden case")
    where = f"golden case {name!r}"
    tensor = _read_tensor(take(item, "tensor", dict, where), "uint8", where, read)
    if tensor.ndim != 3 or tensor.shape[0] != tensor.shape[1] or tensor.shape[2] != 3:
        raise BundleError(
            f"The tensor of {where} has shape {list(tensor.shape)}, not [S, S, 3]. {AGAIN}"
        )

    def read_outputs(key: str) -> dict[str, Array]:
        entries = take(item, key, dict, where)
        return {
            task: _read_tensor(entry, "float32", where, read) for task, entry in entries.items()
        }

    return Case(
        name=name,
        image=read(take(item, "image", str, where)),
        tensor=tensor,
        reference=read_outputs("reference"),
        expected=read_outputs("expected"),
        prediction=take(item, "prediction", dict, where),
    )


def _read_tensor(
    entry: Json, dtype: str, where: str, read: Callable[[str], bytes]
) -> npt.NDArray[Any]:
    path, shape = take(entry, "path", str, where), take(entry, "shape", list, where)
    if take(entry, "dtype", str, where) != dtype or not all(
        type(n) is int and n > 0 for n in shape
    ):
        raise BundleError(f"{path} of {where} is {entry!r}, not a {dtype} tensor. {AGAIN}")
    kind, data = np.dtype(dtype).newbyteorder("<"), read(path)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise BundleError(f"{path} has {len(data)} bytes, which is not {dtype} {shape}. {AGAIN}")
    array = np.frombuffer(data, dtype=kind).reshape(shape).astype(dtype)
    if not np.isfinite(array).all():
        raise BundleError(f"{path} of {where} holds NaN or infinity. {AGAIN}")
    return array
