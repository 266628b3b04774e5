"""Run the protocols: fit on train, predict on test, score."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge.evaluation.table_predictions import preprocess_table
from dermedge.probing import knn
from dermedge.probing.context import ProbeContext
from dermedge.probing.linear import (
    LINEAR_RECIPE,
    LinearRecipe,
    class_probabilities,
    fit_linear,
)
from dermedge.probing.options import FRACTIONS
from dermedge.probing.paper import (
    DECODER_SEEDS,
    PAPER_SEGMENT_RECIPE,
    PAPER_UPERNET,
    classify_as_released,
)
from dermedge.probing.report import ProbeResult
from dermedge.probing.scores import score_masks, score_masks_as_released, score_probabilities
from dermedge.probing.segment import (
    HEADS,
    SEGMENT_RECIPE,
    UPERNET,
    FeatureMaps,
    UPerNetSettings,
    count_pixels,
    fit_decoders,
    make_decoders,
    read_masks,
)
from dermedge.probing.task import ProbeSplit, draw_fraction
from dermedge_export.evaluation.metrics import Floats
from dermedge_export.evaluation.postprocessing import fit_threshold
from dermedge_export.evaluation.predictions import predict_table
from dermedge_runtime.errors import DataError
from dermedge_runtime.report import Interval

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

# Pixels [N, 2, 2] of background and lesion, in intersection and union.
PixelCounts = NDArray[np.int64]


def _run_linear(context: ProbeContext) -> tuple[ProbeResult, ...]:
    return _fit_on_fractions(context, {"linear": 1.0})


def _run_fewshot(context: ProbeContext) -> tuple[ProbeResult, ...]:
    fractions = context.options.fractions or FRACTIONS
    return _fit_on_fractions(context, {f"{100 * fraction:g} %": fraction for fraction in fractions})


def _fit_on_fractions(
    context: ProbeContext, fractions: Mapping[str, float]
) -> tuple[ProbeResult, ...]:
    """Fit and score a linear layer on each fraction of the train labels, by name."""
    task, options = context.task, context.options
    train, val = task.select("train"), context.threshold_split()
    train_features, test_features = context.features(train), context.features(context.test)
    val_features = context.features(val) if val is not None else None
    results = []
    for name, fraction in fractions.items():
        rows = (
            np.arange(len(train))
            if fraction == 1
            else draw_fraction(train.labels, train.groups, fraction, options.seed)
        )
        # Each fraction starts from the same seed, so that results differ by the labels
        # only.
        classifier = fit_linear(
            task.kind,
            len(task.classes),
            train_features[rows],
            train.labels[rows],
            recipe=context.recipe or LINEAR_RECIPE,
            normalise=options.normalise,
            seed=options.seed,
        )
        threshold = _choose_threshold(
            val, classifier(val_features) if val_features is not None else None
        )
        results.append(
            _make_result(
                context, name, train.rows(rows), classifier(test_features), threshold, fraction
            )
        )
    return tuple(results)


def _run_knn(context: ProbeContext) -> tuple[ProbeResult, ...]:
    task, train, val = context.task, context.task.select("train"), context.threshold_split()
    gallery, queries = context.features(train), context.features(context.test)
    probabilities = knn.vote(gallery, train.labels, queries, len(task.classes))
    threshold = _choose_threshold(
        val,
        knn.vote(gallery, train.labels, context.features(val), len(task.classes))
        if val is not None
        else None,
    )
    retrieval = knn.measure_retrieval(gallery, train.labels, queries, context.test.labels)
    return (_make_result(context, "knn", train, probabilities, threshold, retrieval=retrieval),)


def _run_finetune(context: ProbeContext) -> tuple[ProbeResult, ...]:
    """Train the whole network from the teacher's weights, in a temporary folder."""
    from dermedge.train.finetune import FinetuneOptions, finetune
    from dermedge.train.loop import Schedule

    task, spec = context.task, context.teacher.spec.preprocess
    train, val = task.select("train"), context.threshold_split()
    training = context.options.recipe()
    # `finetune` reads the table itself. It assigns the same splits as the probe,
    # because `with_split` is deterministic.
    with tempfile.TemporaryDirectory() as folder:
        tuned = finetune(
            context.data,
            Path(folder, "tuned"),
            FinetuneOptions(
                tasks=(task.name,),
                init=str(context.folder),
                size=spec.size,
                fit=spec.fit,
                schedule=Schedule(
                    epochs=training.epochs, batch_size=training.batch_size, lr=training.lr
                )
                if training is not None
                else Schedule(),
                seed=context.options.seed,
            ),
            progress=context.progress,
        )
    threshold = _choose_threshold(val, _predict(context, tuned, val) if val is not None else None)
    probabilities = _predict(context, tuned, context.test)
    return (_make_result(context, "finetune", train, probabilities, threshold),)


def _predict(context: ProbeContext, tuned: "TrainedModel", part: ProbeSplit) -> Floats:
    """Return a fine-tuned network's probabilities [N, K] of the task's classes."""
    import torch

    from dermedge.train.training_data import run_network

    probed = context.task
    outputs = predict_table(
        lambda batch: run_network(tuned.module, torch.from_numpy(batch)),
        preprocess_table(part.table, tuned.spec.preprocess),
    )
    probabilities = class_probabilities(probed.kind, outputs[probed.name].astype(np.float64))
    task = next(task for task in tuned.spec.tasks if task.name == probed.name)
    if not task.labels:
        return probabilities
    # The network has no output for severity levels that are missing in train; they get
    # probability 0.
    complete = np.zeros((len(probabilities), len(probed.classes)))
    complete[:, [probed.classes.index(label.id) for label in task.labels]] = probabilities
    return complete


