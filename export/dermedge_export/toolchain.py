"""Silence the output of export toolchains."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, log messages and standard output of export toolchains.

    Their warnings are about their own internals; a user can do nothing about them.
    """
    noisy = (
        "torch.onnx",
        "onnxscript",
        "onnx_ir",
        "nncf",
        "coremltools",
        "torch.utils.cpp_extension",
        "root",
    )
    levels = {name: logging.getLogger(name).level for name in noisy}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress the output of coremltools, too.

    It shows progress bars on stderr, and warns at import that this machine is not a
    Mac.
    """
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
