"""Run LiteRT bundles (`.tflite`) on the CPU, with XNNPACK."""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import EngineError, MissingExtraError, first_line
from dermedge_runtime.fork import leave_to_parent
from dermedge_runtime.hardware import usable_cores
from dermedge_runtime.image import Pixels
from dermedge_runtime.signature import INPUT, Port, check_signature
from dermedge_runtime.spec import AGAIN, Spec

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

STDERR = 2  # file descriptor
DELEGATE = "DELEGATE"  # name of a node that stands for the nodes of a delegate
Placement = Mapping[str, Mapping[str, int]]
"""Number of nodes of each operator, by the part of LiteRT that computes them."""

# The first opening in this process takes it and never gives it back.
_first = threading.Lock()


class LiteRtRuntime:
    """LiteRT interpreter on a bundle's model.

    The model's one input is `image`, uint8 [1, S, S, 3]. Its outputs are float32, named
    after their tasks in the model's signature. The interpreter is called once per image.

    An interpreter serves one call at a time, so calls by several threads wait for each
    other.

    Args:
        interpreter: Interpreter on the model, with allocated tensors.
        spec: Spec of the model.
        version: Version of LiteRT.

    Example:
        >>> runtime = LiteRtRuntime.open(Bundle.open("toy-litert.zip"), threads=1)
        >>> runtime.run(np.zeros((2, 32, 32, 3), np.uint8))["malignancy"].shape
        (2, 1)
        >>> list(runtime.placement())
        ['XNNPACK', 'builtin']
        >>> runtime.close()
    """

    name = "litert"

    def __init__(self, interpreter: "Interpreter", spec: Spec, version: str) -> None:
        self.version = version
        # The runner of a signature prevents calls of `invoke`, so it is not kept.
        signature = _read_signature(interpreter)
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        del signature
        check_signature(_describe_ports(inputs), _describe_ports(outputs), spec)
        self._input = int(inputs[INPUT]["index"])
        self._outputs = {task.name: int(outputs[task.name]["index"]) for task in spec.tasks}
        self._placement = _read_placement(interpreter)
        self._lock = threading.Lock()
        self._interpreter: Interpreter | None = interpreter
        leave_to_parent(self, "_interpreter")

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> "LiteRtRuntime":
        """Start an interpreter on a bundle's `.tflite` file.

        Args:
            bundle: The opened bundle.
            threads: Number of threads of XNNPACK; by default one per physical core.

        Raises:
            MissingExtraError: LiteRT is not installed.
            EngineError: LiteRT refuses the model, or inputs and outputs do not fit the
                spec.
            BundleError: The file changed after the bundle was opened.
        """
        try:
            import ai_edge_litert
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingExtraError("ai-edge-litert", "litert", "A LiteRT bundle") from error
        version = str(ai_edge_litert.__version__)
        model = bundle.read(bundle.artifact.path)
        try:
            with hide_first_message():
                interpreter = Interpreter(
                    model_content=model, num_threads=threads or usable_cores()
                )
                interpreter.allocate_tensors()
        except Exception as error:
            raise EngineError(
                f"litert {version} refuses {bundle.artifact.path} ({first_line(error)}): "
                f"it needs {', '.join(bundle.artifact.requires) or 'another version'}. "
                "Upgrade it, or export the model again."
            ) from error
        return cls(interpreter, bundle.spec, version)

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs [N, ...] by task for images [N, S, S, 3].

        Raises:
            EngineError: LiteRT fails, or the interpreter is closed.
        """
        interpreter = self._interpreter
        if interpreter is None:
            raise EngineError("The LiteRT interpreter is closed. Load the bundle again.")
        try:
            with self._lock:
                if len(images) == 1:
                    return self._run(interpreter, images)
                rows = [
                    self._run(interpreter, images[index : index + 1])
                    for index in range(len(images))
                ]
        except Exception as error:
            raise EngineError(
                f"litert failed on {images.dtype} {list(images.shape)} ({first_line(error)}). "
                "Run `dermedge verify` on the bundle."
            ) from error
        return {name: np.concatenate([row[name] for row in rows]) for name in self._outputs}

    def placement(self) -> Placement:
        """Return the number of nodes of each operator by the part that computes them.

        `XNNPACK` computes what it can, and LiteRT's `builtin` kernels compute the rest.
        """
        return self._placement

    def close(self) -> None:
        """Free the interpreter; a call that still runs in another thread ends first."""
        self._interpreter = None

    def _run(self, interpreter: "Interpreter", image: Pixels) -> Outputs:
        interpreter.set_tensor(self._input, image)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._outputs.items()}


def _read_signature(interpreter: "Interpreter") -> Any:
    """Return the runner of a model's one signature, which names inputs and outputs."""
    names = sorted(interpreter.get_signature_list())
    if len(names) != 1:
        raise EngineError(f"The model's signatures are {names}, not one. {AGAIN}")
    return interpreter.get_signature_runner(names[0])


def _describe_ports(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Port]:
    """Return the types and sizes of inputs or outputs; LiteRT gives an open size as -1."""
    return {
        name: (
            np.dtype(tensor["dtype"]).name,
            [int(size) if size >= 0 else None for size in tensor["shape_signature"]],
        )
        for name, tensor in tensors.items()
    }


def _read_placement(interpreter: "Interpreter") -> Placement:
    """Count the nodes of XNNPACK and those of LiteRT's own kernels.

    A delegate adds one node per part of the graph that it computes, and the list keeps
    the nodes of that part. They are those between the outputs and inputs of the added
    node.
    """
    # LiteRT has no public list of nodes. Without it, placement is unknown.
    nodes: list[Any] = getattr(interpreter, "_get_ops_details", list)()
    own = [node for node in nodes if node["op_name"] != DELEGATE]
    makers = {int(output): node for node in own for output in node["outputs"]}
    taken: set[int] = set()
    for part in nodes:
        if part["op_name"] == DELEGATE:
            given = {int(index) for index in part["inputs"]}
            wanted = [int(index) for index in part["outputs"]]
            while wanted:
                node = makers.get(wanted.pop())
                if node is not None and node["index"] not in taken:
                    taken.add(node["index"])
                    wanted += [int(index) for index in node["inputs"] if int(index) not in given]
    placement = {
        "XNNPACK": Counter(node["op_name"] for node in own if node["index"] in taken),
        "builtin": Counter(node["op_name"] for node in own if node["index"] not in taken),
    }
    return {name: dict(operators) for name, operators in placement.items() if operators}


@contextlib.contextmanager
def hide_first_message() -> Iterator[None]:
    """Hide the line that LiteRT prints when a process uses XNNPACK for the first time.

    Allocate the tensors of an interpreter within this block.

    LiteRT writes it to the file descriptor of stderr, and only C++ can change that
    (https://github.com/tensorflow/tensorflow/issues/58050). Text that another thread
    writes meanwhile is lost, so only the first opening in a process hides it.
    """
    if not _first.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # A process may have no stderr.
            kept = os.dup(STDERR)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, STDERR)
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), STDERR)
        yield
