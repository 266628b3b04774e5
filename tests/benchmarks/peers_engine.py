"""Define the inputs and the timing of all contenders of the peers' benchmark.

The worker in ExecuTorch's environment imports this module too, so it needs numpy and Pillow
only.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from PIL import Image

CONTRACT = "contract.json"
SPLITS = ("val", "test")
# `cpu` is the processor time of all threads of the process. On a busy machine it depends less
# on other programs than `wall`, but it shows no gain of a second thread.
CLOCKS = {"wall": perf_counter, "cpu": process_time}
# The engine alone; then a 600 x 450 JPEG and a 12 MP JPEG, from bytes to outputs.
TIMED_CALLS = ("engine", "small", "large")


@dataclass(frozen=True)
class Contract:
    """A student's input and outputs for use without dermedge; `weights` is a SHA-256."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tasks: tuple[str, ...]
    weights: str


class Inputs:
    """A folder with the preprocessed images of each split, two photographs and the contract."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contract = Contract(**json.loads((folder / CONTRACT).read_text()))

    @classmethod
    def write(
        cls, folder: Path, contract: Contract, images: dict[str, Any], photographs: dict[str, bytes]
    ) -> "Inputs":
        """Write the folder; the contract comes last, so a folder without it is incomplete."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in images.items():
            np.save(folder / f"{name}.npy", pixels)
        for name, data in photographs.items():
            (folder / f"{name}.jpg").write_bytes(data)
        (folder / CONTRACT).write_text(json.dumps(asdict(contract)))
        return cls(folder)

    def images(self, split: str) -> Any:
        """Return the images of a split, uint8 [N, S, S, 3]."""
        return np.load(self.folder / f"{split}.npy", mmap_mode="r")

    def calibration(self) -> list[Any]:
        """Return the calibration images, float32 [1, 3, S, S] each."""
        return [self.normalised(image[None]) for image in self.images("calibration")]

    def photograph(self, name: str) -> bytes:
        return (self.folder / f"{name}.jpg").read_bytes()

    def normalised(self, images: Any) -> Any:
        """Normalise uint8 [N, S, S, 3] to float32 [N, 3, S, S], the input of a peer's network."""
        mean, std = (
            np.asarray(values, np.float32) for values in (self.contract.mean, self.contract.std)
        )
        pixels = (np.asarray(images, np.float32) / 255 - mean) / std
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def decoded(self, data: bytes) -> Any:
        """Decode with Pillow, cut the centre square, resize bilinearly to uint8 [S, S, 3]."""
        with Image.open(io.BytesIO(data)) as image:
            rgb = image.convert("RGB")
        side = min(rgb.size)
        left, top = ((length - side) // 2 for length in rgb.size)
        square = rgb.crop((left, top, left + side, top + side))
        size = self.contract.size
        return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


class Opened:
    """A contender that is ready to run, one image at a time.

    `prepare` turns uint8 [1, S, S, 3] into the input of `infer`, the bare engine call, which
    returns one array [1, ...] per task. `predict` takes encoded bytes. By default it is the
    usual user code: decode with Pillow, normalise, infer.
    """

    def __init__(
        self,
        inputs: Inputs,
        infer: Callable[[Any], Sequence[Any]],
        *,
        prepare: Callable[[Any], Any] | None = None,
        predict: Callable[[bytes], object] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.inputs, self.infer, self.close = inputs, infer, close
        self.prepare = prepare or inputs.normalised
        decode_and_infer = predict or (
            lambda data: infer(inputs.normalised(inputs.decoded(data)[None]))
        )
        prepared = self.prepare(np.array(inputs.images("test")[:1]))
        small, large = (inputs.photograph(name) for name in ("small", "large"))
        self._calls: dict[str, Callable[[], object]] = {
            "engine": lambda: infer(prepared),
            "small": lambda: decode_and_infer(small),
            "large": lambda: decode_and_infer(large),
        }

    def outputs(self, split: str) -> dict[str, Any]:
        """Return the outputs for a split, float32 [N, ...] by task."""
        images = self.inputs.images(split)
        rows = [
            [
                np.array(output, np.float32)
                for output in self.infer(self.prepare(np.array(images[index : index + 1])))
            ]
            for index in range(len(images))
        ]
        columns = zip(*rows, strict=True)
        return {
            name: np.concatenate(column)
            for name, column in zip(self.inputs.contract.tasks, columns, strict=True)
        }

    def times(self, call_name: str, count: int, clock: str = "wall") -> list[float]:
        """Return the milliseconds of each of `count` calls, by one of `CLOCKS`."""
        call, now, taken = self._calls[call_name], CLOCKS[clock], []
        for _ in range(count):
            start = now()
            call()
            taken.append((now() - start) * 1000)
        return taken
