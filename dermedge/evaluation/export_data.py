"""Provide the images of a table to an export: calibration, selection and the gate."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.subgroups import subgroup_columns
from dermedge.data.table import Table, digests, read_table
from dermedge.evaluation.table_predictions import (
    lesion_masks,
    preprocess_table,
    table_predictions,
)
from dermedge_export.calibration import COUNT, Calibration, balanced_choice
from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec

# Preprocessed images of a split are kept in memory up to this size: 1 GiB holds about
# 7,000 images of 224 x 224 pixels.
KEPT_BYTES = 1 << 30


class TableEvaluationData:
    """Images and labels of one table, for the export of one model.

    An export calibrates on train, selects candidates and fits postprocessing on val,
    and decides the gate on test. Satisfies
    `dermedge_export.parity.evaluator.EvaluationData`.

    Args:
        data: Folder or table file of a data set. Rows without a split get one.
        spec: The model's tasks, labels and preprocessing.
        progress: Called with the number of images done.

    Examples:
        >>> import dermedge
        >>> with dermedge.load("toy.dermedge") as model:
        ...     data = TableEvaluationData("lesions", model.bundle.spec)
        ...     predictions = data.predictions("val", model.run)
        >>> len(predictions) == len(data.digests("val"))
        True
        >>> data.calibration(16).images.shape
        (16, 48, 48, 3)
    """

    def __init__(self, data: Path | str, spec: Spec, progress: Progress | None = None) -> None:
        self.table = with_split(read_table(data))
        self.spec, self.progress = spec, progress
        self._pixels: dict[str, list[NDArray[np.uint8]]] = {}
        self._masks: dict[str, NDArray[np.int8] | None] = {}

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    def predictions(self, split: str, run: Run) -> Predictions:
        """Run a model on every image of a split.

        Args:
            split: train, val or test.
            run: The model, from uint8 [N, S, S, 3] to outputs [N, ...] by task.

        Raises:
            DataError: The split is empty, or one of its images or masks is unreadable.
        """
        table = self.table.select_split(split)
        if split not in self._masks:
            self._masks[split] = lesion_masks(table, self.spec)
        return table_predictions(
            table,
            self.spec,
            run,
            images=self._images(split, table),
            outlines=self._masks[split],
            progress=self.progress,
        )

    def digests(self, split: str) -> Sequence[str]:
        """Return the SHA-256 of every image file of a split."""
        rows = self.table.frame[self.table.frame["split"] == split]
        return list(digests(self.table.replace(rows)))

    def calibration(self, count: int = COUNT) -> Calibration:
        """Choose train images for calibration, equally many of each diagnosis.

        An image file that occurs twice is chosen at most once.

        Args:
            count: Number of images; fewer if the train split has fewer.

        Raises:
            DataError: The train split is empty, or one of its images is unreadable.
        """
        table = self.table.select_split("train")
        table = table.replace(
            table.frame.assign(digest=list(digests(table))).drop_duplicates("digest")
        )
        # A range that only rare diagnoses reach must be seen during calibration, so
        # each diagnosis gives equally many images.
        rows = table.frame.iloc[balanced_choice(table.frame["dx"].tolist(), count)]
        return Calibration(
            np.stack(list(preprocess_table(table.replace(rows), self.spec.preprocess))),
            tuple(rows["digest"]),
            "train",
            _count_values(rows["dx"].tolist()),
            _count_values(subgroup_columns(rows)["fitzpatrick"].tolist()),
        )

    def _images(self, split: str, table: Table) -> Iterable[NDArray[np.uint8]]:
        """Return the preprocessed images of a split, kept in memory if they fit.

        An export runs many candidates on the same images, and decoding takes longer
        than most engines.
        """
        spec = self.spec.preprocess
        if len(table) * 3 * spec.size**2 > KEPT_BYTES:
            return preprocess_table(table, spec)
        if split not in self._pixels:
            self._pixels[split] = list(preprocess_table(table, spec))
        return self._pixels[split]


def _count_values(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value).items()))
