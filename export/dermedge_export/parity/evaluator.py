"""Compare the candidates of an export with their student, split by split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.evaluation.postprocessing import FitOptions, fit_postprocessing
from dermedge_export.evaluation.predictions import (
    PostprocessingByTask,
    Predictions,
    Run,
    predict_table,
)
from dermedge_export.parity.compare import parity
from dermedge_export.parity.foreign import with_foreign
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import Target
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Runtime
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Postprocessing, Spec

SYNTHETIC = "procedural"
SYNTHETIC_COUNT = 128  # for a comparison of agreement only; the gate needs 100 cases


class EvaluationData(Protocol):
    """Labelled images to calibrate, fit and compare on; `name` is the data set's.

    Example:
        >>> from dermedge.evaluation.export_data import TableEvaluationData
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     spec = model.bundle.spec
        ...     data: EvaluationData = TableEvaluationData("lesions", spec)
        ...     evaluator = ParityEvaluator(spec, model.run, data)
        ...     len(evaluator.reference_predictions("val")), evaluator.basis("val")
        (15, 'val split of lesions')
    """

    @property
    def name(self) -> str: ...

    def predictions(self, split: str, run: Run) -> Predictions:
        """Run a model on every image of a split."""

    def digests(self, split: str) -> Sequence[str]:
        """Return the SHA-256 of a split's image files, in order of `predictions`."""

    def calibration(self) -> Calibration:
        """Return images of the train split for quantization."""


@dataclass(frozen=True)
class ParityEvaluator:
    """Comparison of candidates with their fp32 student on the splits of a data set.

    The student's predictions are computed once per split. Candidates are selected on
    val; test is only for the selected one. Student and candidate each have their own
    postprocessing, fitted on val. Without data both splits are the same synthetic
    lesions, and only agreement is checked.

    Attributes:
        spec: Tasks, labels and preprocessing of the student.
        reference: The fp32 student, from uint8 [N, S, S, 3] to outputs by task.
        data: Labelled images; None for synthetic lesions.
        fit: Sensitivity and coverage that postprocessing is fitted to.

    Example:
        >>> from dermedge_runtime.spec import Preprocess, Task
        >>> spec = Spec("toy", "1", (Task("malignancy", "binary"),), Preprocess(8))
        >>> def run(images):
        ...     return {"malignancy": images.mean((1, 2, 3), np.float32)[:, None] - 128}
        >>> evaluator = ParityEvaluator(spec, run, None)
        >>> evaluator.basis("test")
        '128 procedural lesions'
        >>> len(evaluator.reference_predictions("test"))
        128
    """

    spec: Spec
    reference: Run
    data: EvaluationData | None
    fit: FitOptions = field(default_factory=FitOptions)
    _predictions: dict[str, Predictions] = field(default_factory=dict, init=False, repr=False)

    def reference_predictions(self, split: str) -> Predictions:
        """Return the student's predictions for a split, computed at the first call."""
        split = SYNTHETIC if self.data is None else split
        if split not in self._predictions:
            self._predictions[split] = self.run(split, self.reference)
        return self._predictions[split]

    @cached_property
    def reference_postprocessing(self) -> PostprocessingByTask:
        """The student's own postprocessing, fitted on its predictions for val."""
        return self.fit_postprocessing(self.reference_predictions("val"))

    @cached_property
    def lesions(self) -> list[NDArray[np.uint8]]:
        """Preprocessed synthetic lesions, which replace a split if there is no data."""
        return [
            preprocess(draw_lesion(seed).image, self.spec.preprocess)
            for seed in seeds.AGREEMENT[:SYNTHETIC_COUNT]
        ]

    def run(self, split: str, run: Run) -> Predictions:
        """Run a model on a split; nothing is cached.

        Args:
            split: `val` or `test`.
            run: The model, from uint8 [N, S, S, 3] to outputs by task.

        Returns:
            Predictions, with what is known about the images. For a model with an `ood`
            task they include the scores of drawn images without skin.
        """
        if self.data is None:
            return predict_synthetic(run, self.lesions)
        return with_foreign(self.data.predictions(split, run), run, self.spec)

    def fit_postprocessing(self, val: Predictions) -> PostprocessingByTask:
        """Fit postprocessing on a model's predictions for val.

        Returns:
            Postprocessing of each task; its fields are None where no image is labelled.
        """
        unfitted = {task.name: Postprocessing() for task in self.spec.tasks}
        if self.data is None:
            return unfitted
        return unfitted | dict(fit_postprocessing(val, self.spec, self.fit))

    def basis(self, split: str) -> str:
        """Name the images of a split, for reports."""
        if self.data is None:
            return f"{SYNTHETIC_COUNT} procedural lesions"
        return f"{split} split of {self.data.name}"

    def compare(
        self,
        split: str,
        candidate: Predictions,
        fitted: PostprocessingByTask,
        precision: str,
        runtime: Runtime,
        target: Target,
    ) -> ParityReport:
        """Compare a candidate's predictions for a split with the student's.

        Args:
            split: `val` or `test`.
            candidate: Predictions of the candidate, as `run` returns them.
            fitted: Postprocessing of the candidate, fitted on its predictions for val.
            precision: Precision of the candidate; it selects the limits.
            runtime: Runtime that ran the candidate, for the report.
            target: Target whose limits may be tighter than those of the precision.
        """
        return parity(
            self.reference_predictions(split),
            candidate,
            self.spec,
            self.reference_postprocessing,
            fitted,
            precision=precision,
            basis=self.basis(split),
            engine=f"{runtime.name} {runtime.version}",
            hardware=describe_hardware(),
            limits=target.gate,
        )


def predict_synthetic(run: Run, lesions: Sequence[NDArray[np.uint8]]) -> Predictions:
    """Run a model on synthetic lesions, without labels.

    Args:
        run: The model, from uint8 [N, S, S, 3] to outputs by task.
        lesions: Preprocessed lesions, uint8 [S, S, 3] each.

    Returns:
        Predictions without labels; they allow comparisons of agreement only.
    """
    count = len(lesions)
    names = tuple(f"procedural-{seed}" for seed in range(count))
    return Predictions(
        image_ids=names,
        outputs=predict_table(run, lesions),
        labels=np.full(count, -1, np.int64),
        malignant=np.full(count, np.nan),
        groups=np.array(names),
    )


def describe_hardware() -> str:
    """Return the CPU's name and the instruction sets that affect its rounding."""
    device = describe_device()
    return f"{device['cpu']} ({device['flags']})" if device["flags"] else device["cpu"]
