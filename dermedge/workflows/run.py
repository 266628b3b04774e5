"""`run` and `demo`: every stage from images to a verified bundle and a report."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermedge.data.check import CheckReport, check_data
from dermedge.data.draw import draw_data_set
from dermedge.data.split import split_data
from dermedge.data.table import digests, read_table, table_digest
from dermedge.evaluation.report import EvaluationReport
from dermedge.models.initialize import choose_backbone
from dermedge.models.student_presets import check_exportable, default_student
from dermedge.report.html import write_report
from dermedge.train.distill import DistillOptions, distill
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule
from dermedge.workflows.evaluate import evaluate
from dermedge.workflows.export import export
from dermedge_export.options import ExportOptions
from dermedge_export.target import find_target
from dermedge_runtime.bench import bench
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, pretty_json, read_json
from dermedge_runtime.errors import DataError, DermedgeError, UsageError
from dermedge_runtime.files import atomic_write, sha256_file, sha256_hex
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import PARITY_REPORT, LatencyReport, VerifyReport, read_report
from dermedge_runtime.spec import to_json
from dermedge_runtime.verify import verify

if TYPE_CHECKING:
    from dermedge.train.hybrid.recipe import HybridRecipe

# Takes the title of a stage, returns a context that yields the stage's progress
# callback.
Show = Callable[[str], AbstractContextManager[Progress]]

# The default student of every target, so that the student starts from the teacher.
DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class RunOptions:
    """Training settings of `run`.

    The default student is the preset that docs/students.md gives for the target, with
    the reason. It starts from the teacher's weights if the teacher has the same
    backbone or a wider one of its family, as the default teacher has.

    Attributes:
        backbone: timm name of the teacher. None takes the backbone that `init` names,
            else tf_efficientnet_lite0.
        backbone_args: Arguments of `timm.create_model` for the teacher.
        init: Initial weights of the teacher: `none`, `hub`, a safetensors file or a
            model folder.
        student: timm name or preset of the student. None is the target's default.
        student_args: Arguments of `timm.create_model` for the student.
        student_stages: Number of the student's first stages to keep. None keeps those
            of the preset, else all.
        student_init: Initial weights of the student: `auto` (pruned from the teacher),
            `none`, `hub`, a file or a folder.
        pretrain_epochs: Epochs of hybrid pretraining before fine-tuning; 0 skips it.
            None is `default_pretrain_epochs(backbone, init)`.
        pretrain_on: Folders or table files of further data sets for pretraining.
        pretrain_recipe: Recipe of the pretraining; None is the preset `mobile`. Its
            backbone, size and epochs come from these options.
        size: Side of the input in pixels.
        fit: Conversion of a rectangle to a square: `crop`, `pad` or `stretch`.
        epochs: Epochs of the teacher.
        student_epochs: Epochs of the student.
        batch_size: Images per step.
        lr: Peak learning rate of both trainings.
        patience: Epochs without a better val score before a training stops.
        views: Stored views of each image that the teacher predicts for distillation.
        seed: Random seed for shuffling, augmentation and initialization.
        name: Name of the student. None is its backbone's name.

    Example:
        >>> RunOptions(size=128, epochs=8).student_epochs
        12
    """

    backbone: str | None = None
    backbone_args: Mapping[str, Any] | None = None
    init: str = "none"
    student: str | None = None
    student_args: Mapping[str, Any] | None = None
    student_stages: int | None = None
    student_init: str = "auto"
    pretrain_epochs: int | None = None
    pretrain_on: tuple[Path | str, ...] = ()
    pretrain_recipe: "HybridRecipe | None" = None
    size: int = 160
    fit: str = "crop"
    epochs: int = 12
    student_epochs: int = 12
    batch_size: int = 64
    lr: float = 1e-3
    patience: int = 6
    views: int = 8
    seed: int = 0
    name: str | None = None

    @property
    def teacher_schedule(self) -> Schedule:
        """Schedule of the teacher's fine-tuning."""
        return Schedule(self.epochs, self.batch_size, self.lr, patience=self.patience)

    @property
    def student_schedule(self) -> Schedule:
        """Schedule of the student's distillation."""
        return replace(self.teacher_schedule, epochs=self.student_epochs)


