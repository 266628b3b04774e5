"""Load and save a trained model as a folder of JSON, weights and split table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dermedge.models.backbone import Backbone
from dermedge.models.folder_metadata import (
    WEIGHTS,
    ModelMetadata,
    Role,
    SplitRows,
    damaged_folder,
    read_metadata,
    training_images,
    write_metadata,
)
from dermedge.models.network import Network
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.spec import Spec


@dataclass(frozen=True)
class TrainedModel:
    """A network with its spec: a teacher or a student, depending on `role`.

    Attributes:
        module: The network.
        spec: Tasks, preprocessing, intended use and lineage.
        backbone: The timm model inside the network.
        role: `teacher` or `student`. It names the JSON file of the model folder.
        metrics: Metrics on val, and the number of parameters.
        split: Rows (image_id, sha256, split) of the training table, test rows included.

    Example:
        >>> model = load_model_folder("student")
        >>> [task.name for task in model.spec.tasks]
        ['diagnosis', 'malignancy']
        >>> len(model.training_images) > 0
        True
    """

    module: Network
    spec: Spec
    backbone: Backbone
    role: Role = "student"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    split: SplitRows = ()

    @property
    def training_images(self) -> tuple[str, ...]:
        """sha256 of each image file that influenced the weights, val included."""
        return training_images(self.split)


def save_model_folder(model: TrainedModel, folder: Path) -> None:
    """Write a model into `folder`, each file atomically.

    The JSON file is written last, because a folder without it is not a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.module.state_dict().items()
    }
    atomic_write(folder / WEIGHTS, save(weights))
    metadata = ModelMetadata(
        model.spec,
        model.backbone,
        model.role,
        model.metrics,
        model.split,
        model.module.embedding_width,
    )
    write_metadata(metadata, folder)


def load_model_folder(folder: Path | str) -> TrainedModel:
    """Read a model folder and build its network, in eval mode on the CPU.

    Args:
        folder: A folder that a training command or `teacher import` wrote.

    Raises:
        DataError: The folder holds no model, or its files do not fit each other.

    Example:
        >>> load_model_folder("student").backbone.name
        'test_efficientnet'
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    try:
        # A missing or surplus tensor means that the files are not of one model.
        network = Network(metadata.backbone, metadata.spec.tasks, metadata.embedding_width)
        network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (TypeError, ValueError, RuntimeError, OSError, SafetensorError, DermedgeError) as error:
        raise damaged_folder(folder, error) from error
    return TrainedModel(
        network.eval(),
        metadata.spec,
        metadata.backbone,
        metadata.role,
        metadata.metrics,
        metadata.split,
    )
