"""Define a model as plain data: its tasks, its preprocessing and its artifact.

Every type is a frozen dataclass. `to_json` turns it into JSON types; its `from_json`
reads them back and refuses unknown or invalid values. No type depends on an engine.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, cast, get_args

from dermedge_runtime.errors import BundleError
from dermedge_runtime.requirements import check_requirement

Json = dict[str, Any]
Kind = Literal["classify", "binary", "ordinal", "segment", "embed", "ood", "cam"]
Fit = Literal["crop", "pad", "stretch"]
ConformalMethod = Literal["lac", "aps", "raps"]
Status = Literal["passed", "warn", "failed", "insufficient", "not_run"]
T = TypeVar("T")

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
AGAIN = "Export the model again."


@dataclass(frozen=True)
class Label:
    """One class of a task.

    `malignant` is None if sources disagree or if it does not apply. `codes` maps a code
    system (`icd11`) to this label's code in it.

    Example:
        >>> Label("mel", "Melanoma", malignant=True, codes={"icd11": "2C30"}).id
        'mel'
    """

    id: str
    name: str
    malignant: bool | None = None
    codes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Json) -> "Label":
        """Read a label from JSON types; raise BundleError if it is not one."""
        return cls(
            id=take(data, "id", str, "label"),
            name=take(data, "name", str, "label"),
            malignant=optional(data, "malignant", bool, "label"),
            codes=dict(optional(data, "codes", dict, "label") or {}),
        )


@dataclass(frozen=True)
class Task:
    """One output of the network and its meaning; the output tensor has the task's name.

    Shapes, per image: `classify` [K] logits, `binary` [1] logit, `ordinal` [K-1]
    cumulative logits, `segment` [1, S/4, S/4] logits, `embed` [D], L2-normalised, `ood`
    [1], larger for images that are more unlike the training images, `cam` [K, h, w],
    class activation maps of the diagnosis, whose means are its logits.

    Example:
        >>> levels = tuple(Label(str(level), f"Level {level}") for level in range(4))
        >>> len(Task("severity", "ordinal", levels).labels)
        4
    """

    name: str
    kind: Kind
    labels: tuple[Label, ...] = ()

    @classmethod
    def from_json(cls, data: Json) -> "Task":
        """Read a task from JSON types.

        Raises:
            BundleError: The kind is unknown, the name is not an identifier, or the
                labels are not distinct or too few for the kind.
        """
        kind = take(data, "kind", str, "task")
        if kind not in get_args(Kind):
            raise BundleError(
                f"Unknown task kind {kind!r}: this dermedge knows {', '.join(get_args(Kind))}. "
                "Upgrade it."
            )
        task = cls(
            name=take(data, "name", str, "task"),
            kind=cast(Kind, kind),
            labels=tuple(
                Label.from_json(label) for label in optional(data, "labels", list, "task") or ()
            ),
        )
        if not IDENTIFIER.fullmatch(task.name):
            raise BundleError(f"Task name {task.name!r} is not an identifier. {AGAIN}")
        ids = [label.id for label in task.labels]
        if len(set(ids)) != len(ids) or (kind in ("classify", "ordinal") and len(ids) < 2):
            raise BundleError(
                f"Task {task.name!r} needs two or more distinct labels, not {ids}. {AGAIN}"
            )
        return task


@dataclass(frozen=True)
class Preprocess:
    """Conversion of decoded RGB to the network's uint8 [S, S, 3] input.

    It is bit for bit the same on every platform. `size` is S. `fit` makes a rectangle a
    square: `crop`, `pad` or `stretch`. `background` is the RGB that alpha is composed
    on and that `pad` fills with. Scaling by mean and standard deviation is inside the
    graph.

    Example:
        >>> Preprocess(size=224).fit
        'crop'
    """

    size: int
    fit: Fit = "crop"
    kernel: Literal["triangle"] = "triangle"
    background: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def from_json(cls, data: Json) -> "Preprocess":
        """Read preprocessing from JSON types.

        Raises:
            BundleError: The size is outside 16..4096, the fit or kernel is unknown, or
                the background is not an RGB colour.
        """
        size, fit = take(data, "size", int, "preprocess"), take(data, "fit", str, "preprocess")
        kernel = take(data, "kernel", str, "preprocess")
        background = take(data, "background", list, "preprocess")
        if not 16 <= size <= 4096:
            raise BundleError(f"Preprocessing size {size} is outside 16..4096. {AGAIN}")
        if fit not in get_args(Fit) or kernel != "triangle":
            raise BundleError(
                f"Unknown preprocessing fit {fit!r} or kernel {kernel!r}. Upgrade dermedge."
            )
        if len(background) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in background):
            raise BundleError(f"Background {background!r} is not an RGB colour. {AGAIN}")
        return cls(size, cast(Fit, fit), "triangle", (background[0], background[1], background[2]))


@dataclass(frozen=True)
class Spec:
    """Contract between a model and all code that runs it.

    All artifacts made from one student have the same spec. `lineage` records the
    sources and licences of teacher, student and data.

    Example:
        >>> tasks = (Task("malignancy", "binary"),)
        >>> spec = Spec("toy", "1.0.0", tasks, Preprocess(size=48))
        >>> spec == Spec.from_json(to_json(spec))
        True
    """

    name: str
    version: str
    tasks: tuple[Task, ...]
    preprocess: Preprocess
    intended_use: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Json) -> "Spec":
        """Read a spec from JSON types.

        Raises:
            BundleError: A part is missing or unknown, the name is not an identifier,
                the tasks are not distinct, or a `cam` task has other labels than the
                diagnosis.
        """
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
                f"Model name {spec.name!r} is not an identifier. "
                "Use letters, digits, '.', '_' and '-'."
            )
        names = [task.name for task in spec.tasks]
        if not names or len(set(names)) != len(names):
            raise BundleError(f"A model needs one or more distinct tasks, not {names}. {AGAIN}")
        diagnosed = [] if spec.diagnosis is None else [one.id for one in spec.diagnosis.labels]
        for task in spec.tasks:
            if task.kind == "cam" and [label.id for label in task.labels] != diagnosed:
                raise BundleError(
                    f"Task {task.name!r} has other labels than the diagnosis, {diagnosed}. {AGAIN}"
                )
        return spec

    def task(self, name: str) -> Task | None:
        """Return the task with a name, or None."""
        return next((task for task in self.tasks if task.name == name), None)

    @cached_property
    def diagnosis(self) -> Task | None:
        """First `classify` task, whose labels are ranked."""
        return next((task for task in self.tasks if task.kind == "classify"), None)

    @cached_property
    def malignancy(self) -> Task | None:
        """Task that gives the malignancy score.

        It is the `binary` task `malignancy` if there is one, else the diagnosis if one
        of its labels is malignant, else None.
        """
        own = self.task("malignancy")
        if own is not None and own.kind == "binary":
            return own
        diagnosis = self.diagnosis
        has_malignant = diagnosis is not None and any(label.malignant for label in diagnosis.labels)
        return diagnosis if has_malignant else None


@dataclass(frozen=True)
class Artifact:
    """One model file for one target.

    `path` is its entry point inside the bundle, a file or a folder. `requires` lists
    what the device needs (`onnxruntime>=1.17`), `toolchain` the versions of the
    packages that built it. `details` holds what only this format has (opset, IR
    version, batch). `calibration` is the digest, split and count of the images that
    quantization used, or None.

    Example:
        >>> Artifact("cpu", "onnx", "model.onnx", "int8", ("onnxruntime>=1.17",)).format
        'onnx'
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
        """Read an artifact from JSON types.

        Raises:
            BundleError: A part is missing, or a requirement is not readable.
        """
        requires = take(data, "requires", list, "artifact")
        for requirement in requires:
            check_requirement(requirement)
        return cls(
            target=take(data, "target", str, "artifact"),
            format=take(data, "format", str, "artifact"),
            path=take(data, "path", str, "artifact"),
            precision=take(data, "precision", str, "artifact"),
            requires=tuple(requires),
            toolchain=take(data, "toolchain", dict, "artifact"),
            details=optional(data, "details", dict, "artifact") or {},
            calibration=optional(data, "calibration", dict, "artifact"),
        )


