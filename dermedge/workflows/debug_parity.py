"""Compare a bundle tensor by tensor with the model that it was exported from."""

from pathlib import Path

from dermedge.models import load_model_folder
from dermedge.workflows.export import find_model
from dermedge_export import debug
from dermedge_export.debug import DebugReport
from dermedge_runtime.bundle import Bundle


def debug_parity(
    bundle: Path | str | Bundle,
    student: Path | str,
    *,
    nodes: int = 5,
    threshold: float = debug.THRESHOLD,
) -> DebugReport:
    """Find the node at which a bundle's artifact first drifts from its student.

    Ten synthetic lesions run through both graphs. Every tensor that both graphs hold is
    compared.

    Args:
        bundle: A bundle or its path.
        student: The model folder that the bundle was exported from, or the output
            folder of `run`.
        nodes: Number of nodes to report, the noisiest first.
        threshold: Signal-to-noise ratio in dB below which a node has drifted.

    Raises:
        UsageError: The bundle was exported from another model, its format has no graph
            that can be read, or `nodes` is less than 1.
        DataError: `student` holds no model.
        MissingExtraError: torch, onnx or the engine is not installed.

    Example:
        >>> from dermedge.workflows.debug_parity import debug_parity
        >>> from dermedge.workflows.export import export
        >>> report = debug_parity(export("student", "cpu", "exported"), "student")
        >>> report.precision, report.first
        ('fp32', None)
    """
    return debug.debug_parity(
        bundle, load_model_folder(find_model(student)), nodes=nodes, threshold=threshold
    )
