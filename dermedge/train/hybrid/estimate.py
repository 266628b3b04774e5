"""Estimate the memory and time of a run on a CPU, from one small step."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dermedge.train.hybrid.crops import CropBatch
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.hybrid.step import Learner, add_up, assign_targets, compute_losses
from dermedge.train.memory import format_bytes

SAMPLE = 2  # Images of the small step; the label loss and KoLeo need two.
FLOAT = 4  # Bytes of a float32.


@dataclass(frozen=True)
class Estimate:
    """Estimated memory in bytes and time in seconds.

    `fixed` is the memory that gradient accumulation cannot reduce: weights, gradients,
    optimizer, and the teacher's logits of a whole step. `per_image` is the memory of
    one image in one part of a step.
    """

    fixed: int
    per_image: int
    step_seconds: float

    def memory(self, recipe: HybridRecipe, accumulate: int | None = None) -> int:
        """Return the memory of the process in bytes, with `accumulate` parts per step.

        Example:
            >>> from dermedge.train.hybrid.recipe import PRESETS
            >>> Estimate(100, 10, 1.0).memory(PRESETS["tiny"])
            740
        """
        images = recipe.batch_size // (accumulate or recipe.accumulate)
        return self.fixed + self.per_image * images


def measure_small_step(
    learner: Learner, clock: Callable[[], float] = time.perf_counter
) -> Estimate:
    """Measure a forward and backward pass of two random images, and scale it to a step.

    Weights, optimizer, BatchNorm statistics and random generators stay as they are.
    The time for cutting crops is not included. With --checkpoint-activations the memory
    is a lower bound, because recomputed activations are not counted. Several processes
    cannot use this function, because losses are collective.

    Args:
        learner: Modules on the CPU.
        clock: Function that returns the time in seconds.
    """
    recipe = learner.recipe
    # Read before the step, because the allocator keeps the memory that a step frees.
    weights = weight_bytes(learner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        part = draw_part(recipe, learner.teacher.trunk.grid)
        # In eval mode BatchNorm statistics stay; the cost is nearly the same.
        learner.student.eval()
        seconds, activations = _run_once(learner, part, clock)
        if seconds < 1:  # The first pass of a small model pays for allocation.
            seconds, activations = _run_once(learner, part, clock)
        learner.student.train()
    steps = recipe.batch_size / SAMPLE
    crops = sum(tensor.nbytes for tensor in (part.global_crops, part.local_crops))
    logits = teacher_logits(learner) * steps
    return Estimate(
        fixed=int(weights + logits),
        # A batch waits in the loader while the one before it trains.
        per_image=math.ceil((activations + 2 * crops) / SAMPLE),
        step_seconds=seconds * steps,
    )


def draw_part(recipe: HybridRecipe, grid: tuple[int, int] | None) -> CropBatch:
    """Return random crops of two images, with the average number of masked patches."""
    patches = grid[0] * grid[1] if grid else 0
    mask = torch.zeros(2 * SAMPLE, patches, dtype=torch.bool)
    mask[:, : round(patches * mean_mask(recipe))] = True
    local = SAMPLE * recipe.local_crops if recipe.dino else 0
    return CropBatch(
        torch.randn(2 * SAMPLE, 3, recipe.size, recipe.size),
        torch.randn(local, 3, recipe.local_size, recipe.local_size),
        mask,
        torch.zeros(SAMPLE, dtype=torch.int64),
        (),
    )


def mean_mask(recipe: HybridRecipe) -> float:
    """Return the mean share of masked patches over all global crops."""
    return recipe.mask_probability * sum(recipe.mask_ratio) / 2 if recipe.ibot else 0.0


def _run_once(learner: Learner, part: CropBatch, clock: Callable[[], float]) -> tuple[float, int]:
    """Return the seconds of one pass, and the bytes kept for its backward pass."""
    started = clock()
    targets = assign_targets(learner, [part], learner.recipe.temperature[0])
    code = torch.full((2 * SAMPLE,), len(learner.true) - 1)
    with learner.fabric.autocast(), saved_bytes(learner.student) as seen:
        losses = compute_losses(
            learner, learner.student, part, code, targets[0], torch.tensor(2.0 * SAMPLE)
        )
        total = add_up(losses, learner.recipe)
    torch.autograd.backward(total)
    seconds = clock() - started
    learner.student.zero_grad(set_to_none=True)
    return seconds, sum(seen.values())


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[dict[int, int]]:
    """Count the bytes that autograd keeps, once per storage, without parameters."""
    # Views of one tensor share a storage, which memory holds once.
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield seen


def weight_bytes(learner: Learner) -> int:
    """Return the bytes of this process, gradients, AdamW moments and its temporaries.

    The process already holds the weights of student and teacher. The other four parts
    have the size of the trained weights.
    """
    student = list(learner.student.parameters())
    trained = sum(p.numel() for p in student if p.requires_grad)
    teacher = sum(p.numel() for p in learner.teacher.parameters())
    weights = FLOAT * (sum(p.numel() for p in student) + teacher)
    return max(weights, resident_bytes()) + 4 * FLOAT * trained


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def teacher_logits(learner: Learner) -> int:
    """Return the bytes of the teacher's logits for two images.

    Sinkhorn-Knopp holds three arrays of this size: logits, assignments and a temporary.
    """
    recipe, grid = learner.recipe, learner.teacher.trunk.grid
    rows = 0.0
    if learner.teacher.dino is not None:
        rows += 2 * SAMPLE
    if learner.teacher.ibot is not None and grid:
        rows += 2 * SAMPLE * grid[0] * grid[1] * mean_mask(recipe)
    return int(3 * FLOAT * rows * recipe.outputs)


def describe_estimate(
    estimate: Estimate, recipe: HybridRecipe, steps_left: int, available: int
) -> Iterator[str]:
    """Yield the estimate as text, and a warning if it exceeds the available memory.

    Args:
        estimate: Result of `measure_small_step`.
        recipe: Settings of the run.
        steps_left: Number of remaining steps.
        available: Memory of the machine in bytes.
    """
    needed = estimate.memory(recipe)
    yield (
        f"Estimate: {format_bytes(needed)} of memory and "
        f"{format_seconds(estimate.step_seconds * steps_left)}: {steps_left:,} steps of "
        f"{format_seconds(estimate.step_seconds)}."
    )
    if needed > available:
        yield (
            f"Warning: this run needs about {format_bytes(needed)} of memory, and this machine "
            f"has {format_bytes(available)}. {_advise(estimate, recipe, available)}"
        )


def _advise(estimate: Estimate, recipe: HybridRecipe, available: int) -> str:
    """Return advice: the smallest --accumulate that fits, or other options."""
    for parts in range(recipe.accumulate + 1, recipe.batch_size // 2 + 1):
        if recipe.batch_size % parts == 0 and estimate.memory(recipe, parts) <= available:
            needed = format_bytes(estimate.memory(recipe, parts))
            return f"Pass --accumulate {parts} to need about {needed}."
    return "Pass a smaller --batch-size or --outputs, or --preset tiny."


def format_seconds(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> [format_seconds(seconds) for seconds in (0.34, 90, 7_500, 3e6)]
        ['0.34 s', '1.5 min', '2.1 h', '35 days']
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= (2 * size if unit == "days" else size):
            return (
                f"{seconds / size:.0f} days" if unit == "days" else f"{seconds / size:.1f} {unit}"
            )
    return f"{seconds:.0f} s"
