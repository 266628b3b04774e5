"""Losses with parts and parameters, in the loop: task weights, NaN, missing labels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn

from dermedge.train import loop
from dermedge.train.loop import CHECKPOINT, FitResult, Schedule, fit
from dermedge.train.training_loss import LOG_VARIANCE_LIMIT, LabelledLoss, TaskWeights, TrainingLoss
from dermedge_runtime.errors import DataError, UsageError
from support.every_kind import TASKS, UNKNOWN

SUPERVISED = ["diagnosis", "malignancy", "severity", "lesion"]


class Heads(nn.Module):
    """A network that returns its parameters as outputs."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        shapes = {"diagnosis": (3,), "malignancy": (1,), "severity": (2,), "lesion": (1, 2, 2)}
        shapes["embedding"] = (5,)
        self.outputs = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(rows, *shape)) for name, shape in shapes.items()}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(self.outputs.items())


def batch(without: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """Return four images; every task lacks the label of the first row, or of all rows."""
    targets = {
        "diagnosis": torch.tensor([-1, 0, 1, 2]),
        "malignancy": torch.tensor([UNKNOWN, 0, 1, 1]),
        "severity": torch.tensor([-1, 0, 1, 2]),
        "lesion": torch.cat([torch.full((1, 2, 2), UNKNOWN), torch.rand(3, 2, 2)]),
        "embedding": torch.full((4,), UNKNOWN),
    }
    for name in without:
        unknown = -1 if targets[name].dtype == torch.int64 else UNKNOWN
        targets[name] = torch.full_like(targets[name], unknown)
    return torch.zeros(4, 8, 8, 3), *targets.values()


@pytest.mark.parametrize("weighting", ["uniform", "uncertainty"])
@pytest.mark.parametrize("lacking", [*SUPERVISED, None])
def test_a_batch_may_lack_any_label(weighting: Any, lacking: str | None) -> None:
    network, loss = Heads(), LabelledLoss(TASKS, torch.zeros(3), weighting)
    loss(network, batch(SUPERVISED if lacking is None else [lacking])).backward()
    for name in SUPERVISED:
        gradient = network.outputs[name].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert not gradient[0].any()  # the row without a label
        assert bool(gradient.any()) == (lacking not in (name, None))


LOSSES = {"a": torch.tensor(2.0), "b": torch.tensor(0.25), "c": torch.tensor(0.0)}


class TestTaskWeights:
    def test_uniform_weights_give_the_plain_sum(self) -> None:
        weights = TaskWeights(list(LOSSES))
        assert weights(LOSSES).item() == 2.25
        assert weights.metrics() == {}
        assert not list(weights.parameters())

    def test_uncertainty_is_the_published_formula(self) -> None:
        weights = TaskWeights(list(LOSSES), "uncertainty")
        s = torch.tensor([0.5, -1.0, 2.0])
        assert weights.log_variances is not None
        weights.log_variances.data.copy_(s)
        expected = 2 * math.exp(-0.5) + 0.25 + 0.25 * math.exp(1) - 0.5
        assert weights(LOSSES).item() == pytest.approx(expected)

    def test_the_learned_weight_is_half_the_inverse_of_the_loss(self) -> None:
        """The minimum over s of exp(-s) L + s / 2 is at exp(-s) = 1 / (2 L)."""
        weights = TaskWeights(list(LOSSES), "uncertainty")
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.5)
        for _ in range(200):
            optimizer.zero_grad()
            weights(LOSSES).backward()
            optimizer.step()
        found = weights.metrics()
        # A task without labels keeps its weight.
        expected = {"weight_a": 0.25, "weight_b": 2.0, "weight_c": 1.0}
        assert found == pytest.approx(expected, abs=0.01)

    def test_weights_are_limited(self) -> None:
        weights = TaskWeights(["a"], "uncertainty")
        assert weights.log_variances is not None
        weights.log_variances.data.fill_(-50)
        assert weights.metrics() == {"weight_a": pytest.approx(math.exp(LOG_VARIANCE_LIMIT))}
        assert weights({"a": torch.tensor(1.0)}).item() == pytest.approx(math.exp(3) - 1.5)

    def test_an_unknown_weighting_is_refused(self) -> None:
        with pytest.raises(UsageError, match="uniform, uncertainty"):
            TaskWeights(["a"], "best")  # type: ignore[arg-type]


class Scaled(TrainingLoss):
    """Mean square of a linear layer's output times a learned factor."""

    def __init__(self, spoil: int = -1, term: str = "square") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls, self.spoil, self.term = 0, spoil, term

    def forward(self, network: nn.Module, batch: Tensor) -> Tensor:
        value = (self.scale * network(batch) - 3).square().mean()
        if self.calls == self.spoil:
            value = value * float("nan")
        self.calls += 1
        self.parts = {"other": torch.zeros(()), self.term: value}
        return value

    def metrics(self) -> dict[str, float]:
        return {"scale": self.scale.item()}


