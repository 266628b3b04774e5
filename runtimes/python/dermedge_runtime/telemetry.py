"""Disable the telemetry of ONNX Runtime, OpenVINO and NNCF."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

# ONNX Runtime sends telemetry on Linux, macOS, Android and iOS since
# https://github.com/microsoft/onnxruntime/pull/27379. It reads this variable once, at
# its import. `disable_telemetry_events()` comes too late, because the import itself
# sends an event (https://github.com/microsoft/onnxruntime/issues/25573) and writes a
# device id to the disk (https://github.com/microsoft/onnxruntime/pull/29843). Delete
# this variable when ONNX Runtime has a switch that works before its import.
ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
# This package sends for OpenVINO, at every import of it
# (https://github.com/openvinotoolkit/openvino/pull/23832), and for NNCF
# (https://github.com/openvinotoolkit/nncf/pull/2186). If its import fails, both use
# stubs of their own. Delete this when OpenVINO has a switch that is not a file in the
# user's home.
OPENVINO = "openvino_telemetry"


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """Import onnxruntime, openvino or nncf within this block without telemetry.

    Their telemetry stays off for the life of the process. The block restores the
    environment and `sys.modules` at its end. A package that the process has already
    imported is not changed.

    Example:
        >>> with no_telemetry():
        ...     import onnxruntime
    """
    modules = cast(dict[str, ModuleType | None], sys.modules)
    variable, sender = os.environ.get(ONNXRUNTIME), modules.get(OPENVINO)
    os.environ[ONNXRUNTIME] = "1"
    modules[OPENVINO] = None  # Python's way to make an import fail
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
    """Import a module with its telemetry disabled, if this is its first import.

    Args:
        name: Full name of the module.

    Raises:
        ImportError: The module is not installed.
    """
    with no_telemetry():
        return importlib.import_module(name)
