"""One client of a federated training: its table, its model and its stored features."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.federated.agreement import Mask, Summary, summarize
from dermedge.federated.options import FederatedOptions
from dermedge.federated.tensors import (
    Arrays,
    Heads,
    from_bytes,
    norm_names,
    read_arrays,
    to_bytes,
    travelling,
    write_arrays,
)
from dermedge.models.backbone import Backbone
from dermedge.models.initialize import choose_backbone, initialise
from dermedge.models.model_folder import TrainedModel
from dermedge.models.network import Network
from dermedge.models.new_spec import check_input, make_preprocess, make_spec
from dermedge.probing.features import extract_features
from dermedge.train.loop import FitResult, Schedule, fit
from dermedge.train.samples import Samples, read_samples
from dermedge.train.supervision import val_metrics
from dermedge.train.training_data import TrainingBatch, TrainingData, run_network, stack_outputs
from dermedge.train.training_loss import LabelledLoss
from dermedge_export.evaluation.predictions import Predictions
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write, sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, Task

NORMS = "norms.safetensors"
BATCH = 64
Floats = NDArray[np.float32]


def build_network(options: FederatedOptions, tasks: tuple[Task, ...]) -> tuple[Network, Backbone]:
    """Create the network of all clients with its initial weights.

    Equal options give equal weights, whatever the tasks are: the backbone is created
    first.

    Raises:
        DataError: The initial weights do not fit, or need images of one client.
        UsageError: The network cannot be created.

    Example:
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32)
        >>> network, backbone = build_network(options, (Task("malignancy", "binary"),))
        >>> backbone.name, list(network.heads)
        ('test_efficientnet', ['malignancy'])
    """

    def no_images() -> Iterator[Tensor]:
        raise DataError(
            f"The BatchNorms of {options.init} have no statistics, and the clients would set them "
            "from different images. Choose other initial weights with --init."
        )

    backbone = choose_backbone(
        options.backbone, options.backbone_args, options.init, options.stages
    )
    torch.manual_seed(options.seed)
    network = Network(backbone, tasks)
    initialise(network, backbone, options.init, options.size, no_images)
    check_input(network, backbone.name, options.size)
    return network, backbone


def make_client_spec(
    options: FederatedOptions,
    backbone: Backbone,
    tasks: tuple[Task, ...],
    lineage: Mapping[str, Any] | None = None,
) -> Spec:
    """Return the spec of the model that the clients train."""
    name = options.name or f"{backbone.name}-federated"
    return make_spec(name, tasks, make_preprocess(options.size, options.fit), lineage or {})


def trained_part(network: Network, options: FederatedOptions) -> nn.Module:
    """Return the module that the clients train: the heads or the whole network."""
    return network if options.train == "all" else Heads(network.heads)


def read_client(
    name: str, data: Path | str | Table, mask: Mask, options: FederatedOptions
) -> tuple[Table, Summary]:
    """Read the table of a client, assign splits, and summarize it.

    Args:
        name: Name of the client.
        data: Folder or table file of a data set, or a table that was read.
        mask: Function that hides ids before they leave the client.
        options: The options of all clients.

    Raises:
        DataError: The table or an image cannot be read.

    Example:
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32)
        >>> table, summary = read_client("a", "lesions", str, options)
        >>> len(table), summary.rows["test"]
        (80, 12)
    """
    table = with_split(data if isinstance(data, Table) else read_table(data))
    samples, _ = read_samples(table, ())
    summary = summarize(name, table.frame, samples.digests, mask, local_ids=options.local_ids)
    return table, summary


def digest_backbone(network: Network) -> str:
    """Return the SHA-256 of a backbone's weights."""
    state = network.backbone.state_dict()
    return sha256_hex(to_bytes({name: tensor.numpy() for name, tensor in state.items()}))


