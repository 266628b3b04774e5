"""Define the losses of a distillation and their weights: presets and recipe files.

The module imports no torch, because the command line reads recipes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dermedge_runtime.errors import UsageError

Weighting = Literal["uniform", "uncertainty"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
POSITIVE, NOT_NEGATIVE = "above 0", "of at least 0"


@dataclass(frozen=True)
class LossEntry:
    """One loss that a recipe can name.

    Attributes:
        help: Meaning, for lists.
        options: Option -> default.
        needs: Output of the teacher that it reads besides its tasks: `embedding` or
            `map`.

    Example:
        >>> DISTILLATION_LOSSES["dkd"].options["temperature"]
        4.0
    """

    help: str
    options: Mapping[str, float] = field(default_factory=dict)
    needs: str | None = None


# Losses of logits treat tasks without classes as `kl` does.
DISTILLATION_LOSSES: Mapping[str, LossEntry] = MappingProxyType(
    {
        "labels": LossEntry("loss on the labels of the table"),
        "kl": LossEntry("divergence of softened logits (Hinton et al.)", {"temperature": 2.0}),
        "standardised": LossEntry(
            "divergence of standardised logits (Sun et al.)", {"temperature": 2.0}
        ),
        "dkd": LossEntry(
            "divergence, decoupled into the label and the other classes (Zhao et al.)",
            {"temperature": 4.0, "alpha": 1.0, "beta": 2.0},
        ),
        "mask": LossEntry("cross entropy and Dice against the teacher's mask"),
        "embedding": LossEntry(
            "cosine to the teacher's embedding (Miles et al.)", needs="embedding"
        ),
        "distances": LossEntry("distances between images (Park et al.)", needs="embedding"),
        "angles": LossEntry("angles between images (Park et al.)", needs="embedding"),
        "map": LossEntry("cosine to the teacher's feature map, cell by cell", needs="map"),
    }
)

# Losses that compare the outputs of tasks.
LOGIT_LOSSES = frozenset(("kl", "standardised", "dkd"))
# Losses that compare the student's embedding, or its pooled features, with the teacher's.
EMBEDDING_LOSSES = frozenset(
    name for name, entry in DISTILLATION_LOSSES.items() if entry.needs == "embedding"
)


def check_weighting(weighting: object) -> None:
    """Check the name of a weighting of tasks.

    Raises:
        UsageError: The weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise UsageError(
            f"Unknown weighting of tasks {weighting!r}. Use one of {', '.join(WEIGHTINGS)}."
        )


def _check_number(what: str, value: object, limit: str) -> None:
    """Raise UsageError unless a value is a finite number within a limit."""
    # In Python a bool is an int, but `true` is not a weight.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what} is {value!r}, which is not a number. Give a number {limit}.")
    if value < 0 or (limit == POSITIVE and value == 0):
        raise UsageError(f"{what} cannot be {value}. Give a number {limit}.")


@dataclass(frozen=True)
class Term:
    """One weighted loss of a recipe.

    Attributes:
        loss: Key of `DISTILLATION_LOSSES`.
        weight: Factor of the loss, at least 0.
        options: Options of the loss. Those that are left out have their defaults.

    Raises:
        UsageError: The loss or an option is unknown, or a number is out of range.

    Example:
        >>> Term("kl", 0.5, {"temperature": 4.0}).option("temperature")
        4.0
    """

    loss: str
    weight: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = DISTILLATION_LOSSES.get(self.loss)
        if known is None:
            raise UsageError(
                f"Unknown term {self.loss!r}. Use one of {', '.join(DISTILLATION_LOSSES)}."
            )
        unknown = sorted(set(self.options) - set(known.options))
        if unknown:
            raise UsageError(
                f"The term {self.loss!r} has no option {unknown[0]!r}. Its keys are "
                f"{', '.join(('loss', 'weight', *known.options))}."
            )
        _check_number(f"The weight of {self.loss!r}", self.weight, NOT_NEGATIVE)
        for name, value in self.options.items():
            limit = POSITIVE if name == "temperature" else NOT_NEGATIVE
            _check_number(f"The {name} of {self.loss!r}", value, limit)

    def option(self, name: str) -> float:
        """Return an option's value, or its default."""
        return self.options.get(name, DISTILLATION_LOSSES[self.loss].options[name])


