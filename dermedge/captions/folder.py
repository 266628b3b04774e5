"""Write and read the folder of a captioner, and load it with its models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dermedge.captions.language_model import (
    LanguageModel,
    find_language_model,
    load_language_model,
)
from dermedge.captions.options import CaptionOptions
from dermedge.captions.prompt import make_prompt
from dermedge.models.folder_metadata import (
    SPLIT,
    WEIGHTS,
    SplitRows,
    format_split,
    parse_split,
    training_images,
)
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write, sha256_file
from dermedge_runtime.spec import to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dermedge.captions.model import Captioner
    from dermedge.models import TrainedModel

CAPTIONER = "captioner.json"
ADAPTER = "adapter.safetensors"
SCHEMA = "dermedge.captioner/1"
Generated: TypeAlias = tuple[str, int, bool]
"""A generated text, its number of tokens, and False if it was cut."""


@dataclass(frozen=True)
class CaptionModel:
    """A trained captioner on the disk, without its teacher and its language model.

    Attributes:
        folder: Folder with captioner.json and adapter.safetensors.
        teacher: Name, folder and digest of the weights of the teacher.
        language_model: Name, folder and digest of the weights of the language model.
        options: Options of the training.
        metrics: Losses per token on train and val.
        split: Rows (image_id, sha256, split) of the training table, and the images
            that the teacher was trained on.

    Example:
        >>> CaptionModel(Path("run"), {}, {}, CaptionOptions(), {}, ()).training_images
        ()
    """

    folder: Path
    teacher: Mapping[str, str]
    language_model: Mapping[str, str]
    options: CaptionOptions
    metrics: Mapping[str, Any]
    split: SplitRows

    @property
    def training_images(self) -> tuple[str, ...]:
        """sha256 of each image file that the captioner or its teacher learned from."""
        return training_images(self.split)


@dataclass(frozen=True, eq=False)
class LoadedCaptioner:
    """A captioner with its teacher and its language model, ready to run.

    Example:
        >>> from dermedge.data.draw import draw_data_set
        >>> from dermedge.captions.table import caption_data
        >>> from dermedge.captions.train import train_caption
        >>> _ = draw_data_set("drawn", count=24, size=(32, 32))
        >>> _ = caption_data("drawn", overwrite=True)
        >>> model = train_caption("teacher", "language-model", "drawn", "captioner")
        >>> captioner = load_captioner(model.folder)
        >>> captioner.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape
        (1, 1280)
    """

    model: CaptionModel
    teacher: "TrainedModel"
    captioner: "Captioner"
    tokenizer: "PreTrainedTokenizerBase"

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the teacher's features [N, D] of images [N, S, S, 3]."""
        import torch

        with torch.inference_mode():
            features = self.teacher.module.features(torch.from_numpy(images))
        return np.asarray(features.float().numpy())

    def generate(
        self, features: NDArray[np.float32], max_tokens: int | None = None
    ) -> list[Generated]:
        """Return a caption per image.

        Args:
            features: Features [N, D] of the images.
            max_tokens: Largest number of tokens; by default that of the training.
        """
        import torch

        device = self.captioner.projection.weight.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.model.options.bf16):
            found = self.captioner.generate(
                torch.from_numpy(features).to(device), max_tokens or self.model.options.max_tokens
            )
        end = self.captioner.prompt.end
        return [
            (self.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids), end in ids)
            for ids in found
        ]


def describe_teacher(folder: Path, teacher: "TrainedModel", weights: str) -> dict[str, str]:
    """Return the entry of a teacher in captioner.json."""
    return {"name": teacher.spec.name, "folder": str(folder.resolve()), "weights": weights}


def describe_language_model(model: LanguageModel, given: str | Path) -> dict[str, str]:
    """Return the entry of a language model in captioner.json.

    Args:
        model: The language model.
        given: Its folder, file or name on the hub, as the user gave it.
    """
    path = Path(given)
    return {
        "name": model.name,
        "folder": str(path.resolve()) if path.exists() else str(given),
        "weights": model.digest,
    }


def save_captioner(model: CaptionModel, trained: Mapping[str, Any]) -> None:
    """Write the adapter, the split and captioner.json, each atomically.

    captioner.json is written last, because a folder without it is no captioner.
    """
    from safetensors.torch import save

    atomic_write(model.folder / ADAPTER, save(dict(trained)))
    atomic_write(model.folder / SPLIT, format_split(model.split).encode())
    data = {
        "schema": SCHEMA,
        "teacher": dict(model.teacher),
        "language_model": dict(model.language_model),
        "options": asdict(model.options),
        "metrics": to_json(model.metrics),
    }
    atomic_write(model.folder / CAPTIONER, pretty_json(data))


def read_captioner(folder: Path | str) -> CaptionModel:
    """Read the folder of a captioner. No weights are loaded.

    Raises:
        DataError: The folder holds no captioner, or a damaged one.
    """
    folder = Path(folder)
    path = folder / CAPTIONER
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {CAPTIONER}. Give the folder that `dermedge caption train` wrote."
        )
    data = read_json(path, DataError)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}, but this version of dermedge reads {SCHEMA!r}. "
            "Upgrade dermedge, or train again."
        )
    try:
        return CaptionModel(
            folder,
            data["teacher"],
            data["language_model"],
            CaptionOptions(**data["options"]),
            data["metrics"],
            parse_split((folder / SPLIT).read_text("utf-8")),
        )
    except (KeyError, TypeError, ValueError, OSError, DermedgeError) as error:
        raise DataError(
            f"{folder} is damaged ({error}). Train again, or restore it from a copy."
        ) from error


def load_captioner(
    folder: Path | str, *, teacher: Path | str | None = None, lm: Path | str | None = None
) -> LoadedCaptioner:
    """Load a captioner with its teacher and its language model.

    Args:
        folder: Folder of the captioner.
        teacher: Folder of its teacher; by default where it was in training.
        lm: Its language model; by default where it was in training.

    Raises:
        DataError: A part is missing, or is not the one of the training.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from dermedge.captions.model import Captioner
    from dermedge.models.model_folder import load_model_folder

    model = read_captioner(folder)
    encoder = Path(teacher or model.teacher["folder"])
    _check_part("teacher", encoder, model.teacher["name"], encoder.is_dir())
    loaded = load_model_folder(encoder)
    _check_digest("teacher", encoder, sha256_file(encoder / WEIGHTS), model.teacher["weights"])
    name = str(lm or model.language_model["folder"])
    files = find_language_model(name)
    _check_digest("language model", name, files.digest, model.language_model["weights"])
    language, tokenizer = load_language_model(files, bf16=model.options.bf16)
    captioner = Captioner(
        language, loaded.module.backbone.num_features_out, make_prompt(tokenizer), model.options
    )
    try:
        captioner.load_trained(load_file(model.folder / ADAPTER))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{model.folder / ADAPTER} cannot be read ({error}). Train again, or restore it from a "
            "copy."
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedCaptioner(model, loaded, captioner.eval().to(device), tokenizer)


def _check_part(part: str, where: Path, name: str, there: bool) -> None:
    if not there:
        raise DataError(f"The {part} {name} is no longer at {where}. Give its folder (--{part}).")


def _check_digest(part: str, where: object, found: str, wanted: str) -> None:
    """Check that a part is the one that the captioner was trained with."""
    if found != wanted:
        option = "--teacher" if part == "teacher" else "--lm"
        raise DataError(
            f"{where} is another {part} than in training (sha256 {found[:12]}, not {wanted[:12]}). "
            f"Give the same one ({option})."
        )
