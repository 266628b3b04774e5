"""Options of federated training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dermedge.train.loop import Schedule
from dermedge_runtime.errors import UsageError

Strategy = Literal["fedavg", "fedprox", "fedadam"]
Part = Literal["head", "all"]
Wanted = Literal["diagnosis", "malignancy", "severity"]
TASKS: tuple[str, ...] = get_args(Wanted)


@dataclass(frozen=True, kw_only=True)
class FederatedOptions:
    """The model, the rounds and the privacy of a federated training.

    Attributes:
        tasks: `diagnosis`, `malignancy` and `severity`, or some of them. None learns the
            diagnosis and the malignancy if all clients have their labels, and otherwise
            the severity.
        backbone: timm name or student preset. None takes the name that `init` holds.
        backbone_args: Arguments of `timm.create_model`.
        stages: Number of the backbone's stages to keep. None keeps all.
        init: Initial weights: `none`, `hub`, a safetensors file, or a model folder.
        name: Name of the model. None derives it from the backbone's.
        size: Side of the network's square input in pixels.
        fit: Conversion of a rectangle to a square: `crop`, `pad` or `stretch`.
        train: `head` trains and sends the heads only, on stored features of the frozen
            backbone. `all` trains and sends the whole network.
        strategy: `fedavg`, `fedprox` or `fedadam`, as Flower implements them.
        rounds: Number of rounds.
        local_epochs: Passes over the train split of a client in each round.
        batch_size: Images per step.
        lr: Peak learning rate of a client's AdamW in each round.
        proximal: Weight of FedProx's distance from the weights of the round's start.
        server_lr: Learning rate of FedAdam.
        fedbn: Keep weights and statistics of BatchNorm at each client.
        epsilon: Privacy budget of each client over all rounds, for DP-SGD. None trains
            without differential privacy.
        delta: Probability with which the budget may be exceeded.
        clip: Largest norm of the gradient of one image, for DP-SGD.
        balance: Train for balanced accuracy of the diagnosis, by logit adjustment with
            the frequencies of each client.
        min_clients: Smallest number of clients that a round needs.
        timeout: Seconds that a round waits for its clients.
        local_ids: Each client numbers its own patients and lesions, so equal ids of two
            clients mean nothing.
        seed: Random seed for shuffling, augmentation and initialization.

    Raises:
        UsageError: A value is unknown or out of range, or two options exclude each other.

    Example:
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32, rounds=3)
        >>> options.strategy, options.schedule.epochs
        ('fedavg', 1)
        >>> FederatedOptions(fedbn=True)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: --fedbn keeps BatchNorm layers, which heads...
    """

    tasks: Sequence[str] | None = None
    backbone: str | None = None
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    stages: int | None = None
    init: str = "none"
    name: str | None = None
    size: int = 160
    fit: str = "crop"
    train: Part = "head"
    strategy: Strategy = "fedavg"
    rounds: int = 10
    local_epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-3
    proximal: float = 0.01
    server_lr: float = 0.01
    fedbn: bool = False
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float = 1.0
    balance: bool = True
    min_clients: int = 2
    timeout: float = 3600.0
    local_ids: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for value, known in ((self.strategy, Strategy), (self.train, Part)):
            if value not in get_args(known):
                raise UsageError(f"Unknown value {value!r}. Use {', '.join(get_args(known))}.")
        unknown = set(self.tasks or ()) - set(TASKS)
        if unknown or (self.tasks is not None and not len(self.tasks)):
            raise UsageError(
                f"{', '.join(sorted(unknown)) or 'No task'} cannot be learned by clients. Choose "
                f"from {', '.join(TASKS)}."
            )
        for name in ("rounds", "proximal", "server_lr", "delta", "clip", "min_clients", "timeout"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}. Give a value above 0.")
        _ = self.schedule
        if self.fedbn and self.train == "head":
            raise UsageError(
                "--fedbn keeps BatchNorm layers, which heads do not have. Add --train all, or omit "
                "--fedbn."
            )
        if self.epsilon is not None and (self.train != "head" or not 0 < self.epsilon <= 100):
            raise UsageError(
                f"--epsilon {self.epsilon} cannot be kept. Give a value above 0 and at most 100, "
                "with --train head: gradients of single images do not exist behind BatchNorm."
            )

    @property
    def schedule(self) -> Schedule:
        """Schedule of a client in one round: a cosine without warm-up or averaging."""
        return Schedule(
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup=0.0,
            ema_decay=0.0,
            patience=self.local_epochs,
        )
