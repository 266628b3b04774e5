"""Train heads with differential privacy (DP-SGD), within a budget over all rounds.

Opacus bounds the gradient of each image, adds noise, and counts the budget. The unit of
privacy is one image of the train split: a patient with k images has k times the epsilon.
The number of images and the val scores of a client are not protected.

Source: Abadi et al., "Deep learning with differential privacy", CCS 2016.
"""

import contextlib
import math
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermedge.federated.client import Client
from dermedge.federated.options import FederatedOptions
from dermedge.federated.tensors import from_bytes, to_bytes
from dermedge.train.training_loss import LabelledLoss
from dermedge_runtime.canonical_json import canonical_json, read_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_write, sha256_hex

LEDGER = "privacy.json"
ANSWER = "answer.safetensors"


@dataclass(frozen=True)
class Budget:
    """Noise that keeps the epsilon of a client over all rounds.

    Attributes:
        rate: Probability that an image enters a step.
        steps: Number of steps in a round.
        noise: Standard deviation of the noise, in multiples of the clipped norm.

    Example:
        >>> Budget(rate=0.1, steps=10, noise=1.2).steps
        10
    """

    rate: float
    steps: int
    noise: float


def plan_budget(options: FederatedOptions, images: int) -> Budget:
    """Return the noise for a client with some train images.

    Raises:
        UsageError: No noise reaches the epsilon.
    """
    assert options.epsilon is not None
    rate = min(1.0, options.batch_size / images)
    steps = options.local_epochs * max(1, round(1 / rate))
    noise = _find_noise(options.epsilon, options.delta, rate, steps * options.rounds)
    return Budget(rate, steps, noise)


@cache
def _find_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _without_hints():
            noise = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
            )
    except ValueError as error:
        raise UsageError(
            f"No noise keeps --epsilon {epsilon} over {steps} steps ({error}). Raise it, or take "
            "fewer rounds."
        ) from error
    return float(noise)


def spent_epsilon(options: FederatedOptions, budget: Budget, rounds: int) -> float:
    """Return the epsilon of a client after some rounds."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(budget.noise, budget.rate, budget.steps * rounds)] if rounds else []
    with _without_hints():
        return float(accountant.get_epsilon(options.delta))


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Hide the warning that a bound could be tighter with other orders. It holds anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order", UserWarning)
        yield


def train_privately(client: Client, number: int, received: bytes) -> dict[str, float]:
    """Train the heads of a client for one round of DP-SGD.

    The rounds that the client has answered are counted in its folder. The same request
    gets the stored answer, because training again would spend the budget twice.

    Args:
        client: The client, with the received weights.
        number: Number of the round, from 1.
        received: The received weights.

    Returns:
        The loss, and the epsilon that is spent so far.

    Raises:
        DataError: The budget is spent, or the loss is not finite.
    """
    options = client.options
    key = sha256_hex(canonical_json([number, sha256_hex(received)]))
    ledger = _read_ledger(client.folder / LEDGER, options)
    budget = plan_budget(options, len(client.training.train))
    if ledger["last"] == key:
        client.load(from_bytes((client.folder / ANSWER).read_bytes()))
        return dict(ledger["metrics"])
    if ledger["rounds"] >= options.rounds:
        raise DataError(
            f"The client {client.name!r} has spent its epsilon of {options.epsilon} in "
            f"{ledger['rounds']} rounds. Give it a new folder only if its data are new."
        )
    loss = _descend(client, budget)
    rounds = ledger["rounds"] + 1
    metrics = {"loss": loss, "epsilon": spent_epsilon(options, budget, rounds)}
    # The ledger comes first: a kill between both files may waste a round of the budget, and
    # never spends one that is not counted.
    entry = {**ledger, "rounds": rounds, "last": "", "metrics": metrics}
    atomic_write(client.folder / LEDGER, canonical_json(entry))
    atomic_write(client.folder / ANSWER, to_bytes(client.weights()))
    atomic_write(client.folder / LEDGER, canonical_json({**entry, "last": key}))
    return metrics


def _read_ledger(path: Path, options: FederatedOptions) -> dict[str, Any]:
    """Return the counted rounds of this budget; none if the file is missing.

    Raises:
        DataError: The file counts another budget.
    """
    budget = [options.epsilon, options.delta, options.rounds]
    empty = {"budget": budget, "rounds": 0, "last": "", "metrics": {}}
    ledger = read_json(path, DataError) if path.is_file() else empty
    if not isinstance(ledger, dict) or ledger.get("budget") != budget:
        raise DataError(
            f"{path} counts another privacy budget. Use the options of that training, or another "
            "folder if the data are new."
        )
    return ledger


def _descend(client: Client, budget: Budget) -> float:
    """Run the steps of one round; return the mean loss."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    options, rows = client.options, client.training.train
    module: Any = GradSampleModule(client.module.train(), loss_reduction="mean")
    adamw = torch.optim.AdamW(module.parameters(), options.lr, weight_decay=0.02)
    # The seed of the run is known to the server, which could subtract noise drawn from it.
    secret = torch.Generator().manual_seed(secrets.randbits(63))
    draws = np.random.default_rng(secrets.randbits(128))
    optimizer: Any = DPOptimizer(
        adamw,
        noise_multiplier=budget.noise,
        max_grad_norm=options.clip,
        expected_batch_size=max(1, int(budget.rate * len(rows))),
        generator=secret,
    )
    # Frequencies of the diagnoses would enter each gradient without noise.
    loss = LabelledLoss(client.tasks, torch.zeros_like(client.loss.get_buffer("log_prior")))
    total = 0.0
    for _ in range(budget.steps):
        drawn = rows[draws.random(len(rows)) < budget.rate]
        optimizer.zero_grad()
        if len(drawn):
            features = torch.from_numpy(client.features[drawn])
            # An input with a gradient, because PyTorch warns if a hook has none.
            features.requires_grad_()
            value: Tensor = loss(module, (features, *client.training.targets(drawn, None)))
            torch.autograd.backward(value)
            total += value.item()
        else:
            for weight in module.parameters():
                weight.grad_sample = torch.zeros(1, *weight.shape)
        optimizer.step()
    module.remove_hooks()
    client.module.eval()
    if not math.isfinite(total):
        raise DataError("The loss is not finite. Lower --lr.")
    return total / budget.steps