def _run_segment(context: ProbeContext) -> tuple[ProbeResult, ...]:
    seeds = dict.fromkeys(context.options.heads or HEADS, context.options.seed)
    counts, lesion = _segment(context, context.teacher, seeds, SEGMENT_RECIPE, UPERNET)
    return tuple(
        _make_segment_result(
            context,
            name,
            counts[name],
            lesion,
            score_masks(counts[name], lesion, context.test.groups, context.bootstrap),
        )
        for name in seeds
    )


def _segment(
    context: ProbeContext,
    teacher: "TrainedModel",
    seeds: Mapping[str, int],
    recipe: LinearRecipe,
    upernet: UPerNetSettings,
) -> tuple[dict[str, PixelCounts], NDArray[np.bool_]]:
    """Fit decoders, one per seed, and count the pixels of the test masks.

    Returns:
        Pixel counts [N, 2, 2] by decoder, and whether each mask has a lesion, bool [N].
    """
    import torch

    test, train, spec = context.test, context.task.select("train"), teacher.spec.preprocess
    if len(train) < 2:
        raise DataError(
            f"{context.task.table.file} has one train mask, but two are needed. Add masks."
        )
    teacher.module.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    made = {
        name: make_decoders(teacher, (name,), seed, upernet=upernet) for name, seed in seeds.items()
    }
    levels = max(levels for _, levels in made.values())
    decoders = {name: decoder for parts, _ in made.values() for name, decoder in parts.items()}
    train_maps = FeatureMaps(teacher, levels, train.table, normalised=upernet.normalised)
    masks = read_masks(train.table, spec)
    for seed in dict.fromkeys(seeds.values()):
        fit_decoders(
            {name: decoders[name] for name in seeds if seeds[name] == seed},
            train_maps,
            masks,
            recipe=context.recipe or recipe,
            seed=seed,
            progress=context.progress,
        )
    masks = read_masks(test.table, spec)
    test_maps = FeatureMaps(teacher, levels, test.table, normalised=upernet.normalised)
    counts = count_pixels(decoders, test_maps, masks)
    # The caller may run the teacher again, and expects it where it was loaded.
    teacher.module.to("cpu")
    return counts, np.asarray(masks.any(axis=(1, 2)))


def _make_segment_result(
    context: ProbeContext,
    name: str,
    counts: PixelCounts,
    lesion: NDArray[np.bool_],
    metrics: Mapping[str, Interval],
) -> ProbeResult:
    train = context.task.select("train")
    return ProbeResult(
        name=name,
        fraction=1.0,
        train_images=len(train),
        train_groups=len(set(train.groups.tolist())),
        threshold=None,
        metrics=metrics,
        recall={},
        fairness=(),
        empty_masks=int((~lesion).sum()),
        # Without a lesion, all pixels of the union were predicted.
        false_alarms=int((counts[~lesion, 1, 1] > 0).sum()),
    )


def _run_paper(context: ProbeContext) -> tuple[ProbeResult, ...]:
    teacher, task, options = context.teacher, context.task, context.options
    if task.kind == "segment":
        stretched = replace(teacher.spec.preprocess, fit="stretch")
        teacher = replace(teacher, spec=replace(teacher.spec, preprocess=stretched))
        seeds = {name: DECODER_SEEDS[name] for name in options.heads or HEADS}
        counts, lesion = _segment(context, teacher, seeds, PAPER_SEGMENT_RECIPE, PAPER_UPERNET)
        own = {
            name: score_masks(counts[name], lesion, context.test.groups, context.bootstrap)
            for name in seeds
        }
        return tuple(
            _make_segment_result(
                context,
                name,
                counts[name],
                lesion,
                score_masks_as_released(counts[name], context.test.groups, context.bootstrap)
                | own[name],
            )
            for name in seeds
        )
    probabilities = classify_as_released(
        teacher,
        task,
        context.recipe or LINEAR_RECIPE,
        seed=options.seed,
        progress=context.progress,
    )
    train = task.select("train")
    return tuple(
        _make_result(context, name, train, found, threshold=None)
        for name, found in probabilities.items()
    )


RUN_PROTOCOL: Mapping[str, Callable[[ProbeContext], tuple[ProbeResult, ...]]] = {
    "linear": _run_linear,
    "knn": _run_knn,
    "finetune": _run_finetune,
    "segment": _run_segment,
    "fewshot": _run_fewshot,
    "paper": _run_paper,
}


def _choose_threshold(val: ProbeSplit | None, probabilities: Floats | None) -> float | None:
    """Choose the malignancy threshold on val; None for tasks without one."""
    if val is None or probabilities is None:
        return None
    return fit_threshold(probabilities[:, 1], val.labels)


def _make_result(
    context: ProbeContext,
    name: str,
    fitted_on: ProbeSplit,
    probabilities: Floats,
    threshold: float | None,
    fraction: float = 1.0,
    retrieval: Mapping[str, Floats] | None = None,
) -> ProbeResult:
    """Score probabilities [N, K] on test."""
    scores = score_probabilities(
        context.task,
        context.test,
        probabilities,
        threshold=threshold,
        bootstrap=context.bootstrap,
        retrieval=retrieval,
    )
    return ProbeResult(
        name=name,
        fraction=fraction,
        train_images=len(fitted_on),
        train_groups=len(set(fitted_on.groups.tolist())),
        threshold=threshold,
        metrics=scores.metrics,
        recall=scores.recall,
        fairness=scores.fairness,
    )
