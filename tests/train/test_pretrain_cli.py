"""Run `dermedge pretrain` on the command line: messages, summary, Ctrl-C, refusals."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dermedge.train.hybrid import trainer
from dermedge_runtime.errors import UsageError
from support import small
from support.command import dermedge, refused

SHORT = {
    "preset": "tiny",
    "size": 32,
    "local-size": 16,
    "local-crops": 1,
    "outputs": 32,
    "hidden": 24,
    "bottleneck": 16,
    "batch-size": 8,
    "epochs": 2,
    "steps": 2,
    "workers": 0,
    "accelerator": "cpu",
}
VIT = ("patch_size=8", "embed_dim=24", "depth=2", "num_heads=2")


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


def arguments(lesions: Path, out: Path, *more: str, **changes: Any) -> list[str]:
    options = {**SHORT, **{name.replace("_", "-"): value for name, value in changes.items()}}
    words = ["pretrain", "--data", str(lesions), "-o", str(out)]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += [word for value in VIT for word in ("--backbone-arg", value)]
    return [*words, *more]


def test_progress_losses_files_and_the_next_command_are_printed(
    lesions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    ran = dermedge(*arguments(lesions, out))
    assert ran.code == 0, ran.err
    first, device, *_ = ran.err.splitlines()
    assert first == f"Loading PyTorch to pretrain on {lesions}."
    assert device.startswith("Device: cpu with")
    assert "Estimate: " in ran.err
    rows = dict(line.split("  ", 1) for line in ran.out.splitlines())
    losses = next(value for name, value in rows.items() if name.startswith("losses"))
    assert "per masked crop" in losses
    assert "mean of the last of 2 epochs" in losses
    assert str(out / "log.jsonl") in ran.out
    assert str(out / "run.json") in ran.out
    assert f"dermedge probe {out} --data {lesions} --task diagnosis" in ran.out
    again = dermedge(*arguments(lesions, out))
    assert again.code == 0
    assert f"{out} already holds this run, finished." in again.err


def test_ctrl_c_names_the_step_that_is_kept_and_the_command_that_continues(
    lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my teacher"
    step = trainer.train_step

    def interrupt(learner: Any, parts: Any, number: int, now: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return step(learner, parts, number, now)

    monkeypatch.setattr(trainer, "train_step", interrupt)
    typed = arguments(lesions, out, "--no-checkpoint-activations", "--temperature", "0.02", "0.03")
    ran = dermedge(*typed, "--overwrite")
    assert ran.code == 130
    assert f"Interrupted. The checkpoint of step 2 is kept in {out}." in ran.err
    command = ran.err.splitlines()[-1].strip()
    assert command.startswith("dermedge pretrain --data")
    assert "--overwrite" not in command
    monkeypatch.setattr(trainer, "train_step", step)
    resumed = dermedge(*shlex.split(command)[1:])
    assert resumed.code == 0, resumed.err
    assert "Resuming after step 2 of 4." in resumed.err
    assert json.loads((out / "run.json").read_text("utf-8"))["resumed_from"] == 2


def test_ctrl_c_before_the_first_checkpoint_reports_a_start_from_step_1(
    lesions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_step", interrupt)
    ran = dermedge(*arguments(lesions, tmp_path / "out"))
    assert ran.code == 130
    assert "No checkpoint was written yet, so the run starts again from step 1." in ran.err


def test_another_run_in_the_folder_is_refused_with_the_settings_that_differ(
    lesions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    assert dermedge(*arguments(lesions, out, epochs=1, steps=1)).code == 0
    ran = dermedge(*arguments(lesions, out, epochs=1, steps=1, seed=3, lr=0.5))
    message = refused(ran, 2)
    assert "another run (recipe.lr is 0.002 there and 0.5 here; seed is 0 there and 3" in message


@pytest.mark.parametrize("changes", [{"local_size": 50}, {"size": 50}])
def test_crops_that_do_not_fit_the_patches_are_refused_and_leave_no_files(
    lesions: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    ran = dermedge(*arguments(lesions, tmp_path / "out", **changes))
    assert "is no multiple of the 8-pixel patches" in refused(ran, UsageError.exit_code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--blur", "0.5", "2", "0"), ("--drop-path", "1")])
def test_a_value_out_of_range_is_refused_by_its_option(
    lesions: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    ran = dermedge(*arguments(lesions, tmp_path / "out", *option))
    assert ran.code == 2
    assert f"Invalid value for '{option[0]}'" in ran.err
