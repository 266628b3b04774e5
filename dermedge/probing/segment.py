"""Train segmentation decoders on a frozen backbone's feature maps, and test them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class UPerNetSettings:
    """Settings of UPerNet that differ between implementations.

    Attributes:
        channels: Channels of each level.
        dropout: Share of channels that are dropped before the classifier.
        normalised: Apply the backbone's last norm to the maps of a transformer.
        pyramid: Scale the maps of a plain vision transformer to a pyramid. False keeps
            its one grid.

    Examples:
        >>> UPerNetSettings().channels
        128
    """

    channels: int = 128
    dropout: float = 0.1
    normalised: bool = False
    pyramid: bool = True


UPERNET = UPerNetSettings()
SEGMENT_RECIPE = LinearRecipe(epochs=20, batch_size=64, lr=1e-3)
CLASSES = 2
# Memory for feature maps. Maps that do not fit are computed again in every epoch.
MAPS_BYTES = 2 << 30
LARGEST_HALF = 65504.0
REMEDY = "Lower --lr, and probe again."
RowIndices = NDArray[np.intp]


class FeatureMaps:
    """Feature maps of a frozen network, for the images of a table.

    Maps are kept in memory up to `room` bytes. Those of other images are computed again
    for each batch.

    Args:
        teacher: The model; its own preprocessing is used.
        levels: Stages of the backbone whose maps are returned besides the last one.
        table: The images.
        normalised: Apply the backbone's last norm to the maps of its stages.
        room: Bytes of memory for maps.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> from dermedge.models import load_model_folder
        >>> maps = FeatureMaps(load_model_folder("teacher"), (), read_table("lesions"))
        >>> (last,) = next(maps.batches([np.array([0, 1])]))
        >>> len(last)
        2
    """

    def __init__(
        self,
        teacher: "TrainedModel",
        levels: Sequence[int],
        table: Table,
        *,
        normalised: bool = False,
        room: int = MAPS_BYTES,
    ) -> None:
        from dermedge.train.views import Frames

        self.network, self.levels, self.normalised = teacher.module, levels, normalised
        self.frames = Frames(
            [table.path(image) for image in table.frame["image"]], teacher.spec.preprocess
        )
        self._kept: dict[int, list[Tensor]] = {}
        self._room = room

    def batches(self, batches: Sequence[RowIndices]) -> "Iterator[list[Tensor]]":
        """Yield the maps of each batch of rows, float32 [n, C, h, w].

        Each list holds the maps of the levels, then the last map. All maps are rounded
        to half precision, kept or not, so that the amount of memory changes the time
        but not the result.
        """
        import torch

        for rows, (new, images) in zip(batches, prefetch(self._load_new, batches), strict=True):
            fresh: dict[int, list[Tensor]] = {}
            if images is not None:
                maps = self._compute_maps(torch.from_numpy(images))
                fresh = {row: [level[k] for level in maps] for k, row in enumerate(new)}
                self._keep(fresh)
            each = [fresh[row] if row in fresh else self._kept[row] for row in map(int, rows)]
            yield [torch.stack(level).float() for level in zip(*each, strict=True)]

    def _load_new(self, rows: RowIndices) -> tuple[list[int], NDArray[np.uint8] | None]:
        """Return the rows without kept maps, and their pixels uint8 [n, S, S, 3]."""
        new = [int(row) for row in rows if int(row) not in self._kept]
        return new, np.stack([self.frames.centred(row) for row in new]) if new else None

    def _compute_maps(self, images: "Tensor") -> "list[Tensor]":
        import torch

        from dermedge.models.decoders import frozen_maps

        device = next(self.network.parameters()).device
        with torch.inference_mode():
            maps = frozen_maps(
                self.network, images.to(device), self.levels, normalised=self.normalised
            )
            # Activations beyond the range of float16 would become infinite.
            return [level.float().clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu() for level in maps]

    def _keep(self, fresh: "Mapping[int, list[Tensor]]") -> None:
        for row, levels in fresh.items():
            size = sum(level.numel() * level.element_size() for level in levels)
            if self._room >= size:
                # A clone, because a view of one image would keep the maps of its whole
                # batch.
                self._kept[row] = [level.clone() for level in levels]
                self._room -= size


def read_masks(table: Table, spec: Preprocess) -> NDArray[np.bool_]:
    """Read every mask of a table [N, S, S], cropped and resized like its image.

    A pixel is True inside the lesion.

    Raises:
        DataError: A mask is missing or unreadable.

    Examples:
        >>> from dermedge import Preprocess
        >>> from dermedge.data.table import read_table
        >>> read_masks(read_table("lesions"), Preprocess(32)).shape
        (80, 32, 32)
    """
    pairs = zip(table.frame["mask"], table.frame["image"], strict=True)
    return np.stack([read_mask(table.path(mask), spec, table.path(image)) for mask, image in pairs])


def make_decoders(
    teacher: "TrainedModel",
    heads: Sequence[str],
    seed: int,
    *,
    upernet: UPerNetSettings = UPERNET,
) -> "tuple[dict[str, nn.Module], tuple[int, ...]]":
    """Make untrained decoders for a backbone.

    Args:
        teacher: The model with the backbone.
        heads: `linear`, `upernet` or both.
        seed: Random seed for the initialization of each decoder.
        upernet: Settings of UPerNet.

    Returns:
        The decoders by name, and the stages of the backbone that they read.

    Raises:
        UsageError: The backbone has no feature map, or not those that UPerNet reads.

    Examples:
        >>> from dermedge.models import load_model_folder
        >>> teacher = load_model_folder("teacher")
        >>> decoders, levels = make_decoders(teacher, ("linear",), seed=0)
        >>> list(decoders), levels
        (['linear'], ())
    """
    import torch

    from dermedge.models.decoders import LinearDecoder, UPerNet, decoder_levels, frozen_maps

    network, size = teacher.module.eval(), teacher.spec.preprocess.size
    levels, scales = (
        decoder_levels(network, teacher.backbone.stages) if "upernet" in heads else ((), ())
    )
    device = next(network.parameters()).device
    with torch.inference_mode():
        # The spec does not state the widths of the maps, so one black image is run.
        maps = frozen_maps(
            network,
            torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device),
            levels,
        )
    widths = [level.shape[1] for level in maps]
    decoders: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for head in heads:
            torch.manual_seed(seed)
            decoder = (
                LinearDecoder(widths[-1], CLASSES)
                if head == "linear"
                else UPerNet(
                    widths[:-1],
                    CLASSES,
                    scales=scales if upernet.pyramid else (),
                    channels=upernet.channels,
                    dropout=upernet.dropout,
                )
            )
            decoders[head] = decoder.to(device)
    return decoders, levels


def fit_decoders(
    decoders: "Mapping[str, nn.Module]",
    maps: FeatureMaps,
    masks: NDArray[np.bool_],
    *,
    recipe: LinearRecipe = SEGMENT_RECIPE,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train decoders in place, all on the same batches, by Adam.

    The loss is the cross entropy of their logits, enlarged to the size of the mask.

    Args:
        decoders: Decoders by name. `linear` reads the last of the maps, `upernet` the
            levels before it.
        maps: Feature maps of N images.
        masks: Masks [N, S, S].
        recipe: Length and learning rate. Batches have equal size, as near as possible.
        seed: Random seed for shuffling and dropout.
        progress: Called after every batch.

    Raises:
        DataError: A weight of a decoder is not finite after an epoch.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> from dermedge.models import load_model_folder
        >>> teacher, table = load_model_folder("teacher"), read_table("lesions")
        >>> decoders, levels = make_decoders(teacher, ("linear",), seed=0)
        >>> maps = FeatureMaps(teacher, levels, table)
        >>> masks = read_masks(table, teacher.spec.preprocess)
        >>> fit_decoders(decoders, maps, masks, recipe=LinearRecipe(1, 16, 1e-3))
        >>> count_pixels(decoders, maps, masks)["linear"].shape
        (80, 2, 2)
    """
    import torch
    import torch.nn.functional as F

    from dermedge.train.finite import check_weights

    batches = max(1, round(len(masks) / recipe.batch_size))
    optimizers = {
        name: torch.optim.Adam(decoder.parameters(), lr=recipe.lr)
        for name, decoder in decoders.items()
    }
    targets = torch.from_numpy(masks)
    with torch.random.fork_rng(devices=[]):
        for epoch in range(recipe.epochs):
            # The order depends on seed and epoch alone, so it is the same for one
            # decoder and for several.
            order = np.random.default_rng((seed, epoch)).permutation(len(masks))
            parts = np.array_split(order, batches)
            for step, (rows, levels) in enumerate(
                zip(parts, maps.batches(parts), strict=True), epoch * batches + 1
            ):
                for name, decoder in decoders.items():
                    # Dropout of one decoder must not depend on which others are
                    # trained.
                    torch.manual_seed(seed * 100_003 + step)
                    decoder.train()
                    logits = _predict_logits(name, decoder, levels, masks.shape[1])
                    loss = F.cross_entropy(logits, targets[rows].long().to(logits.device))
                    for group in optimizers[name].param_groups:
                        group["lr"] = recipe.lr * recipe.rate(step - 1)
                    optimizers[name].zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizers[name].step()
                if progress is not None:
                    progress(step, recipe.epochs * batches, f"epoch {epoch + 1}/{recipe.epochs}")
            for name, decoder in decoders.items():
                check_weights(decoder, f"epoch {epoch + 1} of the decoder {name}", REMEDY)


