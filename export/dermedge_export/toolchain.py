"""Silence what export toolchains print."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Toolchains print their progress and warn about themselves; neither is news to the user."""
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
    """Keep coremltools from showing progress bars on stderr and from warning, when imported, that this is no Mac."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
