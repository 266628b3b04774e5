"""Golden cases: an image, and the numbers that every platform must get from it.

`golden/cases.json` lists them; tensors lie beside it as raw little-endian values, row by row; the JSON has
dtype and shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermedge_runtime.canonical_json import parse_json, pretty_json
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.spec import IDENTIFIER, Json, take

SCHEMA = "dermedge.golden/1"
CASES = "golden/cases.json"
# A prediction's own id and times cannot be known when its bundle is written.
VOLATILE = ("timing", "provenance")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One golden case.

    `image` is a lossless PNG, `tensor` its preprocessed uint8 [S, S, 3]. `reference` are the outputs of the fp32
    student, `expected` those of this artifact on the exporting host, per task and without the batch dimension.
    `prediction` is what decoding `expected` gives, as JSON without `timing` and `provenance`.
    """

    name: str
    image: bytes
    tensor: npt.NDArray[np.uint8]
    reference: Mapping[str, Array]
    expected: Mapping[str, Array]
    prediction: Mapping[str, Any]


def stable(prediction: Mapping[str, Any]) -> Json:
    """A prediction's JSON without what differs from run to run (times, the identity of who predicted)."""
    return {key: value for key, value in prediction.items() if key not in VOLATILE}


def golden_files(cases: Sequence[Case]) -> dict[str, bytes]:
    """The files of `golden/` as path to content, the same bytes for the same cases.

    Raises:
        UsageError: for no case, a name twice or unfit for a file, or values that are not finite.
    """
    names = [case.name for case in cases]
    if not names or len({name.lower() for name in names}) != len(names):
        raise UsageError(f"Golden cases need one or more distinct names, not {names}; rename them.")
    files: dict[str, bytes] = {}
    listed = [_describe(case, files) for case in cases]
    return {CASES: pretty_json({"schema": SCHEMA, "cases": listed}), **files}


def _describe(case: Case, files: dict[str, bytes]) -> Json:
    if not IDENTIFIER.fullmatch(case.name):
        raise UsageError(
            f"Golden case name {case.name!r} is no file name; use letters, digits, '.', '_' and '-'."
        )

    def put(path: str, array: npt.NDArray[Any], dtype: str) -> Json:
        if not np.isfinite(array).all():
            raise UsageError(
                f"Golden case {case.name!r} has NaN or infinity in {path}; look for what broke the model."
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
            o: put(f"{base}.reference.{o}.bin", a, "float32")
            for o, a in sorted(case.reference.items())
        },
        "expected": {
            o: put(f"{base}.expected.{o}.bin", a, "float32")
            for o, a in sorted(case.expected.items())
        },
        "prediction": stable(case.prediction),
    }


def read_golden(read: Callable[[str], bytes]) -> list[Case]:
    """The golden cases, one or more, through a function that reads a bundle's file.

    Raises:
        BundleError: for no case, an unknown schema, or a tensor whose size, dtype or values do not fit.
    """
    data = parse_json(read(CASES), CASES, BundleError)
    schema = take(data, "schema", str, CASES)
    if schema != SCHEMA:
        raise BundleError(
            f"{CASES} has schema {schema!r}, and this dermedge reads {SCHEMA!r}: upgrade dermedge."
        )
    cases = [_case(item, read) for item in take(data, "cases", list, CASES)]
    if not cases:
        raise BundleError(
            f"{CASES} lists no case, so nothing can be verified; export the model again."
        )
    return cases


def _case(item: Json, read: Callable[[str], bytes]) -> Case:
    name = take(item, "name", str, "golden case")
    where = f"golden case {name!r}"
    tensor = _array(take(item, "tensor", dict, where), "uint8", where, read)
    if tensor.ndim != 3 or tensor.shape[0] != tensor.shape[1] or tensor.shape[2] != 3:
        raise BundleError(
            f"The tensor of {where} has shape {list(tensor.shape)}, not [S, S, 3]; export the model again."
        )
    return Case(
        name=name,
        image=read(take(item, "image", str, where)),
        tensor=tensor,
        reference={
            o: _array(a, "float32", where, read)
            for o, a in take(item, "reference", dict, where).items()
        },
        expected={
            o: _array(a, "float32", where, read)
            for o, a in take(item, "expected", dict, where).items()
        },
        prediction=take(item, "prediction", dict, where),
    )


def _array(entry: Json, dtype: str, where: str, read: Callable[[str], bytes]) -> npt.NDArray[Any]:
    path, shape = take(entry, "path", str, where), take(entry, "shape", list, where)
    if take(entry, "dtype", str, where) != dtype or not all(
        type(n) is int and n > 0 for n in shape
    ):
        raise BundleError(
            f"{path} of {where} is {entry!r}, not a {dtype} tensor; export the model again."
        )
    kind, data = np.dtype(dtype).newbyteorder("<"), read(path)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise BundleError(
            f"{path} has {len(data)} bytes, which is not {dtype} {shape}; export the model again."
        )
    array = np.frombuffer(data, dtype=kind).reshape(shape).astype(dtype)
    if not np.isfinite(array).all():
        raise BundleError(f"{path} of {where} holds NaN or infinity; export the model again.")
    return array
