"""The stack that signals are handled on, kept from engines that lend their own."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Inside it, compile OpenVINO models: the calling thread's alternate signal stack is as before afterwards.

    OpenVINO's CPU plugin (2026.4) gives the thread that compiles a model a signal stack of that model's, and takes it
    back only if the model is released in the same thread, the last one first. Otherwise the next signal that Python
    handles, Ctrl-C or the end of a child process, is delivered onto freed memory, and the process dies of it.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    import ctypes

    class Stack(ctypes.Structure):
        _fields_ = (
            ("address", ctypes.c_void_p),
            ("flags", ctypes.c_int),
            ("size", ctypes.c_size_t),
        )

    sigaltstack, before = ctypes.CDLL(None).sigaltstack, Stack()
    known = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            sigaltstack(ctypes.byref(before), None)
