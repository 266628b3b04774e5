"""What a training starts from: its initial weights, and what these have already learned from."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dermedge.models.initialize import backbone_of_file, hub_backbone
from dermedge.models.model_folder import load_model_folder
from dermedge.models.network import Backbone
from dermedge.train.samples import Samples
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import sha256_file
from dermedge_runtime.spec import to_json

Rows = tuple[tuple[str, str, str], ...]


def init_rows(init: str) -> Rows:
    """What the initial weights have learned from, as far as their folder says."""
    return load_model_folder(init).split if Path(init).is_dir() else ()


def learned(samples: Samples, *earlier: Rows) -> Rows:
    """The rows of a model's split.csv: those of its own table, and what the models it comes from have learned from."""
    return inherited(
        tuple(zip(samples.image_ids, samples.digests, map(str, samples.split), strict=True)),
        *earlier,
    )


def inherited(rows: Rows, *earlier: Rows) -> Rows:
    """Rows (image_id, sha256, split), and after them the images that earlier models have learned from."""
    known = {digest for _, digest, split in rows if split in ("train", "val")}
    for row in (row for ancestor in earlier for row in ancestor):
        if row[2] in ("train", "val") and row[1] not in known:
            rows += (row,)
            known.add(row[1])
    return rows


def identity(backbone: Backbone) -> dict[str, Any]:
    """The backbone as settings that a run is known by; what it leaves open is left out."""
    return {name: value for name, value in to_json(backbone).items() if value is not None}


def choose_backbone(
    name: str | None, args: Mapping[str, Any], init: str, stages: int | None = None
) -> Backbone:
    """The backbone that name, arguments and initial weights agree on, cut to its first `stages`.

    Raises:
        UsageError: nothing names an architecture, or `init` is neither a keyword, a file nor a folder.
    """
    asked = Backbone(name, dict(args), stages=stages) if name else None
    if init in ("none", "hub"):
        if asked is None:
            raise UsageError(
                "No backbone is named: pass --backbone with a timm name, mobilenetv4_conv_small for example."
            )
        return asked if init == "none" else hub_backbone(asked)
    path = Path(init)
    if path.is_dir():
        origin = load_model_folder(path).backbone
        return replace(
            origin,
            name=name or origin.name,
            args={**origin.args, **args},
            stages=stages or origin.stages,
        )
    if path.is_file():
        return replace(backbone_of_file(path, asked), stages=stages)
    raise UsageError(
        f"--init {init!r} is neither 'none', 'hub', a safetensors file nor a model's folder: check the path."
    )


def origin(backbone: Backbone, init: str) -> dict[str, Any]:
    """A model's entry in the lineage."""
    kept = "" if backbone.stages is None else f", its first {backbone.stages} stages"
    entry: dict[str, Any] = {
        "backbone": f"timm {backbone.name}{kept}",
        "licence": "Apache-2.0 (architecture, timm)",
        "init": "random",
    }
    if init == "hub":
        entry["init"] = "timm's published weights; see their model card for the licence"
    elif init != "none":
        entry["init"] = f"{Path(init).name}, sha256 {init_digest(init)}"
    return entry


def init_digest(init: str) -> str:
    """What identifies the initial weights: a keyword, or the sha256 of the weights file."""
    path = Path(init)
    if init in ("none", "hub"):
        return init
    return sha256_file(path / "weights.safetensors" if path.is_dir() else path)


def data_lineage(samples: Samples) -> dict[str, Any]:
    """The data's entry in the lineage."""
    return {
        "name": samples.name,
        "digest": samples.table_digest,
        "licences": list(samples.licences) or ["not stated in the table"],
        "images": {split: len(samples.rows(split)) for split in ("train", "val", "test")},
    }
