"""A table as the evidence that `export` fits on and judges by."""

from collections.abc import Sequence
from pathlib import Path

from dermedge.data.split import with_split
from dermedge.data.table import digests, read_table
from dermedge.evaluate.table import table_predictions
from dermedge_export.predictions import Predictions, Run
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec


class TableEvidence:
    """The splits of one table, for one model. Satisfies `dermedge_export.exporter.Evidence`."""

    def __init__(self, data: Path | str, spec: Spec, progress: Progress | None = None) -> None:
        self.table = with_split(read_table(data))
        self.spec, self.progress = spec, progress

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    def predictions(self, split: str, run: Run) -> Predictions:
        """What `run` answers for every image of a split. Raises DataError where the split is empty."""
        return table_predictions(self.table.of(split), self.spec, run, progress=self.progress)

    def digests(self, split: str) -> Sequence[str]:
        """sha256 of every image file of a split."""
        return list(digests(self.table.of(split)))
