"""The protocols: what each fits on train, and what it answers on test."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dermedge.evaluation.table_predictions import preprocessed
from dermedge.probing import knn
from dermedge.probing.config import ProbeConfig
from dermedge.probing.linear import LINEAR, fit_linear, likelihoods
from dermedge.probing.report import ProbeResult
from dermedge.probing.scores import scores, segment_scores
from dermedge.probing.segment import (
    SEGMENT,
    Maps,
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


def _linear(setup: ProbeConfig) -> tuple[ProbeResult, ...]:
    return _fitted_linearly(setup, {"linear": 1.0})


def _fewshot(setup: ProbeConfig) -> tuple[ProbeResult, ...]:
    return _fitted_linearly(
        setup, {f"{100 * fraction:g} %": fraction for fraction in setup.fractions}
    )


def _fitted_linearly(setup: ProbeConfig, fractions: Mapping[str, float]) -> tuple[ProbeResult, ...]:
    question, train, val = setup.question, setup.question.part("train"), setup.val()
    inputs, tested = setup.features(train), setup.features(setup.test)
    validated = setup.features(val) if val is not None else None
    found = []
    for name, fraction in fractions.items():
        rows = (
            np.arange(len(train))
            if fraction == 1
            else draw_fraction(train.labels, train.groups, fraction, setup.seed)
        )
        fitted = fit_linear(
            question.kind,
            len(question.names),
            inputs[rows],
            train.labels[rows],
            recipe=setup.recipe or LINEAR,
            normalise=setup.normalise,
            seed=setup.seed,
        )
        chosen = fitted(validated) if validated is not None else None
        found.append(_result(setup, name, fraction, train.rows(rows), fitted(tested), val, chosen))
    return tuple(found)


def _knn(setup: ProbeConfig) -> tuple[ProbeResult, ...]:
    train, val = setup.question.part("train"), setup.val()
    gallery, queries, classes = (
        setup.features(train),
        setup.features(setup.test),
        len(setup.question.names),
    )
    answers = knn.vote(gallery, train.labels, queries, classes)
    chosen = (
        knn.vote(gallery, train.labels, setup.features(val), classes) if val is not None else None
    )
    ranked = knn.retrieval(gallery, train.labels, queries, setup.test.labels)
    return (_result(setup, "knn", 1.0, train, answers, val, chosen, ranked),)


def _finetune(setup: ProbeConfig) -> tuple[ProbeResult, ...]:
    """The whole network, trained from the teacher's weights in a temporary folder."""
    import torch

    from dermedge.train import Schedule, finetune
    from dermedge.train.finetune import run_network

    question, spec, val = setup.question, setup.teacher.spec.preprocess, setup.val()
    train = question.part("train")
    with tempfile.TemporaryDirectory() as folder:
        tuned = finetune(
            setup.data,
            Path(folder, "tuned"),
            tasks=(question.task,),
            init=str(setup.folder),
            size=spec.size,
            fit=spec.fit,
            schedule=Schedule(**setup.training),
            seed=setup.seed,
            progress=setup.progress,
        )

    task = next(task for task in tuned.spec.tasks if task.name == question.task)

    def answers(part: ProbeSplit) -> Floats:
        images = preprocessed(part.table, tuned.spec.preprocess)
        outputs = predict_table(
            lambda batch: run_network(tuned.module, torch.from_numpy(batch)), images
        )
        found = likelihoods(question.kind, outputs[question.task].astype(np.float64))
        if not task.labels:
            return found
        whole = np.zeros(
            (len(found), len(question.names))
        )  # it knows no level of a severity that train does not show
        whole[:, [question.names.index(label.id) for label in task.labels]] = found
        return whole

    chosen = answers(val) if val is not None else None
    return (_result(setup, "finetune", 1.0, train, answers(setup.test), val, chosen),)


def _segment(setup: ProbeConfig) -> tuple[ProbeResult, ...]:
    import torch

    train, spec = setup.question.part("train"), setup.teacher.spec.preprocess
    if len(train) < 2:
        raise DataError(
            f"{setup.question.table.file} has one train mask, and two are needed: add some."
        )
    setup.teacher.module.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    decoders, levels = make_decoders(setup.teacher, setup.heads, setup.seed)
    fit_decoders(
        decoders,
        Maps(setup.teacher, levels, train.table),
        read_masks(train.table, spec),
        recipe=setup.recipe or SEGMENT,
        seed=setup.seed,
        progress=setup.progress,
    )
    counts = count_pixels(
        decoders, Maps(setup.teacher, levels, setup.test.table), read_masks(setup.test.table, spec)
    )
    setup.teacher.module.to("cpu")
    groups = len(set(train.groups.tolist()))
    return tuple(
        ProbeResult(
            name,
            1.0,
            len(train),
            groups,
            None,
            segment_scores(counts[name], setup.test.groups, setup.bootstrap),
            {},
            (),
        )
        for name in decoders
    )


RUN: Mapping[str, Callable[[ProbeConfig], tuple[ProbeResult, ...]]] = {
    "linear": _linear,
    "knn": _knn,
    "finetune": _finetune,
    "segment": _segment,
    "fewshot": _fewshot,
}


def _result(
    setup: ProbeConfig,
    name: str,
    fraction: float,
    fitted: ProbeSplit,
    answers: Floats,
    val: ProbeSplit | None,
    chosen: Floats | None,
    ranked: Mapping[str, Floats] | None = None,
) -> ProbeResult:
    """Answers [N, K] on test as a result; `chosen` are those on val, by which the malignancy threshold is set."""
    threshold = (
        fit_threshold(chosen[:, 1], val.labels) if val is not None and chosen is not None else None
    )
    found = scores(
        setup.question,
        setup.test,
        answers,
        threshold=threshold,
        bootstrap=setup.bootstrap,
        ranked=ranked,
    )
    return ProbeResult(
        name=name,
        fraction=fraction,
        train_images=len(fitted),
        train_groups=len(set(fitted.groups.tolist())),
        threshold=threshold,
        metrics=found.metrics,
        recall=found.recall,
        fairness=found.fairness,
    )
