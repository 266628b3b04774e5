"""Load teachers: one model, or an ensemble whose calibrated probabilities are averaged."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dermedge.models.folder_metadata import WEIGHTS
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import LAST_MAP, POOLED
from dermedge.models.ood import without_untrained
from dermedge.train.label_mapping import map_labels
from dermedge_runtime.canonical_json import canonical_json, pretty_json, read_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_write, sha256_file, sha256_hex
from dermedge_runtime.spec import Spec, Task

LOGGER = logging.getLogger(__name__)
ENSEMBLE = "ensemble.json"
SCHEMA = "dermedge.ensemble/1"
Array = NDArray[np.float32]
Outputs = Mapping[str, Array]
BATCH = 64
# Principal components of an embedding.
COMPONENTS = 256


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a teacher.

    Attributes:
        model: The model.
        folder: Its folder.
        digest: SHA-256 of its weights file.
        temperatures: Temperature by task; tasks that are left out have 1.

    Example:
        >>> load_teacher("teacher").members[0].temperatures
        {}
    """

    model: TrainedModel
    folder: Path
    digest: str
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of the network's input in pixels."""
        return self.model.spec.preprocess.size

    def temperature(self, task: Task) -> float:
        """Return the temperature of a task."""
        return self.temperatures.get(task.name, 1.0)

    @torch.no_grad()
    def run(self, pixels: NDArray[np.uint8], *, maps: bool = False) -> dict[str, Array]:
        """Run the model on the accelerator, if there is one.

        Args:
            pixels: Images, uint8 [N, S, S, 3]. Another side than the model's is resized.
            maps: Return the feature map too.

        Returns:
            Float32 arrays: logits [N, ...] by task, `POOLED` features [N, D], and
            `LAST_MAP` [N, C, h, w].
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.model.module.eval().to(device)
        extra = (POOLED, LAST_MAP) if maps else (POOLED,)
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(pixels), BATCH):
            images = resize_pixels(pixels[start : start + BATCH], self.size)
            outputs = network(torch.from_numpy(images).to(device), extra)
            parts.append(outputs)
        return {
            name: torch.cat([part[name].float().cpu() for part in parts]).numpy()
            for name in parts[0]
        }


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map that gives features mean 0 and unit covariance.

    Directions with little variance are left out, because whitening would enlarge their
    noise. At most 256 are kept, which bounds the cost of the student's projector.

    Attributes:
        mean: Mean of the features, [D].
        matrix: Map to the principal components, [D, E].

    Example:
        >>> features = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        >>> white = Whitening.fit(features @ features[:8]).apply(features @ features[:8])
        >>> np.allclose(np.cov(white.T), np.eye(8), atol=1e-3)
        True
    """

    mean: Array
    matrix: Array

    @classmethod
    def fit(cls, features: Array) -> "Whitening":
        """Fit to features [N, D]; N must be at least 2."""
        mean = features.mean(0, dtype=np.float64)
        values, vectors = np.linalg.eigh(
            np.cov(features.T, dtype=np.float64).reshape(len(mean), -1)
        )
        kept = values > max(values.max(), 1e-12) * 1e-4
        kept[:-COMPONENTS] = False  # the values rise
        matrix = vectors[:, kept] / np.sqrt(values[kept])
        return cls(mean.astype(np.float32), matrix[:, ::-1].astype(np.float32))

    def apply(self, features: Array) -> Array:
        """Return features [N, D] as principal components [N, E] of unit variance."""
        return np.asarray((features - self.mean) @ self.matrix, np.float32)


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
        if alone:
            LOGGER.warning("No teacher has %s: learned from labels alone.", ", ".join(alone))
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
            maps = [_resize(part[LAST_MAP].astype(np.float32), side) for part in parts]
            outputs[LAST_MAP] = np.concatenate(maps, axis=1)
        return outputs

    def _combine_task(self, task: Task, parts: Sequence[Outputs]) -> Array:
        """Return the outputs [N, ...] of one task."""
        logits, temperatures, maps = [], [], []
        for index, (member, part) in enumerate(zip(self.members, parts, strict=True)):
            if (index, task.name) in self._maps:
                own = part[task.name].astype(np.float32)
                grid = self.spec.preprocess.size // 4
                logits.append(_resize(own, grid) if task.kind == "segment" else own)
                temperatures.append(member.temperature(task))
                maps.append(self._maps[index, task.name])
        if len(self.members) == 1 and maps[0] is None:
            return logits[0]
        if task.kind == "embed":
            # The product of two such vectors is the mean cosine of the members.
            return np.concatenate(logits, axis=1) / np.float32(np.sqrt(len(logits)))
        scaled = [own / np.float32(t) for own, t in zip(logits, temperatures, strict=True)]
        if task.kind == "classify":
            classes = len(task.labels)
            logs = [
                _map_classes(own, where, classes) for own, where in zip(scaled, maps, strict=True)
            ]
            return _log_mean(logs)
        # log p and log (1 - p) of logits, without overflow.
        positive = _log_mean([-np.logaddexp(0, -own) for own in scaled])
        negative = _log_mean([-np.logaddexp(0, own) for own in scaled])
        return positive - negative


