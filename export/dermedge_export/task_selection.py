"""Select the outputs of an export: some of a model's tasks, class activation maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dermedge_export.class_map import map_task, with_class_map
from dermedge_export.context import Exportable
from dermedge_export.options import ExportOptions
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Spec

if TYPE_CHECKING:
    from torch import nn

LEFT_OUT = "tasks_left_out"


@dataclass(frozen=True)
class SelectedModel:
    """A module and its spec with some of the tasks of another model.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> selected: Exportable = select_tasks(load_model_folder("student"), ["diagnosis"])
        >>> [task.name for task in selected.spec.tasks], selected.spec.lineage["tasks_left_out"]
        (['diagnosis'], ['malignancy'])
    """

    module: "nn.Module"
    spec: Spec


def select_tasks(model: Exportable, names: Sequence[str]) -> Exportable:
    """Return a model with the tasks of these names, in the model's own order.

    The lineage records the names of the other tasks as `tasks_left_out`. The heads of
    these tasks remain in the module, but no graph that is traced from it has them.

    Args:
        model: The model; it stays as it is.
        names: Names of tasks. None at all, or all of them, return the model itself.

    Raises:
        UsageError: The model has no task of one of the names.
    """
    spec = model.spec
    unknown = [name for name in names if spec.task(name) is None]
    if unknown:
        known = ", ".join(task.name for task in spec.tasks)
        raise UsageError(
            f"The model {spec.name!r} has no task {', '.join(map(repr, unknown))}. Choose from "
            f"its tasks: {known}."
        )
    kept = tuple(task for task in spec.tasks if task.name in names)
    if len(kept) in (0, len(spec.tasks)):
        return model
    left_out = [task.name for task in spec.tasks if task not in kept]
    lineage = {**spec.lineage, LEFT_OUT: [*spec.lineage.get(LEFT_OUT, ()), *left_out]}
    return SelectedModel(
        _select_outputs(model.module, tuple(task.name for task in kept)),
        replace(spec, tasks=kept, lineage=lineage),
    )


def select_outputs(model: Exportable, options: ExportOptions) -> Exportable:
    """Return a model with the outputs that an export's options choose.

    Args:
        model: The model; it stays as it is.
        options: `tasks` names the tasks to export, `explain` adds class activation maps.

    Raises:
        UsageError: The model has no task of one of the names, or its class activation
            maps would not be exact.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> student = load_model_folder("student")
        >>> explained = select_outputs(student, ExportOptions(explain=True))
        >>> [task.name for task in explained.spec.tasks]
        ['diagnosis', 'malignancy', 'diagnosis_cam']
    """
    if options.explain:
        model = with_class_map(model)
    maps, diagnosis = map_task(model.spec), model.spec.diagnosis
    if maps is None or diagnosis is None or not options.tasks:
        return select_tasks(model, options.tasks)
    if diagnosis.name not in options.tasks:
        raise UsageError(
            f"Class activation maps explain the task {diagnosis.name!r}, which is left out. Add "
            f"--task {diagnosis.name}, or leave --explain out."
        )
    return select_tasks(model, [*options.tasks, maps.name])


def _select_outputs(module: "nn.Module", names: tuple[str, ...]) -> "nn.Module":
    """Return a module that computes only the outputs of these names."""
    from torch import Tensor, nn

    class Selected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = module

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            outputs = self.whole(image)
            return {name: outputs[name] for name in names}

    return Selected().train(module.training)
