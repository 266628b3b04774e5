"""Save a pretraining run at any step, and restore it exactly."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dermedge.train.hybrid.loss_log import StepLosses
from dermedge.train.hybrid.step import Learner
from dermedge.train.loop import CHECKPOINT
from dermedge.train.run_record import RunRecord
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_path, atomic_write

LOG = "log.jsonl"


@dataclass
class TrainingState:
    """The position of a run: the part of a checkpoint without weights and optimizer.

    Attributes:
        unreadable: Rows that could not be decoded, bool [N].
        step: Number of finished steps.
        resumed_from: Step of the checkpoint that this process started from.
        history: Mean losses and speed of every finished epoch.
        sums: Sum of the losses of the current epoch.
        seconds: Time spent in the current epoch.

    Example:
        >>> from dermedge.train.hybrid.sources import read_sources
        >>> from dermedge.train.hybrid.trainer import unreadable_names
        >>> sources = read_sources(["lesions"])
        >>> state = TrainingState(torch.zeros(len(sources.paths), dtype=torch.bool))
        >>> state.unreadable[0] = True
        >>> state.step, unreadable_names(state, sources)
        (0, ('lesions/D000000',))
    """

    unreadable: Tensor
    step: int = 0
    resumed_from: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    sums: StepLosses = field(default_factory=StepLosses.zeros)
    seconds: float = 0.0

    def finish_step(self, losses: StepLosses, seconds: float) -> None:
        """Count a step, with its losses and the time spent in the epoch so far."""
        self.sums += losses
        self.step += 1
        self.seconds = seconds

    def finish_epoch(self, means: dict[str, float]) -> None:
        """Add an epoch's mean losses and speed to the history, and start the next one."""
        self.history.append(means)
        self.sums, self.seconds = StepLosses.zeros(), 0.0

    def mark_unreadable(self, rows: Tensor) -> None:
        """Remember rows, bool [N], that could not be decoded."""
        self.unreadable |= rows

    def facts(self) -> dict[str, Any]:
        """Return the position as plain data for a checkpoint."""
        return {
            "step": self.step,
            "history": self.history,
            "unreadable": torch.nonzero(self.unreadable)[:, 0].tolist(),
            "sums": self.sums.values.tolist(),
            "seconds": self.seconds,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take the position of a checkpoint."""
        self.step = self.resumed_from = facts["step"]
        self.history = facts["history"]
        self.unreadable[facts["unreadable"]] = True
        self.sums = StepLosses(torch.tensor(facts["sums"]))
        self.seconds = facts["seconds"]


def save_checkpoint(learner: Learner, run: RunRecord, state: TrainingState) -> None:
    """Write the checkpoint, then the run's record.

    All processes must call this together. A kill between the two files does no harm,
    because the record is written again with the next checkpoint.
    """
    facts = {"fingerprint": run.fingerprint, **state.facts()}
    path = run.folder / CHECKPOINT
    first = learner.fabric.is_global_zero
    # Rank 0 writes; the other ranks only give it their parts.
    with atomic_path(path) if first else nullcontext(path) as target:
        learner.fabric.save(target, {**_modules(learner), "facts": facts})
    if first:
        run.write(finished=False, step=state.step, history=state.history)
    learner.fabric.barrier()


def load_checkpoint(learner: Learner, run: RunRecord, state: TrainingState) -> None:
    """Restore modules, optimizer and `state` from the folder's checkpoint, if any.

    log.jsonl is cut at the step of the checkpoint, or emptied without one.

    Raises:
        DataError: The file is no checkpoint, or belongs to another run.
    """
    path, log = run.folder / CHECKPOINT, run.folder / LOG
    lines: list[str] = []
    if path.is_file():
        try:
            facts = learner.fabric.load(path, _modules(learner), weights_only=True)["facts"]
        except Exception as error:  # torch raises pickle, zip and runtime errors alike
            raise DataError(
                f"{path} is not a checkpoint of this run ({error}). Delete it, or train into "
                "another folder."
            ) from error
        if facts["fingerprint"] != run.fingerprint:
            raise DataError(
                f"{path} belongs to a run with other settings or data. Train into another "
                "folder, or pass --overwrite."
            )
        # Steps after the checkpoint run again and write their lines again.
        state.restore(facts)
        if log.is_file():
            lines = log.read_text("utf-8").splitlines(keepends=True)[: state.step]
    if learner.fabric.is_global_zero:
        atomic_write(log, "".join(lines).encode())
        if state.step:
            run.write(finished=False, step=state.step, history=state.history)
    learner.fabric.barrier()


def _modules(learner: Learner) -> dict[str, object]:
    return {
        "student": learner.model,
        "teacher": learner.teacher,
        "optimizer": learner.optimizer,
    }
