"""Load the inputs of a protocol: the teacher, the task and the options."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.probing.features import Features, extract_features
from dermedge.probing.linear import LinearRecipe
from dermedge.probing.options import ProbeOptions
from dermedge.probing.scores import Bootstrap
from dermedge.probing.task import ProbeSplit, ProbeTask, make_probe_task
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_file
from dermedge_runtime.progress import Progress

if TYPE_CHECKING:
    from dermedge.models import TrainedModel


@dataclass(frozen=True, eq=False)
class ProbeContext:
    """Loaded inputs of one probe.

    Attributes:
        teacher: The model.
        folder: Folder of the model.
        weights: SHA-256 of the weights file.
        data: Folder or file of the table.
        task: The task on that table.
        test: The test rows with a known label.
        options: The options of the probe.
        recipe: The training recipe; None for knn.
        cache: Folder of the cached features.
        progress: Called with the steps done.

    Examples:
        >>> context = load_context("teacher", "lesions", ProbeOptions(protocol="knn"))
        >>> context.task.name, context.recipe
        ('diagnosis', None)
    """

    teacher: "TrainedModel"
    folder: Path
    weights: str
    data: Path
    task: ProbeTask
    test: ProbeSplit
    options: ProbeOptions
    recipe: LinearRecipe | None
    cache: Path
    progress: Progress | None

    @property
    def bootstrap(self) -> Bootstrap:
        """Settings of the bootstrap."""
        return Bootstrap(self.options.replicates, self.options.seed)

    def features(self, part: ProbeSplit) -> Features:
        """Return the frozen features [N, D] of the images of a split."""
        return extract_features(
            self.teacher, self.weights, part.table, cache=self.cache, progress=self.progress
        )

    def threshold_split(self) -> ProbeSplit | None:
        """Return the val rows that the malignancy threshold is chosen on.

        Returns:
            The rows; None for tasks without a threshold.

        Raises:
            DataError: None of the rows is malignant.
        """
        if self.task.kind != "binary":
            return None
        part = self.task.select("val")
        if not (part.labels == 1).any():
            raise DataError(
                f"No val row of {self.task.table.file} is malignant, so no threshold can be "
                "chosen. Split the table again with `dermedge data split --redo`, or probe "
                "another task."
            )
        return part


def load_context(
    teacher: str | Path,
    data: str | Path,
    options: ProbeOptions,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> ProbeContext:
    """Load the teacher and the table of a probe.

    Args:
        teacher: Folder of a teacher or student.
        data: Folder or table file of a data set.
        options: The options of the probe.
        cache: Folder of the cached features.
        progress: Called with the steps done.

    Raises:
        DataError: The teacher's folder or the table is unusable.

    Examples:
        >>> load_context("teacher", "lesions", ProbeOptions()).folder
        PosixPath('teacher')
    """
    from dermedge.models.folder_metadata import WEIGHTS
    from dermedge.models.model_folder import load_model_folder

    folder = Path(teacher)
    model = load_model_folder(folder)
    task = make_probe_task(options.task_name, with_split(read_table(data)), model.spec)
    if options.protocol == "paper" and task.kind != "segment":
        # The released scripts classify malignancy and severity with a softmax.
        task = replace(task, kind="classify")
    return ProbeContext(
        teacher=model,
        folder=folder,
        weights=sha256_file(folder / WEIGHTS),
        data=Path(data),
        task=task,
        test=task.select("test"),
        options=options,
        recipe=options.recipe(),
        cache=Path(cache) if cache is not None else default_cache(folder),
        progress=progress,
    )


def default_cache(teacher: Path) -> Path:
    """Return the default cache of a teacher's features, beside the teacher's folder.

    Examples:
        >>> default_cache(Path("models/teacher")).name
        'teacher.features'
    """
    folder = teacher.resolve()
    return folder.with_name(f"{folder.name}.features")
