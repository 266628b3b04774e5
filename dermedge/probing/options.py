"""Define and check the options of a probe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dermedge.probing.linear import LINEAR_RECIPE, LinearRecipe
from dermedge.probing.paper import PAPER_SEGMENT_RECIPE
from dermedge.probing.segment import HEADS, SEGMENT_RECIPE
from dermedge.probing.task import TASKS
from dermedge_runtime.errors import UsageError

PROTOCOLS = ("linear", "knn", "finetune", "segment", "fewshot", "paper")
RECIPES: Mapping[str, LinearRecipe] = {
    "linear": LINEAR_RECIPE,
    "fewshot": LINEAR_RECIPE,
    "segment": SEGMENT_RECIPE,
}
FRACTIONS = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class ProbeOptions:
    """Options of `probe`: the task, the protocol and its settings.

    Attributes:
        task: diagnosis, malignancy, severity (ordinal) or segment. By default segment
            for the protocol segment, and diagnosis for the others.
        protocol: linear, knn, finetune, segment, fewshot, or paper for the measurements
            of the task in the released code of DermINO.
        fractions: Fractions of the train labels, for fewshot only; 0.01, 0.05 and 0.1
            by default.
        heads: Decoders of the task segment; linear and upernet by default.
        normalise: Standardize each feature before a linear layer; see `fit_linear`.
        epochs: Number of epochs; by default that of the protocol.
        batch_size: Images per batch; by default that of the protocol.
        lr: Learning rate; by default that of the protocol.
        seed: Random seed for initialization, shuffling, drawn labels and the bootstrap.
        replicates: Bootstrap replicates over lesions or patients.

    Raises:
        UsageError: A value is unknown, or two options exclude each other.

    Examples:
        >>> ProbeOptions(protocol="fewshot", fractions=(0.05,)).recipe().epochs
        50
        >>> ProbeOptions(protocol="knn", epochs=3)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: The protocol knn trains nothing. ...
    """

    task: str | None = None
    protocol: str = "linear"
    fractions: tuple[float, ...] = ()
    heads: tuple[str, ...] = ()
    normalise: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    replicates: int = 1000

    def __post_init__(self) -> None:
        self._check_names()
        self._check_protocol_options()
        if self.replicates < 10:
            raise UsageError(
                f"{self.replicates} bootstrap replicates are too few for an interval. Use at "
                "least 10."
            )
        if self.protocol != "finetune":
            self.recipe()

    @property
    def task_name(self) -> str:
        """Name of the task, with the protocol's default."""
        return self.task or ("segment" if self.protocol == "segment" else "diagnosis")

    def recipe(self) -> LinearRecipe | None:
        """Return the protocol's training recipe with the given options; None for knn.

        Raises:
            UsageError: The protocol trains nothing but an option is about training, or
                nothing can be trained with these values.
        """
        values = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        changes = {name: value for name, value in values.items() if value is not None}
        if self.protocol == "knn":
            if changes:
                raise UsageError(
                    f"The protocol knn trains nothing. Leave out {', '.join(changes)}."
                )
            return None
        if self.protocol == "finetune":
            from dermedge.train.loop import Schedule

            # Read from `finetune`, so that both always have the same defaults.
            schedule = Schedule()
            default = LinearRecipe(schedule.epochs, schedule.batch_size, schedule.lr)
        elif self.protocol == "paper":
            default = PAPER_SEGMENT_RECIPE if self.task_name == "segment" else LINEAR_RECIPE
        else:
            default = RECIPES[self.protocol]
        return replace(
            default,
            epochs=default.epochs if self.epochs is None else self.epochs,
            batch_size=default.batch_size if self.batch_size is None else self.batch_size,
            lr=default.lr if self.lr is None else self.lr,
        )

    def _check_names(self) -> None:
        if self.task_name not in TASKS:
            raise UsageError(f"Unknown task {self.task!r}. Use one of {', '.join(TASKS)}.")
        if self.protocol not in PROTOCOLS:
            raise UsageError(
                f"Unknown protocol {self.protocol!r}. Use one of {', '.join(PROTOCOLS)}."
            )
        unknown = [head for head in self.heads if head not in HEADS]
        if unknown:
            raise UsageError(f"Unknown head {unknown[0]!r}. Use {' or '.join(HEADS)}.")

    def _check_protocol_options(self) -> None:
        """Refuse options that the protocol does not use."""
        task, protocol = self.task_name, self.protocol
        if protocol != "paper" and (task == "segment") != (protocol == "segment"):
            raise UsageError(
                f"The protocol {protocol} does not measure the task {task}. The protocol segment "
                "measures the task segment, the protocol paper all tasks, and the others the other "
                "tasks."
            )
        if self.fractions and protocol != "fewshot":
            raise UsageError(
                f"The protocol {protocol} uses all train labels. Leave out the fraction, or use "
                "the protocol fewshot."
            )
        wrong = [fraction for fraction in self.fractions if not 0 < fraction <= 1]
        if wrong:
            raise UsageError(f"The fraction {wrong[0]:g} is not above 0 and at most 1. Correct it.")
        if self.normalise and protocol not in ("linear", "fewshot"):
            raise UsageError(
                f"The protocol {protocol} has no linear layer to normalise features for. Leave out "
                "normalise."
            )
