"""Write `run.json`, the record of a training run, and recognise a finished run."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dermedge.models.folder_metadata import Role
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.train.distributed import world_size
from dermedge.train.loop import CHECKPOINT
from dermedge_runtime.canonical_json import canonical_json, read_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_write, sha256_hex
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.packages import find_version

PACKAGES = (
    "dermedge",
    "torch",
    "timm",
    "albumentations",
    "lightning-fabric",
    "torch-pruning",
    "transformers",
    "peft",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scipy",
)
RUN = "run.json"
MODELS = ("student.json", "teacher.json", "captioner.json")
CACHE = "cache"


@dataclass
class RunRecord:
    """Record of one training run, opened before the work and closed after it.

    Attributes:
        folder: Folder of the run.
        command: Name of the verb.
        settings: Settings, and digests of the data and the initial weights.
        images: Digest of the image files.
        role: `teacher` or `student`, for a run that writes a model folder.
        started: Value of `time.perf_counter` at the start.
        cpu_started: Processor seconds of this process at the start.
        found: Further facts that decide the result and are known only during the work,
            such as the digest of a whitening.

    Example:
        >>> run = RunRecord(Path("trained"), "finetune", {"seed": 0}, "")
        >>> run.open(overwrite=False)
        >>> other = RunRecord(Path("trained"), "finetune", {"seed": 1}, "")
        >>> other.finished(overwrite=False)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: trained already holds another run (seed ...
    """

    folder: Path
    command: str
    settings: Mapping[str, Any]
    images: str
    role: Role = "student"
    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=lambda: sum(os.times()[:2]))
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest of the command and its settings, data and initial weights included."""
        return sha256_hex(canonical_json({"command": self.command, **self.settings}))

    def finished(self, *, overwrite: bool) -> TrainedModel | None:
        """Return the finished model of this run, or None. Nothing is written.

        Raises:
            UsageError: The folder holds another run, and `overwrite` is false.
        """
        return load_model_folder(self.folder) if self.is_finished(overwrite=overwrite) else None

    def is_finished(self, *, overwrite: bool) -> bool:
        """Return True if the folder holds this run, finished. Nothing is written.

        Raises:
            UsageError: The folder holds another run, and `overwrite` is false.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file. Choose a folder with -o.")
        if overwrite:
            return False
        earlier = self._earlier()
        if earlier is not None and earlier.get("finished"):
            return True
        # A kill in the very first write leaves an unfinished run.json under a hidden
        # name.
        content = [path for path in self.folder.glob("*") if not path.name.startswith(f".{RUN}.")]
        if earlier is None and content:
            raise UsageError(
                f"{self.folder} already holds {self._describe_other()}. Choose another folder, "
                "or pass --overwrite."
            )
        return False

    def open(self, *, overwrite: bool) -> None:
        """Claim the folder for this run, and delete the results of another run.

        The checkpoint and the cache of this run stay. Those of another run are deleted
        first, so that a kill never leaves a mixture of both.
        """
        earlier = None if overwrite else self._earlier()
        if earlier is None:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
            shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        else:
            # The recorded time covers all attempts of a run.
            self.started -= earlier.get("wall_seconds", 0.0)
            self.cpu_started -= earlier.get("cpu_seconds", 0.0)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp-????????"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
        self.write(finished=False)
        for name in MODELS:
            (self.folder / name).unlink(missing_ok=True)

    def write(self, *, finished: bool, **results: Any) -> None:
        """Write `run.json`. `finished` stays false until the run is closed."""
        data = {
            "schema": "dermedge.run/1",
            "command": self.command,
            "fingerprint": self.fingerprint,
            "finished": finished,
            "settings": self.settings,
            "images": self.images,
            "versions": {name: find_version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            "machine": _describe_machine(),
            "wall_seconds": round(time.perf_counter() - self.started, 2),
            "cpu_seconds": round(sum(os.times()[:2]) - self.cpu_started, 2),
            **self.found,
            **results,
        }
        atomic_write(
            self.folder / RUN, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
        )

    def close(self, outcome: Any, **results: Any) -> None:
        """Record the results and delete the files that only a resumed run needs.

        Args:
            outcome: A dataclass, whose fields are recorded.
            results: Further results by name.
        """
        self.write(finished=True, **asdict(outcome), **results)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / CACHE, ignore_errors=True)

    def _describe_other(self) -> str:
        """Describe the other content of the folder, with the settings that differ."""
        path = self.folder / RUN
        data = read_json(path, DataError) if path.is_file() else None
        if not isinstance(data, dict) or not isinstance(data.get("settings"), dict):
            return "something else"
        if data.get("command") != self.command:
            return f"a run of `dermedge {data.get('command')}`"
        changes = [
            f"{name} is {there} there and {here} here"
            for name, there, here in differences(data["settings"], self.settings)
        ]
        if not changes:
            changes = ["the image files differ"]
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        return f"another run ({'; '.join(changes[:4])}{more})"

    def _earlier(self) -> dict[str, Any] | None:
        """Return the record of this run if the folder holds it."""
        path = self.folder / RUN
        data = read_json(path, DataError) if path.is_file() else None
        if not isinstance(data, dict) or data.get("fingerprint") != self.fingerprint:
            return None
        return data if data.get("images", self.images) == self.images else None


def _describe_machine() -> dict[str, Any]:
    """Describe the hardware that trains. It changes the last digits of a result."""
    cuda = torch.cuda.is_available()
    return {
        "cpus": usable_cpus(),
        "platform": platform.platform(),
        "accelerator": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that differ between two runs.

    Args:
        there: Recorded settings of the run in the folder.
        here: Settings of this run.
        prefix: Start of every name; used for nested settings.

    Returns:
        Tuples (dotted name, value there, value here).

    Example:
        >>> list(differences({"seed": 0, "r": {"lr": 1}}, {"seed": 0, "r": {"lr": 2}}))
        [('r.lr', '1', '2')]
    """
    for name in dict.fromkeys((*here, *there)):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif canonical_json(old) != canonical_json(new):
            yield f"{prefix}{name}", _shorten(old), _shorten(new)


def _shorten(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
