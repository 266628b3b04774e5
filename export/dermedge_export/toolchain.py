"""Silence what toolchains log and print; fit torch to the CPUs of this process."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from dermedge_runtime.hardware import usable_cpus

NOISY = (
    "jax",
    "torch",
    "torch.onnx",
    "onnxscript",
    "onnx_ir",
    "nncf",
    "coremltools",
    "torch.utils.cpp_extension",
    "root",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and log messages of toolchains, except for errors.

    Filters of warnings and levels of loggers belong to the process, so this also hides
    the warnings of other threads. Output streams are left alone; see `silence`.

    Example:
        >>> import warnings
        >>> with quiet():
        ...     warnings.warn("not shown")
    """
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence toolchains that print: `quiet`, and nothing reaches stdout and stderr.

    `sys.stdout` and `sys.stderr` belong to the process, so text that another thread
    prints meanwhile is lost. Use it only around a call that prints: onnxruntime's
    histogram calibrators, NNCF (progress bars), coremltools (progress bars, and a
    warning on import that this machine is no Mac).

    Example:
        >>> with silence():
        ...     print("not shown")
    """
    output = io.StringIO()
    with quiet(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield


def limit_torch_threads() -> None:
    """Lower torch's number of threads to the CPUs that this process may use.

    torch knows the affinity of a process, but not the CPU quota of a container. A lower
    number stays.

    Example:
        >>> import torch
        >>> from dermedge_runtime.hardware import usable_cpus
        >>> limit_torch_threads()
        >>> torch.get_num_threads() <= usable_cpus()
        True
    """
    import torch

    if torch.get_num_threads() > (usable := usable_cpus()):
        torch.set_num_threads(usable)
