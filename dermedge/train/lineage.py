"""Record the origin of a model: initial weights, data, and images of earlier models."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dermedge.models.backbone import Backbone
from dermedge.models.folder_metadata import WEIGHTS, SplitRows, read_metadata
from dermedge.train.samples import Samples
from dermedge_runtime.files import sha256_file
from dermedge_runtime.printable import printable
from dermedge_runtime.spec import Task, to_json


def read_init_split(init: str) -> SplitRows:
    """Return the split rows of the initial weights' model folder, or no rows."""
    return read_metadata(init).split if Path(init).is_dir() else ()


def collect_split(samples: Samples, *earlier: SplitRows) -> SplitRows:
    """Return the rows of a model's split.csv.

    Args:
        samples: The model's own table.
        earlier: Split rows of the models that it starts from or learns from.
    """
    own = zip(samples.image_ids, samples.digests, map(str, samples.split), strict=True)
    return add_seen_images(tuple(own), *earlier)


def add_seen_images(rows: SplitRows, *earlier: SplitRows) -> SplitRows:
    """Append the train and val images of earlier models to `rows`, each image once."""
    seen = {digest for _, digest, split in rows if split in ("train", "val")}
    # Test rows of an ancestor were never trained on, so they do not count as seen.
    for row in (row for ancestor in earlier for row in ancestor):
        if row[2] in ("train", "val") and row[1] not in seen:
            rows += (row,)
            seen.add(row[1])
    return rows


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """Return the backbone as recorded settings. Fields that are None are left out.

    Example:
        >>> describe_backbone(Backbone("resnet10t"))["name"]
        'resnet10t'
    """
    return {name: value for name, value in to_json(backbone).items() if value is not None}


def describe_masks(samples: Samples, tasks: Sequence[Task]) -> dict[str, str]:
    """Return the recorded settings that identify the masks.

    They are empty unless there is a segmentation task, so that new mask files do not
    invalidate runs that never read them.
    """
    segments = any(task.kind == "segment" for task in tasks)
    return {"masks": samples.masks_digest} if segments else {}


def make_model_lineage(backbone: Backbone, init: str) -> dict[str, Any]:
    """Return a model's entry in its lineage: architecture, licence, initial weights."""
    kept = "" if backbone.stages is None else f", its first {backbone.stages} stages"
    entry: dict[str, Any] = {
        "backbone": f"timm {backbone.name}{kept}",
        "licence": "Apache-2.0 (architecture, timm)",
        "init": "random",
    }
    if init == "hub":
        entry["init"] = "timm's published weights; see their model card for the licence"
    elif init != "none":
        entry["init"] = f"{printable(Path(init).name)}, sha256 {digest_init(init)}"
    return entry


def make_data_lineage(samples: Samples, unlabelled: Sequence[Samples] = ()) -> dict[str, Any]:
    """Return the data's entry in the lineage: name, digest, licences, counts.

    `modalities` has the number of train images by modality, "" for an unknown one.

    Args:
        samples: The table, with the rows of the unlabelled tables.
        unlabelled: The unlabelled tables, whose names and digests are listed.
    """
    further = [{"name": table.name, "digest": table.table_digest} for table in unlabelled]
    return {
        "name": samples.name,
        "digest": samples.table_digest,
        "licences": list(samples.licences) or ["not stated in the table"],
        "images": {split: len(samples.rows(split)) for split in ("train", "val", "test")},
        "modalities": dict(
            sorted(Counter(samples.modalities[samples.rows("train")].tolist()).items())
        ),
        **({"unlabelled": further} if further else {}),
    }


def digest_init(init: str) -> str:
    """Return the keyword of initial weights, or the sha256 of their file."""
    path = Path(init)
    if init in ("none", "hub"):
        return init
    return sha256_file(path / WEIGHTS if path.is_dir() else path)
