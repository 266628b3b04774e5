"""One model of a teacher: its network, its weights' digest and its temperatures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dermedge.models.folder_metadata import WEIGHTS
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import LAST_MAP, POOLED
from dermedge.train.teacher_outputs import Array
from dermedge_runtime.files import sha256_file
from dermedge_runtime.spec import Task

BATCH = 64


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a teacher.

    Attributes:
        model: The model.
        folder: Its folder.
        digest: SHA-256 of its weights file.
        temperatures: Temperature by task; tasks that are left out have 1.

    Example:
        >>> load_member(Path("teacher")).size
        32
    """

    model: TrainedModel
    folder: Path
    digest: str
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of the network's input in pixels."""
        return self.model.spec.preprocess.size

    def temperature(self, task: Task) -> float:
        """Return the temperature of a task."""
        return self.temperatures.get(task.name, 1.0)

    @torch.no_grad()
    def run(self, pixels: NDArray[np.uint8], *, maps: bool = False) -> dict[str, Array]:
        """Run the model on the accelerator, if there is one.

        Args:
            pixels: Images, uint8 [N, S, S, 3]. Another side than the model's is resized.
            maps: Return the feature map too.

        Returns:
            Float32 arrays: logits [N, ...] by task, `POOLED` features [N, D], and
            `LAST_MAP` [N, C, h, w].
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.model.module.eval().to(device)
        extra = (POOLED, LAST_MAP) if maps else (POOLED,)
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(pixels), BATCH):
            images = resize_pixels(pixels[start : start + BATCH], self.size)
            outputs = network(torch.from_numpy(images).to(device), extra)
            parts.append(outputs)
        return {
            name: torch.cat([part[name].float().cpu() for part in parts]).numpy()
            for name in parts[0]
        }


def load_member(folder: Path) -> Member:
    """Return the model of a model folder, without temperatures.

    Raises:
        DataError: The folder holds no model, or is damaged.
    """
    return Member(load_model_folder(folder), folder, sha256_file(folder / WEIGHTS))


def resize_pixels(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize square images uint8 [N, S, S, 3] to another side, with antialiasing.

    Example:
        >>> resize_pixels(np.zeros((2, 64, 64, 3), np.uint8), 32).shape
        (2, 32, 32, 3)
    """
    if pixels.shape[1] == size:
        return pixels
    bilinear = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), bilinear)) for one in pixels]
    )
