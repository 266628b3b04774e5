"""A table as the evidence that `export` calibrates on, fits on and judges by."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.subgroups import subgroup_columns
from dermedge.data.table import Table, digests, read_table
from dermedge.evaluation.table_predictions import masks, preprocessed, table_predictions
from dermedge_export.calibration import COUNT, Calibration, balanced_choice
from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec

KEPT_BYTES = 1 << 30


class TableEvaluationData:
    """The splits of one table, for one model. Satisfies `dermedge_export.parity.evaluator.Evidence`."""

    def __init__(self, data: Path | str, spec: Spec, progress: Progress | None = None) -> None:
        self.table = with_split(read_table(data))
        self.spec, self.progress = spec, progress
        self._pixels: dict[str, list[NDArray[np.uint8]]] = {}
        self._masks: dict[str, NDArray[np.int8] | None] = {}

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    def predictions(self, split: str, run: Run) -> Predictions:
        """What `run` answers for every image of a split. Raises DataError where the split is empty."""
        table = self.table.select_split(split)
        if split not in self._masks:
            self._masks[split] = masks(table, self.spec)
        return table_predictions(
            table,
            self.spec,
            run,
            images=self._images(split, table),
            outlines=self._masks[split],
            progress=self.progress,
        )

    def digests(self, split: str) -> Sequence[str]:
        """sha256 of every image file of a split, none where the split is empty."""
        rows = self.table.frame[self.table.frame["split"] == split]
        return list(digests(self.table.replace(rows)))

    def calibration(self, count: int = COUNT) -> Calibration:
        """Train images, the classes in turn; of an image that occurs twice, one. Raises DataError without any."""
        table = self.table.select_split("train")
        table = table.replace(
            table.frame.assign(digest=list(digests(table))).drop_duplicates("digest")
        )
        rows = table.frame.iloc[balanced_choice(table.frame["dx"].tolist(), count)]
        return Calibration(
            np.stack(list(preprocessed(table.replace(rows), self.spec.preprocess))),
            tuple(rows["digest"]),
            "train",
            _counts(rows["dx"].tolist()),
            _counts(subgroup_columns(rows)["fitzpatrick"].tolist()),
        )

    def _images(self, split: str, table: Table) -> Iterable[NDArray[np.uint8]]:
        """The split's preprocessed images, decoded once if they fit into memory: many candidates look at them."""
        spec = self.spec.preprocess
        if len(table) * 3 * spec.size**2 > KEPT_BYTES:
            return preprocessed(table, spec)
        if split not in self._pixels:
            self._pixels[split] = list(preprocessed(table, spec))
        return self._pixels[split]


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value).items()))
