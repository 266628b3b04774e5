"""`analyze_readers`: compare readers without and with a model's prediction."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dermedge.readers.changes import measure_changes, measure_shifts, measure_subgroups
from dermedge.readers.design import check_design
from dermedge.readers.logistic import fit_logistic
from dermedge.readers.obuchowski_rockette import compare_conditions, estimate_covariances
from dermedge.readers.paired import compare_readers, mcnemar
from dermedge.readers.report import JSON_FILE, Comparison, ReaderReport, ReaderScores
from dermedge.readers.scores import METRICS, Replicates, Score, make_scores, rate
from dermedge.readers.study import Study, read_study
from dermedge_export.evaluation.metrics import Floats, interval
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import check_free
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.registry import pick_known

STEPS = 6
FEW_READERS = 5
"""Number of readers below which a note warns of wide intervals over readers."""


def analyze_readers(
    tables: str | Path | Iterable[str | Path],
    *,
    cases: str | Path | None = None,
    primary: str | None = None,
    completeness: float = 0.95,
    washout_days: float = 14.0,
    replicates: int = 2000,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReaderReport:
    """Analyze a reader study.

    Every reader answers every case unaided and aided. The primary analysis compares the
    conditions by the Obuchowski-Rockette method with random readers and cases.

    Args:
        tables: Table of readings, or several: CSV or Parquet files, or folders of CSV
            files. The columns are listed in docs/readers.md.
        cases: Table with one row per case, for columns that the readings lack.
        primary: Metric of the primary analysis. By default `balanced_accuracy`, or
            `accuracy` for diagnoses.
        completeness: Share of answers that a reader must have given, else it is left
            out.
        washout_days: Least days between the two readings of a case.
        replicates: Replicates of the crossed bootstrap.
        seed: Random seed of the bootstrap.
        out: Folder for `readers.json` and the page `readers.html`.
        overwrite: Replace an existing folder of such a report.
        progress: Called after every step.

    Raises:
        DataError: A table is not readable or not consistent; see `read_study`.
        UsageError: The primary metric is unknown, or the study does not define it. Or
            `out` exists.

    Example:
        >>> from dermedge.readers.simulate import write_study
        >>> table = write_study("study.csv", readers=6, cases=60, seed=3)
        >>> report = analyze_readers(table, replicates=200)
        >>> report.pooled["accuracy"].difference.value > 0
        True
    """
    if isinstance(tables, (str, Path)):
        tables = [tables]
    if out is not None:
        check_free(Path(out), overwrite=overwrite, marker=JSON_FILE)
    report = progress or no_progress
    report(0, STEPS, "reading")
    study = read_study(tables, cases, completeness=completeness)
    scores = make_scores(study, study.answers, rate(study))
    primary = _choose_primary(primary, study, scores)
    draws = Replicates.draw(len(study.readers), study.malignant, replicates, seed)
    report(1, STEPS, "metrics")
    by_metric = dict(_compare_metrics(study, scores, draws))
    theta = {name: score.at(np.ones((1, len(study.cases))))[0] for name, score in scores.items()}
    report(2, STEPS, "Obuchowski-Rockette")
    anova = {
        name: compare_conditions(theta[name], estimate_covariances(score))
        for name, score in scores.items()
    }
    report(3, STEPS, "mixed-effects logistic regression")
    logistic = fit_logistic(study.readings)
    report(4, STEPS, "subgroups")
    before, after = study.correct
    result = ReaderReport(
        readers=len(study.readers),
        cases=len(study.cases),
        malignant=int((study.malignant == 1).sum()),
        answers="malignant or benign" if study.binary else "diagnoses",
        primary=primary,
        replicates=replicates,
        seed=seed,
        completeness=completeness,
        left_out_readers=study.left_out_readers,
        left_out_cases=study.left_out_cases,
        pooled={name: comparisons[-1] for name, comparisons in by_metric.items()},
        anova=anova,
        wilcoxon={name: compare_readers(*values) for name, values in theta.items()},
        mcnemar=mcnemar(before, after),
        logistic=logistic,
        by_reader=tuple(_score_readers(study, by_metric)),
        subgroups=measure_subgroups(study, draws),
        changes=measure_changes(study, draws),
        shifts=measure_shifts(study, draws),
        checks=check_design(study, washout_days),
        notes=(*study.notes, *_list_limits(study, scores)),
    )
    report(STEPS, STEPS, "done")
    if out is not None:
        # The page needs jinja2, which reading and analyzing a study do not.
        from dermedge.readers.page import write_reader_report

        write_reader_report(result, out, overwrite=overwrite)
    return result


def _choose_primary(primary: str | None, study: Study, scores: Mapping[str, Score]) -> str:
    if primary is None:
        return "balanced_accuracy" if study.binary and "balanced_accuracy" in scores else "accuracy"
    pick_known("metric", primary, METRICS)
    if primary not in scores:
        raise UsageError(
            f"The study does not define {primary}. Choose one of: {', '.join(scores)}. The area "
            "under the curve needs a confidence for every answer; sensitivity and specificity "
            "need malignant and benign cases."
        )
    return primary


def _compare_metrics(
    study: Study, scores: Mapping[str, Score], draws: Replicates
) -> Iterator[tuple[str, list[Comparison]]]:
    """Yield each metric with its comparison for every reader, and for their mean at last."""
    alone: Mapping[str, Score] = {}
    if study.model is not None:
        alone = make_scores(study, study.model, study.model_score)
    once = np.ones((1, len(study.cases)))
    for name, score in scores.items():
        values, samples = score.at(once)[0], score.at(draws.cases)
        model = model_samples = None
        if name in alone:
            model, model_samples = alone[name].at(once)[0], alone[name].at(draws.cases)
        comparisons = [
            _compare(values[:, reader], samples[:, :, reader], model, model_samples)
            for reader in range(len(study.readers))
        ]
        mean = draws.over_readers(samples)
        comparisons.append(_compare(values.mean(1), mean, model, model_samples))
        yield name, comparisons


def _compare(
    values: Floats, samples: Floats, model: Floats | None, model_samples: Floats | None
) -> Comparison:
    """Compare the values [2] and their replicates [B, 2] with the model's value and [B]."""
    unaided, aided = values
    difference = interval(aided - unaided, samples[:, 1] - samples[:, 0])
    pair = (interval(unaided, samples[:, 0]), interval(aided, samples[:, 1]))
    if model is None or model_samples is None:
        return Comparison(*pair, difference)
    return Comparison(
        *pair,
        difference,
        model=interval(model, model_samples),
        model_minus_unaided=interval(model - unaided, model_samples - samples[:, 0]),
        model_minus_aided=interval(model - aided, model_samples - samples[:, 1]),
    )


def _score_readers(
    study: Study, by_metric: Mapping[str, list[Comparison]]
) -> Iterator[ReaderScores]:
    before, after = study.correct
    for index, reader in enumerate(study.readers):
        metrics = {name: comparisons[index] for name, comparisons in by_metric.items()}
        yield ReaderScores(
            reader, study.groups[index], metrics, mcnemar(before[index], after[index])
        )


def _list_limits(study: Study, scores: Mapping[str, Score]) -> Iterator[str]:
    readers = len(study.readers)
    if readers == 1:
        yield (
            "One reader was analysed. All results hold for this reader only, and the analyses "
            "with random readers were not run."
        )
    elif readers < FEW_READERS:
        yield (
            f"{readers} readers were analysed. Intervals over so few readers are wide and "
            "unreliable."
        )
    if study.model is None:
        yield (
            "The table has no column model. The model alone and automation bias were not measured."
        )
    if "auc" not in scores:
        yield "Some answers have no confidence. The area under the ROC curve was not measured."
    if "sensitivity" not in scores:
        yield (
            "The cases are not malignant and benign. Sensitivity and specificity were not measured."
        )
