"""One probe: the teacher, what is asked of it, how, and whether that makes sense."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermedge.probing.features import Features, extract_features
from dermedge.probing.linear import LINEAR, LinearRecipe
from dermedge.probing.scores import Bootstrap
from dermedge.probing.segment import HEADS, SEGMENT
from dermedge.probing.task import TASKS, ProbeSplit, ProbeTask
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.progress import Progress

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

PROTOCOLS = ("linear", "knn", "finetune", "segment", "fewshot")
RECIPES: Mapping[str, LinearRecipe] = {"linear": LINEAR, "fewshot": LINEAR, "segment": SEGMENT}
FRACTIONS = (0.01, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class ProbeConfig:
    """One probe: the teacher, what is asked of it, and how."""

    teacher: "TrainedModel"
    folder: Path
    weights: str
    data: Path
    question: ProbeTask
    test: ProbeSplit
    recipe: LinearRecipe | None
    normalise: bool
    fractions: tuple[float, ...]
    heads: tuple[str, ...]
    seed: int
    bootstrap: Bootstrap
    cache: Path
    progress: Progress | None

    @property
    def training(self) -> dict[str, Any]:
        """How something is trained, as plain settings; nothing where nothing is."""
        return {} if self.recipe is None else asdict(self.recipe)

    def features(self, part: ProbeSplit) -> Features:
        """Frozen features [N, D] of some rows."""
        return extract_features(
            self.teacher, self.weights, part.table, cache=self.cache, progress=self.progress
        )

    def val(self) -> ProbeSplit | None:
        """The rows that the malignancy threshold is chosen on; None where nothing needs choosing.

        Raises:
            DataError: none of them is malignant.
        """
        if self.question.kind != "binary":
            return None
        part = self.question.part("val")
        if not (part.labels == 1).any():
            raise DataError(
                f"No val row of {self.question.table.file} is malignant, so no threshold can be chosen: split the "
                "table anew with `dermedge data split`, or probe another task."
            )
        return part


def choose_recipe(
    protocol: str, epochs: int | None, batch_size: int | None, lr: float | None
) -> LinearRecipe | None:
    """The protocol's recipe with what was asked for instead; None for one that trains nothing.

    Raises:
        UsageError: it trains nothing and something was asked for, or nothing can be trained that way.
    """
    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    asked: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if protocol == "finetune":
        from dermedge.train import Schedule

        schedule = Schedule()
        return replace(LinearRecipe(schedule.epochs, schedule.batch_size, schedule.lr), **asked)
    if protocol in RECIPES:
        return replace(RECIPES[protocol], **asked)
    if asked and protocol in PROTOCOLS:
        raise UsageError(f"The protocol {protocol} trains nothing: leave out {', '.join(asked)}.")
    return None


def check_config(
    task: str,
    protocol: str,
    fractions: tuple[float, ...],
    heads: tuple[str, ...],
    normalise: bool,
    replicates: int,
) -> None:
    """Raise UsageError for settings that do not go together."""
    if task not in TASKS:
        raise UsageError(f"Unknown task {task!r}: use one of {', '.join(TASKS)}.")
    if protocol not in PROTOCOLS:
        raise UsageError(f"Unknown protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}.")
    if (task == "segment") != (protocol == "segment"):
        raise UsageError(
            f"The task {task} is not measured by the protocol {protocol}: the protocol segment is for the task "
            "segment, and the others are for the other tasks."
        )
    if fractions and protocol != "fewshot":
        raise UsageError(
            f"A fraction of the labels is for the protocol fewshot, not for {protocol}: leave it out."
        )
    if any(not 0 < fraction <= 1 for fraction in fractions):
        raise UsageError(
            f"The fractions {', '.join(map(str, fractions))} are no shares: give numbers above 0, up to 1."
        )
    if not heads or set(heads) - set(HEADS):
        raise UsageError(
            f"The heads {', '.join(heads) or '(none)'} are not known: use {' or '.join(HEADS)}."
        )
    if normalise and protocol not in ("linear", "fewshot"):
        raise UsageError(
            f"The protocol {protocol} has no linear layer to normalise features for: leave normalise out."
        )
    if replicates < 10:
        raise UsageError(
            f"{replicates} bootstrap replicates give no interval: ask for at least 10."
        )
