"""Add class activation maps to a model, as one more output of its exported graph."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dermedge_export.context import Exportable, module_runner
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.errors import UsageError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Spec, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASS_MAP = ".cam"
"""Further output that `forward(image, extra=(CLASS_MAP,))` of a network returns."""
WITHIN = 1e-3
"""Largest difference of a map's mean from its logit, as a share of the largest logit."""


@dataclass(frozen=True)
class ExplainedModel:
    """A module and its spec with the class activation maps of another model.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> explained: Exportable = with_class_map(load_model_folder("student"))
        >>> [(task.name, task.kind) for task in explained.spec.tasks][-1]
        ('diagnosis_cam', 'cam')
    """

    module: "nn.Module"
    spec: Spec


def map_task(spec: Spec) -> Task | None:
    """Return the first task of the kind `cam`, or None.

    Args:
        spec: Spec of a model.
    """
    return next((task for task in spec.tasks if task.kind == "cam"), None)


def with_class_map(model: Exportable) -> Exportable:
    """Return a model with class activation maps of its first `classify` task.

    The new task has the kind `cam` and the name `DIAGNOSIS_cam`. At every place of the
    last feature map it applies the linear head. So the mean of a label's map is the
    label's logit, and nothing is approximated.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR
    2016.

    Args:
        model: The model; it stays as it is. A model with such a task is returned itself.

    Raises:
        UsageError: The model classifies nothing, or has layers between the mean of its
            last feature map and its head, so that the maps would not be exact.
    """
    spec = model.spec
    if map_task(spec) is not None:
        return model
    if spec.diagnosis is None:
        raise UsageError(
            f"The model {spec.name!r} has no diagnosis to explain. Leave --explain out."
        )
    task = Task(f"{spec.diagnosis.name}_cam", "cam", spec.diagnosis.labels)
    if spec.task(task.name) is not None:
        raise UsageError(
            f"The model {spec.name!r} has a task {task.name!r} already. Leave --explain out."
        )
    explained = ExplainedModel(
        _add_output(model.module, task.name), replace(spec, tasks=(*spec.tasks, task))
    )
    _check_exact(explained, spec.diagnosis.name, task.name)
    return explained


def _add_output(module: "nn.Module", name: str) -> "nn.Module":
    """Return a module with one more output, the network's `CLASS_MAP`."""
    from torch import nn

    class Explained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = module

        def forward(self, image: "Tensor") -> "dict[str, Tensor]":
            outputs = dict(self.whole(image, extra=(CLASS_MAP,)))
            maps = outputs.pop(CLASS_MAP)
            return {**outputs, name: maps}

    return Explained().train(module.training)


def _check_exact(model: ExplainedModel, logits: str, maps: str) -> None:
    """Check on a drawn lesion that the mean of each map is its logit.

    Raises:
        UsageError: The network has no maps, or a mean differs from its logit.
    """
    refusal = UsageError(
        f"The class activation maps of {model.spec.name!r} would not be exact: its head does not "
        "read the mean of the last feature map. Leave --explain out, or train a student whose "
        "backbone has no layers there, such as mobilenetv2_100."
    )
    image = preprocess(draw_lesion(seeds.AGREEMENT[0]).image, model.spec.preprocess)
    training = model.module.training
    try:
        outputs = module_runner(model.module)(image[None])
    except (UsageError, TypeError, RuntimeError) as error:
        raise refusal from error
    finally:
        model.module.train(training)
    expected, actual = outputs[logits], outputs[maps].mean((2, 3), np.float64)
    if not np.abs(actual - expected).max() <= WITHIN * np.abs(expected).max():  # also for NaN
        raise refusal
