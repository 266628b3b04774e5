"""Fit the recipe to backbone and data, and create the student and its teacher."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.optim.swa_utils import update_bn

from dermedge.models.backbone import Backbone
from dermedge.models.initialize import BATCH_NORMS, initialise
from dermedge.models.network import Network
from dermedge.models.new_spec import check_input, make_preprocess
from dermedge.train.hybrid.label_space import label_space
from dermedge.train.hybrid.model import Branch, HybridStudent, LabelHead, patch_size
from dermedge.train.hybrid.prototypes import make_prototypes
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.hybrid.sources import Sources
from dermedge.train.views import Frames
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Task

FEATURES = Task("features", "embed")
NORM_IMAGES = 1024


def fit_recipe(
    recipe: HybridRecipe, backbone: Backbone, sources: Sources, world: int
) -> HybridRecipe:
    """Return the recipe without the losses that backbone or tables do not support.

    Raises:
        UsageError: No loss is left, the batch cannot be divided among the processes, or
            the side of a crop is no multiple of the patch size.
    """
    patch = patch_size(backbone)
    if patch is None:
        recipe = replace(recipe, ibot=0.0)
    else:
        check_crops(recipe, backbone, patch)
    if not sources.labelled:
        if not (recipe.dino or recipe.ibot):
            raise UsageError(
                "No table has a label, so the label loss alone cannot train. Raise --dino."
            )
        recipe = replace(recipe, label=0.0)
    share = recipe.batch_size // recipe.accumulate
    if share % world or share // world < 2:
        raise UsageError(
            f"Parts of {share} images cannot be divided among {world} processes with two or "
            "more images each. Change --batch-size or --accumulate."
        )
    return recipe


def check_crops(recipe: HybridRecipe, backbone: Backbone, patch: tuple[int, int]) -> None:
    """Check that a vision transformer can cut crops into patches.

    Raises:
        UsageError: The side of a crop is no multiple of the patch size.
    """
    sides = {"--size": recipe.size}
    if recipe.dino and recipe.local_crops:
        sides["--local-size"] = recipe.local_size
    for option, side in sides.items():
        for length in set(patch):
            if side % length:
                below = side // length * length
                near = [str(value) for value in (below, below + length) if value >= 16]
                raise UsageError(
                    f"{option} {side} is no multiple of the {length}-pixel patches of "
                    f"{backbone.name!r}. Use {' or '.join(near)}."
                )


def starting_network(
    backbone: Backbone, recipe: HybridRecipe, sources: Sources, init: str, seed: int
) -> Network:
    """Return the backbone with its initial weights."""
    torch.manual_seed(seed)
    network = Network(backbone, (FEATURES,))
    frames = Frames(sources.paths, make_preprocess(recipe.size, "crop"))
    rows = np.random.default_rng(seed).permutation(len(sources.paths))[:256].tolist()
    initialise(network, backbone, init, recipe.size, lambda: read_centres(frames, rows))
    check_input(network, backbone.name, recipe.size)
    return network


def make_branches(
    network: Network, backbone: Backbone, recipe: HybridRecipe, seed: int
) -> tuple[HybridStudent, Branch]:
    """Return student and teacher with equal weights.

    The teacher has no stochastic depth.
    """
    # The heads depend on the seed only, not on random numbers that the backbone used.
    torch.manual_seed(seed)
    student = Branch(backbone, recipe, recipe.drop_path)
    student.trunk.timm.load_state_dict(network.backbone.state_dict())
    if recipe.checkpoint_activations:
        student.trunk.checkpoint_activations()
    teacher = Branch(backbone, recipe, 0.0)
    teacher.load_state_dict(student.state_dict())
    labels = None
    if recipe.label:
        rows = make_prototypes(
            recipe.prototypes, label_space(), student.width, seed, recipe.mask_padding
        )
        labels = LabelHead(rows, recipe)
    return HybridStudent(student, labels), teacher.requires_grad_(False).eval()


def read_centres(frames: Frames, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield preprocessed images of some rows in batches, uint8 [N, S, S, 3].

    Images that cannot be decoded are left out.
    """
    for first in range(0, len(rows), 64):
        images = []
        for row in rows[first : first + 64]:
            with contextlib.suppress(DataError):
                images.append(frames.centred(int(row)))
        if images:
            yield torch.from_numpy(np.stack(images))


def settle_norms(network: Network, sources: Sources, recipe: HybridRecipe) -> None:
    """Set the statistics of BatchNorms from whole images, after training on crops."""
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        rows = np.random.default_rng(0).permutation(len(sources.paths))[:NORM_IMAGES]
        frames = Frames(sources.paths, make_preprocess(recipe.size, "crop"))
        update_bn(read_centres(frames, rows.tolist()), network)
        network.eval()
