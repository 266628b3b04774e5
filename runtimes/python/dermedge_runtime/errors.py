"""Define every exception that dermedge raises on purpose, and its exit code.

DermedgeError            1  an operation failed
|-- ImageError           1  an input is not a usable image
|-- DataError            1  a table, a split or a checkpoint is not usable
|-- EngineError          1  an inference engine failed
|-- UsageError           2  an argument or a name is not valid
|-- GateError            3  an artifact lost more accuracy than the gate allows
|-- MissingExtraError    4  an engine or an optional dependency is not installed
|-- ElsewhereError       4  this kind of machine cannot have the engine
`-- BundleError          5  a bundle is damaged, unsafe or too new

A message names the bad value and ends with what to do.
"""


class DermedgeError(Exception):
    """Base class of all errors that dermedge raises on purpose.

    `exit_code` is the exit code of a command that ends with this error.

    Example:
        >>> UsageError("Unknown target 'jetsn'.").exit_code
        2
    """

    exit_code = 1


class ImageError(DermedgeError):
    """Error for an input that is not an image a model accepts.

    Example:
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     model.predict("missing.png")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.ImageError: missing.png does not exist. Check the path.
    """


class DataError(DermedgeError):
    """Error for a table, a split, a model folder or a checkpoint that is not usable.

    Example:
        >>> from dermedge.data.table import read_table
        >>> try:
        ...     read_table("lesion.png")
        ... except DataError as error:
        ...     print(error)
        lesion.png is neither a folder nor a .csv or .parquet file. Convert it to one...
    """


class EngineError(DermedgeError):
    """Error for an engine that refuses the artifact or fails while running it.

    Example:
        >>> from dermedge_runtime.model import load
        >>> load("toy.dermedge", engine="openvino")  # OpenVINO runs its own format only
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.EngineError: model.onnx holds ['model.onnx'], not one...
    """


class UsageError(DermedgeError):
    """Error for an argument, an option or a name that is not valid.

    Example:
        >>> from dermedge_runtime.model import load
        >>> load("toy.dermedge", threads=0)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: threads is 0. Use 1 or more, or...
    """

    exit_code = 2


class GateError(DermedgeError):
    """Error for an artifact that lost more accuracy than its target's gate allows.

    Example:
        >>> def export(precision):  # stands for `dermedge.export`
        ...     if precision == "int8":
        ...         raise GateError("int8 loses 4 % of the balanced accuracy.")
        ...     return f"{precision} bundle"
        >>> try:
        ...     export("int8")
        ... except GateError:
        ...     export("fp32")
        'fp32 bundle'
    """

    exit_code = 3


class MissingExtraError(DermedgeError):
    """Error for an engine or an optional dependency that is not installed.

    Args:
        package: Name of the missing package.
        extra: Extra of dermedge that installs it.
        purpose: Subject of the message's sentence: the thing that needs the package.

    Example:
        >>> print(MissingExtraError("timm", "export", "`export`"))
        `export` needs timm, which is not installed: pip install 'dermedge[export]'.
    """

    exit_code = 4

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'dermedge[{extra}]'."
        )
        self.package = package
        self.extra = extra


class ElsewhereError(DermedgeError):
    """Error for an engine that exists on other machines only.

    Core ML computes on Apple's systems only, TensorRT on NVIDIA GPUs only. The message
    gives the command to run, and on which machine.

    Example:
        >>> from dermedge_runtime.model import load
        >>> load("toy.dermedge", engine="tensorrt")  # on a machine without TensorRT
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.ElsewhereError: This machine has no TensorRT, or no...
    """

    exit_code = 4


class BundleError(DermedgeError):
    """Error for a bundle that is damaged, incomplete, unsafe or too new.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> try:
        ...     Bundle.open("lesion.png")
        ... except BundleError as error:
        ...     print(error)
        lesion.png is neither a bundle's folder nor its zip. Name a .dermedge...
    """

    exit_code = 5


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text without its full stop, to quote it.

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