def train(folder: Path, loss: Any, precision: Any = "32-true", **changes: Any) -> FitResult:
    torch.manual_seed(0)
    network = changes.pop("network", None) or nn.Linear(3, 2)
    options: dict[str, Any] = {
        "steps": 2,
        "batches": lambda epoch: [torch.ones(4, 3)] * 2,
        "score": lambda network: {"score": 1.0},
        "schedule": Schedule(epochs=4, batch_size=4, lr=0.1, precision=precision),
    }
    options |= changes
    return fit(network, loss=loss, seed=0, folder=folder, fingerprint="this", **options)


class TestLoop:
    def test_parameters_of_the_loss_are_trained_and_recorded_per_epoch(
        self, tmp_path: Path
    ) -> None:
        history = train(tmp_path, Scaled()).history
        scales = [epoch["scale"] for epoch in history]
        assert len(set(scales)) == len(scales) == 4
        assert 1.0 not in scales

    def test_they_are_resumed(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        whole = train(tmp_path / "a", Scaled())

        def killed(epoch: int) -> list[Tensor]:
            if epoch == 2:
                raise KeyboardInterrupt
            return [torch.ones(4, 3)] * 2

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b", Scaled(), batches=killed)
        resumed = train(tmp_path / "b", Scaled())
        assert resumed.resumed_from == 2
        assert resumed.history == whole.history

    @pytest.mark.parametrize(
        ("precision", "advice"),
        [
            ("32-true", r"Lower --lr, and train again into another folder or with --overwrite\."),
            ("bf16-mixed", r"Lower --lr or use --precision 32-true, and train again"),
        ],
    )
    def test_a_loss_that_is_not_finite_is_named_and_the_last_checkpoint_kept(
        self, tmp_path: Path, precision: str, advice: str
    ) -> None:
        message = rf"^The loss of square became nan in epoch 3, step 2\. {advice}"
        with pytest.raises(DataError, match=message):
            train(tmp_path, Scaled(spoil=5), precision)
        saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert saved["state"]["epoch"] == 2
        assert all(tensor.isfinite().all() for tensor in saved["network"].values())

    def test_weights_that_are_not_finite_never_reach_the_checkpoint(self, tmp_path: Path) -> None:
        """A last step can spoil the weights although its loss was finite."""
        network = nn.Linear(3, 2)

        def batches(epoch: int) -> Any:
            yield torch.ones(4, 3)
            yield torch.ones(4, 3)
            if epoch == 1:
                network.weight.data.fill_(float("nan"))

        with pytest.raises(DataError, match=r"weight weight is not finite at the end of epoch 2"):
            train(tmp_path, Scaled(), network=network, batches=batches)
        assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["state"]["epoch"] == 1

    def test_parameters_of_the_loss_that_are_not_finite_never_reach_it(
        self, tmp_path: Path
    ) -> None:
        loss = Scaled()

        def batches(epoch: int) -> Any:
            yield torch.ones(4, 3)
            yield torch.ones(4, 3)
            if epoch == 1:
                loss.scale.data.fill_(float("nan"))

        with pytest.raises(DataError, match=r"weight scale is not finite at the end of epoch 2"):
            train(tmp_path, loss, batches=batches)
        saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
        assert saved["loss"]["scale"].isfinite().all()

    def test_the_scale_of_fp16_losses_is_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the first steps of the resumed run overflow and are skipped again."""
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()

        def make_fabric(precision: str) -> Fabric:
            # Fabric itself replaces fp16 on a CPU by bf16.
            return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])

        monkeypatch.setattr(loop, "make_fabric", make_fabric)

        def large(network: nn.Module, batch: Tensor) -> Tensor:
            return 100 * (network(batch) - 3).square().mean()

        whole = train(tmp_path / "a", large, "16-mixed")

        def killed(epoch: int) -> list[Tensor]:
            if epoch == 2:
                raise KeyboardInterrupt
            return [torch.ones(4, 3)] * 2

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b", large, "16-mixed", batches=killed)
        scale = torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)["precision"]["scale"]
        assert scale < 65536
        assert train(tmp_path / "b", large, "16-mixed").history == whole.history

    def test_the_network_is_the_one_that_was_scored_in_every_precision(
        self, tmp_path: Path
    ) -> None:
        """`bf16-true` converts weights and buffers, but not the moving average."""
        seen: list[Tensor] = []

        class Normalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 2)
                self.register_buffer("mean", torch.tensor(123.675), persistent=False)

            def forward(self, batch: Tensor) -> Tensor:
                output: Tensor = self.layer(batch.to(self.mean.dtype) - self.mean)
                return output

        def score(network: nn.Module) -> dict[str, float]:
            with torch.no_grad():
                seen.append(network(torch.ones(4, 3)))
            return {"score": 1.0}

        network = Normalised()
        train(
            tmp_path, lambda n, b: n(b).square().mean(), "bf16-true", network=network, score=score
        )
        with torch.no_grad():
            assert torch.equal(network(torch.ones(4, 3)), seen[0])
