"""Test that training on a full disk ends with a message and keeps the last checkpoint."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dermedge.train.loop import CHECKPOINT
from dermedge_runtime.errors import DermedgeError
from support import small


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


def train_until_full(data: Path, out: Path) -> None:
    """Train, and let no file grow over 100 kB from the start of the second epoch on.

    For write() this limit is a full disk.
    """

    def limit(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 2/"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    try:
        small.train(data, out, progress=limit)
    except DermedgeError as error:
        wanted = f"Cannot write {out / CHECKPOINT} (File too large). Free space"
        os._exit(1 if str(error).startswith(wanted) else 90)
    os._exit(91)


def test_the_last_checkpoint_stays_and_nothing_half_written(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert small.in_process(train_until_full, data, out) == 1
    assert {path.name for path in out.iterdir()} == {"run.json", CHECKPOINT}
    assert torch.load(out / CHECKPOINT, weights_only=True)["state"]["epoch"] == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 600 kB, where the system allows that."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], **mount)
    except OSError as error:
        pytest.skip(f"this system has no mount ({error})")
    if made.returncode:
        pytest.skip(f"this process may not mount a file system ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], **mount)


def test_a_disk_that_is_really_full_gives_one_line(data: Path, full_disk: Path) -> None:
    code = "from dermedge.cli import main; import sys; main(sys.argv[1:])"
    options = [
        "--backbone",
        "mobilenetv3_small_050",
        "--size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "16",
    ]
    ran = subprocess.run(
        [
            *(sys.executable, "-c", code, "finetune", "--data", data),
            *(*options, "-o", full_disk / "t"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    errors = [line for line in ran.stderr.splitlines() if "Error" in line]
    assert errors == [
        f"Error: Cannot write {full_disk / 't' / CHECKPOINT} (No space left on device). "
        "Free space or choose a path you may write to."
    ]
    assert "Traceback" not in ran.stderr
    assert [path.name for path in (full_disk / "t").iterdir()] == ["run.json"]