@dataclass(frozen=True)
class Conformal:
    """Class-conditional conformal sets of a `classify` task.

    Attributes:
        method: Score of a label: `lac`, `aps` or `raps`.
        coverage: Share of the images of each label whose set holds that label, 0 to 1.
        quantiles: Largest score of each label that is in the set, in the task's order.
            None is a label with too few images to fit one; it is in every set.
        penalty: RAPS adds this to the score for each rank after `free`.
        free: Number of first ranks that RAPS does not penalize.

    Example:
        >>> Conformal("lac", 0.9, (0.8, None)).quantiles
        (0.8, None)
    """

    method: ConformalMethod
    coverage: float
    quantiles: tuple[float | None, ...]
    penalty: float = 0.0
    free: int = 0

    @classmethod
    def from_json(cls, data: Json) -> "Conformal":
        """Read conformal sets from JSON types.

        Raises:
            BundleError: A part is missing, unknown or out of range.
        """
        method = take(data, "method", str, "conformal")
        if method not in get_args(ConformalMethod):
            raise BundleError(
                f"Unknown conformal method {method!r}: this dermedge knows "
                f"{', '.join(get_args(ConformalMethod))}. Upgrade it."
            )
        coverage = take(data, "coverage", float, "conformal")
        if not 0 < coverage < 1:
            raise BundleError(f"Conformal coverage {coverage} is not between 0 and 1. {AGAIN}")
        quantiles = [
            optional({"quantile": value}, "quantile", float, "conformal")
            for value in take(data, "quantiles", list, "conformal")
        ]
        penalty = optional(data, "penalty", float, "conformal") or 0.0
        free = optional(data, "free", int, "conformal") or 0
        numbers = [value for value in quantiles if value is not None]
        if not all(0 <= value < math.inf for value in (*numbers, penalty, free)):
            raise BundleError(
                f"Conformal quantiles {quantiles}, penalty {penalty} and free {free} are not "
                f"numbers of 0 or more. {AGAIN}"
            )
        return cls(cast(ConformalMethod, method), coverage, tuple(quantiles), penalty, free)


