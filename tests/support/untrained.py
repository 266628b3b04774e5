"""Untrained teachers, and images whose colour is their diagnosis, for tests of probes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dermedge.models import Network, TrainedModel, save_model_folder
from dermedge.models.network import Backbone
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge_runtime.spec import Task

CNN, VIT = "mobilenetv2_035", "vit_tiny_patch16_224"
SIZE = 32
COLOURS = {"nv": (200, 90, 90), "mel": (90, 200, 90), "bkl": (90, 90, 200)}


def teacher(
    folder: Path,
    backbone: str = CNN,
    *,
    size: int = SIZE,
    seed: int = 0,
    fit: str = "crop",
    **extra: Any,
) -> Path:
    """Write a model folder with random weights.

    `extra` are fields of `Backbone` and of `TrainedModel`.
    """
    torch.manual_seed(seed)
    timm_backbone = Backbone(backbone, extra.pop("args", {}), stages=extra.pop("stages", None))
    tasks = (Task("embedding", "embed"),)
    spec = make_spec("untrained", tasks, make_preprocess(size, fit), {})
    save_model_folder(
        TrainedModel(Network(timm_backbone, tasks), spec, timm_backbone, "teacher", **extra), folder
    )
    return folder


def coloured(count: int = 90, *, seed: int = 0, lesion: int = 2) -> list[dict[str, Any]]:
    """Return rows of a table with alternating diagnoses, `lesion` images of each lesion.

    Half of the lesions are in train. `severity` depends on the colour.
    """
    rng, names = np.random.default_rng(seed), list(COLOURS)
    rows = []
    for number in range(count):
        group = number // lesion
        dx = names[group % 3]
        split = ("train", "train", "train", "val", "test", "test")[group // 3 % 6]
        rows.append(
            {
                "dx": dx,
                "colour": dx,
                "severity": names.index(dx),
                "lesion_id": f"L{group}",
                "split": split,
                "sex": str(rng.choice(["male", "female"])),
                "fitzpatrick": int(rng.integers(1, 7)),
            }
        )
    return rows


def data_set(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a noise image per row in the colour of its `colour`; other keys become columns."""
    (folder / "images").mkdir(parents=True)
    rng, table = np.random.default_rng(7), []
    for number, row in enumerate(rows):
        cells = dict(row)
        pixels = (
            rng.normal(COLOURS[cells.pop("colour")], 8, (40, 48, 3)).clip(0, 255).astype(np.uint8)
        )
        cells = {"image_id": f"i{number}", "image": f"images/i{number}.png", **cells}
        Image.fromarray(pixels).save(folder / cells["image"])
        table.append(cells)
    pd.DataFrame(table).to_csv(folder / "metadata.csv", index=False)
    return folder
