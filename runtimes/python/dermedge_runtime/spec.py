"""What a model is, as plain data: its tasks, its preprocessing, its artifact.

Every type here is a frozen dataclass that `to_json` turns into JSON types and `from_json` reads back, refusing what it
does not understand. Nothing here knows an engine.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, cast, get_args

from dermedge_runtime.errors import BundleError

Json = dict[str, Any]
Kind = Literal["classify", "binary", "ordinal", "segment", "embed"]
Fit = Literal["crop", "pad", "stretch"]
Status = Literal["passed", "warn", "failed", "insufficient", "not_run"]
T = TypeVar("T")

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Label:
    """One class of a task. `malignant` is None where sources disagree or it does not apply; `codes` maps a code system
    (`icd11`) to this label's code in it.
    """

    id: str
    name: str
    malignant: bool | None = None
    codes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Json) -> "Label":
        return cls(
            id=take(data, "id", str, "label"),
            name=take(data, "name", str, "label"),
            malignant=optional(data, "malignant", bool, "label"),
            codes=dict(optional(data, "codes", dict, "label") or {}),
        )


@dataclass(frozen=True)
class Task:
    """One output of the network and how it is read; the output tensor carries the task's name.

    Shapes, per image: `classify` [K] logits, `binary` [1] logit, `ordinal` [K-1] cumulative logits, `segment`
    [1, S/4, S/4] logits, `embed` [D], L2-normalised.
    """

    name: str
    kind: Kind
    labels: tuple[Label, ...] = ()

    @classmethod
    def from_json(cls, data: Json) -> "Task":
        kind = take(data, "kind", str, "task")
        if kind not in get_args(Kind):
            raise BundleError(
                f"Unknown task kind {kind!r}: this dermedge knows {', '.join(get_args(Kind))}; upgrade it."
            )
        task = cls(
            name=take(data, "name", str, "task"),
            kind=cast(Kind, kind),
            labels=tuple(
                Label.from_json(label) for label in optional(data, "labels", list, "task") or ()
            ),
        )
        if not IDENTIFIER.fullmatch(task.name):
            raise BundleError(
                f"Task name {task.name!r} is not an identifier; export the model again."
            )
        ids = [label.id for label in task.labels]
        if len(set(ids)) != len(ids) or (kind in ("classify", "ordinal") and len(ids) < 2):
            raise BundleError(
                f"Task {task.name!r} needs two or more distinct labels, not {ids}; export the model again."
            )
        return task


@dataclass(frozen=True)
class Preprocess:
    """How decoded RGB becomes the network's uint8 [S, S, 3] input, bit for bit the same on every platform.

    `fit` is how a rectangle becomes a square (`crop`, `pad`, `stretch`); `background` is the RGB that alpha is composed
    on and that `pad` fills with. Scaling by mean and standard deviation is inside the graph.
    """

    size: int
    fit: Fit = "crop"
    kernel: Literal["triangle"] = "triangle"
    background: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def from_json(cls, data: Json) -> "Preprocess":
        size, fit = take(data, "size", int, "preprocess"), take(data, "fit", str, "preprocess")
        kernel, background = (
            take(data, "kernel", str, "preprocess"),
            take(data, "background", list, "preprocess"),
        )
        if not 16 <= size <= 4096:
            raise BundleError(
                f"Preprocessing size {size} is outside 16..4096; export the model again."
            )
        if fit not in get_args(Fit) or kernel != "triangle":
            raise BundleError(
                f"Unknown preprocessing fit {fit!r} or kernel {kernel!r}: upgrade dermedge."
            )
        if len(background) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in background):
            raise BundleError(
                f"Background {background!r} is not an RGB colour; export the model again."
            )
        return cls(size, cast(Fit, fit), "triangle", (background[0], background[1], background[2]))


@dataclass(frozen=True)
class Spec:
    """The contract between a model and everyone who runs it, the same for every artifact made of one student.

    `lineage` records where teacher, student and data come from and under which licences.
    """

    name: str
    version: str
    tasks: tuple[Task, ...]
    preprocess: Preprocess
    intended_use: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Json) -> "Spec":
        spec = cls(
            name=take(data, "name", str, "spec"),
            version=take(data, "version", str, "spec"),
            tasks=tuple(Task.from_json(task) for task in take(data, "tasks", list, "spec")),
            preprocess=Preprocess.from_json(take(data, "preprocess", dict, "spec")),
            intended_use=optional(data, "intended_use", str, "spec") or "",
            lineage=optional(data, "lineage", dict, "spec") or {},
        )
        if not IDENTIFIER.fullmatch(spec.name):
            raise BundleError(
                f"Model name {spec.name!r} is not an identifier; use letters, digits, '.', '_' and '-'."
            )
        names = [task.name for task in spec.tasks]
        if not names or len(set(names)) != len(names):
            raise BundleError(
                f"A model needs one or more distinct tasks, not {names}; export it again."
            )
        return spec

    def task(self, name: str) -> Task | None:
        """The task of that name, or None."""
        return next((task for task in self.tasks if task.name == name), None)

    @cached_property
    def diagnosis(self) -> Task | None:
        """The first `classify` task: the one whose labels rank and score."""
        return next((task for task in self.tasks if task.kind == "classify"), None)

    @cached_property
    def malignancy(self) -> Task | None:
        """The task that the malignancy score is read from: `malignancy` where there is one, else the diagnosis if any
        of its labels is malignant, else None.
        """
        own = self.task("malignancy")
        if own is not None and own.kind == "binary":
            return own
        diagnosis = self.diagnosis
        return (
            diagnosis
            if diagnosis is not None and any(label.malignant for label in diagnosis.labels)
            else None
        )


@dataclass(frozen=True)
class Artifact:
    """One model file for one target. `path` is its entry point inside the bundle, a file or a folder.

    `requires` lists what the device needs (`onnxruntime>=1.17`), `toolchain` the versions that built it, `details` what
    only this format has (opset, IR version, batch), `calibration` the digest, split and count of the images that
    quantization saw, or None.
    """

    target: str
    format: str
    path: str
    precision: str
    requires: tuple[str, ...] = ()
    toolchain: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, data: Json) -> "Artifact":
        return cls(
            target=take(data, "target", str, "artifact"),
            format=take(data, "format", str, "artifact"),
            path=take(data, "path", str, "artifact"),
            precision=take(data, "precision", str, "artifact"),
            requires=tuple(take(data, "requires", list, "artifact")),
            toolchain=take(data, "toolchain", dict, "artifact"),
            details=optional(data, "details", dict, "artifact") or {},
            calibration=optional(data, "calibration", dict, "artifact"),
        )


@dataclass(frozen=True)
class Postprocessing:
    """What was fitted on validation data for one task of one artifact; None means not fitted.

    `temperature` divides logits. `threshold` turns the malignancy score into a decision, or a `segment` probability
    into a mask.
    """

    temperature: float | None = None
    threshold: float | None = None
    conformal_quantile: None = None
    ood_threshold: None = None

    @classmethod
    def from_json(cls, data: Json) -> "Postprocessing":
        for unknown in ("conformal_quantile", "ood_threshold"):
            if data.get(unknown) is not None:
                raise BundleError(
                    f"This dermedge cannot apply {unknown!r} yet, and will not ignore it: upgrade dermedge."
                )
        temperature = optional(data, "temperature", float, "postprocessing")
        threshold = optional(data, "threshold", float, "postprocessing")
        if temperature is not None and not 0 < temperature < float("inf"):
            raise BundleError(
                f"Temperature {temperature} is not a positive number; export the model again."
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise BundleError(
                f"Threshold {threshold} is not a probability; export the model again."
            )
        return cls(temperature=temperature, threshold=threshold)


def to_json(value: Any) -> Any:
    """A dataclass, mapping or sequence as the JSON types it is made of."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def take(data: Json, key: str, kind: type[T], where: str) -> T:
    """`data[key]`, which must be there and of that JSON type. Raises BundleError where it is not."""
    value = optional(data, key, kind, where)
    if value is None:
        raise BundleError(
            f"The {where} has no {key!r}: the file is incomplete; export the model again."
        )
    return value


def optional(data: Json, key: str, kind: type[T], where: str) -> T | None:
    """Like `take`, with None for a key that is missing or null. Raises BundleError for a value of another type."""
    if not isinstance(data, dict):
        raise BundleError(
            f"The {where} is {type(data).__name__}, not a JSON object; export the model again."
        )
    value = data.get(key)
    if value is None:
        return None
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise BundleError(
            f"{where}.{key} is {value!r}, not a {kind.__name__}; export the model again."
        )
    return cast(T, value)
