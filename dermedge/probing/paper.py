"""Probe as the released code of DermINO does, so that numbers can be compared.

docs/protocols.md lists every setting, and where it differs from the released code.

Source: DermINO (arXiv:2508.12190) and its released code.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.table import Table
from dermedge.probing import knn
from dermedge.probing.features import Features
from dermedge.probing.linear import (
    BASE_BATCH,
    FittedClassifier,
    LinearRecipe,
    Probabilities,
    compute_loss,
    fitted_classifier,
    make_layer,
)
from dermedge.probing.segment import SEGMENT_RECIPE, UPerNetSettings
from dermedge.probing.task import ProbeTask
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dermedge.models import TrainedModel
    from dermedge.train.views import Frames

RowIndices = NDArray[np.intp]

# The released test transform resizes the short side to 256 and cuts out 224 x 224.
RESIZE = 256 / 224
PAPER_FIT = {"fit": "short side to 256/224 of the size, then centre crop", "kernel": "bicubic"}
# Random crops are cut from images whose short side is at most twice the network's input.
MARGIN = 2.0
EVALUATION_BATCH = 64
# Neighbours of the released script with weighted votes, and of the one with equal votes.
WEIGHTED_NEIGHBOURS, UNIFORM_NEIGHBOURS = (5, 10, 15), 5

# Iterations per epoch of the released scripts.
RELEASED_ITERATIONS: Mapping[str, float] = {
    "acne04": 12,
    "ddi": 6,
    "derm7pt": 15,
    "fitzpatrick17k, 2 classes": 35,
    "fitzpatrick17k, 3 classes": 130,
    "fitzpatrick17k, 9 classes": 130,
    "ph2": 2,
    "med_node": 0.1,
}
# Passes over the train split per epoch, for other sets. The released scripts make 2.5 to
# 3, as far as the sizes of their sets are known.
PASSES = 2.5

PAPER_UPERNET = UPerNetSettings(channels=768, dropout=0.0, normalised=True, pyramid=False)
DECODER_SEEDS: Mapping[str, int] = {"linear": 42, "upernet": 0}
# The released loop steps a cosine of 20 epochs once per batch, so the rate falls to 0 and
# rises again every 40 batches.
PAPER_SEGMENT_RECIPE = replace(SEGMENT_RECIPE, half_period=20)


def count_iterations(task: ProbeTask, recipe: LinearRecipe) -> int:
    """Return the number of iterations of the linear probe.

    It is that of the released script, if all rows are from one of its sets, and
    otherwise 2.5 passes over the train split per epoch.

    Example:
        >>> from dermedge import Bundle
        >>> from dermedge.data.split import with_split
        >>> from dermedge.data.table import read_table
        >>> from dermedge.probing.linear import LINEAR_RECIPE
        >>> from dermedge.probing.task import make_probe_task
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> task = make_probe_task("malignancy", with_split(read_table("lesions")), spec)
        >>> count_iterations(task, LINEAR_RECIPE)
        50
    """
    source = "/".join(sorted(set(task.table.frame["source"])))
    names = (source, f"{source}, {len(task.classes)} classes")
    released = [RELEASED_ITERATIONS[name] for name in names if name in RELEASED_ITERATIONS]
    own = ceil(PASSES * len(task.select("train")) / recipe.batch_size)
    return max(1, round(recipe.epochs * (released[0] if released else own)))


def classify_as_released(
    teacher: "TrainedModel",
    task: ProbeTask,
    recipe: LinearRecipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Probabilities]:
    """Fit the linear probe and the nearest neighbours on train, and classify test.

    - `linear`: a linear layer on features of random crops. Adam, rate 5e-3 x batch /
      256, a cosine to 0, 50 epochs of `count_iterations`; the last weights are used.
    - `knn-5`, `knn-10`, `knn-15`: the nearest train images by cosine similarity s vote
      with exp(s / 0.07).
    - `knn-5-uniform`: the five nearest train images have equal votes.

    Returns:
        Probabilities [N, K] of the N test images, by classifier.

    Raises:
        DataError: An image cannot be read.
    """
    train, test, classes = task.select("train"), task.select("test"), len(task.classes)
    gallery, queries = _extract(teacher, train.table), _extract(teacher, test.table)
    linear = _fit_augmented(teacher, task, recipe, gallery.shape[1], seed, progress)

    def vote(neighbours: int, temperature: float | None) -> Probabilities:
        return knn.vote(
            gallery,
            train.labels,
            queries,
            classes,
            neighbours=neighbours,
            temperature=temperature,
        )

    return {
        "linear": linear(queries),
        **{f"knn-{k}": vote(k, knn.TEMPERATURE) for k in WEIGHTED_NEIGHBOURS},
        f"knn-{UNIFORM_NEIGHBOURS}-uniform": vote(UNIFORM_NEIGHBOURS, None),
    }


def _fit_augmented(
    teacher: "TrainedModel",
    task: ProbeTask,
    recipe: LinearRecipe,
    width: int,
    seed: int,
    progress: Progress | None,
) -> FittedClassifier:
    """Fit a linear layer to the frozen features of random crops."""
    import torch

    train, size = task.select("train"), teacher.spec.preprocess.size
    network, device = teacher.module.eval(), next(teacher.module.parameters()).device
    frames, transform = _frames(teacher, train.table), _random_crop(size)
    iterations = count_iterations(task, recipe)
    targets = torch.from_numpy(train.labels)

    def crops(step: tuple[int, RowIndices]) -> "tuple[RowIndices, Tensor]":
        number, rows = step
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 100_003 + number)
            images = [np.asarray(transform(Image.fromarray(frames[int(row)]))) for row in rows]
        return rows, torch.from_numpy(np.stack(images))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make_layer(task.kind, width, len(task.classes))
    optimizer = torch.optim.Adam(layer.parameters(), recipe.lr * recipe.batch_size / BASE_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    steps = enumerate(draw_batches(len(train), recipe.batch_size, iterations, seed))
    # One thread cuts the crops, because torch has one random state for all threads.
    for done, (rows, images) in enumerate(prefetch(crops, list(steps), workers=1), 1):
        with torch.inference_mode():
            features = network.features(images.to(device)).float().cpu()
        loss = compute_loss(task.kind, layer(features.clone()), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(done, iterations, "iterations of the linear probe")
    return fitted_classifier(task.kind, layer)


def draw_batches(rows: int, size: int, count: int, seed: int) -> list[RowIndices]:
    """Return the rows of `count` batches of `size` from an endless shuffled sequence.

    Every permutation of the rows follows the one before, so that a batch may hold the
    end of one and the start of the next.

    Example:
        >>> [sorted(batch.tolist()) for batch in draw_batches(2, 4, 2, seed=0)]
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    generator = np.random.default_rng(seed)
    passes = ceil(size * count / rows)
    order = np.concatenate([generator.permutation(rows) for _ in range(passes)])
    return list(order[: size * count].reshape(count, size))


