"""Measure which conformal method gives the smallest sets, and their coverage on test.

    python tests/benchmarks/conformal.py STUDENT DATA [--int8 percentile] [--coverage 0.9]

Methods are compared on val by cross-fitting. The test split is only for the chosen one.
With --int8, the coverage of an int8 artifact is also measured, with its own fit and with
that of the student.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.evaluation.scores import ImageScores, score_images
from dermedge.models import TrainedModel, load_model_folder
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.evaluation.conformal import (
    METHODS,
    conformal_folds,
    cross_fitted_sets,
    describe_unfitted,
)
from dermedge_export.evaluation.postprocessing import FitOptions, fit_postprocessing
from dermedge_export.evaluation.predictions import Predictions, Run, decode_table, probabilities
from dermedge_export.export import check_leakage
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.graph.run import open_session
from dermedge_export.target import CPU
from dermedge_runtime.report import Interval
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec

SPLITS = ("val", "test")
METHODS_INT8 = ("minmax", "percentile", "entropy")
COLUMNS = ("coverage", "set_size", "referred")


def quantized(model: TrainedModel, images: TableEvaluationData, method: str) -> Run:
    """Return a function that runs the student's int8 ONNX artifact, one image a call."""
    context = ExportContext(model, images.calibration)
    built = export_onnx(context, CPU, Candidate("int8", "onnx", method))
    session = open_session(built.files[built.artifact.path], optimized=True)
    names = [output.name for output in session.get_outputs()]

    def run(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        rows = [session.run(names, {INPUT: image[None]}) for image in batch]
        columns = zip(*rows, strict=True)
        return {name: np.concatenate(part) for name, part in zip(names, columns, strict=True)}

    return run


def compare_fits(
    spec: Spec, fp32: tuple[Predictions, Predictions], int8: tuple[Predictions, Predictions]
) -> Iterator[str]:
    """Yield a row per artifact and fit, measured on test; each pair is val and test."""
    fits = {"fp32": fit_postprocessing(fp32[0], spec), "int8": fit_postprocessing(int8[0], spec)}
    labels = [label.id for label in spec.diagnosis.labels]
    yield f"| artifact | fit | coverage | set size | referred | {' | '.join(labels)} |"
    yield "|---" * (5 + len(labels)) + "|"
    for name, fit, test in (
        ("fp32", "fp32", fp32[1]),
        ("int8", "int8", int8[1]),
        ("int8", "fp32", int8[1]),
    ):
        decoded = decode_table(test, spec, fits[fit])
        known, covered = test.labels >= 0, decoded.covered
        by_label = (covered[test.labels == k] for k in range(len(labels)))
        cells = [
            f"{covered[known].mean():.3f}",
            f"{decoded.sets.sum(axis=1).mean():.2f}",
            f"{decoded.referred.mean():.1%}",
            *(f"{rows.mean():.3f}" if len(rows) else "-" for rows in by_label),
        ]
        yield f"| {name} | {fit} | {' | '.join(cells)} |"


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
    parser.add_argument("--int8", choices=METHODS_INT8)
    parser.add_argument("--coverage", type=float, default=0.9)
    options = parser.parse_args()
    model = load_model_folder(options.student)
    spec, images = model.spec, TableEvaluationData(options.data, model.spec)
    check_leakage(images, model.training_images)
    val, test = (images.predictions(split, module_runner(model.module)) for split in SPLITS)
    print(f"{spec.name}: {len(val)} val and {len(test)} test images\n")
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
    if options.int8:
        run = quantized(model, images, options.int8)
        pair = tuple(images.predictions(split, run) for split in SPLITS)
        print("\n" + "\n".join(compare_fits(spec, (val, test), pair)))


if __name__ == "__main__":
    main()