def load_teacher(folders: Path | str | Sequence[Path | str]) -> Teacher:
    """Load one teacher, or several as an ensemble.

    Args:
        folders: Model folders, or folders with an `ensemble.json`, whose members count
            as if they were listed.

    Returns:
        The teacher. Its tasks are those of the first model, followed by further tasks
        of the others, without `ood`. Its preprocessing is that of the model with the largest input.

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
    members = tuple(member for folder in given for member in _load_members(Path(folder)))
    if len({member.digest for member in members}) < len(members):
        raise UsageError("The same teacher is given twice. Name each model once.")
    widest = max(members, key=lambda member: member.size).model.spec
    for member in members:
        _check_preprocess(member, widest)
    if len(members) == 1:
        model = members[0].model
        return Teacher(without_untrained(model.spec), members, metrics=model.metrics.get("val", {}))
    taught = [without_untrained(member.model.spec).tasks for member in members]
    tasks = {task.name: task for own in reversed(taught) for task in reversed(own)}
    order = dict.fromkeys(task.name for own in taught for task in own)
    spec = Spec("ensemble", "1", tuple(tasks[name] for name in order), widest.preprocess)
    calibrated = len(given) == 1 and all(member.temperatures for member in members)
    metrics = _read_metrics(Path(given[0]) / ENSEMBLE) if calibrated else {}
    teacher = Teacher(spec, members, calibrated=calibrated, metrics=metrics)
    return teacher.fit_to(spec.tasks, spec.preprocess.size)


def save_ensemble(teacher: Teacher, folder: Path) -> None:
    """Write the members, temperatures and metrics of an ensemble to `folder`.

    The paths of the members are relative to the folder.
    """
    members = [
        {
            "folder": Path(os.path.relpath(member.folder, folder)).as_posix(),
            "weights": member.digest,
            "temperatures": dict(member.temperatures),
        }
        for member in teacher.members
    ]
    data = {"schema": SCHEMA, "members": members, "metrics": {"val": dict(teacher.metrics)}}
    atomic_write(folder / ENSEMBLE, pretty_json(data))


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


def concatenate_embeddings(parts: Sequence[Outputs]) -> Array:
    """Return the features of all members side by side, float32 [N, D].

    Example:
        >>> part = {POOLED: np.ones((2, 3), np.float16)}
        >>> concatenate_embeddings([part, part]).shape
        (2, 6)
    """
    return np.concatenate([part[POOLED] for part in parts], axis=1).astype(np.float32)


def resize_pixels(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize square images uint8 [N, S, S, 3] to another side, with antialiasing.

    Example:
        >>> resize_pixels(np.zeros((2, 64, 64, 3), np.uint8), 32).shape
        (2, 32, 32, 3)
    """
    from PIL import Image

    if pixels.shape[1] == size:
        return pixels
    bilinear = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), bilinear)) for one in pixels]
    )


def _load_members(folder: Path) -> tuple[Member, ...]:
    path = folder / ENSEMBLE
    if not path.is_file():
        return (_load_member(folder),)
    data = read_json(path, DataError)
    try:
        if data["schema"] != SCHEMA or not data["members"]:
            raise ValueError(f"schema {data['schema']!r}")
        entries = [
            (folder / entry["folder"], entry.get("weights"), dict(entry.get("temperatures", {})))
            for entry in data["members"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not an ensemble of schema {SCHEMA} ({error}). Write it again with "
            "`dermedge teacher ensemble`."
        ) from error
    members = []
    for place, weights, temperatures in entries:
        member = _load_member(place)
        if weights not in (None, member.digest):
            raise DataError(
                f"The weights of {place} have changed since {path} was written. Write it again "
                "with `dermedge teacher ensemble`."
            )
        members.append(replace(member, temperatures=temperatures))
    return tuple(members)


def _read_metrics(path: Path) -> dict[str, float]:
    metrics = read_json(path, DataError).get("metrics", {})
    return dict(metrics.get("val", {})) if isinstance(metrics, dict) else {}


def _load_member(folder: Path) -> Member:
    return Member(load_model_folder(folder), folder, sha256_file(folder / WEIGHTS))


def _check_preprocess(member: Member, widest: Spec) -> None:
    own, other = member.model.spec, widest.preprocess
    if replace(own.preprocess, size=other.size) != other:
        raise UsageError(
            f"The teachers {own.name!r} ({own.preprocess.fit}) and {widest.name!r} ({other.fit}) "
            "differ in the fit, the kernel or the background of their preprocessing. Use teachers "
            "that differ in size only."
        )


def _resize(maps: Array, side: int) -> Array:
    """Resize maps [N, C, h, w] bilinearly to [N, C, side, side]."""
    if maps.shape[2:] == (side, side):
        return maps
    resized = F.interpolate(
        torch.from_numpy(maps), size=(side, side), mode="bilinear", align_corners=False
    )
    return resized.numpy()


def _map_classes(logits: Array, where: NDArray[np.intp] | None, classes: int) -> Array:
    """Return the log probabilities [N, classes]; those of one label are summed."""
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    if where is None:
        return logs
    columns = [np.logaddexp.reduce(logs[:, where == k], axis=1) for k in range(classes)]
    return np.stack(columns, axis=1)


def _log_mean(logs: Sequence[Array]) -> Array:
    """Return the logarithm of the mean of numbers that are given as logarithms."""
    mean = np.logaddexp.reduce(np.stack(logs), axis=0) - np.log(len(logs))
    return np.asarray(mean, np.float32)