def _extract(teacher: "TrainedModel", table: Table) -> Features:
    """Return the frozen features [N, D] of the centres of a table's images."""
    import torch

    network, frames = teacher.module.eval(), _frames(teacher, table)
    device = next(network.parameters()).device
    starts = range(0, len(table), EVALUATION_BATCH)
    parts = []
    with torch.inference_mode():
        for start in starts:
            rows = range(start, min(start + EVALUATION_BATCH, len(table)))
            images = np.stack([centre_crop(frames[row], teacher.spec.preprocess) for row in rows])
            features = network.features(torch.from_numpy(images).to(device))
            parts.append(features.float().cpu().numpy())
    return np.concatenate(parts)


def centre_crop(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.uint8]:
    """Resize the short side to 256/224 of the network's input and cut out its centre.

    Args:
        pixels: RGB uint8 [H, W, 3].
        spec: Preprocessing of the network; only its `size` S is used.

    Returns:
        uint8 [S, S, 3].

    Example:
        >>> centre_crop(np.zeros((60, 80, 3), np.uint8), Preprocess(32)).shape
        (32, 32, 3)
    """
    from torchvision.transforms import functional

    image = functional.resize(
        Image.fromarray(pixels), round(spec.size * RESIZE), functional.InterpolationMode.BICUBIC
    )
    return np.asarray(functional.center_crop(image, [spec.size, spec.size]))


def _random_crop(size: int) -> "Callable[[Image.Image], Image.Image]":
    """Return the released training transform, up to the normalization."""
    from torchvision import transforms

    transform: Callable[[Image.Image], Image.Image] = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
        ]
    )
    return transform


def _frames(teacher: "TrainedModel", table: Table) -> "Frames":
    from dermedge.train.views import Frames

    paths = [table.path(image) for image in table.frame["image"]]
    return Frames(paths, teacher.spec.preprocess, margin=MARGIN)
