"""The verb `export`; a module of its own, because it needs neither what trains nor what draws reports."""

from pathlib import Path

from dermedge.evaluate.evidence import TableEvidence
from dermedge.models import load_student
from dermedge_export import exporter
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.progress import Progress


def export(
    student: Path | str,
    target: str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    dynamic_batch: bool = False,
    allow_parity_failure: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a student's or teacher's folder; see `dermedge_export.exporter.export`.

    Args:
        student: the folder that training wrote.
        target: name of a target.
        out: folder to write `NAME-TARGET.dermedge` into.
        data: a table: postprocessing is fitted on its val split, the gate judges its test split.
        dynamic_batch: leave the batch size open.
        allow_parity_failure: write the bundle although the gate failed.
        overwrite: replace an older bundle.
        progress: told what is being done.
    """
    model = load_student(student)
    tell = progress or (lambda done, total, note: None)
    return exporter.export(
        model,
        target,
        out,
        evidence=TableEvidence(data, model.spec, progress) if data is not None else None,
        training_images=model.training_images,
        dynamic_batch=dynamic_batch,
        allow_parity_failure=allow_parity_failure,
        overwrite=overwrite,
        step=lambda note: tell(0, 1, note),
    )