@dataclass(frozen=True, eq=False)
class Client:
    """A participant with its rows, its network and its folder.

    Attributes:
        name: Name of the client.
        table: Its table, with splits.
        samples: The same rows as arrays.
        training: Batches and targets.
        network: The network. Training changes its weights.
        backbone: The timm model inside it.
        options: Options of all clients.
        folder: Folder of BatchNorms that FedBN keeps, and of the privacy ledger.
        cache: Folder of stored features.
        progress: Called with the number of images whose features are stored.

    Example:
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32)
        >>> table, _ = read_client("a", "lesions", str, options)
        >>> tasks = (Task("malignancy", "binary"),)
        >>> client = Client.open("a", table, tasks, options, Path("client-a"))
        >>> metrics = client.train(number=1, proximal=0.0)
        >>> sorted(metrics), sorted(client.weights())
        (['loss'], ['heads.malignancy.bias', 'heads.malignancy.weight'])
    """

    name: str
    table: Table
    samples: Samples
    training: TrainingData
    network: Network
    backbone: Backbone
    options: FederatedOptions
    folder: Path
    cache: Path
    progress: Progress | None = None

    @classmethod
    def open(
        cls,
        name: str,
        table: Table,
        tasks: tuple[Task, ...],
        options: FederatedOptions,
        folder: Path,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> "Client":
        """Create the network and prepare the rows; no image is decoded.

        Args:
            name: Name of the client.
            table: Its table, with splits.
            tasks: The agreed tasks.
            options: Options of all clients.
            folder: Folder of the client.
            cache: Folder of stored features; by default `features` in `folder`.
            progress: Called with the number of images whose features are stored.

        Raises:
            DataError: The table has no train or val rows, or the initial weights do not
                fit.
        """
        samples, _ = read_samples(table, tasks)
        network, backbone = build_network(options, tasks)
        training = TrainingData.prepare(
            samples,
            make_client_spec(options, backbone, tasks),
            batch_size=options.batch_size,
            seed=options.seed,
        )
        return cls(
            *(name, table, samples, training, network, backbone, options, folder),
            cache=cache or folder / "features",
            progress=progress,
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of the model."""
        return self.training.spec.tasks

    @cached_property
    def module(self) -> nn.Module:
        """The trained part of the network, with this client's own BatchNorms."""
        module = trained_part(self.network, self.options)
        path = self.folder / NORMS
        if self.options.fedbn and path.is_file():
            write_arrays(module, from_bytes(path.read_bytes()))
        return module

    @cached_property
    def features(self) -> Floats:
        """Pooled features [N, D] of all images, stored in the folder."""
        model = TrainedModel(self.network, self.training.spec, self.backbone)
        return extract_features(
            model,
            digest_backbone(self.network),
            self.table,
            cache=self.cache,
            progress=self.progress,
        )

    @cached_property
    def loss(self) -> LabelledLoss:
        """Loss of a batch, without the proximal term."""
        return LabelledLoss(self.tasks, self.training.log_prior(balance=self.options.balance))

    def weights(self) -> Arrays:
        """Return the tensors that travel."""
        return read_arrays(self.module, travelling(self.module, self.options))

    def load(self, arrays: Arrays) -> None:
        """Set the tensors that travel.

        Raises:
            DataError: They do not fit, or are not finite.
        """
        write_arrays(self.module, arrays)

    def train(self, number: int, proximal: float) -> dict[str, float]:
        """Train for one round.

        Args:
            number: Number of the round, from 1. Each round sees new batches and views.
            proximal: Weight of the distance from the current weights; 0 leaves it out.

        Returns:
            The mean loss of the last epoch.

        Raises:
            DataError: The loss is not finite, or an image cannot be read.
        """
        first = (number - 1) * self.options.local_epochs
        loss = ProximalLoss(self.loss, proximal) if proximal else self.loss
        epochs = iter(range(self.options.local_epochs))
        fitted = self.fit(
            loss,
            self.options.schedule,
            first,
            # All epochs of a round count; selecting among them is the server's part.
            score=lambda _: {"score": float(next(epochs))},
            seed=self.options.seed + number,
        )
        if self.options.fedbn:
            norms = read_arrays(self.module, norm_names(self.module))
            atomic_write(self.folder / NORMS, to_bytes(norms))
        return {"loss": fitted.history[-1]["loss"]}

    def train_alone(self) -> None:
        """Train for as many epochs as all rounds have, and keep the epoch of the best val score.

        Without a val score, the last epoch is kept.
        """
        epochs = self.options.rounds * self.options.local_epochs
        schedule = replace(self.options.schedule, epochs=epochs, patience=epochs)
        done = iter(range(epochs))

        def score(_: nn.Module) -> dict[str, float]:
            # Without averaging, the scored copy has the weights of `module`.
            epoch, value = next(done), self.score()
            return {"score": float(epoch) if value is None else value}

        self.fit(self.loss, schedule, 0, score=score, seed=self.options.seed)

    def fit(
        self, loss: nn.Module, schedule: Schedule, first: int, *, score: Any, seed: int
    ) -> FitResult:
        """Run the training loop of `finetune`, without keeping its checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            return fit(
                self.module,
                steps=self.training.steps,
                batches=lambda epoch: self.batches(first + epoch),
                loss=loss,
                score=score,
                schedule=schedule,
                seed=seed,
                folder=Path(folder),
                fingerprint="round",
            )

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch: features or views, and targets."""
        if self.options.train == "all":
            yield from self.training.labelled_batches(epoch)
            return
        for rows in self.training.batch_rows(epoch):
            yield torch.from_numpy(self.features[rows]), *self.training.targets(rows, None)

    def score(self) -> float | None:
        """Return the val score of the current weights, as `finetune` selects epochs by it.

        It is None if the client's val labels do not define it, for example without a
        malignant image.
        """
        rows = self.training.val
        if self.options.train == "all":
            parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            outputs = stack_outputs(
                [self.run(self.training.images(part).numpy()) for part in parts]
            )
        else:
            outputs = self.run(self.features[rows])
        return val_metrics(self.tasks, outputs, self.samples, rows, None).get("score")

    def run(self, inputs: NDArray[Any]) -> dict[str, Floats]:
        """Return outputs by task of images uint8 [N, S, S, 3] or of features [N, D]."""
        return run_network(self.module, torch.from_numpy(inputs))

    def predict(self, split: str) -> Predictions:
        """Return the outputs for the images of a split, with labels and groups.

        Raises:
            DataError: The split has no rows, or an image cannot be read.
        """
        part = self.table.select_split(split)
        run = partial(table_predictions, part, self.training.spec, self.run)
        if self.options.train == "all":
            return run()
        return run(images=iter(self.features[self.samples.rows(split)]))


class ProximalLoss(LabelledLoss):
    """A labelled loss, plus the distance of the weights from those of the round's start.

    Source: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.

    Args:
        loss: The labelled loss.
        weight: Factor mu of half the squared distance.

    Example:
        >>> plain = LabelledLoss((Task("malignancy", "binary"),), torch.zeros(0))
        >>> network, loss = Heads(nn.ModuleDict({"malignancy": nn.Linear(2, 1)})), None
        >>> loss = ProximalLoss(plain, weight=2.0)
        >>> loss.start(network)
        >>> _ = network.heads["malignancy"].bias.data.add_(3.0)
        >>> batch = torch.zeros(4, 2), torch.ones(4)
        >>> round((loss(network, batch) - plain(network, batch)).item(), 3)
        9.0
    """

    def __init__(self, loss: LabelledLoss, weight: float) -> None:
        super().__init__(loss.tasks, loss.get_buffer("log_prior"))
        self.weight = weight
        self.anchor: list[Tensor] = []

    def start(self, network: nn.Module) -> None:
        """Remember the weights of the round's start."""
        self.anchor = [weight.detach().clone() for weight in network.parameters()]

    def forward(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of a batch."""
        pairs = zip(network.parameters(), self.anchor, strict=True)
        distances = [(now - then.to(now.device)).square().sum() for now, then in pairs]
        return super().forward(network, batch) + self.weight / 2 * torch.stack(distances).sum()
