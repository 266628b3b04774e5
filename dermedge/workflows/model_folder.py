"""Open a model folder, or the folder of an ensemble, as a `Model` that runs in torch."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dermedge.data.table import Table, digests
from dermedge.evaluation.table_predictions import check_finite, table_predictions
from dermedge.train.teachers import load_teacher
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Run
from dermedge_export.export import list_digests
from dermedge_export.quality_limits import limits_for
from dermedge_export.toolchain import limit_torch_threads
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import UsageError
from dermedge_runtime.image import Pixels
from dermedge_runtime.model import Model
from dermedge_runtime.progress import Progress
from dermedge_runtime.report import TRAINING_IMAGES, VALIDATION_IMAGES
from dermedge_runtime.spec import Artifact, Postprocessing, Spec

LOGGER = logging.getLogger(__name__)
DIGEST = "weights.json"
NOT_RUN = {"host": {"status": "not_run"}, "device": {"status": "not_run"}}


@dataclass(frozen=True)
class TorchRuntime:
    """A `Runtime` that runs a model in torch, on the accelerator if there is one.

    Attributes:
        spec: Tasks of the model; other outputs are left out.
        compute: The model, from uint8 [N, S, S, 3] to outputs [N, ...] by task.
        name: Name of the engine.
        version: Version of torch.

    Example:
        >>> import numpy as np
        >>> member = load_teacher("student").members[0]
        >>> runtime = TorchRuntime(member.model.spec, member.run)
        >>> runtime.run(np.zeros((2, 32, 32, 3), np.uint8))["diagnosis"].shape
        (2, 6)
    """

    spec: Spec
    compute: Run
    name: str = "torch"
    version: str = torch.__version__

    def run(self, images: Pixels, /) -> Outputs:
        """Return the outputs [N, ...] by task for RGB images [N, S, S, 3]."""
        outputs = self.compute(images)
        return {task.name: outputs[task.name] for task in self.spec.tasks}

    def close(self) -> None:
        """Do nothing; the model is freed with this object."""


@contextmanager
def open_model_folder(
    folder: str | Path,
    table: Table,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Model]:
    """Yield a model folder's network, or an ensemble, as a `Model`.

    Its bundle is temporary and holds no weights. Its postprocessing is fitted on the val
    rows of the table, as `export` fits that of an artifact.

    Args:
        folder: A model folder, or a folder with an `ensemble.json`.
        table: The whole table, with splits.
        threads: Threads of torch; by default one per CPU that this process may use.
        progress: Called with the number of val images done.

    Raises:
        DataError: The folder is damaged, or a val image is unusable.
        UsageError: `threads` is not positive.

    Example:
        >>> from dermedge.data.split import with_split
        >>> from dermedge.data.table import read_table
        >>> with open_model_folder("teacher", with_split(read_table("lesions"))) as model:
        ...     model.provenance.engine.split()[0]
        'torch'
    """
    teacher = load_teacher(folder)
    alone = teacher.members[0] if len(teacher.members) == 1 else None
    # A teacher leaves out the task `ood`, which a student may have.
    spec = teacher.spec if alone is None else alone.model.spec
    runtime = TorchRuntime(spec, teacher.run if alone is None else alone.run)
    trained_on = {image for member in teacher.members for image in member.model.training_images}
    with _torch_threads(threads), tempfile.TemporaryDirectory(prefix="dermedge-") as place:
        postprocessing, val = _fit(table, spec, runtime.run, progress)
        bundle = write_bundle(
            Path(place) / "model.dermedge",
            spec=spec,
            artifact=Artifact("torch", "torch", DIGEST, "fp32"),
            postprocessing=postprocessing,
            tolerance={task.name: 0.0 for task in spec.tasks},
            parity=NOT_RUN,
            files={
                DIGEST: pretty_json({"weights": teacher.digest}),
                TRAINING_IMAGES: list_digests(sorted(trained_on)),
                VALIDATION_IMAGES: list_digests(val),
            },
            quality=limits_for(spec),
        )
        with Model(bundle, runtime) as model:
            yield model


def _fit(
    table: Table, spec: Spec, run: Run, progress: Progress | None
) -> tuple[Mapping[str, Postprocessing], Sequence[str]]:
    """Return the postprocessing, and the digests of the val images that it is fitted on."""
    rows = table.frame[table.frame["split"] == "val"]
    if rows.empty:
        LOGGER.warning(
            "Warning: %s has no val rows, so temperature, thresholds and conformal sets are not "
            "fitted. Give some rows the split val.",
            table.name,
        )
        return {}, ()
    val = table.replace(rows)
    predictions = table_predictions(val, spec, run, progress=progress)
    check_finite(predictions)
    return fit_postprocessing(predictions, spec), list(digests(val))


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch compute with a number of threads."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}. Use 1 or more, or leave it out.")
    before = torch.get_num_threads()
    limit_torch_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