# Residual networks of this size learn from a few hundred lesions in two minutes on two
# cores.
DEMO = RunOptions(
    backbone="resnet10t",
    backbone_args={"channels": (32, 64, 128, 256), "stem_width": 16},
    student="resnet10t",
    student_args={"channels": (16, 32, 64, 128), "stem_width": 8},
    size=96,
    epochs=30,
    student_epochs=24,
    batch_size=32,
    lr=2e-3,
    patience=10,
    views=2,
    name="demo",
)
DEMO_IMAGES = 1200
# The gate reports `insufficient` unless test holds at least 100 malignant lesions.
DEMO_SPLIT = (0.5, 0.15, 0.35)


@dataclass(frozen=True)
class RunReport:
    """Results of `run`: the paths that it wrote, and the measurements of the bundle.

    `skipped` names the stages whose result was already in the folder.

    Example:
        >>> report = demo("runs/demo")
        >>> report.report, report.verified
        ('runs/demo/report.html', 'passed')
    """

    out: str
    bundle: str
    report: str
    parity: str
    verified: str
    evaluation: EvaluationReport
    latency: LatencyReport
    skipped: tuple[str, ...]


def run(
    data: Path | str,
    out: Path | str,
    *,
    target: str = "cpu",
    options: RunOptions | None = None,
    images: bool = True,
    overwrite: bool = False,
    show: Show | None = None,
) -> RunReport:
    """Train a teacher, distil a student, export and measure it, and write a report.

    Every stage keeps its result in `out`. A training or an export with the same inputs
    is not repeated. A killed training continues. Checks and measurements always run
    again.

    Args:
        data: Folder or table file of a data set.
        out: Folder for all results.
        target: Name of a target.
        options: Settings of the trainings. None takes the defaults.
        images: Show example images from `data` in the report.
        overwrite: Replace results in `out` that other settings or data produced.
        show: Called with the title of each stage; see `Show`.

    Returns:
        The paths and measurements.

    Raises:
        DataError: The table has errors; `dermedge data check` lists them.
        UsageError: The target, a backbone or the initial weights cannot be used, or
            `out` holds results of other settings and `overwrite` is false.
        GateError: The artifact lost more accuracy than the target allows.
        DermedgeError: The written bundle does not verify.

    Example:
        >>> tiny = {"backbone": "test_efficientnet", "student": "test_efficientnet"}
        >>> options = RunOptions(**tiny, size=32, epochs=1, student_epochs=1, name="mine")
        >>> run("lesions", "out", options=options).bundle
        'out/mine-cpu.dermedge'
    """
    options, out, show = options or RunOptions(), Path(out), show or _silent
    # An unknown target, or a student that it does not export, fails here and not after
    # the trainings.
    found = find_target(target)
    check_exportable(options.student, found)
    options = replace(options, student=options.student or default_student(found).name)
    epochs = _pretrain_epochs(options)
    with show("check the data") as report_progress:
        checked = check_data(data, progress=report_progress)
        atomic_write(out / "data-check.json", pretty_json(to_json(checked)))
    _raise_errors(checked)
    stages: dict[str, _StageProgress] = {}
    folders = _train(data, out, options, epochs, overwrite, show, stages)
    with show(f"export for {target}") as report_progress:
        stages["export"] = _StageProgress(report_progress)
        bundle = _export_once(folders[-1], data, target, out, stages["export"])
    verified, evaluation, latency = _measure(bundle, data, out, show)
    with show("write the report"):
        page = write_report(
            out / "report.html",
            bundle=bundle,
            evaluation=evaluation,
            parity=read_report(bundle, PARITY_REPORT),
            latency=latency,
            verification=verified,
            runs=[read_json(folder / "run.json", DataError) for folder in folders],
            data=Path(data),
            images=images,
        )
    # The report is written first, because it shows the check that failed.
    if verified.status != "passed":
        raise DermedgeError(
            f"{bundle.path} does not verify. Run `dermedge verify {bundle.path}` to see the cause."
        )
    return RunReport(
        out=str(out),
        bundle=str(bundle.path),
        report=str(page),
        parity=bundle.parity["host"]["status"],
        verified=verified.status,
        evaluation=evaluation,
        latency=latency,
        skipped=tuple(name for name, stage in stages.items() if not stage.worked),
    )


