"""Read and write a model folder's JSON and split table without torch."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dermedge.models.backbone import Backbone
from dermedge_runtime.canonical_json import read_json
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.spec import Spec, to_json

# A model's part in distillation. It names the JSON file of the model's folder.
Role = Literal["teacher", "student"]
SplitRows = tuple[tuple[str, str, str], ...]
SCHEMA = "dermedge.student/1"
MODEL_FILES = ("student.json", "teacher.json")
ENSEMBLE = "ensemble.json"
WEIGHTS = "weights.safetensors"
SPLIT = "split.csv"
SPLIT_COLUMNS = ("image_id", "sha256", "split")


@dataclass(frozen=True)
class ModelMetadata:
    """The contents of a model folder, without the weights.

    Attributes:
        spec: Tasks, preprocessing, intended use and lineage.
        backbone: The timm model and its normalization.
        role: `teacher` or `student`.
        metrics: Metrics on val, and the number of parameters.
        split: Rows (image_id, sha256, split) of the training table, and the images
            that earlier models of the lineage were trained on.
        embedding_width: Width of the embedding, or None for that of the pooled features.

    Example:
        >>> metadata = read_metadata("teacher")
        >>> metadata.backbone.name, len(metadata.training_images)
        ('mobilenetv2_050', 68)
    """

    spec: Spec
    backbone: Backbone
    role: Role
    metrics: Mapping[str, Any]
    split: SplitRows
    embedding_width: int | None = None

    @property
    def training_images(self) -> tuple[str, ...]:
        """sha256 of each image file of the train and val splits."""
        return training_images(self.split)


def is_model_folder(path: Path | str) -> bool:
    """Return whether a folder holds a model, or names the members of an ensemble.

    Example:
        >>> is_model_folder("teacher"), is_model_folder("lesions")
        (True, False)
    """
    return any((Path(path) / name).is_file() for name in (*MODEL_FILES, ENSEMBLE))


def training_images(split: SplitRows) -> tuple[str, ...]:
    """Return the sorted sha256 of the images that influenced a model's weights.

    Val images count: early stopping selects the epoch by their score.
    """
    return tuple(sorted(digest for _, digest, part in split if part in ("train", "val")))


def read_metadata(folder: Path | str) -> ModelMetadata:
    """Read a model folder's JSON file and split table. The weights are not opened.

    Raises:
        DataError: The folder holds no model, another schema, or a damaged file.

    Example:
        >>> read_metadata("teacher").role
        'teacher'
    """
    folder = Path(folder)
    path = next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} holds neither student.json nor teacher.json. Give the folder that a "
            "training command wrote."
        )
    data = read_json(path, DataError)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}, but this version of dermedge reads {SCHEMA!r}. "
            "Upgrade dermedge, or train again."
        )
    try:
        return ModelMetadata(
            Spec.from_json(data["spec"]),
            Backbone.from_json(data["backbone"]),
            data["role"],
            data.get("metrics", {}),
            parse_split((folder / SPLIT).read_text("utf-8")),
            data.get("embedding_width"),
        )
    except (KeyError, TypeError, ValueError, OSError, csv.Error, DermedgeError) as error:
        raise damaged_folder(folder, error) from error


def write_metadata(metadata: ModelMetadata, folder: Path) -> None:
    """Write the split table, then the JSON file, each atomically.

    The JSON file is written last, because a folder without it is not a model.
    """
    atomic_write(folder / SPLIT, format_split(metadata.split).encode())
    data = {
        "schema": SCHEMA,
        "role": metadata.role,
        "spec": to_json(metadata.spec),
        "backbone": to_json(metadata.backbone),
        "metrics": to_json(metadata.metrics),
    }
    if metadata.embedding_width is not None:
        data["embedding_width"] = metadata.embedding_width
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    atomic_write(folder / f"{metadata.role}.json", text.encode())


def damaged_folder(folder: Path, error: Exception) -> DataError:
    """Return the error for a model folder whose files cannot be used."""
    return DataError(f"{folder} is damaged ({error}). Train again, or restore it from a copy.")


def format_split(rows: SplitRows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


def parse_split(text: str) -> SplitRows:
    rows = []
    for cells in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        # Folders written before the csv module was used hold image ids with commas
        # unquoted.
        *image_id, digest, split = cells
        if not image_id:
            raise ValueError(f"{SPLIT} has a row with {len(cells)} cells instead of 3")
        rows.append((",".join(image_id), digest, split))
    return tuple(rows)
