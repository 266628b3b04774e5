"""`pretrain`: pretrain a teacher on images with and without labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from dermedge.data.table import SPLITS
from dermedge.models.backbone import Backbone
from dermedge.models.initialize import choose_backbone
from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
from dermedge.models.network import Network, count_parameters
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge.train import memory
from dermedge.train.distributed import (
    explained_loss_of_ranks,
    make_fabric,
    torchrun_layout,
    wait_for_ranks,
)
from dermedge.train.hybrid import estimate
from dermedge.train.hybrid.checkpoint import TrainingState, load_checkpoint
from dermedge.train.hybrid.crops import CropBatch, CropDataset, RankSampler, load_steps
from dermedge.train.hybrid.loss_log import collapse_warnings
from dermedge.train.hybrid.prepare import (
    FEATURES,
    fit_recipe,
    make_branches,
    settle_norms,
    starting_network,
)
from dermedge.train.hybrid.recipe import PRESETS, ExecutionOptions, HybridRecipe
from dermedge.train.hybrid.sources import Sources, read_sources
from dermedge.train.hybrid.step import Learner, export_teacher, make_learner
from dermedge.train.hybrid.trainer import train, unreadable_names
from dermedge.train.lineage import (
    add_seen_images,
    describe_backbone,
    digest_init,
    make_model_lineage,
    read_init_split,
)
from dermedge.train.run_record import RunRecord
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json

EXECUTION = ExecutionOptions()

# Called with one line of text about the current step of the work.
Report = Callable[[str], None]


def pretrain(
    data: Sequence[Path | str],
    out: Path | str,
    *,
    recipe: HybridRecipe = PRESETS["dermnio-base"],
    init: str = "none",
    name: str | None = None,
    seed: int = 0,
    options: ExecutionOptions = EXECUTION,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> TrainedModel:
    """Pretrain a backbone by DINO, iBOT, KoLeo and label losses, and save the teacher.

    The teacher is the moving average of the student. Only train rows are used.
    Processes that `torchrun` started work on one batch together, and their number does
    not change the result.

    `out` receives the model folder of the teacher, which has one `embed` task. It also
    receives `run.json`, and `log.jsonl` with the losses of every step.

    A finished run with the same settings and data is not repeated: its teacher is
    returned. A killed run continues from its last checkpoint to the same weights.

    Source: "DermINO: Hybrid Pretraining for a Versatile Dermatology Foundation Model",
    arXiv:2508.12190.

    Args:
        data: Folders or table files of data sets. Each is a source with classes of its
            own.
        out: Folder for the teacher.
        recipe: Settings that decide the result. `PRESETS` holds named recipes, and
            `make_recipe` changes their fields.
        init: Initial weights: `none` (random), `hub` (timm's published ones), a
            safetensors file, or a model folder.
        name: Name of the teacher. None derives it from the backbone's.
        seed: Random seed of order, crops, masks, initial weights and stochastic depth.
        options: Workers, devices and checkpoints, which do not change the result.
        overwrite: Replace another run in `out`.
        progress: Called after every step, on rank 0.
        report: Called on rank 0 with lines about data, device, estimate and resuming.
            On a CPU the estimate costs one small step. None prints nothing.

    Returns:
        The teacher. Its one output is the L2-normalized class token or pooled feature.

    Raises:
        DataError: The tables have no train rows, over 1 % of their images cannot be
            decoded, or the loss is not finite.
        DermedgeError: Another process died.
        UsageError: The backbone does not exist, does not fit the initial weights or the
            recipe, or `out` holds another run and `overwrite` is false.

    Example:
        >>> from dermedge.train.hybrid.recipe import make_recipe
        >>> vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2}
        >>> recipe = make_recipe("tiny", backbone_args={**vit, "depth": 1}, size=32,
        ...     local_size=16, local_crops=1, outputs=32, hidden=24, bottleneck=16,
        ...     batch_size=8, epochs=1, steps=1)
        >>> teacher = pretrain(["lesions"], "pretrained", recipe=recipe)
        >>> teacher.spec.name
        'vit_tiny_patch16_224-hybrid'
    """
    fabric = make_fabric(recipe.precision, options.strategy, options.accelerator)
    fabric.launch()
    report_line = report if report and fabric.global_rank == 0 else _ignore
    report_line(f"Device: {describe_device(fabric)}, precision {recipe.precision}.")
    report_line(f"Reading {', '.join(map(str, data))}.")
    sources = read_sources(data)
    report_line(describe_sources(sources))
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
    run = RunRecord(Path(out), "pretrain", settings, sources.images_digest, "teacher")
    finished = run.finished(overwrite=overwrite)
    if finished is not None:
        report_line(f"{out} already holds this run, finished. Pass --overwrite to train it again.")
        return finished
    start = starting_network(backbone, recipe, sources, init, seed)
    student, teacher = make_branches(start, backbone, recipe, seed)
    # Everything that can refuse the settings comes before this line, so that a refused
    # command leaves no folder behind.
    wait_for_ranks()
    if fabric.is_global_zero:
        run.open(overwrite=overwrite)
    state = TrainingState(torch.zeros(len(sources.paths), dtype=torch.bool))
    with explained_loss_of_ranks():
        learner = make_learner(fabric, recipe, sources, student, teacher)
        load_checkpoint(learner, run, state)
        if report:
            report_start(learner, state, report_line)
        crops = CropDataset(sources.paths, sources.ids, recipe, backbone, teacher.trunk.grid, seed)
        steps = load_remaining_steps(crops, learner, state, seed, options)
        seconds = 60 * options.checkpoint_minutes
        train(
            learner,
            run,
            state,
            sources,
            steps,
            seed=seed,
            checkpoint_seconds=seconds,
            progress=progress,
        )
        weights = export_teacher(learner)
        if not fabric.is_global_zero:
            fabric.barrier()
            return load_model_folder(run.folder)
    start.backbone.load_state_dict(weights)
    model = save_teacher(start, backbone, recipe, sources, init, settings["name"], run)
    outcome = _PretrainingOutcome(
        tuple(state.history),
        unreadable_names(state, sources),
        state.resumed_from,
        tuple(collapse_warnings(state.history, recipe)),
    )
    run.close(outcome, sources=sources.counts)
    fabric.barrier()
    return model


@dataclass(frozen=True)
class _PretrainingOutcome:
    """The results that run.json records.

    Attributes:
        history: Mean losses and speed of every epoch.
        unreadable: `table/image_id` of the rows that could not be decoded.
        resumed_from: Step of the checkpoint that the run continued from, or None.
        warnings: Problems that do not stop the run, as text.
    """

    history: tuple[dict[str, float], ...]
    unreadable: tuple[str, ...]
    resumed_from: int | None
    warnings: tuple[str, ...]


def _ignore(line: str) -> None:
    """Ignore a line of the report."""


def describe_device(fabric: Fabric) -> str:
    """Return the device and the number of processes as text."""
    if fabric.device.type == "cuda":
        device = torch.cuda.get_device_name(fabric.device)
    else:
        device = f"{fabric.device.type} with {torch.get_num_threads()} threads"
    processes = fabric.world_size
    return f"{device}, {processes} processes" if processes > 1 else device


def describe_sources(sources: Sources) -> str:
    """Return the numbers of train images and of labelled ones per source, as text."""
    parts = [
        f"{name} {counts['images']:,} ({counts['labelled']:,} labelled)"
        for name, counts in sources.counts.items()
    ]
    held_out = sum(split != "train" for _, _, split in sources.split)
    return (
        f"{len(sources.paths):,} train images: {', '.join(parts)}. {held_out:,} rows of val and "
        "test are not used."
    )


def report_start(learner: Learner, state: TrainingState, report_line: Report) -> None:
    """Report the step that a run resumes from, and on a CPU its memory and time."""
    recipe = learner.recipe
    if state.resumed_from is not None:
        report_line(f"Resuming after step {state.step} of {recipe.total}.")
    left = recipe.total - state.step
    # The losses are collective, so one rank alone cannot measure a step.
    if learner.fabric.device.type == "cpu" and learner.fabric.world_size == 1 and left:
        report_line("Measuring a step of two images, to estimate memory and time.")
        measured = estimate.measure_small_step(learner)
        available = memory.machine_memory()
        for line in estimate.describe_estimate(measured, recipe, left, available):
            report_line(line)


def load_remaining_steps(
    crops: CropDataset,
    learner: Learner,
    state: TrainingState,
    seed: int,
    options: ExecutionOptions,
) -> Iterator[list[CropBatch]]:
    """Yield this process's batches of all remaining steps."""
    fabric = learner.fabric
    sampler = RankSampler(
        len(crops.paths),
        learner.recipe,
        seed,
        state.step,
        fabric.global_rank,
        fabric.world_size,
    )
    return load_steps(crops, sampler, choose_workers(options.workers))


