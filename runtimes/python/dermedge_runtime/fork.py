"""Keep engines of a parent process from being used or freed in a forked process.

A fork copies the memory of a process, but of its threads only the one that forks. The
pools of an engine then have no threads. OpenVINO waits for its threads without end,
both when it computes and when it is freed
(https://github.com/openvinotoolkit/openvino/issues/416). ONNX Runtime computes with
one thread (https://github.com/microsoft/onnxruntime/issues/9800), and may crash when it
is freed (https://github.com/microsoft/onnxruntime/pull/31961).
"""

import ctypes
import os
from typing import Any
from weakref import WeakKeyDictionary

from dermedge_runtime.errors import EngineError

_left: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()
# Process that used an engine first, by the engine's name.
_users: dict[str, int] = {}


def leave_to_parent(owner: object, attribute: str) -> None:
    """Set an attribute to None in every process that forks from this one.

    The old value is never freed there: neither by the owner, nor at the process's exit.

    Args:
        owner: Object with the attribute. It must allow weak references.
        attribute: Name of the attribute; its value holds an engine.
    """
    _left[owner] = attribute


def claim_engine(name: str) -> None:
    """Record that this process uses an engine that cannot start again after a fork.

    Args:
        name: Name of the engine.

    Raises:
        EngineError: A parent process used the engine before it forked this process.

    Example:
        >>> claim_engine("doctest")
    """
    if _users.setdefault(name, os.getpid()) != os.getpid():
        raise EngineError(
            f"The parent process used {name} before this process forked, so {name} cannot run "
            "here. Load the bundle in the worker only, or start workers with 'spawn'."
        )


def _forget_engines() -> None:
    for owner, attribute in list(_left.items()):
        value = getattr(owner, attribute, None)
        if value is not None:
            # Module globals are cleared at exit, so only a reference that nobody
            # owns keeps the value to the end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
            setattr(owner, attribute, None)


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=_forget_engines)
