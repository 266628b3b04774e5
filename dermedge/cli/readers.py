"""`dermedge readers`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    file_size,
    interval,
    json_option,
    overwrite_option,
    print_line,
    progress,
    table,
)

if TYPE_CHECKING:
    from dermedge.readers.kit import ReaderKit
    from dermedge.readers.plan import PlanReport
    from dermedge.readers.report import ReaderReport

METRIC_NAMES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc")


@click.group("readers")
def command() -> None:
    """Plan, run and analyze reader studies without and with a model's prediction."""


@command.command("analyze", short_help="Analyze the answers of a reader study.")
@click.argument(
    "tables", metavar="TABLE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for readers.json and readers.html.",
)
@click.option(
    "--cases",
    type=click.Path(path_type=Path),
    help="Table with one row per case: truth, model, subgroups.",
)
@click.option(
    "--primary",
    type=click.Choice(METRIC_NAMES),
    help="Metric of the primary analysis. Default: balanced_accuracy, or accuracy for diagnoses.",
)
@click.option(
    "--completeness",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Share of the answers that a reader must have given.",
)
@click.option(
    "--washout-days",
    type=click.FloatRange(min=0),
    default=14.0,
    show_default=True,
    help="Least days between the two readings of a case.",
)
@click.option(
    "--replicates",
    type=click.IntRange(min=10),
    default=2000,
    show_default=True,
    help="Bootstrap replicates.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Random seed of the bootstrap."
)
@overwrite_option
@json_option
def analyze_command(tables: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Analyze the answers in TABLE, one row per reader, case and condition.

    TABLE is a CSV or Parquet file, or a folder of CSV files. It needs the columns
    reader, case, condition (unaided or aided) and answer. The truth and the model's
    prediction of each case are columns too, or in the table of --cases.

    The primary analysis is Obuchowski-Rockette with random readers and cases. The
    report also has intervals from a crossed bootstrap, tests over readers and over
    cases, the answers that the model changed, subgroups, and checks of the design.
    """
    from dermedge.readers.analyze import analyze_readers
    from dermedge.readers.report import PAGE_FILE

    with progress("readers") as report_progress:
        report = analyze_readers(tables, out=out, progress=report_progress, **options)
    emit(report, as_json, show_report)
    if not as_json:
        print_line(f"Report: {out / PAGE_FILE}")


def show_report(report: "ReaderReport") -> None:
    """Print warnings, the metrics, and the tests of the primary metric."""
    for check in report.checks:
        if check.status == "warn":
            print_line(f"Warning: {check.name}: {check.detail}", fg="yellow", err=True)
    for note in report.notes:
        print_line(f"Note: {note}", err=True)
    rows = [
        (name, *map(interval, (each.unaided, each.aided, each.difference, each.model)))
        for name, each in report.pooled.items()
    ]
    table(
        ("metric", "unaided (95 % interval)", "aided", "difference", "model alone"),
        rows,
        f"{report.readers} readers, {report.cases} cases",
    )
    result = report.anova[report.primary]
    tests = {
        "random readers, random cases": result.random,
        "fixed readers, random cases": result.fixed_readers,
        "random readers, fixed cases": result.fixed_cases,
    }
    table(
        ("Obuchowski-Rockette", "difference (95 % interval)", "df", "p"),
        [
            (
                name,
                interval(test.difference),
                "-" if test.df is None else f"{test.df:.1f}",
                "-" if test.p is None else "< 0.0001" if test.p < 1e-4 else f"{test.p:.4f}",
            )
            for name, test in tests.items()
            if test is not None
        ],
        report.primary,
    )
    rates = {name: interval(value) for name, value in report.changes.rates.items()}
    table(("changed answers", "share (95 % interval)"), list(rates.items()))


@command.command("plan", short_help="Estimate the power of a planned reader study.")
@click.option(
    "--readers",
    type=click.IntRange(min=2),
    multiple=True,
    default=(10,),
    show_default=True,
    help="Number of readers. Can be repeated.",
)
@click.option(
    "--cases",
    type=click.IntRange(min=4),
    multiple=True,
    default=(100,),
    show_default=True,
    help="Number of cases. Can be repeated.",
)
@click.option(
    "--unaided",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.75,
    show_default=True,
    help="Expected value of the metric without the model.",
)
@click.option(
    "--aided",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.80,
    show_default=True,
    help="Expected value of the metric with the model.",
)
@click.option(
    "--metric",
    type=click.Choice(METRIC_NAMES),
    default="auc",
    show_default=True,
    help="Metric that the study compares.",
)
@click.option(
    "--malignant",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of malignant cases.",
)
@click.option(
    "--structure",
    type=click.Choice(["HL", "LL", "HH", "LH"]),
    default="HL",
    show_default=True,
    help="Variances of Roe and Metz: high or low correlation of the data, high or low "
    "variance of readers.",
)
@click.option(
    "--simulations",
    type=click.IntRange(min=10),
    default=500,
    show_default=True,
    help="Simulated studies of each size.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@json_option
def plan_command(as_json: bool, **options: Any) -> None:
    """Estimate the power of a study by simulation.

    Ratings are drawn by the model of Roe and Metz (1997), and each study is analysed by
    Obuchowski-Rockette with random readers and cases, at the two-sided level of 5 %.
    """
    from dermedge.readers.plan import plan_readers

    with progress("plan") as report_progress:
        report = plan_readers(
            options.pop("readers"), options.pop("cases"), progress=report_progress, **options
        )
    emit(report, as_json, show_plan)


def show_plan(report: "PlanReport") -> None:
    """Print the power of each size."""
    table(
        ("readers", "cases", "malignant", "power (95 % interval)", "interval's width"),
        [
            (each.readers, each.cases, each.malignant, interval(each.power), f"{each.width:.3f}")
            for each in report.studies
        ],
        f"{report.metric} {report.unaided:g} unaided, {report.aided:g} aided, structure "
        f"{report.structure}, {report.simulations} simulated studies of each size",
    )


@command.command("kit", short_help="Write the offline page on which readers answer.")
@bundle_argument
@click.option(
    "--cases",
    required=True,
    type=click.Path(path_type=Path),
    help="Data set with one row per case: a folder with a table, or a table file.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the page."
)
@click.option(
    "--question",
    type=click.Choice(["malignant", "diagnosis"]),
    default="malignant",
    show_default=True,
    help="Malignant or benign, or a diagnosis among the bundle's labels.",
)
@click.option(
    "--washout-days",
    type=click.FloatRange(min=0),
    default=14.0,
    show_default=True,
    help="Least days between the list without the model and the list with it.",
)
@click.option("--title", default="Reader study", show_default=True, help="Title of the page.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed of the case numbers and of every reader's order.",
)
@overwrite_option
@json_option
def kit_command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Write a self-contained page that runs a reader study with BUNDLE's predictions.

    The page holds the photographs, so keep it within the study. It makes no request.
    Each reader answers all cases without the model and, after the wash-out, with it, in
    random orders. The saved answers are the TABLE of `dermedge readers analyze`. The
    truth is not in the page but in cases.csv, which readers must not see.
    """
    from dermedge.readers.kit import write_reader_kit

    with progress("kit") as report_progress:
        kit = write_reader_kit(bundle, progress=report_progress, **options)
    if kit.known:
        print_line(
            f"Warning: the model was trained or selected on {kit.known} of these cases. Its "
            "predictions for them are too good.",
            fg="yellow",
            err=True,
        )
    emit(kit, as_json, show_kit)


def show_kit(kit: "ReaderKit") -> None:
    """Print the written files, and to whom they may be given."""
    print_line(f"For the readers: {kit.page} ({kit.count} cases, {file_size(kit.size)})")
    print_line(f"For the analysis only, it holds the truth: {kit.cases}")
    print_line("Both hold patient data. Keep them within the study.")
