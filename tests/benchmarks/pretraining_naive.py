"""Time a naive step of hybrid pretraining, for comparison.

It decodes every image in the loop, passes every crop through the network by itself, and
uses the default memory format and fp32.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightly.transforms.dino_transform import DINOViewTransform
from PIL import Image

from dermedge.models.initialize import load_backbone, recalibrate_norms
from dermedge.models.network import Backbone, Network
from dermedge.train.hybrid.label_space import label_space
from dermedge.train.hybrid.losses import dino_loss, koleo_loss, label_loss, sinkhorn_knopp
from dermedge.train.hybrid.model import LabelHead, make_projection_head
from dermedge.train.hybrid.prototypes import make_prototypes
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.hybrid.sources import read_sources
from dermedge_runtime.spec import Task


def naive_images_per_second(
    data: Sequence[Path], recipe: HybridRecipe, init: Path, steps: int
) -> float:
    """Return images per second over `steps` steps, after two warm-up steps."""
    sources = read_sources(data)
    torch.manual_seed(0)
    backbone = Backbone(recipe.backbone, recipe.backbone_args)
    networks = []
    for _ in range(2):
        network = Network(backbone, (Task("features", "embed"),))
        load_backbone(network, init)
        recalibrate_norms(
            network, [torch.randint(0, 256, (16, recipe.size, recipe.size, 3), dtype=torch.uint8)]
        )
        networks.append(
            torch.nn.ModuleList(
                [network.backbone, make_projection_head(network.backbone.num_features_out, recipe)]
            )
        )
    student, teacher = networks
    teacher.eval().requires_grad_(False)
    student.train()
    width = network.backbone.num_features_out
    labels = LabelHead(make_prototypes("taxonomy", label_space(), width), recipe)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    normalize = {"mean": list(backbone.mean), "std": list(backbone.std)}
    views = [
        DINOViewTransform(
            recipe.size,
            recipe.global_scale,
            gaussian_blur=1.0,
            solarization_prob=0.0,
            normalize=normalize,
        ),
        DINOViewTransform(
            recipe.size,
            recipe.global_scale,
            gaussian_blur=0.1,
            solarization_prob=0.2,
            normalize=normalize,
        ),
        *[
            DINOViewTransform(
                recipe.local_size,
                recipe.local_scale,
                gaussian_blur=0.5,
                solarization_prob=0.0,
                normalize=normalize,
            )
        ]
        * recipe.local_crops,
    ]
    rng, started = np.random.default_rng(0), 0.0
    for step in range(steps + 2):
        if step == 2:
            started = time.perf_counter()
        rows = rng.choice(len(sources.paths), recipe.batch_size)
        pictures = [Image.open(sources.paths[row]).convert("RGB") for row in rows]
        crops = [torch.stack([view(picture) for picture in pictures]) for view in views]
        with torch.no_grad():
            target = sinkhorn_knopp(
                torch.cat([teacher[1](teacher[0](crop)) for crop in crops[:2]]), 0.05
            )
        pooled = [student[0](crop) for crop in crops]
        logits = torch.stack([student[1](features) for features in pooled[:2]])
        local = torch.stack([student[1](features) for features in pooled[2:]])
        loss = dino_loss(logits, local, target.unflatten(0, (2, -1)), recipe.student_temperature)
        loss = loss + recipe.koleo * sum(koleo_loss(features) for features in pooled[:2])
        codes = torch.from_numpy(sources.codes[rows]).repeat(2)
        true, known = torch.from_numpy(sources.true)[codes], torch.from_numpy(sources.known)[codes]
        loss = loss + label_loss(
            labels(torch.cat(pooled[:2])), true, known, (codes > 0).sum().float()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip)
        optimizer.step()
        with torch.no_grad():
            for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
                own.mul_(0.996).add_(other, alpha=0.004)
    return recipe.batch_size * steps / (time.perf_counter() - started)
