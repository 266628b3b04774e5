"""Read the rows of a table as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermedge.data.finding import Finding
from dermedge.data.split import FRACTIONS, with_split
from dermedge.data.split_checks import check_split, refuse_empty_split
from dermedge.data.table import Table, digests, read_table, table_digest
from dermedge.data.taxonomy import project
from dermedge.train.tasks import derive_tasks
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_file, sha256_hex
from dermedge_runtime.spec import Task

RowIndices = NDArray[np.intp]


@dataclass(frozen=True)
class Samples:
    """The rows of a table as arrays, in the table's order.

    Attributes:
        name: Name of the table.
        image_ids: Image ids.
        paths: Image files.
        digests: sha256 of the image files.
        labels: Index into the diagnosis task's labels; -1 if unknown or not a label of
            the task.
        malignant: 1, 0, or NaN if unknown.
        severity: Index into the severity task's levels; -1 if unknown.
        masks: Mask files, or None.
        split: `train`, `val` or `test`.
        table_digest: sha256 of the table's cells.
        licences: Licences that the table names.
        modalities: Modality of each image: `dermoscopic`, `clinical` or "" if unknown.
        findings: Findings about groups and splits, from `check_split`.

    Example:
        >>> samples, tasks = read_samples("lesions")
        >>> [len(samples.rows(split)) for split in ("train", "val", "test")]
        [53, 15, 12]
    """

    name: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    labels: NDArray[np.int64]
    malignant: NDArray[np.float32]
    severity: NDArray[np.int64]
    masks: tuple[Path | None, ...]
    split: NDArray[np.str_]
    table_digest: str
    licences: tuple[str, ...]
    modalities: NDArray[np.str_]
    findings: tuple[Finding, ...] = ()

    @property
    def images_digest(self) -> str:
        """Digest of the image files, independent of the table's cells."""
        return sha256_hex("\n".join(sorted(self.digests)).encode())

    @property
    def masks_digest(self) -> str:
        """Digest of the mask files and the images that they belong to.

        Raises:
            DataError: A mask cannot be read.
        """
        try:
            masks = [sha256_file(path) if path is not None else "" for path in self.masks]
        except OSError as error:
            raise DataError(
                f"The mask {error.filename} cannot be read. Restore it, or empty its cell."
            ) from error
        pairs = map("/".join, zip(self.digests, masks, strict=True))
        return sha256_hex("\n".join(sorted(pairs)).encode())

    def rows(self, split: str) -> RowIndices:
        """Return the indices of one split's rows."""
        return np.flatnonzero(self.split == split)


def read_samples(
    data: Path | str | Table,
    tasks: tuple[Task, ...] | None = None,
    *,
    wanted: Sequence[str] | None = None,
) -> tuple[Samples, tuple[Task, ...]]:
    """Read a table, assign splits to rows without one, and derive the tasks.

    Args:
        data: Folder or table file of a data set, or a table that was read.
        tasks: Tasks of an existing model. None derives them from the train rows.
        wanted: Names of the tasks to derive, as in `derive_tasks`.

    Returns:
        The rows, and the tasks that `labels` and `severity` index.

    Raises:
        DataError: The table cannot be read, or its train rows lack the labels of the
            tasks.
        UsageError: `wanted` names an unknown task.

    Example:
        >>> samples, tasks = read_samples("lesions")
        >>> [task.name for task in tasks], len(samples.paths)
        (['diagnosis', 'malignancy'], 80)
    """
    given = data if isinstance(data, Table) else read_table(data)
    table = with_split(given)
    frame, files = table.frame, digests(table)
    findings = check_split(
        given.frame, frame["split"], FRACTIONS, content=files.set_axis(frame.index)
    )
    if tasks is None:
        refuse_empty_split(findings, "train")
        tasks = derive_tasks(frame[frame["split"] == "train"], str(table.root), wanted)
    ids = [label.id for task in tasks if task.kind == "classify" for label in task.labels]
    # A model may have coarser labels than the table: each diagnosis counts as the label
    # that covers it in the taxonomy.
    covering = {dx: project(dx, ids) for dx in frame["dx"].unique() if dx}
    index = {dx: ids.index(label) for dx, label in covering.items() if label is not None}
    levels = {
        label.id: level
        for task in tasks
        if task.kind == "ordinal"
        for level, label in enumerate(task.labels)
    }
    samples = Samples(
        name=table.name,
        image_ids=tuple(frame["image_id"]),
        paths=tuple(table.root / image for image in frame["image"]),
        digests=tuple(files.loc[list(frame["image_id"])]),
        labels=np.array([index.get(dx, -1) for dx in frame["dx"]], np.int64),
        malignant=frame["malignant"].to_numpy(np.float32),
        severity=np.array(
            [levels.get(f"{level:.0f}", -1) for level in frame["severity"]], np.int64
        ),
        masks=tuple(table.root / mask if mask else None for mask in frame["mask"]),
        split=frame["split"].to_numpy(str),
        table_digest=table_digest(table),
        licences=tuple(sorted(set(frame["licence"]) - {""})),
        modalities=frame["modality"].to_numpy(str),
        findings=tuple(findings),
    )
    return samples, tasks


def append_unlabelled(samples: Samples, tables: Sequence[Samples]) -> Samples:
    """Append the rows of unlabelled tables as train rows without labels.

    An image that is already there, by its digest, is skipped.
    """
    seen = set(samples.digests)
    for table in tables:
        new = [i for i, digest in enumerate(table.digests) if digest not in seen]
        seen.update(table.digests)
        samples = replace(
            samples,
            image_ids=samples.image_ids + tuple(table.image_ids[i] for i in new),
            paths=samples.paths + tuple(table.paths[i] for i in new),
            digests=samples.digests + tuple(table.digests[i] for i in new),
            labels=np.concatenate([samples.labels, np.full(len(new), -1)]),
            malignant=np.concatenate([samples.malignant, np.full(len(new), np.nan, np.float32)]),
            severity=np.concatenate([samples.severity, np.full(len(new), -1)]),
            masks=samples.masks + (None,) * len(new),
            split=np.concatenate([samples.split, np.full(len(new), "train")]),
            licences=tuple(sorted({*samples.licences, *table.licences})),
            modalities=np.concatenate([samples.modalities, table.modalities[new]]),
        )
    return samples
