"""The verb `build`; a module of its own, because it needs neither what trains nor what exports."""

from pathlib import Path

from dermedge_export import build as device
from dermedge_export.build import DeviceReport
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
    """Build a bundle's engine on this device; see `dermedge_export.build.build`.

    Args:
        bundle: a bundle for TensorRT.
        data: a table: the gate judges the images of its test split that the student has answered.
        workspace_mb: memory that a layer may use while it computes.
        rebuild: build anew what is in the cache.
        allow_parity_failure: let the engine be used although the gate failed.
        progress: told what is being done.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    tell = progress or no_progress
    images = None
    if data is not None:
        from dermedge.evaluation.export_data import TableEvaluationData

        images = TableEvaluationData(data, opened.spec, progress)
    return device.build_engine(
        opened,
        images=images,
        workspace_mb=workspace_mb,
        rebuild=rebuild,
        allow_parity_failure=allow_parity_failure,
        step=lambda note: tell(0, 1, note),
    )