def choose_workers(requested: int | None) -> int:
    """Return the number of processes that cut crops for each training process.

    By default all cores but one per training process.
    """
    local = torchrun_layout()[0]
    return requested if requested is not None else max(1, usable_cpus() // local - 1)


def save_teacher(
    network: Network,
    backbone: Backbone,
    recipe: HybridRecipe,
    sources: Sources,
    init: str,
    name: str,
    run: RunRecord,
) -> TrainedModel:
    """Write the teacher's folder with its lineage, and return the teacher."""
    lineage = {
        "teacher": describe_teacher(backbone, init, sources, recipe),
        "data": describe_data(sources),
    }
    spec = make_spec(name, (FEATURES,), make_preprocess(recipe.size, "crop"), lineage)
    metrics = {"parameters": count_parameters(network)}
    rows = add_seen_images(sources.split, read_init_split(init))
    teacher = TrainedModel(network.eval(), spec, backbone, "teacher", metrics, rows)
    settle_norms(network, sources, recipe)
    save_model_folder(teacher, run.folder)
    return teacher


def describe_teacher(
    backbone: Backbone, init: str, sources: Sources, recipe: HybridRecipe
) -> Mapping[str, Any]:
    """Return the teacher's entry in the lineage."""
    return make_model_lineage(backbone, init) | {
        "pretraining": "hybrid (DermINO, arXiv:2508.12190)",
        "pretrained_on": list(sources.names),
        "recipe": to_json(asdict(recipe)),
    }


def describe_data(sources: Sources) -> Mapping[str, Any]:
    """Return the data's entry in the lineage."""
    return {
        "name": " + ".join(sources.names),
        "digest": sha256_hex(canonical_json(list(sources.tables))),
        "licences": list(sources.licences) or ["not stated in the table"],
        "images": {split: sum(row[2] == split for row in sources.split) for split in SPLITS},
        "sources": sources.counts,
    }
