"""Every exception that dermedge raises on purpose, and the exit code of each.

DermedgeError            1  something went wrong while running
|-- ImageError           1  an input that is not a usable image
|-- DataError            1  a table, a split or a checkpoint that cannot be used
|-- EngineError          1  an inference engine failed
|-- UsageError           2  an argument or a name that makes no sense
|-- GateError            3  an artifact lost more accuracy than the gate allows
|-- MissingExtraError    4  an engine or an optional dependency is not installed
|-- ElsewhereError       4  an engine that this kind of machine cannot have
`-- BundleError          5  a bundle that is damaged, unsafe or too new

A message names the bad value and ends with what to do.
"""


class DermedgeError(Exception):
    """Base of all errors that dermedge raises on purpose."""

    exit_code = 1


class ImageError(DermedgeError):
    """The input is not an image that a model may be asked about."""


class DataError(DermedgeError):
    """A table, a split, a weights folder or a checkpoint cannot be used."""


class EngineError(DermedgeError):
    """The inference engine refused the artifact or failed while running it."""


class UsageError(DermedgeError):
    """An argument, an option or a name makes no sense."""

    exit_code = 2


class GateError(DermedgeError):
    """An artifact lost more accuracy than its target's gate allows."""

    exit_code = 3


class MissingExtraError(DermedgeError):
    """An engine or an optional dependency is not installed."""

    exit_code = 4

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'dermedge[{extra}]'."
        )
        self.package = package
        self.extra = extra


class ElsewhereError(DermedgeError):
    """The artifact's engine exists on other machines only: Core ML off a Mac, TensorRT off an NVIDIA GPU. The message
    says what remains to be typed, and where.
    """

    exit_code = 4


class BundleError(DermedgeError):
    """A bundle is damaged, incomplete, unsafe or of an unknown format."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text without its full stop, to quote it in a message.

    Example:
        >>> first_line(ValueError("no such node\n  at graph.cc:12"))
        'no such node'
    """
    return str(error).strip().partition("\n")[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text without its full stop.

    OpenVINO lists its own source files first and gives the cause in the last line.
    """
    return str(error).strip().rpartition("\n")[2].rstrip(".")