def demo(out: Path | str, *, overwrite: bool = False, show: Show | None = None) -> RunReport:
    """Draw a data set of synthetic lesions into `out/lesions`, and call `run` on it.

    Args:
        out: Folder for all results.
        overwrite: Replace results in `out` that other settings produced.
        show: Called with the title of each stage; see `Show`.

    Raises:
        UsageError: `out` holds other results, and `overwrite` is false.

    Example:
        >>> demo("runs/demo").bundle
        'runs/demo/demo-cpu.dermedge'
    """
    out = Path(out)
    data = out / "lesions"
    if overwrite or not (data / "metadata.csv").is_file():
        with (show or _silent)("draw lesions") as report_progress:
            draw_data_set(data, count=DEMO_IMAGES, overwrite=overwrite, progress=report_progress)
    if (read_table(data).frame["split"] == "").any():
        split_data(data, fractions=DEMO_SPLIT, overwrite=True)
    return run(data, out, options=DEMO, overwrite=overwrite, show=show)


def default_pretrain_epochs(backbone: str | None, init: str) -> int:
    """Return the epochs that `run` pretrains for by default.

    Published weights of a network without patch tokens are pretrained with the preset
    `mobile`, which did no harm in the comparison of docs/pretraining.md. Random
    weights, a model folder and transformers are not pretrained.

    Args:
        backbone: timm name of the teacher, or None.
        init: Initial weights of the teacher.

    Raises:
        UsageError: The initial weights do not exist or do not name a backbone.
        MissingExtraError: Pretraining is the default here, but its extra is missing.
    """
    if init == "none" or Path(init).is_dir():
        return 0
    from dermedge.train.hybrid.model import has_patches
    from dermedge.train.hybrid.recipe import PRESETS

    chosen = choose_backbone(_teacher_backbone(backbone, init), {}, init)
    return 0 if has_patches(chosen) else PRESETS["mobile"].epochs


def _pretrain_epochs(options: RunOptions) -> int:
    epochs = options.pretrain_epochs
    if epochs is None:
        epochs = default_pretrain_epochs(options.backbone, options.init)
    if not epochs and options.pretrain_on:
        raise UsageError(
            "Tables to pretrain on were given, but the teacher is not pretrained by default. "
            "Give --pretrain-epochs too, or leave --pretrain-on out."
        )
    return epochs


def _teacher_backbone(backbone: str | None, init: str) -> str | None:
    """Return the given name, or None if the initial weights name the backbone."""
    return backbone or (None if Path(init).exists() else DEFAULT_BACKBONE)


def _train(
    data: Path | str,
    out: Path,
    options: RunOptions,
    pretrain_epochs: int,
    overwrite: bool,
    show: Show,
    stages: dict[str, "_StageProgress"],
) -> list[Path]:
    """Train all models, the student last, and return their folders."""
    pretrained, teacher, student = out / "pretrained", out / "teacher", out / "student"
    if pretrain_epochs:
        with show("pretrain the teacher") as report_progress:
            stages["pretraining"] = _StageProgress(report_progress)
            _pretrain(data, pretrained, options, pretrain_epochs, overwrite, stages["pretraining"])
    with show("train the teacher") as report_progress:
        stages["teacher"] = _StageProgress(report_progress)
        finetune(
            data,
            teacher,
            FinetuneOptions(
                backbone=None
                if pretrain_epochs
                else _teacher_backbone(options.backbone, options.init),
                backbone_args=options.backbone_args or {},
                init=str(pretrained) if pretrain_epochs else options.init,
                size=options.size,
                fit=options.fit,
                name=f"{options.name}-teacher" if options.name else None,
                schedule=options.teacher_schedule,
                seed=options.seed,
            ),
            overwrite=overwrite,
            progress=stages["teacher"],
        )
    with show("distil the student") as report_progress:
        stages["student"] = _StageProgress(report_progress)
        distill(
            teacher,
            data,
            student,
            DistillOptions(
                backbone=options.student,
                backbone_args=options.student_args or {},
                stages=options.student_stages,
                init=options.student_init,
                views=options.views,
                name=options.name,
                schedule=options.student_schedule,
                seed=options.seed,
            ),
            overwrite=overwrite,
            progress=stages["student"],
        )
    return [*([pretrained] if pretrain_epochs else []), teacher, student]


