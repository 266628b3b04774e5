"""Probe a teacher's frozen features by published protocols."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dermedge.data.table import SPLITS, digests, table_digest
from dermedge.evaluation.scores import describe_empty_masks
from dermedge.probing import knn
from dermedge.probing.context import ProbeContext, load_context
from dermedge.probing.linear import LINEAR_RECIPE
from dermedge.probing.options import FRACTIONS, ProbeOptions
from dermedge.probing.paper import (
    PAPER_FIT,
    UNIFORM_NEIGHBOURS,
    WEIGHTED_NEIGHBOURS,
    count_iterations,
)
from dermedge.probing.protocols import RUN_PROTOCOL
from dermedge.probing.report import ProbeReport, ProbeResult
from dermedge.probing.segment import HEADS
from dermedge.probing.task import find_shared_groups
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.files import atomic_write, check_free
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Json, to_json


def probe(
    teacher: str | Path,
    data: str | Path,
    options: ProbeOptions | None = None,
    *,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProbeReport:
    """Measure how well a task can be solved from a teacher's frozen features.

    Train fits everything, and val only chooses the malignancy threshold (and the epoch
    at which fine-tuning stops). Test is read once. Images go through the teacher's own
    preprocessing, as on a device, and not through the paper's resize to 256 and crop to
    224: a student is distilled from these features.

    Protocols, with the paper's settings:

    - `linear`: one linear layer on the frozen features (the class token, if the
      backbone pools by it); Adam, rate 5e-3 x batch / 256, batches of 256, 50 epochs.
    - `knn`: the 20 nearest train images by cosine similarity s vote with exp(s / 0.07).
      Retrieval metrics are reported too.
    - `fewshot`: `linear` on 1, 5 and 10 % of the train labels: whole lesions or
      patients, at least one of each class.
    - `segment`: decoders on the frozen feature maps; Adam, rate 1e-3, batches of 64, 20
      epochs. `linear` is batch norm, dropout and a 1x1 convolution on the last map;
      `upernet` reads several maps.
    - `paper`: what the released code of DermINO measures for the task, with its image
      transforms, schedules and metrics. docs/protocols.md compares both.
    - `finetune`: `dermedge.finetune` trains the whole network, with its own default
      settings, in a folder that is deleted afterwards.

    Args:
        teacher: Folder of a teacher or student.
        data: Folder or table file of a data set. A table without splits is split by
            lesion and patient.
        options: Task, protocol and settings; by default the linear probe of the
            diagnosis.
        cache: Folder of cached features, by digest of weights and images: ten probes of
            the same images cost one forward pass. By default `TEACHER.features` beside
            the teacher's folder. Feature maps for `segment` are too large for it. They
            stay in memory, as far as they fit.
        out: File to write the report to, as JSON; by default none.
        overwrite: Replace `out` if it exists.
        progress: Called with the steps done.

    Returns:
        Metrics with 95 % intervals over lesions or patients, and comparisons of groups.

    Raises:
        UsageError: `out` exists and `overwrite` is false, or the backbone has no
            feature maps for the decoders.
        DataError: The teacher's folder or the table is unusable.

    Source: DermINO (arXiv:2508.12190).

    Examples:
        >>> from dermedge.probing.options import ProbeOptions
        >>> from dermedge.probing.probe import probe
        >>> options = ProbeOptions(protocol="knn", replicates=10)
        >>> report = probe("teacher", "lesions", options, cache="features")
        >>> report.results[0].name, report.images["test"] > 0
        ('knn', True)
    """
    options = options or ProbeOptions()
    if out is not None:
        # The probe may take hours, so the file is checked first.
        check_free(Path(out), overwrite=overwrite)
    context = load_context(teacher, data, options, cache=cache, progress=progress)
    report = _make_report(context, RUN_PROTOCOL[options.protocol](context))
    if out is not None:
        atomic_write(Path(out), pretty_json(to_json(report)))
    return report


def _make_report(context: ProbeContext, results: tuple[ProbeResult, ...]) -> ProbeReport:
    task, test = context.task, context.test
    split = task.table.frame["split"].to_numpy()
    known = task.labels >= 0
    counts = np.bincount(test.labels, minlength=len(task.classes)).tolist()
    return ProbeReport(
        task=task.name,
        protocol=context.options.protocol,
        teacher=context.teacher.spec.name,
        teacher_weights=context.weights,
        data=task.table.name,
        data_digest=table_digest(task.table),
        images={name: int((known & (split == name)).sum()) for name in SPLITS},
        test_groups=len(set(test.groups.tolist())),
        labels=task.classes,
        support={} if task.kind == "segment" else dict(zip(task.classes, counts, strict=True)),
        settings=_list_settings(context),
        results=results,
        warnings=(*_list_warnings(context), *_describe_masks(results)),
    )


def _describe_masks(results: tuple[ProbeResult, ...]) -> Iterator[str]:
    for result in results:
        if result.empty_masks:
            yield f"{result.name}: {describe_empty_masks(result.empty_masks, result.false_alarms)}"


def _list_settings(context: ProbeContext) -> Json:
    """List every setting of the probe, with the defaults of its protocol."""
    task, options, protocol = context.task, context.options, context.options.protocol
    training = {} if context.recipe is None else asdict(context.recipe)
    if not training.get("half_period"):
        training.pop("half_period", None)  # The rate is constant, or that of `finetune`.
    settings: Json = {"seed": options.seed, "replicates": options.replicates}
    settings["preprocess"] = to_json(context.teacher.spec.preprocess)
    if protocol == "paper":
        settings["preprocess"] |= {"fit": "stretch"} if task.kind == "segment" else PAPER_FIT
    if protocol == "finetune":
        from dermedge.train.loop import Schedule

        settings |= {"optimizer": "AdamW", **asdict(Schedule(**training))}
    elif training:
        settings |= {"optimizer": "Adam", **training}
    if protocol in ("linear", "fewshot"):
        settings["normalise"] = options.normalise
    if protocol == "fewshot":
        settings["fractions"] = list(options.fractions or FRACTIONS)
    if protocol == "knn":
        settings |= {"neighbours": knn.NEIGHBOURS, "temperature": knn.TEMPERATURE}
    if protocol == "paper" and task.kind != "segment":
        settings |= {
            "iterations": count_iterations(task, context.recipe or LINEAR_RECIPE),
            "neighbours": [*WEIGHTED_NEIGHBOURS, UNIFORM_NEIGHBOURS],
            "temperature": knn.TEMPERATURE,
        }
    if task.kind == "segment":
        settings["heads"] = list(options.heads or HEADS)
    return settings


def _list_warnings(context: ProbeContext) -> Iterator[str]:
    """Yield reasons to trust the scores less."""
    task, test = context.task, context.test
    training = set(context.teacher.training_images)
    seen = training & set(digests(test.table))
    if seen:
        yield (
            f"The teacher was TRAINED ON {len(seen)} of the {len(test)} test images. Their scores "
            "do not predict its accuracy on new patients."
        )
    if context.options.protocol == "fewshot" and training:
        # Few-shot results claim that few labels suffice, which fails if the teacher was
        # trained on the labels of the other train images.
        known = training & set(digests(task.select("train").table))
        if known:
            yield (
                f"The teacher was trained on {len(known)} of the train images already. If it saw "
                "their labels, the few labels of this probe are not all that it knows."
            )
    shared = find_shared_groups(task)
    if shared:
        yield (
            f"{len(shared)} lesions or patients are in train and in test, first {shared[0]!r}. "
            "Split the table again with `dermedge data split --redo`."
        )
    if unlabelled := task.count_unlabelled("test"):
        yield (
            f"Left out: {unlabelled} test images whose label is unknown, or whose class is not in "
            "train."
        )