def count_pixels(
    decoders: "Mapping[str, nn.Module]",
    maps: FeatureMaps,
    masks: NDArray[np.bool_],
    *,
    batch: int = SEGMENT_RECIPE.batch_size,
) -> dict[str, NDArray[np.int64]]:
    """Count the pixels in the intersection and in the union of mask and prediction.

    Args:
        decoders: Trained decoders by name.
        maps: Feature maps of N images.
        masks: Masks [N, S, S].
        batch: Images per batch.

    Returns:
        Pixels [N, 2, 2] of background and lesion, in intersection and union, by
        decoder.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> from dermedge.models import load_model_folder
        >>> teacher, table = load_model_folder("teacher"), read_table("lesions")
        >>> decoders, levels = make_decoders(teacher, ("linear",), seed=0)
        >>> masks = read_masks(table, teacher.spec.preprocess)
        >>> counts = count_pixels(decoders, FeatureMaps(teacher, levels, table), masks)
        >>> counts["linear"].shape
        (80, 2, 2)
    """
    import torch

    parts = np.array_split(np.arange(len(masks)), -(-len(masks) // batch))
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in decoders}
    with torch.inference_mode():
        for rows, levels in zip(parts, maps.batches(parts), strict=True):
            for name, decoder in decoders.items():
                logits = _predict_logits(name, decoder.eval(), levels, masks.shape[1])
                # With two classes, the more probable class is the one with the larger
                # logit.
                inside = (logits[:, 1] > logits[:, 0]).cpu().numpy()
                counts[name].append(_count_overlap(masks[rows], inside))
    return {name: np.concatenate(part) for name, part in counts.items()}


def _count_overlap(masks: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
    classes = [
        [(truth & guess).sum(axis=(1, 2)), (truth | guess).sum(axis=(1, 2))]
        for truth, guess in ((~masks, ~predicted), (masks, predicted))
    ]
    return np.moveaxis(np.array(classes, np.int64), 2, 0)


def _predict_logits(name: str, decoder: "nn.Module", levels: "list[Tensor]", side: int) -> "Tensor":
    """Return a decoder's logits [n, K, S, S], enlarged to the side of the mask."""
    import torch.nn.functional as F

    device = next(decoder.parameters()).device
    chosen = levels[-1:] if name == "linear" else levels[:-1]
    logits = decoder([level.to(device) for level in chosen])
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
