"""Two processes fine-tune and distil as one process does, also after a kill."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dermedge.models import load_model_folder
from dermedge.train import precisions
from dermedge.train.loop import Schedule
from dermedge.train.training_data import TrainingData
from dermedge_runtime.errors import DataError
from support import small
from support.ranks import Rank, run_ranks

# A bias before a BatchNorm has a gradient of zero plus rounding errors, and Adam divides by
# its size. In float64 the errors are far below Adam's epsilon.
EXACT = "64-true"
precisions.PRECISIONS = (*precisions.PRECISIONS, EXACT)
SCHEDULE = Schedule(epochs=2, batch_size=16, lr=2e-3, precision=EXACT)
NAMED = (
    "--backbone",
    "test_efficientnet",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--lr",
    "0.002",
    "--precision",
    "64-true",
)


def words(command: str, data: Path, out: Path, *more: object) -> list[object]:
    return [command, *more, "--data", data, "-o", out, *NAMED]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    return found


def run_two(command: list[object], folder: Path, before: Any = tuple, *more: Any) -> list[Rank]:
    """Run a command in two ranks; each calls `before` first."""
    return run_ranks(2, command, folder, prepare, before, more)


def prepare(before: Callable[..., None], more: tuple[Any, ...]) -> None:
    """Call `before` in a rank, which has imported this module and so accepts EXACT."""
    before(*more)


def assert_equal_runs(one: Path, two: Path) -> None:
    """Check that the losses, scores and weights are equal within float tolerance."""
    alone, together = record(one), record(two)
    assert alone["fingerprint"] == together["fingerprint"]
    for expected, found in zip(alone["history"], together["history"], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    weights = load_model_folder(two).module.state_dict()
    for name, tensor in load_model_folder(one).module.state_dict().items():
        assert torch.allclose(tensor, weights[name], atol=1e-6), name


@pytest.fixture(scope="module")
def lesions(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return lesions of which every third has no label: ranks hold unequal numbers."""

    def empty(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame.index % 3 == 0, ["dx", "malignant"]] = ""
        return frame

    return small.edited(data, tmp_path_factory.mktemp("partly") / "lesions", empty)


def check(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank.code == 0, "\n".join(rank.output for rank in ranks)


def test_two_processes_finetune_as_one(lesions: Path, tmp_path: Path) -> None:
    options = {"backbone": "test_efficientnet", "backbone_args": {}, "schedule": SCHEDULE}
    small.train(lesions, tmp_path / "one", **options)
    ranks = run_two(words("finetune", lesions, tmp_path / "two", "--size", small.SIZE), tmp_path)
    check(ranks)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert "val balanced_accuracy" in ranks[0].output
    assert ranks[1].output == ""


def test_two_processes_distil_as_one(lesions: Path, teacher: Path, tmp_path: Path) -> None:
    # Its mixup, task weights and projectors need the whole batch.
    options = {"backbone": "test_efficientnet", "init": "none", "recipe": "full"}
    options |= {"schedule": SCHEDULE}
    small.learn(teacher, lesions, tmp_path / "one", **options)
    more = (teacher, "--views", 2, "--init", "none", "--recipe", "full", "--no-ood")
    command = words("distill", lesions, tmp_path / "two", *more)
    check(run_two(command, tmp_path))
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_a_killed_run_of_two_processes_continues_with_one(lesions: Path, tmp_path: Path) -> None:
    command = words("finetune", lesions, tmp_path / "two", "--size", small.SIZE)
    killed = run_two(command, tmp_path, small.die_before, "checkpoint.ckpt", 2)
    assert killed[0].code == -9
    assert killed[1].code == 1
    assert "Rank 1 stops" in killed[1].output
    options = {"backbone": "test_efficientnet", "backbone_args": {}, "schedule": SCHEDULE}
    small.train(lesions, tmp_path / "two", **options)
    assert record(tmp_path / "two")["resumed_from"] == 1
    small.train(lesions, tmp_path / "one", **options)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_an_error_on_one_rank_ends_all_ranks_with_one_message(
    lesions: Path, tmp_path: Path
) -> None:
    ranks = run_two(
        words("finetune", lesions, tmp_path / "two", "--size", small.SIZE), tmp_path, break_rank
    )
    assert all(rank.code == 1 for rank in ranks)
    output = "".join(rank.output for rank in ranks)
    assert output.count("Error: ") == 1
    assert "cannot be read on this machine" in output


def break_rank() -> None:
    """Let the second rank fail at its second batch."""
    if os.environ["RANK"] == "1":
        read = TrainingData.view

        def fail(data: TrainingData, rows: Any, number: int) -> Any:
            if number == 1:
                raise DataError("An image cannot be read on this machine. Restore it.")
            return read(data, rows, number)

        TrainingData.view = fail  # type: ignore[method-assign]


def test_a_batch_that_the_processes_cannot_divide_is_refused(lesions: Path, tmp_path: Path) -> None:
    command = words("finetune", lesions, tmp_path / "two", "--size", small.SIZE)
    ranks = run_two([*command, "--batch-size", 15], tmp_path)
    assert [rank.code for rank in ranks] == [2, 2]
    output = "".join(rank.output for rank in ranks)
    assert output.count("A batch of 15 images cannot be divided among 2 processes.") == 1
    assert not (tmp_path / "two").exists()