@dataclass(frozen=True)
class DistillRecipe:
    """The losses of a distillation, their weights and the mixing of images.

    Attributes:
        name: Name of the preset or of the file.
        terms: Weighted losses. Those of weight 0 are not computed.
        mixup: Parameter of the Beta distribution that image pairs are mixed by; 0 mixes
            none. Image, labels and teacher outputs get the same mix (Beyer et al.,
            "Knowledge distillation: a good teacher is patient and consistent", CVPR
            2022).
        task_weights: `uniform` sums the tasks. `uncertainty` learns a weight per task
            (see `TaskWeights`).

    Raises:
        UsageError: No term has a weight, a loss is listed twice, or a value is out of
            range.

    Example:
        >>> recipe = DistillRecipe("mine", (Term("labels", 0.5), Term("angles", 0.5)))
        >>> sorted(recipe.needs)
        ['embedding']
    """

    name: str
    terms: tuple[Term, ...]
    mixup: float = 0.0
    task_weights: Weighting = "uniform"

    def __post_init__(self) -> None:
        names = [term.loss for term in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"The term {twice[0]!r} is listed twice. Keep one of the two.")
        if not any(term.weight for term in self.terms):
            raise UsageError("No term has a weight above 0. Give one, such as kl.")
        _check_number("mixup", self.mixup, NOT_NEGATIVE)
        check_weighting(self.task_weights)

    @property
    def active(self) -> tuple[Term, ...]:
        """Terms with a weight above 0."""
        return tuple(term for term in self.terms if term.weight)

    @property
    def needs(self) -> frozenset[str]:
        """Outputs of the teacher besides its tasks: `embedding`, `map`, both or none."""
        needs = (DISTILLATION_LOSSES[term.loss].needs for term in self.active)
        return frozenset(name for name in needs if name)

    def to_json(self) -> dict[str, Any]:
        """Return the whole recipe as JSON types, options with defaults included."""
        return {
            "name": self.name,
            "mixup": self.mixup,
            "task_weights": self.task_weights,
            "terms": [
                {
                    "loss": term.loss,
                    "weight": term.weight,
                    **DISTILLATION_LOSSES[term.loss].options,
                    **term.options,
                }
                for term in self.terms
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str) -> "DistillRecipe":
        """Read a recipe in the form of `to_json`.

        Args:
            data: The recipe.
            name: Name of a recipe that has none.

        Raises:
            UsageError: A key is unknown, or a value has the wrong type or range.
        """
        allowed = ("name", "mixup", "task_weights", "terms")
        unknown = sorted(set(data) - set(allowed))
        if unknown:
            raise UsageError(f"Unknown key {unknown[0]!r}. The keys are {', '.join(allowed)}.")
        terms, given = data.get("terms"), data.get("name", name)
        tables = isinstance(terms, list) and all(isinstance(term, dict) for term in terms)
        if not isinstance(terms, list) or not tables or not isinstance(given, str):
            raise UsageError(
                "The key 'terms' must be a list of tables, and 'name' a text. See "
                "docs/distillation.md."
            )
        return cls(
            given,
            tuple(_read_term(term) for term in terms),
            data.get("mixup", 0.0),
            data.get("task_weights", "uniform"),
        )


# `hinton` is the loss that distillation had before it had recipes.
# tests/benchmarks/distillation.py compares the presets.
_FEATURES = (Term("labels", 0.5), Term("standardised", 0.5), Term("embedding", 0.5))
RECIPES: Mapping[str, DistillRecipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            DistillRecipe("hinton", (Term("labels", 0.3), Term("kl", 0.7))),
            DistillRecipe("standard", (Term("labels", 0.5), Term("standardised", 0.5))),
            DistillRecipe("features", _FEATURES),
            DistillRecipe(
                "full",
                (*_FEATURES, Term("distances", 0.25), Term("angles", 0.5), Term("mask", 0.5)),
                mixup=0.2,
                task_weights="uncertainty",
            ),
        )
    }
)


# Until tests/benchmarks/distillation.py has measured another one to be better.
DEFAULT_RECIPE = "hinton"


def read_recipe(source: str | Path | DistillRecipe) -> DistillRecipe:
    """Return a preset, or read a recipe file.

    Args:
        source: Key of `RECIPES`, a TOML or JSON file, or a recipe, which is returned.

    Raises:
        UsageError: There is no such preset or file, or the file holds no recipe. The
            message names the file.

    Example:
        >>> [term.loss for term in read_recipe("standard").terms]
        ['labels', 'standardised']
    """
    if isinstance(source, DistillRecipe):
        return source
    if str(source) in RECIPES:
        return RECIPES[str(source)]
    path = Path(source)
    if path.suffix not in (".toml", ".json") or not path.is_file():
        raise UsageError(
            f"Unknown recipe {str(source)!r}. Use one of {', '.join(RECIPES)}, or an existing "
            ".toml or .json file."
        )
    import tomllib  # Python 3.11; the device's side of the wheel runs on 3.10, too

    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        if not isinstance(data, dict):
            raise UsageError("The file must hold one table. See docs/distillation.md.")
        return DistillRecipe.from_json(data, path.stem)
    except UsageError as error:
        raise UsageError(f"{path} is not a recipe. {error}") from error
    except (OSError, ValueError) as error:  # both decoders raise subclasses of ValueError
        raise UsageError(f"{path} cannot be read ({error}). Mend the file.") from error


def _read_term(data: Mapping[str, Any]) -> Term:
    if not isinstance(data.get("loss"), str):
        raise UsageError(f"A term has no 'loss'. Use one of {', '.join(DISTILLATION_LOSSES)}.")
    rest = {name: value for name, value in data.items() if name not in ("loss", "weight")}
    return Term(data["loss"], data.get("weight", 1.0), rest)
