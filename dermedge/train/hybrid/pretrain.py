"""`pretrain`: a teacher by hybrid pretraining, on tables with labels, with some or with none."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, FSDPStrategy
from torch.optim.swa_utils import update_bn

from dermedge.data.table import SPLITS
from dermedge.models.backbone import Backbone, choose_backbone
from dermedge.models.initialize import BATCH_NORMS, initialise
from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
from dermedge.models.network import Network, count_parameters
from dermedge.models.new_spec import check_input, make_preprocess, make_spec
from dermedge.train.hybrid.crops import Crops, RankSampler, batches
from dermedge.train.hybrid.distributed import PATIENCE, launched, roll_call
from dermedge.train.hybrid.label_space import label_space
from dermedge.train.hybrid.model import Branch, HybridStudent, LabelHead, has_patches
from dermedge.train.hybrid.prototypes import make_prototypes
from dermedge.train.hybrid.recipe import PRESETS, HybridRecipe
from dermedge.train.hybrid.sources import Sources, read_sources
from dermedge.train.hybrid.trainer import Trainer
from dermedge.train.lineage import (
    add_seen_images,
    describe_backbone,
    digest_init,
    make_model_lineage,
    read_init_split,
)
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import Frames
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError, DermedgeError, UsageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Task, to_json

FEATURES = Task("features", "embed")
STRATEGIES = ("auto", "ddp", "fsdp")
NORM_IMAGES = 1024
EVEN = 0.99  # of the logarithm of the number of outputs


@dataclass(frozen=True)
class Pretrained:
    """What pretraining leaves in run.json: means of every epoch, rows that did not decode, the step it resumed from,
    and what went wrong without an error.
    """

    history: tuple[dict[str, float], ...]
    unreadable: tuple[str, ...]
    resumed_from: int | None
    warnings: tuple[str, ...]


def pretrain(
    data: Sequence[Path | str],
    out: Path | str,
    *,
    recipe: HybridRecipe = PRESETS["dermnio-base"],
    init: str = "none",
    name: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    strategy: str = "auto",
    accelerator: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedModel:
    """Pretrain a backbone with DINO, iBOT, KoLeo and label losses at once, and save the moving-average teacher.

    Only train rows are looked at. Started by `torchrun`, its processes work on one batch together, and what they
    compute does not depend on how many they are. A finished run with the same settings and data is returned as it is;
    a killed one continues from the last epoch with the same loss curve. `out` gets the teacher's folder with one
    `embed` task, run.json, and log.jsonl with the losses of every step.

    Args:
        data: tables' folders or files; each is a source with classes of its own.
        out: folder for the teacher.
        recipe: what is computed; `PRESETS` has some.
        init: `none` (random), `hub` (timm's published weights), a safetensors file, or a model's folder.
        name: of the teacher; by default the backbone's.
        seed: of order, crops, masks, initial weights and stochastic depth.
        workers: processes that make crops, per training process; as many as there are cores to spare by default.
        strategy: `auto`, `ddp` or `fsdp`; in one process all are the same.
        accelerator: of Fabric: `auto`, `cpu`, `cuda`.
        overwrite: replace another run in `out`.
        progress: told after every step, on rank 0.

    Raises:
        DataError: the tables cannot be trained on, over 1 % of their images do not decode, or the loss is not finite.
        DermedgeError: another process died.
        UsageError: backbone, initial weights, recipe or `out` make no sense.

    Source: "DermINO: Hybrid Pretraining for a Versatile Dermatology Foundation Model", arXiv:2508.12190.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"Strategy {strategy!r} is unknown: use one of {', '.join(STRATEGIES)}.")
    fabric = make_fabric(strategy, accelerator, recipe)
    sources = read_sources(data)
    backbone = choose_backbone(recipe.backbone, recipe.backbone_args, init)
    recipe = fit_recipe(recipe, backbone, sources, fabric.world_size)
    settings = {
        "data": list(sources.tables),
        "backbone": describe_backbone(backbone),
        "init": digest_init(init),
        "recipe": to_json(asdict(recipe)),
        "name": name or f"{backbone.name}-hybrid",
        "seed": seed,
    }
    run = RunRecord(Path(out), "pretrain", "teacher", settings, sources.images_digest)
    done = run.finished(overwrite=overwrite)
    if done is not None:
        return done
    start = starting_network(backbone, recipe, sources, init, seed)
    fabric.launch()
    if fabric.is_global_zero:
        run.open(overwrite=overwrite)
    job = Trainer(fabric, run, recipe, sources, *branches(start, backbone, recipe, seed), seed)
    try:
        job.prepare()
        crops = Crops(sources.paths, sources.ids, recipe, backbone, job.grid, seed)
        shares = RankSampler(
            len(sources.paths), recipe, seed, job.step, fabric.global_rank, fabric.world_size
        )
        job.train(batches(crops, shares, spare_workers(workers, fabric)), progress)
        weights = job.teacher_weights()
        if not fabric.is_global_zero:
            fabric.barrier()
            return load_model_folder(run.folder)
    except RuntimeError as error:
        if isinstance(error, DermedgeError) or fabric.world_size == 1:
            raise
        raise roll_call(error) from error
    start.backbone.load_state_dict(weights)
    lineage = {
        "teacher": teacher_lineage(backbone, init, sources, recipe),
        "data": sources_lineage(sources),
    }
    spec = make_spec(settings["name"], (FEATURES,), make_preprocess(recipe.size, "crop"), lineage)
    metrics = {"parameters": count_parameters(start)}
    teacher = TrainedModel(
        start.eval(),
        spec,
        backbone,
        "teacher",
        metrics,
        add_seen_images(sources.split, read_init_split(init)),
    )
    settle_norms(start, sources, recipe)
    save_model_folder(teacher, run.folder)
    found = Pretrained(
        tuple(job.history),
        job.unreadable_names(),
        job.resumed_from,
        tuple(training_warnings(job.history, recipe)),
    )
    run.close(found, sources=sources.counts)
    fabric.barrier()
    return teacher


