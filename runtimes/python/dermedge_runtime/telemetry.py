"""Engines report their use to their makers unless they are told not to; here they are told."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

# onnxruntime reads it once, when it is imported; its switch in Python comes too late, a device id is written by then.
ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
# What sends for OpenVINO (at every import of it) and NNCF; where it cannot be imported, both use stubs of their own.
OPENVINO = "openvino_telemetry"


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """Inside it, import onnxruntime, openvino or nncf: they keep silent for the life of the process.

    The environment and the modules are as before afterwards. A package that the process had imported earlier stays as
    its importer left it.
    """
    modules = cast(dict[str, Any], sys.modules)
    variable, sender = os.environ.get(ONNXRUNTIME), modules.get(OPENVINO)
    os.environ[ONNXRUNTIME] = "1"
    modules[OPENVINO] = None
    try:
        yield
    finally:
        if variable is None:
            os.environ.pop(ONNXRUNTIME, None)
        else:
            os.environ[ONNXRUNTIME] = variable
        if sender is None:
            modules.pop(OPENVINO, None)
        else:
            modules[OPENVINO] = sender


def import_silently(name: str) -> Any:
    """The module of that name; if this is its first import, it keeps silent for the life of the process."""
    with no_telemetry():
        return importlib.import_module(name)
