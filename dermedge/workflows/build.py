"""`build`: build the engine of a bundle on this device."""

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
    """Build the engine of a TensorRT bundle on this device, and run the gate.

    The bundle stays unchanged. `NAME.device.json` and `NAME.cache` are written next to
    it.

    Args:
        bundle: A bundle for a jetson target, or its path.
        data: Folder or table file of a data set. The gate compares engine and student
            on its test images, as far as the bundle holds the student's predictions.
            Without data only the golden cases are compared, which are too few to pass
            the gate.
        workspace_mb: Memory in MB that one layer may use. None allows all of the GPU's.
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
        # The import needs pandas, which a Jetson may lack.
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
