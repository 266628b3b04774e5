"""A trained model on disk: `student.json` or `teacher.json`, `weights.safetensors`, `split.csv`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dermedge.models.network import Backbone, Network
from dermedge_runtime.canonical_json import read_json
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.spec import Spec, to_json

Role = Literal["teacher", "student"]
SCHEMA = "dermedge.student/1"
WEIGHTS = "weights.safetensors"
SPLIT = "split.csv"


@dataclass(frozen=True)
class TrainedModel:
    """A network with its contract; a teacher is one too, told apart by its `role`.

    `metrics` holds what was measured on validation data, `split` the rows (image_id, sha256, split) that it learned
    from.
    """

    module: Network
    spec: Spec
    backbone: Backbone
    role: Role = "student"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    split: tuple[tuple[str, str, str], ...] = ()

    @property
    def training_images(self) -> tuple[str, ...]:
        """sha256 of every image file that the weights have seen, val included: it chose when to stop."""
        return tuple(sorted(digest for _, digest, split in self.split if split in ("train", "val")))


def save_model_folder(student: TrainedModel, folder: Path) -> None:
    """Write a model into `folder`, each file atomically, the JSON last: a folder without it is not a model."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in student.module.state_dict().items()
    }
    atomic_write(folder / WEIGHTS, save(weights))
    rows = ["image_id,sha256,split", *(",".join(row) for row in student.split)]
    atomic_write(folder / SPLIT, ("\n".join(rows) + "\n").encode())
    data = {
        "schema": SCHEMA,
        "role": student.role,
        "spec": to_json(student.spec),
        "backbone": to_json(student.backbone),
        "metrics": to_json(student.metrics),
    }
    atomic_write(
        folder / f"{student.role}.json",
        (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(),
    )


def load_model_folder(folder: Path | str) -> TrainedModel:
    """Read a teacher's or a student's folder.

    Raises:
        DataError: the folder holds no model, or its files do not fit each other.
    """
    folder = Path(folder)
    path = next(
        (p for p in (folder / "student.json", folder / "teacher.json") if p.is_file()), None
    )
    if path is None:
        raise DataError(
            f"{folder} holds neither student.json nor teacher.json: give the folder that training wrote."
        )
    data = read_json(path, DataError)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}, this dermedge reads {SCHEMA!r}: upgrade or train again."
        )
    try:
        raw = data["backbone"]
        backbone = Backbone(
            raw["name"], raw["args"], tuple(raw["mean"]), tuple(raw["std"]), raw.get("stages")
        )
        spec = Spec.from_json(data["spec"])
        network = Network(backbone, spec.tasks)
        network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        split = tuple(_row(line) for line in (folder / SPLIT).read_text("utf-8").splitlines()[1:])
        return TrainedModel(
            network.eval(), spec, backbone, data["role"], data.get("metrics", {}), split
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        OSError,
        SafetensorError,
        DermedgeError,
    ) as error:
        raise DataError(
            f"{folder} is damaged ({error}): train again, or restore it from a copy."
        ) from error


def _row(line: str) -> tuple[str, str, str]:
    image_id, digest, split = line.rsplit(",", 2)
    return image_id, digest, split
