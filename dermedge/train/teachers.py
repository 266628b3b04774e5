"""Load teachers: one model, or an ensemble whose calibrated probabilities are averaged."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge.models.folder_metadata import ENSEMBLE
from dermedge.models.network import LAST_MAP, POOLED
from dermedge.models.ood import without_untrained
from dermedge.train.ensemble_file import read_ensemble
from dermedge.train.label_mapping import map_labels
from dermedge.train.teacher_member import Member, load_member
from dermedge.train.teacher_outputs import (
    Array,
    Outputs,
    average_outputs,
    concatenate_embeddings,
    resize_maps,
)
from dermedge.train.whitening import Whitening
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.spec import Spec, Task

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Teacher:
    """One or more models that a student learns from.

    The outputs of one model are its own logits. Those of several are the logarithms of
    their averaged calibrated probabilities, or the logits of the average for tasks
    without classes. A task is averaged over the models that have it.

    Attributes:
        spec: Tasks and preprocessing of the outputs; see `fit_to`.
        members: The models.
        whitening: Map of the embedding, or None for the plain features.
        calibrated: True if the temperatures of an ensemble are fitted.
        metrics: Metrics on val, as far as they are known.

    Example:
        >>> teacher = load_teacher("teacher")
        >>> outputs = teacher.run(np.zeros((2, 32, 32, 3), np.uint8))
        >>> {name: array.shape[0] for name, array in outputs.items()}
        {'diagnosis': 2, 'malignancy': 2, '.pooled': 2}
    """

    spec: Spec
    members: tuple[Member, ...]
    whitening: Whitening | None = None
    calibrated: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Largest input side of the members. Smaller members get resized views."""
        return max(member.size for member in self.members)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights; of an ensemble, of all weights and temperatures."""
        if len(self.members) == 1:
            return self.members[0].digest
        held = [[member.digest, dict(member.temperatures)] for member in self.members]
        return sha256_hex(canonical_json(held))

    @cached_property
    def _maps(self) -> dict[tuple[int, str], NDArray[np.intp] | None]:
        """Maps of labels by member and task; see `map_labels`."""
        maps: dict[tuple[int, str], NDArray[np.intp] | None] = {}
        for task in self.spec.tasks:
            for index, member in enumerate(self.members):
                own = member.model.spec.task(task.name)
                if own is not None:
                    maps[index, task.name] = map_labels(own, task, member.model.spec.name)
        return maps

    def fit_to(self, tasks: tuple[Task, ...], size: int) -> "Teacher":
        """Return the teacher with the tasks and the input side of a student.

        Labels are mapped through the taxonomy. Masks are resized to the student's grid.
        A task that no member has is left out of the outputs, with a warning.

        Raises:
            DataError: No member has any of the tasks, or labels cannot be mapped.
        """
        preprocess = replace(self.spec.preprocess, size=size)
        fitted = replace(self, spec=replace(self.spec, tasks=tasks, preprocess=preprocess))
        alone = [task.name for task in tasks if not fitted.knows(task)]
        if len(alone) == len(tasks):
            names = ", ".join(member.model.spec.name for member in self.members)
            raise DataError(
                f"No teacher ({names}) has a task of the student ({', '.join(alone)}). Choose "
                "other tasks, or add a teacher that has one."
            )
        # An embedding has no labels: the terms of the other tasks train its features.
        labelled = [task.name for task in tasks if task.name in alone and task.kind != "embed"]
        if labelled:
            LOGGER.warning("No teacher has %s: learned from labels alone.", ", ".join(labelled))
        return fitted

    def run(self, pixels: NDArray[np.uint8], *, maps: bool = False) -> dict[str, Array]:
        """Run all members, and combine their outputs.

        Args:
            pixels: Images, uint8 [N, S, S, 3], ideally of side `size`.
            maps: Return the feature map too.

        Returns:
            Float32 arrays: logits [N, ...] by task, `POOLED` features [N, D] and, with
            `maps`, `LAST_MAP` [N, C, h, w].
        """
        return self.combine([member.run(pixels, maps=maps) for member in self.members])

    def knows(self, task: Task) -> bool:
        """Return True if a member has the task."""
        return any(name == task.name for _, name in self._maps)

    def combine(self, parts: Sequence[Outputs]) -> dict[str, Array]:
        """Combine the outputs of every member, in order, to those of the teacher.

        Args:
            parts: Outputs of `Member.run`; `POOLED` and `LAST_MAP` may be left out.
        """
        known = [task for task in self.spec.tasks if self.knows(task)]
        outputs = {task.name: self._combine_task(task, parts) for task in known}
        if POOLED in parts[0]:
            features = concatenate_embeddings(parts)
            outputs[POOLED] = self.whitening.apply(features) if self.whitening else features
        if LAST_MAP in parts[0]:
            side = parts[0][LAST_MAP].shape[2]
            maps = [resize_maps(part[LAST_MAP].astype(np.float32), side) for part in parts]
            outputs[LAST_MAP] = np.concatenate(maps, axis=1)
        return outputs

    def _combine_task(self, task: Task, parts: Sequence[Outputs]) -> Array:
        """Return the outputs [N, ...] of one task."""
        logits, temperatures, maps = [], [], []
        for index, (member, part) in enumerate(zip(self.members, parts, strict=True)):
            if (index, task.name) in self._maps:
                own = part[task.name].astype(np.float32)
                grid = self.spec.preprocess.size // 4
                logits.append(resize_maps(own, grid) if task.kind == "segment" else own)
                temperatures.append(member.temperature(task))
                maps.append(self._maps[index, task.name])
        if len(self.members) == 1 and maps[0] is None:
            return logits[0]
        # An embedding has no temperature, which is then 1.
        scaled = [own / np.float32(t) for own, t in zip(logits, temperatures, strict=True)]
        return average_outputs(task, scaled, maps)


def load_teacher(folders: Path | str | Sequence[Path | str]) -> Teacher:
    """Load one teacher, or several as an ensemble.

    Args:
        folders: Model folders, or folders with an `ensemble.json`, whose members count
            as if they were listed.

    Returns:
        The teacher. Its tasks are those of the first model, followed by further tasks
        of the others, without `ood`. Its preprocessing is that of the model with the
        largest input.

    Raises:
        DataError: A folder holds no model or is damaged, a member of an ensemble has
            changed, or labels cannot be mapped.
        UsageError: No teacher is given, or their preprocessing differs in more than
            size.

    Example:
        >>> load_teacher(["teacher", "student"]).spec.name
        'ensemble'
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    if not given:
        raise UsageError("No teacher is given. Name one or more model folders.")
    loaded = [_load(Path(folder)) for folder in given]
    members = tuple(member for own, _ in loaded for member in own)
    if len({member.digest for member in members}) < len(members):
        raise UsageError("The same teacher is given twice. Name each model once.")
    widest = max(members, key=lambda member: member.size).model.spec
    for member in members:
        _check_preprocess(member, widest)
    if len(members) == 1:
        spec, metrics = members[0].model.spec, members[0].model.metrics.get("val", {})
        return Teacher(without_untrained(spec), members, metrics=metrics)
    taught = [without_untrained(member.model.spec).tasks for member in members]
    tasks = {task.name: task for own in reversed(taught) for task in reversed(own)}
    order = dict.fromkeys(task.name for own in taught for task in own)
    spec = Spec("ensemble", "1", tuple(tasks[name] for name in order), widest.preprocess)
    calibrated = len(given) == 1 and all(member.temperatures for member in members)
    metrics = loaded[0][1] if calibrated else {}
    teacher = Teacher(spec, members, calibrated=calibrated, metrics=metrics)
    return teacher.fit_to(spec.tasks, spec.preprocess.size)


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Return the teacher's entry in the lineage of its student.

    Example:
        >>> describe_teacher(load_teacher(["teacher", "student"]))["backbone"]
        'ensemble of timm mobilenetv2_050, timm test_efficientnet'
    """
    entries = []
    for member in teacher.members:
        model = member.model
        entries.append({**model.spec.lineage.get(model.role, {}), "weights": member.digest})
    if len(entries) == 1:
        return entries[0]
    licences = dict.fromkeys(str(entry.get("licence", "not stated")) for entry in entries)
    backbones = ", ".join(str(entry.get("backbone", "?")) for entry in entries)
    sets = dict.fromkeys(name for entry in entries for name in entry.get("pretrained_on") or ())
    return {
        "backbone": f"ensemble of {backbones}",
        "licence": "; ".join(licences),
        "weights": teacher.digest,
        # The check for images that a teacher has seen reads this key.
        **({"pretrained_on": list(sets)} if sets else {}),
        "members": entries,
    }


def _load(folder: Path) -> tuple[tuple[Member, ...], Mapping[str, float]]:
    """Return the models of a folder, and the metrics of an ensemble."""
    if (folder / ENSEMBLE).is_file():
        return read_ensemble(folder)
    return (load_member(folder),), {}


def _check_preprocess(member: Member, widest: Spec) -> None:
    own, other = member.model.spec, widest.preprocess
    if replace(own.preprocess, size=other.size) != other:
        raise UsageError(
            f"The teachers {own.name!r} ({own.preprocess.fit}) and {widest.name!r} ({other.fit}) "
            "differ in the fit, the kernel or the background of their preprocessing. Use teachers "
            "that differ in size only."
        )
