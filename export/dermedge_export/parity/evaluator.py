"""The jury: what the student answers, against which every candidate is held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Predictions, Run, predict_table
from dermedge_export.parity.compare import parity
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import Target
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Runtime
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Postprocessing, Spec

SYNTHETIC = "procedural"
SYNTHETIC_COUNT = 128  # lesions that agreement is gated on where there is no labelled data
PostprocessingByTask = Mapping[str, Postprocessing]


class EvaluationData(Protocol):
    """Labelled images to calibrate on, to fit and to judge on; `name` says whose they are."""

    @property
    def name(self) -> str: ...

    def predictions(self, split: str, run: Run) -> Predictions:
        """What `run` answers for every image of a split."""

    def digests(self, split: str) -> Sequence[str]:
        """sha256 of every image file of a split, in the order of its predictions."""

    def calibration(self) -> Calibration:
        """Images of the train split for quantization."""


@dataclass
class ParityEvaluator:
    """The student's answers on a split, asked for once, and the verdict on whoever claims to be the same model.

    Candidates are chosen on val; test is for the winner alone. Postprocessing is fitted on val, for each side its own.
    Without evidence both splits are the same procedural lesions, on which only agreement can be judged.
    """

    spec: Spec
    reference: Run
    data: EvaluationData | None
    _answers: dict[str, Predictions] = field(default_factory=dict)

    def reference_predictions(self, split: str) -> Predictions:
        """What the fp32 student answers on a split."""
        split = SYNTHETIC if self.data is None else split
        if split not in self._answers:
            self._answers[split] = self.run(split, self.reference)
        return self._answers[split]

    @cached_property
    def _lesions(self) -> list[NDArray[np.uint8]]:
        return [
            preprocess(draw_lesion(seed).image, self.spec.preprocess)
            for seed in seeds.AGREEMENT[:SYNTHETIC_COUNT]
        ]

    def run(self, split: str, run: Run) -> Predictions:
        """What `run` answers on a split."""
        if self.data is None:
            return predict_synthetic(run, self._lesions)
        return self.data.predictions(split, run)

    def fit_postprocessing(self, val: Predictions) -> PostprocessingByTask:
        """What val allows to fit, None for every task where nothing is labelled."""
        unfitted = {task.name: Postprocessing() for task in self.spec.tasks}
        return (
            unfitted if self.data is None else unfitted | dict(fit_postprocessing(val, self.spec))
        )

    def basis(self, split: str) -> str:
        """On what a split's verdict rests."""
        if self.data is None:
            return f"{SYNTHETIC_COUNT} procedural lesions"
        return f"{split} split of {self.data.name}"

    def compare(
        self,
        split: str,
        answers: Predictions,
        fitted: PostprocessingByTask,
        precision: str,
        runtime: Runtime,
        target: Target,
    ) -> ParityReport:
        """The parity of a candidate's `answers` on a split, decoded with what was `fitted` for it."""
        return parity(
            self.reference_predictions(split),
            answers,
            self.spec,
            self.fit_postprocessing(self.reference_predictions("val")),
            fitted,
            precision=precision,
            basis=self.basis(split),
            engine=f"{runtime.name} {runtime.version}",
            hardware=describe_hardware(),
            limits=target.gate,
        )


def predict_synthetic(run: Run, lesions: Sequence[NDArray[np.uint8]]) -> Predictions:
    """What `run` answers for drawn lesions; nothing is known about them, so only agreement can be judged."""
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
    """The CPU and the instruction sets that decide what its numbers are."""
    this = describe_device()
    return f"{this['cpu']} ({this['flags']})" if this["flags"] else this["cpu"]
