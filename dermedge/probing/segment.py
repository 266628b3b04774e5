"""Segmentation on a frozen backbone: its feature maps, and the decoders that are trained on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermedge.data.masks import read_mask
from dermedge.data.table import Table
from dermedge.probing.linear import LinearRecipe
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dermedge.models import TrainedModel

HEADS = ("linear", "upernet")
SEGMENT = LinearRecipe(epochs=20, batch_size=64, lr=1e-3)
CLASSES = 2
MAPS_BYTES = 2 << 30
LARGEST_HALF = 65504.0
Rows = NDArray[np.intp]


class Maps:
    """A frozen network's feature maps of a table's images, each computed once as long as they fit into memory."""

    def __init__(
        self,
        teacher: "TrainedModel",
        levels: Sequence[int],
        table: Table,
        *,
        room: int = MAPS_BYTES,
    ) -> None:
        from dermedge.train.samples import Frames

        self.network, self.levels = teacher.module, levels
        self.frames = Frames(
            [table.path(image) for image in table.frame["image"]], teacher.spec.preprocess
        )
        self._kept: dict[int, list[Tensor]] = {}
        self._room = room

    def of(self, batches: Sequence[Rows]) -> "Iterator[list[Tensor]]":
        """For each batch of rows its maps, float32 [n, C, h, w]: of the levels, then the last one.

        They are rounded to half precision whether they are kept or not, so that memory decides nothing but the time.
        """
        import torch

        for rows, (new, images) in zip(batches, prefetch(self._images, batches), strict=True):
            fresh: dict[int, list[Tensor]] = {}
            if len(new):
                found = self._forward(torch.from_numpy(images))
                fresh = {row: [level[k] for level in found] for k, row in enumerate(new)}
                self._keep(fresh)
            each = [fresh[row] if row in fresh else self._kept[row] for row in map(int, rows)]
            yield [torch.stack(level).float() for level in zip(*each, strict=True)]

    def _images(self, rows: Rows) -> tuple[list[int], Any]:
        """The rows that are not kept, and their pixels, uint8 [n, S, S, 3]."""
        new = [int(row) for row in rows if int(row) not in self._kept]
        return new, np.stack([self.frames.centred(row) for row in new]) if new else None

    def _forward(self, images: "Tensor") -> "list[Tensor]":
        import torch

        from dermedge.models.decoders import frozen_maps

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            found = frozen_maps(self.network, images.to(device), self.levels)
            return [
                level.float().clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu() for level in found
            ]

    def _keep(self, fresh: "Mapping[int, list[Tensor]]") -> None:
        for row, levels in fresh.items():
            size = sum(level.numel() * level.element_size() for level in levels)
            if self._room >= size:
                self._kept[row] = [level.clone() for level in levels]
                self._room -= size


def read_masks(table: Table, spec: Preprocess) -> NDArray[np.bool_]:
    """Every mask of a table [N, S, S], cut and resized as its image is; True inside the lesion.

    Raises:
        DataError: a mask is missing or unreadable.
    """
    return np.stack([read_mask(table.path(mask), spec) for mask in table.frame["mask"]])


def make_decoders(
    teacher: "TrainedModel", heads: Sequence[str], seed: int
) -> "tuple[dict[str, nn.Module], tuple[int, ...]]":
    """New decoders by name, and the stages of the backbone that they read.

    Raises:
        UsageError: the backbone has no feature map, or not those that UPerNet reads.
    """
    import torch

    from dermedge.models.decoders import LinearDecoder, UPerNet, decoder_levels, frozen_maps

    network, size = teacher.module.eval(), teacher.spec.preprocess.size
    levels, scales = (
        decoder_levels(network, teacher.backbone.stages) if "upernet" in heads else ((), ())
    )
    device = next(network.parameters()).device
    with torch.inference_mode():
        maps = frozen_maps(
            network, torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device), levels
        )
    widths = [level.shape[1] for level in maps]
    made: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for head in heads:
            torch.manual_seed(seed)
            linear = head == "linear"
            decoder = (
                LinearDecoder(widths[-1], CLASSES)
                if linear
                else UPerNet(widths[:-1], CLASSES, scales=scales)
            )
            made[head] = decoder.to(device)
    return made, levels


def fit_decoders(
    decoders: "Mapping[str, nn.Module]",
    maps: Maps,
    masks: NDArray[np.bool_],
    *,
    recipe: LinearRecipe = SEGMENT,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train decoders in place, side by side on the same batches: cross entropy of their logits, enlarged to the mask's
    size, by Adam at a constant rate.

    Args:
        decoders: by name; `linear` reads the last of the maps, `upernet` the levels before it.
        maps: of N images.
        masks: [N, S, S].
        recipe: length and speed; batches are of equal size, as near as can be.
        seed: of the order and of dropout.
        progress: told after every batch.
    """
    import torch
    import torch.nn.functional as F

    batches = max(1, round(len(masks) / recipe.batch_size))
    optimizers = {
        name: torch.optim.Adam(decoder.parameters(), lr=recipe.lr)
        for name, decoder in decoders.items()
    }
    targets = torch.from_numpy(masks)
    with torch.random.fork_rng(devices=[]):
        for epoch in range(recipe.epochs):
            order = np.random.default_rng((seed, epoch)).permutation(len(masks))
            parts = np.array_split(order, batches)
            for step, (rows, found) in enumerate(
                zip(parts, maps.of(parts), strict=True), epoch * batches + 1
            ):
                for name, decoder in decoders.items():
                    torch.manual_seed(
                        seed * 100_003 + step
                    )  # so that no decoder depends on the others
                    decoder.train()
                    logits = _enlarged(name, decoder, found, masks.shape[1])
                    loss = F.cross_entropy(logits, targets[rows].long().to(logits.device))
                    optimizers[name].zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizers[name].step()
                if progress is not None:
                    progress(step, recipe.epochs * batches, f"epoch {epoch + 1}/{recipe.epochs}")


def count_pixels(
    decoders: "Mapping[str, nn.Module]",
    maps: Maps,
    masks: NDArray[np.bool_],
    *,
    batch: int = SEGMENT.batch_size,
) -> dict[str, NDArray[np.int64]]:
    """By decoder, pixels [N, 2, 2] of background and lesion, in the intersection and the union of mask and guess."""
    import torch

    parts = np.array_split(np.arange(len(masks)), -(-len(masks) // batch))
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in decoders}
    with torch.inference_mode():
        for rows, found in zip(parts, maps.of(parts), strict=True):
            for name, decoder in decoders.items():
                logits = _enlarged(name, decoder.eval(), found, masks.shape[1])
                inside = (logits[:, 1] > logits[:, 0]).cpu().numpy()
                counts[name].append(_overlap(masks[rows], inside))
    return {name: np.concatenate(part) for name, part in counts.items()}


def _overlap(masks: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
    classes = [
        [(truth & guess).sum(axis=(1, 2)), (truth | guess).sum(axis=(1, 2))]
        for truth, guess in ((~masks, ~predicted), (masks, predicted))
    ]
    return np.moveaxis(np.array(classes, np.int64), 2, 0)


def _enlarged(name: str, decoder: "nn.Module", maps: "list[Tensor]", side: int) -> "Tensor":
    """A decoder's logits [n, K, S, S]."""
    import torch.nn.functional as F

    device = next(decoder.parameters()).device
    chosen = maps[-1:] if name == "linear" else maps[:-1]
    logits = decoder([level.to(device) for level in chosen])
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
