"""What a training starts from: its contract, its initial weights, and what these have already learned from."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dermedge.models.init import backbone_of_file
from dermedge.models.network import Backbone, Network
from dermedge.models.student import load_student
from dermedge.train.samples import Samples
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.files import sha256_file
from dermedge_runtime.spec import IDENTIFIER, Preprocess, Spec, Task, to_json

Rows = tuple[tuple[str, str, str], ...]
INTENDED_USE = (
    "Decision support for trained users who look at images of single skin lesions like those that the model was "
    "trained on. Not a diagnosis, and not a replacement for one."
)


def make_spec(name: str, tasks: tuple[Task, ...], preprocess: Preprocess, lineage: Mapping[str, Any]) -> Spec:
    """The contract of a new model. Raises UsageError for a name that no file can have."""
    if not IDENTIFIER.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a model: pass --name with letters, digits, '.', '_' and '-' only.")
    return Spec(name, "1", tasks, preprocess, INTENDED_USE, lineage)


def make_preprocess(size: int, fit: str) -> Preprocess:
    """The preprocessing of a new model. Raises UsageError where there is no such one."""
    try:
        return Preprocess.from_json({"size": size, "fit": fit, "kernel": "triangle", "background": [255, 255, 255]})
    except BundleError as error:
        raise UsageError(
            f"Size {size!r} with fit {fit!r} is no preprocessing: give a side of 16 to 4096 pixels and crop, pad or "
            "stretch."
        ) from error


def check_input(network: Network, name: str, size: int) -> None:
    """Raise UsageError if the network cannot take images of that size, as a transformer made for another one cannot."""
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{name!r} does not take images of {size} x {size} pixels ({error}): choose another --size or --backbone, "
            f"or make it for them with --backbone-arg img_size={size}."
        ) from error


def init_rows(init: str) -> Rows:
    """What the initial weights have learned from, as far as their folder says."""
    return load_student(init).split if Path(init).is_dir() else ()


def learned(samples: Samples, *earlier: Rows) -> Rows:
    """The rows (image_id, sha256, split) of a model's split.csv: those of its own table, and the images that the
    models it comes from have learned from.
    """
    rows = tuple(zip(samples.image_ids, samples.digests, map(str, samples.split), strict=True))
    known = {digest for _, digest, split in rows if split in ("train", "val")}
    for row in (row for ancestor in earlier for row in ancestor):
        if row[2] in ("train", "val") and row[1] not in known:
            rows += (row,)
            known.add(row[1])
    return rows


def identity(backbone: Backbone) -> dict[str, Any]:
    """The backbone as settings that a run is known by; what it leaves open is left out."""
    return {name: value for name, value in to_json(backbone).items() if value is not None}


def choose_backbone(name: str | None, args: Mapping[str, Any], init: str, stages: int | None = None) -> Backbone:
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
        origin = load_student(path).backbone
        return replace(origin, name=name or origin.name, args={**origin.args, **args}, stages=stages or origin.stages)
    if path.is_file():
        return replace(backbone_of_file(path, asked), stages=stages)
    raise UsageError(
        f"--init {init!r} is neither 'none', 'hub', a safetensors file nor a model's folder: check the path."
    )


def hub_backbone(asked: Backbone) -> Backbone:
    """A backbone with the normalisation that timm's weights were trained with."""
    import timm

    config = timm.get_pretrained_cfg(asked.name)
    return replace(asked, mean=tuple(config.mean), std=tuple(config.std)) if config else asked


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
