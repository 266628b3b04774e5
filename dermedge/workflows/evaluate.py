"""`evaluate`: measure a bundle, or a model folder that is not exported, on a table."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table
from dermedge.evaluation.corruptions import read_names
from dermedge.evaluation.evaluate import evaluate_model, select_rows
from dermedge.evaluation.report import EvaluationReport
from dermedge.models.folder_metadata import is_model_folder
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.model import Model, load
from dermedge_runtime.progress import Progress


def evaluate(
    bundle: str | Path | Bundle,
    data: str | Path,
    *,
    split: str = "test",
    engine: str | None = None,
    threads: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
    limit: int | None = None,
    corruptions: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure the accuracy of a bundle or a model folder, overall and by subgroup.

    Args:
        bundle: Path of a bundle, or an opened bundle; or the folder of a student, a
            teacher or an ensemble. Such a model runs in torch, with the temperature, the
            thresholds and the conformal sets that an export would fit on val.
        data: Folder or table file of a data set. A row's own `malignant` overrides that
            of its diagnosis.
        split: train, val, test or all. By default test, which no training or selection
            has used.
        engine: Name of the engine of a bundle, as for `load`.
        threads: Threads of the engine, as for `load`.
        replicates: Bootstrap replicates over lesions or patients.
        seed: Random seed of the bootstrap.
        limit: Largest number of images, evenly spread over the split; None is all.
        corruptions: Names of corruptions to measure as well, or `all` for every one.
        progress: Called with the number of images done.

    Returns:
        Metrics with 95 % intervals, the confusion matrix, plots as data, comparisons of
        groups, and a line for each image.

    Raises:
        UsageError: The split, the engine or a corruption is unknown, the limit is not
            positive, or an engine is named for a model folder.
        DataError: The table or one of its images is unusable, the split is empty, or a
            model folder is damaged.
        BundleError: The bundle is damaged, unsafe or of a newer schema.
        EngineError: The engine failed, or returned NaN or infinity.

    Examples:
        >>> from dermedge.workflows.evaluate import evaluate
        >>> report = evaluate("toy.dermedge", "lesions", split="all", replicates=10)
        >>> report.overall.cases, report.labels
        (80, ('nv', 'mel', 'bcc'))
        >>> accuracy = report.overall.metrics["balanced_accuracy"]
        >>> accuracy.low <= accuracy.value <= accuracy.high
        True
        >>> evaluate("teacher", "lesions", replicates=10).model.engine.split()[0]
        'torch'
    """
    names = read_names(corruptions) if corruptions is not None else ()
    complete = with_split(read_table(data))
    table = select_rows(complete, split, limit)
    with _open(bundle, complete, engine, threads, progress) as model:
        return evaluate_model(
            model,
            table,
            split=split,
            replicates=replicates,
            seed=seed,
            corruptions=names,
            progress=progress,
        )


def _open(
    bundle: str | Path | Bundle,
    table: Table,
    engine: str | None,
    threads: int | None,
    progress: Progress | None,
) -> AbstractContextManager[Model]:
    """Open a bundle, or a model folder with the val rows of the whole table."""
    if isinstance(bundle, Bundle) or not is_model_folder(bundle):
        return load(bundle, engine=engine, threads=threads)
    if engine is not None:
        raise UsageError(
            f"{bundle} is a model folder, which runs in torch and not in {engine!r}. Omit the "
            "engine, or export the model and evaluate the bundle."
        )
    # A bundle is evaluated without torch.
    from dermedge.workflows.model_folder import open_model_folder

    return open_model_folder(bundle, table, threads=threads, progress=progress)