def _pretrain(
    data: Path | str,
    out: Path,
    options: RunOptions,
    epochs: int,
    overwrite: bool,
    progress: Progress,
) -> None:
    # These imports need the extra `pretrain`, which `run` can do without.
    from dermedge.train.hybrid.pretrain import pretrain
    from dermedge.train.hybrid.recipe import PRESETS

    name = _teacher_backbone(options.backbone, options.init)
    backbone = choose_backbone(name, options.backbone_args or {}, options.init)
    pretrain(
        (data, *options.pretrain_on),
        out,
        recipe=replace(
            options.pretrain_recipe or PRESETS["mobile"],
            backbone=backbone.name,
            backbone_args=dict(backbone.args),
            size=options.size,
            epochs=epochs,
        ),
        init=options.init,
        name=f"{options.name}-pretrained" if options.name else None,
        seed=options.seed,
        overwrite=overwrite,
        progress=progress,
    )


def _measure(
    bundle: Bundle, data: Path | str, out: Path, show: Show
) -> tuple[VerifyReport, EvaluationReport, LatencyReport]:
    """Verify, evaluate and time a bundle; write the reports into `out`."""
    with show("verify"):
        verified = verify(bundle)
    with show("evaluate on test") as report_progress:
        evaluation = evaluate(bundle, data, progress=report_progress)
        atomic_write(out / "evaluation.json", pretty_json(to_json(evaluation)))
    with show("measure speed") as report_progress:
        latency = bench(bundle, progress=report_progress)
        atomic_write(out / "latency.json", pretty_json(to_json(latency)))
    return verified, evaluation, latency


class _StageProgress:
    """A progress callback that records if its stage had work to do.

    A training that is already finished never calls it, which marks a skipped stage.
    """

    def __init__(self, report_progress: Progress) -> None:
        self.report_progress, self.worked = report_progress, False

    def __call__(self, done: int, total: int, note: str) -> None:
        self.worked = True
        self.report_progress(done, total, note)


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(no_progress)


def _export_once(
    student: Path, data: Path | str, target: str, out: Path, progress: Progress
) -> Bundle:
    """Export the student, or open the bundle that `out` already holds for these inputs.

    `export.json` records the inputs of the bundle. The version of dermedge is one of
    them, because another version may export other graphs.
    """
    table = read_table(data)
    inputs = {
        "student": sha256_file(student / "weights.safetensors"),
        "table": table_digest(table),
        "images": sha256_hex(canonical_json(digests(table).to_dict())),
        "target": target,
        "dermedge": dermedge_version(),
    }
    record = out / "export.json"
    if record.is_file():
        earlier = read_json(record, DataError)
        path = out / str(earlier.get("bundle"))
        if earlier.get("inputs") == inputs and path.is_dir():
            return Bundle.open(path)
    # The folder belongs to this run, so a bundle of earlier inputs is replaced.
    bundle = export(
        student, target, out, data=data, options=ExportOptions(overwrite=True), progress=progress
    )
    atomic_write(record, pretty_json({"bundle": bundle.path.name, "inputs": inputs}))
    return bundle


def _raise_errors(checked: CheckReport) -> None:
    errors = [finding.message for finding in checked.findings if finding.level == "error"]
    if errors:
        raise DataError(
            f"The data set has errors: {' '.join(errors)} "
            "Fix them; `dermedge data check` lists the rows."
        )
