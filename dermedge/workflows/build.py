"""Build the engine of a bundle on this device."""

from pathlib import Path

from dermedge_export.build import DeviceReport, build_engine
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.progress import Progress, no_progress


def build(
    bundle: Path | str | Bundle,
    *,
    data: Path | str | None = None,
    workspace_mb: int | None = None,
    rebuild: bool = False,
    allow_parity_failure: bool = False,
    progress: Progress | None = None,
) -> DeviceReport:
    """Build the engine of a TensorRT bundle on this device, and gate it.

    `NAME.device.json` and `NAME.cache` appear next to the bundle, which stays as it is.

    Args:
        bundle: A bundle for a jetson target, or its path.
        data: A data set's folder or table. The gate compares the engine with the
            student on those test images that the student has predicted. Without data
            only the golden cases are compared, which are too few to pass the gate.
        workspace_mb: Memory in MB that one layer may use; all of the GPU's by default.
        rebuild: Build the engine even if the cache holds it.
        allow_parity_failure: Use the engine even if the gate fails.
        progress: Receives the name of each step.

    Raises:
        UsageError: The bundle needs no engine, or it has no predictions of its student.
        ElsewhereError: This machine has no TensorRT or no GPU.
        GateError: The engine lost more accuracy than the target allows.
        BundleError: The bundle is damaged, or the engine does not verify.

    Example:
        >>> from dermedge.workflows.build import build
        >>> build("toy.dermedge")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: toy.dermedge needs no engine: ...
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    report_progress = progress or no_progress
    images = None
    if data is not None:
        from dermedge.evaluation.export_data import TableEvaluationData

        images = TableEvaluationData(data, opened.spec, progress)
    return build_engine(
        opened,
        images=images,
        workspace_mb=workspace_mb,
        rebuild=rebuild,
        allow_parity_failure=allow_parity_failure,
        step=lambda note: report_progress(0, 1, note),
    )
