"""Measure which conformal method gives the smallest sets, and their coverage on test.

    python tests/benchmarks/conformal.py STUDENT DATA [--bundle BUNDLE] [--coverage 0.9]

Methods are compared on val by cross-fitting. The test split is only for the chosen one.
With --bundle, the bundle's artifact is fitted and measured in place of the fp32 student,
on the same images.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.evaluation.scores import ImageScores, score_images
from dermedge.models import load_model_folder
from dermedge_export.context import module_runner
from dermedge_export.evaluation.conformal import (
    METHODS,
    conformal_folds,
    cross_fitted_sets,
    describe_unfitted,
)
from dermedge_export.evaluation.postprocessing import FitOptions, fit_postprocessing
from dermedge_export.evaluation.predictions import Predictions, decode_table, probabilities
from dermedge_export.export import check_leakage
from dermedge_runtime.model import load
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import Spec

COLUMNS = ("coverage", "set_size", "referred")


def predict_splits(
    student: Path, data: Path, bundle: Path | None
) -> tuple[Spec, Predictions, Predictions, str]:
    """Return the spec, the predictions for val and test, and the precision."""
    model = load_model_folder(student)
    images = TableEvaluationData(data, model.spec)
    check_leakage(images, model.training_images)
    with ExitStack() as stack:
        run, precision = module_runner(model.module), "fp32, torch"
        if bundle is not None:
            opened = stack.enter_context(load(bundle))
            run = opened.run
            precision = f"{opened.bundle.artifact.precision}, {opened.bundle.artifact.format}"
        return (
            model.spec,
            images.predictions("val", run),
            images.predictions("test", run),
            precision,
        )


def compare_methods(val: Predictions, spec: Spec, coverage: float) -> Iterator[str]:
    """Yield a row per method: size, coverage and empty sets on the held folds of val."""
    likely = probabilities(val, spec, fit_postprocessing(val, spec))
    rows = np.flatnonzero(val.labels >= 0)
    likely, labels = likely[rows], val.labels[rows]
    folds = conformal_folds(val.groups[rows])
    yield "| method | set size, labels weighted equally | set size | coverage | empty sets |"
    yield "|---|---|---|---|---|"
    for method in METHODS:
        sets = cross_fitted_sets(likely, labels, folds, replace(method, coverage=coverage))
        size = sets.sum(axis=1)
        equal = np.mean([size[labels == label].mean() for label in set(labels.tolist())])
        name = method.method
        if name == "raps":
            name += f", penalty {method.penalty:g}, free {method.free}"
        covered = sets[np.arange(len(labels)), labels].mean()
        cells = (
            f"{equal:.2f}",
            f"{size.mean():.2f}",
            f"{covered:.3f}",
            f"{(size == 0).mean():.1%}",
        )
        yield f"| {name} | {' | '.join(cells)} |"


def describe_scores(scores: ImageScores) -> Iterator[str]:
    """Yield a row overall, per label and per subgroup, with 95 % intervals."""
    yield "| images | number | coverage | set size | referred |"
    yield "|---|---|---|---|---|"
    parts = [("all", scores.overall)]
    parts += [(f"{one.column} {one.value}", one.scores) for one in scores.classes]
    parts += [(f"{one.column} {one.value}", one.scores) for one in scores.subgroups]
    for name, part in parts:
        cells = (written(part.metrics[column]) for column in COLUMNS)
        yield f"| {name} | {part.cases} | {' | '.join(cells)} |"


def written(value: Interval) -> str:
    """Write a value with its interval."""
    if value.value is None:
        return "-"
    ends = "" if value.low is None else f" ({value.low:.3f}-{value.high:.3f})"
    return f"{value.value:.3f}{ends}"


def main() -> None:
    """Parse the command line, measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--coverage", type=float, default=0.9)
    options = parser.parse_args()
    spec, val, test, precision = predict_splits(options.student, options.data, options.bundle)
    print(f"{spec.name}, {precision}: {len(val)} val and {len(test)} test images\n")
    print("\n".join(compare_methods(val, spec, options.coverage)), "\n")
    fitted = fit_postprocessing(val, spec, FitOptions(coverage=options.coverage))
    for task, values in fitted.items():
        print(f"{task}: {values}")
    print(*describe_unfitted(spec, fitted), sep="\n")
    decoded = decode_table(test, spec, fitted)
    scores = score_images(test, decoded, replicates=1000, seed=0)
    print("\n".join(describe_scores(scores)))
    found = (decoded.scores >= decoded.threshold)[test.malignant == 1].mean()
    kept = (decoded.scores < decoded.rule_in)[test.malignant == 0].mean()
    print(f"\nmalignant not called benign: {found:.3f}, benign not called malignant: {kept:.3f}")


if __name__ == "__main__":
    main()
