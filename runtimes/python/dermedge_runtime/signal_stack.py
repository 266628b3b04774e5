"""Keep a thread's alternate signal stack while an engine replaces it."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Compile OpenVINO models within this block to keep the thread's signal stack.

    OpenVINO's CPU plugin replaces the alternate signal stack of the thread that
    compiles a model, because AMX needs a larger one. It restores the old stack only if
    the same thread releases the model, and the last model first. Otherwise the stack's
    memory is freed while it is in use. The next signal that Python handles (Ctrl-C, the
    end of a child process) then kills the process.

    The block does nothing on systems other than Linux.
    """
    # Seen in OpenVINO 2026.4. https://github.com/openvinotoolkit/openvino/pull/11894
    # shows the code and its reason (class SigAltStackSetup of the CPU plugin). Delete
    # this module when the test
    # `test_a_signal_after_models_were_closed_in_any_order_is_survived` passes alone.
    if not sys.platform.startswith("linux"):
        yield
        return
    import ctypes

    class Stack(ctypes.Structure):
        """`stack_t` of signal.h."""

        _fields_ = (
            ("address", ctypes.c_void_p),
            ("flags", ctypes.c_int),
            ("size", ctypes.c_size_t),
        )

    sigaltstack, before = ctypes.CDLL(None).sigaltstack, Stack()
    is_read = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if is_read:
            sigaltstack(ctypes.byref(before), None)