@dataclass(frozen=True)
class Postprocessing:
    """Values fitted on validation data for one task; None is not fitted.

    Attributes:
        temperature: Divisor of the logits.
        threshold: Smallest malignancy score that is not `benign`, or smallest
            probability inside the mask of a `segment` task.
        rule_in: Smallest malignancy score that is `malignant`, at least `threshold`.
            Scores between the two are `refer`. None is `threshold`.
        conformal: Conformal sets of a `classify` task.
        ood_threshold: Largest score of an `ood` task that is not flagged.

    Example:
        >>> Postprocessing(temperature=1.25).threshold is None
        True
    """

    temperature: float | None = None
    threshold: float | None = None
    rule_in: float | None = None
    conformal: Conformal | None = None
    ood_threshold: float | None = None

    @classmethod
    def from_json(cls, data: Json) -> "Postprocessing":
        """Read fitted values from JSON types.

        Raises:
            BundleError: A value is out of range.
        """
        values = {
            name: optional(data, name, float, "postprocessing")
            for name in ("temperature", "threshold", "rule_in", "ood_threshold")
        }
        conformal = optional(data, "conformal", dict, "postprocessing")
        fitted = cls(
            **values, conformal=None if conformal is None else Conformal.from_json(conformal)
        )
        if fitted.temperature is not None and not 0 < fitted.temperature < math.inf:
            raise BundleError(f"Temperature {fitted.temperature} is not a positive number. {AGAIN}")
        if fitted.threshold is not None and not 0 <= fitted.threshold <= 1:
            raise BundleError(f"Threshold {fitted.threshold} is not a probability. {AGAIN}")
        if fitted.rule_in is not None and (
            fitted.threshold is None or not fitted.threshold <= fitted.rule_in <= 1
        ):
            raise BundleError(
                f"rule_in {fitted.rule_in} is not a probability of at least the threshold "
                f"{fitted.threshold}. {AGAIN}"
            )
        if fitted.ood_threshold is not None and not math.isfinite(fitted.ood_threshold):
            raise BundleError(f"ood_threshold {fitted.ood_threshold} is not finite. {AGAIN}")
        return fitted

    def check_task(self, task: Task, malignancy: Task | None) -> None:
        """Check that the values can be applied to a task.

        Args:
            task: The task.
            malignancy: Task that gives the malignancy score of the same model.

        Raises:
            BundleError: A value belongs to another kind of task, or the number of
                conformal quantiles is not the number of labels.
        """
        wrong = (
            (self.conformal is not None and task.kind != "classify", "conformal"),
            (self.ood_threshold is not None and task.kind != "ood", "ood_threshold"),
            (self.rule_in is not None and task is not malignancy, "rule_in"),
        )
        for name in (name for is_wrong, name in wrong if is_wrong):
            raise BundleError(
                f"The {task.kind} task {task.name!r} has a fitted {name!r}, which belongs to "
                f"another task. {AGAIN}"
            )
        if self.conformal is not None and len(self.conformal.quantiles) != len(task.labels):
            raise BundleError(
                f"Task {task.name!r} has {len(self.conformal.quantiles)} conformal quantiles for "
                f"{len(task.labels)} labels. {AGAIN}"
            )


def to_json(value: object) -> Any:
    """Convert a dataclass, mapping or sequence to JSON types, at any depth.

    Example:
        >>> to_json(Label("nv", "Naevus"))
        {'id': 'nv', 'name': 'Naevus', 'malignant': None, 'codes': {}}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def take(data: Json, key: str, kind: type[T], where: str) -> T:
    """Return `data[key]`, which must exist and have a JSON type.

    Args:
        data: JSON object.
        key: Key to read.
        kind: Expected type; `float` accepts integers as well.
        where: Name of the object, for messages.

    Raises:
        BundleError: The key is missing, or its value has another type.
    """
    value = optional(data, key, kind, where)
    if value is None:
        raise BundleError(f"The {where} has no {key!r}: the file is incomplete. {AGAIN}")
    return value


def optional(data: Json, key: str, kind: type[T], where: str) -> T | None:
    """Return `data[key]` as `take` does, or None if the key is missing or null.

    Raises:
        BundleError: `data` is not an object, or the value has another type.
    """
    if not isinstance(data, dict):
        raise BundleError(f"The {where} is {type(data).__name__}, not a JSON object. {AGAIN}")
    value = data.get(key)
    if value is None:
        return None
    # JSON does not distinguish 1 and 1.0, and in Python True is an int.
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise BundleError(f"{where}.{key} is {value!r}, not a {kind.__name__}. {AGAIN}")
    return cast(T, value)