def make_fabric(strategy: str, accelerator: str, recipe: HybridRecipe) -> Fabric:
    """Fabric for the processes that `torchrun` started, or for this one alone."""
    local, machines = launched()
    chosen: Any = "auto"
    if local * machines > 1 and strategy == "fsdp":
        chosen = FSDPStrategy(state_dict_type="full", timeout=PATIENCE)
    elif local * machines > 1:
        chosen = DDPStrategy(timeout=PATIENCE)
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=machines,
        strategy=chosen,
        precision=recipe.precision,
    )


def fit_recipe(
    recipe: HybridRecipe, backbone: Backbone, sources: Sources, world: int
) -> HybridRecipe:
    """The recipe without terms that this backbone or these tables cannot have.

    Raises:
        UsageError: no term is left, or the batch cannot be dealt out.
    """
    if not has_patches(backbone):
        recipe = replace(recipe, ibot=0.0)
    if not sources.labelled:
        if not (recipe.dino or recipe.ibot):
            raise UsageError(
                "No table has a label, so the label loss alone has nothing to learn: raise --dino."
            )
        recipe = replace(recipe, label=0.0)
    share = recipe.batch_size // recipe.accumulate
    if share % world or share // world < 2:
        raise UsageError(
            f"Parts of {share} images cannot be dealt out to {world} processes, two or more images each: change "
            "--batch-size or --accumulate."
        )
    return recipe


def starting_network(
    backbone: Backbone, recipe: HybridRecipe, sources: Sources, init: str, seed: int
) -> Network:
    """The backbone with its initial weights."""
    torch.manual_seed(seed)
    network = Network(backbone, (FEATURES,))
    frames = Frames(sources.paths, make_preprocess(recipe.size, "crop"))
    rows = np.random.default_rng(seed).permutation(len(sources.paths))[:256].tolist()
    initialise(network, backbone, init, recipe.size, lambda: centred(frames, rows))
    check_input(network, backbone.name, recipe.size)
    return network


def branches(
    network: Network, backbone: Backbone, recipe: HybridRecipe, seed: int
) -> tuple[HybridStudent, Branch]:
    """The student and its teacher, alike at the start; the teacher never drops a path."""
    torch.manual_seed(seed)
    own = Branch(backbone, recipe, recipe.drop_path)
    own.trunk.timm.load_state_dict(network.backbone.state_dict())
    own.trunk.timm.set_grad_checkpointing(recipe.checkpoint_activations)
    teacher = Branch(backbone, recipe, 0.0)
    teacher.load_state_dict(own.state_dict())
    labels = None
    if recipe.label:
        rows = make_prototypes(
            recipe.prototypes, label_space(), own.trunk.timm.num_features_out, seed
        )
        labels = LabelHead(rows, recipe)
    return HybridStudent(own, labels), teacher.requires_grad_(False).eval()


def training_warnings(
    history: Sequence[Mapping[str, float]], recipe: HybridRecipe
) -> Iterator[str]:
    """What the means of the last epoch say against the teacher."""
    last, even = history[-1] if history else {}, math.log(recipe.outputs)
    for term in ("dino", "ibot"):
        if last.get(term, 0.0) > EVEN * even:
            yield (
                f"The {term} loss ended at {last[term]:.2f}, and {even:.2f} is what the same answer for every image "
                "scores: that term has taught nothing. Train longer, or with a lower --temperature or --lr."
            )


def spare_workers(asked: int | None, fabric: Fabric) -> int:
    """Processes that make crops, for each training process of this machine."""
    local = launched()[0]
    return asked if asked is not None else max(1, (os.cpu_count() or 1) // local - 1)


def centred(frames: Frames, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Preprocessed images of some rows in batches, uint8 [N, S, S, 3]; those that do not decode are left out."""
    for first in range(0, len(rows), 64):
        images = []
        for row in rows[first : first + 64]:
            with contextlib.suppress(DataError):
                images.append(frames.centred(int(row)))
        if images:
            yield torch.from_numpy(np.stack(images))


def settle_norms(network: Network, sources: Sources, recipe: HybridRecipe) -> None:
    """Give BatchNorms the statistics of whole pictures: in training they saw small crops too."""
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        rows = np.random.default_rng(0).permutation(len(sources.paths))[:NORM_IMAGES]
        update_bn(
            centred(Frames(sources.paths, make_preprocess(recipe.size, "crop")), rows.tolist()),
            network,
        )
        network.eval()


def teacher_lineage(
    backbone: Backbone, init: str, sources: Sources, recipe: HybridRecipe
) -> dict[str, Any]:
    """The teacher's entry in the lineage."""
    return make_model_lineage(backbone, init) | {
        "pretraining": "hybrid (DermINO, arXiv:2508.12190)",
        "pretrained_on": list(sources.names),
        "recipe": to_json(asdict(recipe)),
    }


def sources_lineage(sources: Sources) -> dict[str, Any]:
    """The data's entry in the lineage."""
    return {
        "name": " + ".join(sources.names),
        "digest": sha256_hex(canonical_json(list(sources.tables))),
        "licences": list(sources.licences) or ["not stated in the table"],
        "images": {split: sum(row[2] == split for row in sources.split) for split in SPLITS},
        "sources": sources.counts,
    }
