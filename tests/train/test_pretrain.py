"""Pretrain on drawn lesions: results, labels, crops, broken images, kills and two processes."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dermedge.data.taxonomy import TAXONOMY
from dermedge.models import TrainedModel, load_model_folder
from dermedge.train import memory
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.hybrid import estimate, loss_log, trainer
from dermedge.train.hybrid.crops import CropDataset, RankSampler, collate, step_keys
from dermedge.train.hybrid.model import Branch, HybridStudent
from dermedge.train.hybrid.pretrain import pretrain
from dermedge.train.hybrid.recipe import PRESETS, ExecutionOptions, HybridRecipe
from dermedge.train.loop import Schedule
from dermedge_runtime.errors import DataError, UsageError
from support import small

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
RECIPE = replace(
    PRESETS["tiny"],
    backbone_args=TINY,
    size=32,
    local_size=16,
    local_crops=2,
    outputs=32,
    hidden=24,
    bottleneck=16,
    drop_path=0.1,
    warmup=1.0,
    batch_size=8,
    epochs=3,
    steps=2,
    lr=0.01,
)
# Two processes compute the same without stochastic depth, whose draws differ by rank.
EXACT = replace(RECIPE, drop_path=0.0, epochs=2, steps=3)
START_SECONDS = 240  # of a launcher that imports torch in every rank, on a busy machine


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


@pytest.fixture
def train(lesions: Path, tmp_path: Path) -> Callable[..., TrainedModel]:
    def run(out: str, data: Any = None, **options: Any) -> TrainedModel:
        recipe = replace(
            RECIPE, **{name: options.pop(name) for name in list(options) if hasattr(RECIPE, name)}
        )
        execution = {"workers": 0} | {
            name: options.pop(name) for name in list(options) if hasattr(ExecutionOptions, name)
        }
        return pretrain(
            data or [lesions],
            tmp_path / out,
            recipe=recipe,
            options=ExecutionOptions(**execution),
            **options,
        )

    return run


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def run_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    return found


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log(folder)]


def table(lesions: Path, out: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    return small.edited(lesions, out, edit)


def test_a_loss_that_is_not_finite_stops_the_run(
    train: Callable[..., TrainedModel], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"^The loss of .* became .* in step \d\. Lower --lr"):
        train("spoiled", lr=1e30)
    assert not (tmp_path / "spoiled" / "teacher.json").exists()


class TestResult:
    def test_the_teacher_embeds_images_and_finetune_starts_from_it(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        train("teacher")
        teacher = load_model_folder(tmp_path / "teacher")
        image = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        embedded = teacher.module(image)["features"]
        assert embedded.shape == (2, 24)
        assert torch.allclose(embedded.norm(dim=1), torch.ones(2), atol=1e-5)
        assert teacher.spec.lineage["teacher"]["pretrained_on"] == ["procedural"]
        assert [line["step"] for line in log(tmp_path / "teacher")] == [1, 2, 3, 4, 5, 6]
        assert {"dino", "ibot", "koleo", "label", "loss"} <= set(log(tmp_path / "teacher")[0])
        tuned = finetune(
            lesions,
            tmp_path / "tuned",
            FinetuneOptions(init=str(tmp_path / "teacher"), size=32, schedule=Schedule(1, 16)),
        )
        assert tuned.backbone.name == "vit_tiny_patch16_224"
        assert set(teacher.training_images) <= set(tuned.training_images)

    def test_the_student_learns_and_the_teacher_follows(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        before = train("begin", epochs=1, steps=1, lr=1e-12)
        after = train("end", epochs=8, steps=4)
        curve = [line["label"] for line in log(tmp_path / "end")]
        assert np.mean(curve[-8:]) < 0.85 * np.mean(curve[:4])
        moved = [
            float((a - b).detach().abs().max())
            for a, b in zip(after.module.parameters(), before.module.parameters(), strict=True)
        ]
        assert max(moved) > 0

    @pytest.mark.parametrize("head", ["dino", "ibot"])
    def test_a_collapsed_head_is_reported(
        self,
        train: Callable[..., TrainedModel],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        head: str,
    ) -> None:
        monkeypatch.setattr(loss_log, "STEPS_BEFORE_WARNING", 1)
        # At a temperature of 10 every image is assigned to all outputs alike. A grid of
        # 16 patches and shares from .3 let every mask have its smallest block.
        losses = {"dino": 0.0, "ibot": 0.0, head: 1.0}
        train("even", temperature=(10.0, 10.0), mask_ratio=(0.3, 0.5), **losses)
        (warning,) = run_json(tmp_path / "even")["warnings"]
        assert f"The {head} loss ended at" in warning
        assert "A head with equal outputs for every image has 3.47" in warning

    def test_a_finished_run_is_not_repeated_and_another_is_refused(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        train("teacher")
        stamp = (tmp_path / "teacher" / "weights.safetensors").stat().st_mtime_ns
        lines: list[str] = []
        train("teacher", report=lines.append)
        assert (tmp_path / "teacher" / "weights.safetensors").stat().st_mtime_ns == stamp
        assert "already holds this run, finished. Pass --overwrite" in lines[-1]
        with pytest.raises(
            UsageError, match=r"another run \(recipe.lr is 0.01 there and 0.02 here\)"
        ):
            train("teacher", lr=0.02)

    def test_a_cnn_trains_without_the_patch_loss(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        teacher = train("cnn", backbone="mobilenetv2_035", backbone_args={}, epochs=1)
        assert "ibot" not in log(tmp_path / "cnn")[0]
        assert torch.isfinite(
            teacher.module.features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
        ).all()

    @pytest.mark.parametrize("mode", ["frozen", "learnable", "pulled"])
    def test_prototypes_stay_or_move_by_their_mode(
        self, train: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        heads: list[Any] = []
        build = HybridStudent.__init__

        def remember(self: HybridStudent, branch: Branch, labels: Any) -> None:
            build(self, branch, labels)
            heads.append(labels)

        monkeypatch.setattr(HybridStudent, "__init__", remember)
        longer = {"epochs": 4, "steps": 5}
        train("teacher", prototype_mode=mode, pull=1e4, **longer)
        moved = float((heads[0].weight - heads[0].start).detach().norm(dim=1).mean())
        train("free", prototype_mode="learnable", **longer)
        free = float((heads[1].weight - heads[1].start).detach().norm(dim=1).mean())
        assert len(heads[0].weight) == len(TAXONOMY)
        expected = {
            "frozen": moved == 0,
            "learnable": moved == pytest.approx(free),
            "pulled": 0 < moved < 0.9 * free,
        }
        assert expected[mode]


class TestLabels:
    def test_tables_with_no_labels_some_labels_and_all_labels_train_together(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        bare = table(
            lesions, tmp_path / "bare", lambda f: f.assign(dx="", malignant="", split="", source="")
        )
        train("alone", [bare])
        assert "label" not in log(tmp_path / "alone")[0]
        teacher = train("both", [lesions, bare])
        counts = json.loads((tmp_path / "both" / "run.json").read_text("utf-8"))["sources"]
        assert counts["bare"]["labelled"] == 0
        assert counts["procedural"]["labelled"] == counts["procedural"]["images"]
        assert teacher.spec.lineage["teacher"]["pretrained_on"] == ["procedural", "bare"]

    def test_the_label_loss_alone_needs_labels(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        bare = table(lesions, tmp_path / "bare", lambda f: f.assign(dx="", malignant=""))
        with pytest.raises(UsageError, match="No table has a label"):
            train("alone", [bare], dino=0.0, ibot=0.0)

    def test_val_and_test_images_of_one_table_are_not_trained_on_through_another(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        copy = table(
            lesions, tmp_path / "copy", lambda f: f.assign(dx="", malignant="", split="", source="")
        )
        train("both", [lesions, copy])
        frame = pd.read_csv(lesions / "metadata.csv")
        counts = json.loads((tmp_path / "both" / "run.json").read_text("utf-8"))["sources"]
        assert counts["copy"]["images"] == (frame["split"] == "train").sum() < len(frame)


class TestCrops:
    def crops(self, lesions: Path, recipe: HybridRecipe = RECIPE, seed: int = 0) -> CropDataset:
        from dermedge.models.network import Backbone

        paths = sorted((lesions / "images").iterdir())
        return CropDataset(
            paths,
            [path.stem for path in paths],
            recipe,
            Backbone(recipe.backbone, TINY),
            (4, 4),
            seed,
        )

    def test_a_view_depends_on_its_key_only_and_leaves_the_generators_unchanged(
        self, lesions: Path
    ) -> None:
        state = torch.get_rng_state()
        first = self.crops(lesions)[3, 1]
        crops = self.crops(lesions)
        crops[5, 0]
        again = crops[3, 1]
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(first, again, strict=True)
        )
        assert not torch.equal(first.global_crops, crops[3, 2].global_crops)
        assert not torch.equal(first.global_crops, self.crops(lesions, seed=1)[3, 1].global_crops)
        assert torch.equal(torch.get_rng_state(), state)

    def test_masks_hide_their_share_of_about_half_the_crops(self, lesions: Path) -> None:
        crops = self.crops(lesions, replace(RECIPE, mask_ratio=(0.3, 0.5)))
        crops.grid = (8, 8)
        hidden = (
            torch.cat([crops[row, number].mask for row in range(20) for number in range(5)])
            .float()
            .mean(1)
        )
        assert 0.35 < (hidden > 0).float().mean() < 0.65
        assert hidden.max() <= 0.5
        assert hidden[hidden > 0].mean() > 0.2

    def test_batches_are_crop_by_crop(self, lesions: Path) -> None:
        crops = self.crops(lesions)
        batch = collate([crops[0, 0], crops[1, 0]])
        assert torch.equal(batch.global_crops[2], crops[0, 0].global_crops[1])
        assert torch.equal(batch.local_crops[1], crops[1, 0].local_crops[0])

    def test_every_row_comes_once_per_pass_and_ranks_share_a_step(self) -> None:
        seen = [key for step in range(5) for key in step_keys(20, 8, step, seed=0)]
        assert (
            sorted(seen) == [(row, number) for row in range(20) for number in range(2)]
            or len(set(seen)) == 40
        )
        recipe = replace(RECIPE, accumulate=2, epochs=1, steps=1)
        shares = [list(RankSampler(20, recipe, 0, 0, rank, 2)) for rank in range(2)]
        whole = [key for part in range(2) for rank in range(2) for key in shares[rank][part]]
        assert whole == step_keys(20, 8, 0, seed=0)


class TestBrokenImages:
    def test_an_image_that_cannot_be_decoded_is_replaced_and_reported(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        broken = table(lesions, tmp_path / "broken", lambda f: f)
        name = pd.read_csv(broken / "metadata.csv").query("split == 'train'")["image"].iloc[0]
        (broken / name).unlink()
        (broken / name).write_bytes(b"no picture")
        train("teacher", [broken], epochs=4, steps=4)
        run = json.loads((tmp_path / "teacher" / "run.json").read_text("utf-8"))
        assert run["unreadable"] == [f"broken/{Path(name).stem}"]

    def test_more_than_one_percent_of_broken_images_is_an_error(
        self, train: Callable[..., TrainedModel], lesions: Path, tmp_path: Path
    ) -> None:
        broken = table(lesions, tmp_path / "broken", lambda f: f)
        for name in (
            pd.read_csv(broken / "metadata.csv").query("split == 'train'")["image"].iloc[:3]
        ):
            (broken / name).unlink()
            (broken / name).write_bytes(b"no picture")
        with pytest.raises(
            DataError, match=r"\d of \d+ images cannot be decoded, among them broken/.*data check"
        ):
            train("teacher", [broken], epochs=4, steps=4)


def assert_same_weights(one: TrainedModel, other: TrainedModel) -> None:
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name


class TestRefusals:
    """Errors that are found before anything is written."""

    def test_local_crops_that_are_no_multiple_of_the_patch(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        message = r"--local-size 20 is no multiple of the 8-pixel patches.*Use 16 or 24\."
        with pytest.raises(UsageError, match=message):
            train("out", local_size=20)
        assert not (tmp_path / "out").exists()

    def test_global_crops_that_are_no_multiple_of_the_patch(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="--size 36 is no multiple of the 8-pixel patches"):
            train("out", size=36)
        assert not (tmp_path / "out").exists()

    def test_a_transformer_of_another_depth(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        train("deep", epochs=1, steps=1, backbone_args={**TINY, "depth": 3})
        with pytest.raises(UsageError, match="they differ in more than width"):
            train("out", init=str(tmp_path / "deep"), backbone_args={**TINY, "depth": 2})
        assert not (tmp_path / "out").exists()

    def test_a_transformer_of_another_image_size_is_resized(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        large = {"size": 64, "backbone_args": {**TINY, "img_size": 64}}
        train("large", epochs=1, steps=1, **large)
        teacher = train("out", init=str(tmp_path / "large"), epochs=1, steps=1)
        assert teacher.module.backbone.pos_embed.shape[1] == 1 + 4 * 4

    def test_a_transformer_of_equal_shape_is_accepted(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        first = train("first", epochs=1, steps=1)
        second = train("second", init=str(tmp_path / "first"), epochs=1, steps=1, lr=1e-12)
        weights = second.module.state_dict()
        for name, tensor in first.module.state_dict().items():
            assert torch.allclose(tensor, weights[name], atol=1e-6), name


class TestReport:
    def test_the_report_names_data_device_and_estimate_and_does_not_change_the_result(
        self, train: Callable[..., TrainedModel], tmp_path: Path, lesions: Path
    ) -> None:
        silent = train("silent")
        lines: list[str] = []
        spoken = train("spoken", report=lines.append, accelerator="cpu")
        assert lines[0].startswith("Device: cpu with")
        assert lines[1] == f"Reading {lesions}."
        assert "train images: procedural" in lines[2]
        assert re.fullmatch(r"Estimate: [\d.]+ [MG]B of memory and .*: 6 steps of .*\.", lines[4])
        assert lines[3].startswith("Measuring a step of two images")
        assert len(lines) == 5
        assert losses(tmp_path / "spoken") == losses(tmp_path / "silent")
        assert_same_weights(spoken, silent)

    def test_a_run_that_exceeds_the_memory_is_warned_about_before_it_starts(
        self,
        train: Callable[..., TrainedModel],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(memory, "machine_memory", lambda: 1_000_000)
        lines: list[str] = []

        def stop(done: int, total: int, note: str) -> None:
            assert "Warning: this run needs about" in lines[-1]
            assert "this machine has 1 MB" in lines[-1]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train("out", report=lines.append, progress=stop, accelerator="cpu")

    def test_the_advice_is_the_smallest_accumulation_that_fits(self) -> None:
        found = estimate.Estimate(fixed=1_000_000, per_image=1_000_000, step_seconds=1.0)
        recipe = replace(RECIPE, batch_size=64)
        lines = list(estimate.describe_estimate(found, recipe, 10, available=20_000_000))
        assert lines[0] == "Estimate: 65 MB of memory and 10 s: 10 steps of 1 s."
        assert lines[1].endswith("Pass --accumulate 4 to need about 17 MB.")
        assert len(list(estimate.describe_estimate(found, recipe, 10, 10**12))) == 1
        (_, hopeless) = estimate.describe_estimate(found, recipe, 10, available=1_000)
        assert "Pass a smaller --batch-size" in hopeless


class TestKills:
    def test_a_killed_run_continues_to_the_same_losses_and_weights(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        whole = train("whole")

        def kill(done: int, total: int, note: str) -> None:
            if done == 5:  # in the middle of the third epoch
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train("killed", progress=kill)
        assert len(log(tmp_path / "killed")) == 5
        resumed = train("killed")
        assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
        assert run_json(tmp_path / "killed")["resumed_from"] == 4
        assert_same_weights(resumed, whole)

    def test_a_checkpoint_by_time_is_as_exact_in_the_middle_of_an_epoch(
        self,
        train: Callable[..., TrainedModel],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = train("whole", epochs=2, steps=4)
        minutes = itertools.count()  # each look at the clock is one minute later
        timed = functools.partial(trainer.train, clock=lambda: 60.0 * next(minutes))
        monkeypatch.setattr(sys.modules[pretrain.__module__], "train", timed)

        def kill(done: int, total: int, note: str) -> None:
            if done == 7:
                raise KeyboardInterrupt

        options = {"epochs": 2, "steps": 4, "checkpoint_minutes": 2.0}
        with pytest.raises(KeyboardInterrupt):
            train("killed", progress=kill, **options)
        assert run_json(tmp_path / "killed")["step"] == 6
        lines: list[str] = []
        resumed = train("killed", report=lines.append, **options)
        assert "Resuming after step 6 of 8." in lines
        assert log(tmp_path / "killed") == log(tmp_path / "whole")
        record = run_json(tmp_path / "killed")
        assert record["resumed_from"] == 6
        expected = run_json(tmp_path / "whole")["history"]
        for found, epoch in zip(record["history"], expected, strict=True):
            del found["images_per_second"], epoch["images_per_second"]
            assert found == epoch
        assert_same_weights(resumed, whole)

    def test_a_run_resumed_and_killed_at_once_still_names_its_step(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        def kill(step: int) -> Callable[[int, int, str], None]:
            def progress(done: int, total: int, note: str) -> None:
                if done == step:
                    raise KeyboardInterrupt

            return progress

        for step in (3, 3):
            with pytest.raises(KeyboardInterrupt):
                train("killed", progress=kill(step))
            assert run_json(tmp_path / "killed")["step"] == 2

    def test_parts_of_a_step_add_up_to_the_step(
        self, train: Callable[..., TrainedModel], tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"koleo": 0.0, "drop_path": 0.0}  # KoLeo sees one part only
        train("whole", **options)
        train("parts", accumulate=2, **options)
        assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def launch(
    processes: int, lesions: Path, out: Path, recipe: HybridRecipe, **extra: str
) -> subprocess.Popen[str]:
    """Start `torchrun ... -m dermedge pretrain`, as a user does."""
    options = {
        "data": lesions,
        "out": out,
        "preset": "tiny",
        "size": recipe.size,
        "local-size": recipe.local_size,
        "local-crops": recipe.local_crops,
        "drop-path": recipe.drop_path,
        "warmup": recipe.warmup,
        "batch-size": recipe.batch_size,
        "epochs": recipe.epochs,
        "steps": recipe.steps,
        "lr": recipe.lr,
        "workers": 0,
        "accelerator": "cpu",
        **extra,
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--master-port=0",
    ]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "dermedge", "pretrain"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += [
        part for name, value in TINY.items() for part in ("--backbone-arg", f"{name}={value}")
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
class TestTwoProcesses:
    def test_two_processes_have_the_losses_of_one_with_the_same_batch(
        self, lesions: Path, tmp_path: Path
    ) -> None:
        for processes in (1, 2):
            run = launch(processes, lesions, tmp_path / str(processes), EXACT)
            output, _ = run.communicate(timeout=300)
            assert run.returncode == 0, output
        one, two = log(tmp_path / "1"), log(tmp_path / "2")
        assert len(one) == len(two) == 6
        for alone, together in zip(one, two, strict=True):
            assert together == pytest.approx(alone, rel=2e-4, abs=1e-5)
        weights = [load_model_folder(tmp_path / name).module.state_dict() for name in ("1", "2")]
        for name, tensor in weights[0].items():
            assert torch.allclose(tensor, weights[1][name], atol=1e-4), name

    def test_a_rank_that_dies_stops_the_others_and_is_named(
        self, lesions: Path, tmp_path: Path
    ) -> None:
        run = launch(2, lesions, tmp_path / "out", replace(EXACT, epochs=5000))
        log_file = tmp_path / "out" / "log.jsonl"
        deadline = time.monotonic() + START_SECONDS
        while not (log_file.is_file() and log_file.stat().st_size):
            if time.monotonic() > deadline:
                run.kill()
            # Waiting leaves the processor to the run, and ends at once if it fails.
            with suppress(subprocess.TimeoutExpired):
                run.wait(timeout=0.1)
                pytest.fail(run.communicate()[0])
        os.kill(rank_process(run.pid, 1), signal.SIGKILL)
        output, _ = run.communicate(timeout=60)
        assert run.returncode != 0
        assert "rank" in output
        assert "1" in output
        shutil.rmtree(tmp_path / "out")


def rank_process(parent: int, rank: int) -> int:
    """Return the process id of a rank among a launcher's children."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise LookupError(f"no rank {rank} below {parent}")
