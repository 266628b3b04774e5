"""The loop of hybrid pretraining: teacher's targets, student's losses, one optimiser step, the moving average."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightly.models.utils import update_momentum
from lightning_fabric import Fabric
from torch import Tensor, nn

from dermedge.models.initialize import BATCH_NORMS
from dermedge.train.hybrid.crops import CropBatch, Grid
from dermedge.train.hybrid.distributed import world_max, world_sum
from dermedge.train.hybrid.losses import (
    dino_loss,
    ibot_loss,
    koleo_loss,
    label_loss,
    sinkhorn_knopp,
)
from dermedge.train.hybrid.model import Branch, HybridStudent
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.hybrid.schedule import Rates, apply_rates, parameter_groups, rates
from dermedge.train.hybrid.sources import UNREADABLE, Sources
from dermedge.train.loop import CHECKPOINT
from dermedge.train.run_record import RunRecord
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.progress import Progress

LOG = "log.jsonl"
TERMS = ("dino", "ibot", "koleo", "label", "pull")
BETAS = (0.9, 0.999)


class Trainer:
    """One run of pretraining in one process of perhaps many. `prepare` it, `train` it, take its `teacher_weights`."""

    def __init__(
        self,
        fabric: Fabric,
        run: RunRecord,
        recipe: HybridRecipe,
        sources: Sources,
        student: HybridStudent,
        teacher: Branch,
        seed: int,
    ) -> None:
        self.fabric, self.run, self.recipe, self.sources, self.seed = (
            fabric,
            run,
            recipe,
            sources,
            seed,
        )
        self.student, self.teacher = student, teacher
        self.grid: Grid | None = teacher.trunk.grid
        self.step = 0
        self.resumed_from: int | None = None
        self.history: list[dict[str, float]] = []
        self.unreadable = torch.zeros(len(sources.paths), dtype=torch.bool)
        self.weights = {
            "dino": recipe.dino,
            "ibot": recipe.ibot,
            "koleo": recipe.koleo,
            "label": recipe.label,
        }
        self.weights["pull"] = recipe.pull if recipe.prototype_mode == "pulled" else 0.0

    def prepare(self) -> None:
        """Move everything to its device, and continue from the folder's checkpoint where there is one.

        Raises:
            UsageError: several processes on CPUs, whose BatchNorm cannot see all of a batch.
        """
        fabric = self.fabric
        if fabric.world_size > 1 and any(
            isinstance(module, BATCH_NORMS) for module in self.student.modules()
        ):
            if fabric.device.type != "cuda":
                raise UsageError(
                    "A backbone with BatchNorm trains in one process on CPUs: start it without torchrun."
                )
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            self.student = convert(self.student)
        optimizer = torch.optim.AdamW(
            parameter_groups(self.student, self.recipe), lr=self.recipe.lr, betas=BETAS
        )
        self.model, self.optimizer = fabric.setup(self.student, optimizer)
        sharded = type(fabric.strategy).__name__ == "FSDPStrategy"
        self.teacher = (
            fabric.setup_module(self.teacher) if sharded else fabric.to_device(self.teacher)
        )
        self.true = fabric.to_device(torch.from_numpy(self.sources.true))
        self.known = fabric.to_device(torch.from_numpy(self.sources.known))
        self.codes = torch.from_numpy(self.sources.codes)
        self._resume()

    def train(self, batches: Iterable[Sequence[CropBatch]], progress: Progress | None) -> None:
        """Run every step that is left.

        Raises:
            DataError: more than 1 % of the images do not decode, or the loss is no longer finite.
        """
        log = self.run.folder / LOG
        self.model.train()
        sums, started = torch.zeros(len(TERMS) + 1), time.perf_counter()
        for parts in batches:
            torch.manual_seed(self.seed * 100_003 + self.step)
            now = rates(self.recipe, self.step)
            losses = self._step(parts, now)
            sums += losses
            self._check(losses, [row for part in parts for row in part.unreadable])
            self.step += 1
            if self.fabric.is_global_zero:
                images = self.recipe.batch_size * (1 + (self.step - 1) % self.recipe.steps)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self._line(losses, now)) + "\n")
                if progress:
                    progress(
                        self.step,
                        self.recipe.total,
                        self._note(losses, images / (time.perf_counter() - started)),
                    )
            if self.step % self.recipe.steps == 0:
                seconds = time.perf_counter() - started
                self.history.append(
                    self._named(sums / self.recipe.steps)
                    | {
                        "images_per_second": round(
                            self.recipe.batch_size * self.recipe.steps / seconds, 2
                        )
                    }
                )
                self._save()
                sums, started = torch.zeros(len(TERMS) + 1), time.perf_counter()

    def teacher_weights(self) -> dict[str, Tensor]:
        """The weights of the teacher's backbone, whole and on the CPU; nothing on ranks other than 0."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.teacher, options=options)
        own = "trunk.masked.vit." if self.grid else "trunk.timm."
        return {
            key.removeprefix(own): value for key, value in weights.items() if key.startswith(own)
        }

    def unreadable_names(self) -> tuple[str, ...]:
        """`table/image_id` of the rows that did not decode."""
        return tuple(self.sources.ids[row] for row in torch.nonzero(self.unreadable)[:, 0].tolist())

    def _step(self, parts: Sequence[CropBatch], now: Rates) -> Tensor:
        """One optimiser step; the terms and the total [6], averaged over processes."""
        recipe, fabric = self.recipe, self.fabric
        apply_rates(self.optimizer, now)
        moved: list[CropBatch] = [fabric.to_device(part) for part in parts]
        targets = self._targets(moved, now.temperature)
        codes = [fabric.to_device(self.codes[part.rows].repeat(2)) for part in parts]
        labelled = world_sum(torch.stack([(code > 0).sum() for code in codes]).sum().float()) / len(
            parts
        )
        sums = torch.zeros(len(TERMS) + 1, device=fabric.device)
        for index, (part, code, (dino, ibot)) in enumerate(zip(moved, codes, targets, strict=True)):
            with fabric.no_backward_sync(self.model, enabled=index + 1 < len(parts)):
                terms = self._terms(part, code, dino, ibot, labelled)
                total = sum(
                    (self.weights[name] * value for name, value in terms.items()),
                    sums.new_zeros(()),
                )
                fabric.backward(total / len(parts))
            row = [terms[name].detach() if name in terms else total.new_zeros(()) for name in TERMS]
            sums += torch.stack([*row, total.detach()]).float() / len(parts)
        if recipe.clip:
            fabric.clip_gradients(
                self.model, self.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
            )
        for head in self.student.branch.heads:
            head.cancel_last_layer_gradients(self.step // recipe.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow(now.momentum)
        mean: Tensor = world_sum(sums) / fabric.world_size
        return mean.cpu()

    def _terms(
        self,
        part: CropBatch,
        code: Tensor,
        dino: Tensor | None,
        ibot: Tensor | None,
        labelled: Tensor,
    ) -> dict[str, Tensor]:
        """The losses of one part, by name. `labelled` is a part's share of all labelled crops, so that parts with
        unequal numbers of them average to the whole step's loss.
        """
        recipe = self.recipe
        out = self.model(part.global_crops, part.local_crops, part.mask)
        terms: dict[str, Tensor] = {}
        if dino is not None:
            pairs = out.dino_global.unflatten(0, (2, -1))
            local = pairs[:0] if out.dino_local is None else out.dino_local
            terms["dino"] = dino_loss(pairs, local, dino, recipe.student_temperature)
        if ibot is not None:
            weight = (1 / part.mask.sum(1, keepdim=True).clamp_min(1)).expand_as(part.mask)[
                part.mask
            ]
            terms["ibot"] = ibot_loss(
                out.ibot, ibot, weight, len(part.mask), recipe.student_temperature
            )
        if recipe.koleo and recipe.self_supervised:
            terms["koleo"] = sum(
                (koleo_loss(crop) for crop in out.pooled.chunk(2)), out.pooled.new_zeros(())
            )
        if out.labels is not None:
            terms["label"] = label_loss(out.labels, self.true[code], self.known[code], labelled)
        if out.pull is not None:
            terms["pull"] = out.pull
        return terms

    @torch.no_grad()
    def _targets(
        self, parts: Sequence[CropBatch], temperature: float
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """The teacher's assignments for every part: [2, N, K] of class tokens, [M, K] of masked patches. All of a
        step's tokens, on all processes, are assigned together.
        """
        if not self.recipe.self_supervised:
            return [(None, None)] * len(parts)
        dino: list[Tensor] = []
        ibot: list[Tensor] = []
        with self.fabric.autocast():
            for part in parts:
                pooled, patches = self.teacher.trunk(part.global_crops)
                if self.teacher.dino is not None:
                    dino.append(self.teacher.dino(pooled))
                if self.teacher.ibot is not None:
                    ibot.append(self.teacher.ibot(patches[part.mask]))
        classes: list[Any] = [None] * len(parts)
        masked: list[Any] = [None] * len(parts)
        if dino:
            whole = sinkhorn_knopp(torch.cat(dino), temperature)
            classes = [
                torch.stack(rows.chunk(2))
                for rows in torch.split(whole, [len(rows) for rows in dino])
            ]
        if ibot:
            whole = sinkhorn_knopp(torch.cat(ibot), temperature)
            masked = list(torch.split(whole, [len(rows) for rows in ibot]))
        return list(zip(classes, masked, strict=True))

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        """Move the teacher towards the student, BatchNorm statistics included."""
        update_momentum(self.student.branch, self.teacher, momentum)
        for own, other in zip(self.teacher.buffers(), self.student.branch.buffers(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, 1 - momentum)

    def _check(self, losses: Tensor, unreadable: Sequence[int]) -> None:
        """Raise DataError, on every rank at the same step, for a loss or a table that has gone bad."""
        if not torch.isfinite(losses).all():
            raise DataError(
                f"The loss became {losses[-1].item()} in step {self.step + 1}: lower --lr and train again."
            )
        new = torch.zeros_like(self.unreadable)
        new[list(unreadable)] = True
        anywhere = self.fabric.to_device(torch.tensor(float(new.any())))
        if world_max(anywhere) > 0:
            self.unreadable |= world_max(self.fabric.to_device(new.to(torch.uint8))).cpu().bool()
            count, rows = int(self.unreadable.sum()), len(self.unreadable)
            if count > max(1, math.floor(UNREADABLE * rows)):
                raise DataError(
                    f"{count} of {rows} images do not decode, {self.unreadable_names()[0]} among them: run `dermedge "
                    "data check` on the tables."
                )

    def _named(self, losses: Tensor) -> dict[str, float]:
        found = dict(zip((*TERMS, "loss"), losses.tolist(), strict=True))
        return {
            name: round(value, 6)
            for name, value in found.items()
            if name == "loss" or self.weights[name]
        }

    def _line(self, losses: Tensor, now: Rates) -> dict[str, Any]:
        return {"step": self.step, **self._named(losses), "lr": now.lr, "momentum": now.momentum}

    def _note(self, losses: Tensor, speed: float) -> str:
        named = self._named(losses)
        terms = ", ".join(f"{name} {value:.2f}" for name, value in named.items())
        return f"epoch {1 + (self.step - 1) // self.recipe.steps}/{self.recipe.epochs}, {terms}, {speed:.0f} images/s"

    def _state(self) -> dict[str, Any]:
        return {"student": self.model, "teacher": self.teacher, "optimizer": self.optimizer}

    def _save(self) -> None:
        """Checkpoint, then record: a kill between the two repeats nothing but the record."""
        facts = {
            "fingerprint": self.run.fingerprint,
            "step": self.step,
            "history": self.history,
            "unreadable": torch.nonzero(self.unreadable)[:, 0].tolist(),
        }
        path = self.run.folder / CHECKPOINT
        temporary = path.with_suffix(".tmp")
        self.fabric.save(temporary, {**self._state(), "facts": facts})
        if self.fabric.is_global_zero:
            temporary.replace(path)
            self.run.write(finished=False, step=self.step, history=self.history)
        self.fabric.barrier()

    def _resume(self) -> None:
        path, log = self.run.folder / CHECKPOINT, self.run.folder / LOG
        lines: list[str] = []
        if path.is_file():
            try:
                facts = self.fabric.load(path, self._state(), weights_only=True)["facts"]
            except Exception as error:  # torch raises pickle, zip and runtime errors alike
                raise DataError(
                    f"{path} is not a checkpoint of this run ({error}): delete it, or train into another folder."
                ) from error
            if facts["fingerprint"] != self.run.fingerprint:
                raise DataError(
                    f"{path} belongs to a run with other settings or data: train into another folder, or pass "
                    "--overwrite."
                )
            self.step = self.resumed_from = facts["step"]
            self.history = facts["history"]
            self.unreadable[facts["unreadable"]] = True
            lines = (
                log.read_text("utf-8").splitlines(keepends=True)[: self.step]
                if log.is_file()
                else []
            )
        if self.fabric.is_global_zero:
            log.write_text("".join(lines), "utf-8")
        self.fabric.barrier()
