"""Verbs that go the whole way: `run` on a table, `demo` on procedural lesions; and `export`, which they end in."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermedge.data.check import CheckReport, check_data
from dermedge.data.generate import draw_data_set
from dermedge.data.split import split_data
from dermedge.data.table import digests, read_table, table_digest
from dermedge.evaluation import EvaluationReport, evaluate
from dermedge.report import write_report
from dermedge.train import Schedule, distill, finetune
from dermedge.workflows.export import export
from dermedge_export.target import find_target
from dermedge_runtime.bench import bench
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, pretty_json, read_json
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write, sha256_file, sha256_hex
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import PARITY_REPORT, LatencyReport, read_report
from dermedge_runtime.spec import to_json
from dermedge_runtime.verify import verify

if TYPE_CHECKING:
    from dermedge.train.hybrid import HybridRecipe

# Shows what is being done: a context per stage that yields what its work reports to.
Show = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class RunOptions:
    """What `run` trains. `teacher_init` and `student_init` are what `finetune` and `distill` accept as `init`.

    With `pretraining` the teacher is first pretrained from `teacher_init` on the data and on the tables `pretrain_on`,
    with this backbone and size whatever that recipe says, and fine-tuned from there.

    By default the student is a MobileNetV2 without its last two stages, which hold most of its parameters and little of
    its skill: 0.54 M of them, started from the teacher's own if that is a whole MobileNetV2.
    """

    backbone: str | None = None
    backbone_args: Mapping[str, Any] | None = None
    teacher_init: str = "none"
    student: str = "mobilenetv2_100"
    student_args: Mapping[str, Any] | None = None
    student_stages: int | None = 4
    student_init: str = "auto"
    size: int = 160
    fit: str = "crop"
    name: str | None = None
    views: int = 4
    teacher_schedule: Schedule = field(default_factory=Schedule)
    student_schedule: Schedule = field(default_factory=Schedule)
    pretraining: "HybridRecipe | None" = None
    pretrain_on: Sequence[Path | str] = ()
    seed: int = 0


# Small residual networks learn something from a few hundred lesions within two minutes on two cores.
DEMO = RunOptions(
    backbone="resnet10t",
    backbone_args={"channels": (32, 64, 128, 256), "stem_width": 16},
    student="resnet10t",
    student_args={"channels": (16, 32, 64, 128), "stem_width": 8},
    student_stages=None,
    size=96,
    name="demo",
    views=2,
    teacher_schedule=Schedule(epochs=30, batch_size=32, lr=2e-3, patience=10),
    student_schedule=Schedule(epochs=24, batch_size=32, lr=2e-3, patience=10),
)
DEMO_IMAGES = 1200
DEMO_SPLIT = (
    0.5,
    0.15,
    0.35,
)  # a test split of over 100 malignant lesions, so that the gate can judge them


@dataclass(frozen=True)
class RunReport:
    """What `run` made, and what it found."""

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
    recipe: RunOptions | None = None,
    images: bool = True,
    overwrite: bool = False,
    show: Show | None = None,
) -> RunReport:
    """Go the whole way: check the data, train a teacher, distil a student, export it, measure it, write `report.html`.

    Every stage keeps its result in `out`. Trainings and the export are skipped if they were done there with the same
    inputs; checks and measurements, which are quick, are made anew.

    Args:
        data: a table's folder or file.
        out: folder for everything.
        target: name of a target.
        recipe: what to train.
        images: show example images from `data` in the report.
        overwrite: do again, with other settings, what stands in `out`.
        show: shows each stage.

    Raises:
        DataError: the data have errors that would spoil the result; `dermedge data check` lists them.
        UsageError: `out` holds another run, and `overwrite` is not given.
        GateError: the exported model lost too much.
    """
    recipe, out, show = recipe or RunOptions(), Path(out), show or _silent
    find_target(target)
    with show("check the data") as tell:
        found = check_data(data, progress=tell)
        atomic_write(out / "data-check.json", pretty_json(to_json(found)))
    _refuse_errors(found)
    pretrained, teacher, student = out / "pretrained", out / "teacher", out / "student"
    stages: dict[str, _Heard] = {}
    if recipe.pretraining is not None:
        with show("pretrain the teacher") as tell:
            stages["pretraining"] = _Heard(tell)
            _pretrain(data, pretrained, recipe, overwrite, stages["pretraining"])
    with show("train the teacher") as tell:
        stages["teacher"] = _Heard(tell)
        finetune(
            data,
            teacher,
            backbone=None
            if recipe.pretraining
            else _teacher_backbone(recipe.backbone, recipe.teacher_init),
            backbone_args=recipe.backbone_args,
            init=str(pretrained) if recipe.pretraining else recipe.teacher_init,
            size=recipe.size,
            fit=recipe.fit,
            name=f"{recipe.name}-teacher" if recipe.name else None,
            schedule=recipe.teacher_schedule,
            seed=recipe.seed,
            overwrite=overwrite,
            progress=stages["teacher"],
        )
    with show("distil the student") as tell:
        stages["student"] = _Heard(tell)
        distill(
            teacher,
            data,
            student,
            backbone=recipe.student,
            backbone_args=dict(recipe.student_args or {}),
            stages=recipe.student_stages,
            init=recipe.student_init,
            views=recipe.views,
            name=recipe.name,
            schedule=recipe.student_schedule,
            seed=recipe.seed,
            overwrite=overwrite,
            progress=stages["student"],
        )
    with show(f"export for {target}") as tell:
        stages["export"] = _Heard(tell)
        bundle = _export_once(student, data, target, out, stages["export"])
    with show("verify"):
        verified = verify(bundle)
    with show("evaluate on test") as tell:
        evaluation = evaluate(bundle, data, progress=tell)
        atomic_write(out / "evaluation.json", pretty_json(to_json(evaluation)))
    with show("measure speed") as tell:
        latency = bench(bundle, progress=tell)
        atomic_write(out / "latency.json", pretty_json(to_json(latency)))
    trained = ([pretrained] if recipe.pretraining else []) + [teacher, student]
    with show("write the report"):
        page = write_report(
            out / "report.html",
            bundle=bundle,
            evaluation=evaluation,
            parity=read_report(bundle, PARITY_REPORT),
            latency=latency,
            verification=verified,
            runs=[read_json(folder / "run.json", DataError) for folder in trained],
            data=Path(data),
            images=images,
        )
    if verified.status != "passed":
        raise DermedgeError(
            f"{bundle.path} does not verify: run `dermedge verify {bundle.path}` to see why."
        )
    return RunReport(
        out=str(out),
        bundle=str(bundle.path),
        report=str(page),
        parity=bundle.parity["host"]["status"],
        verified=verified.status,
        evaluation=evaluation,
        latency=latency,
        skipped=tuple(name for name, heard in stages.items() if not heard.worked),
    )


def demo(
    out: Path | str, *, images: int = DEMO_IMAGES, overwrite: bool = False, show: Show | None = None
) -> RunReport:
    """`run` on procedural lesions that are drawn into `OUT/lesions`: no data set and no network is needed.

    Raises:
        UsageError: `out` holds something else.
    """
    out = Path(out)
    data = out / "lesions"
    if overwrite or not (data / "metadata.csv").is_file():
        with (show or _silent)("draw lesions") as tell:
            draw_data_set(data, count=images, overwrite=overwrite, progress=tell)
    if (read_table(data).frame["split"] == "").any():
        split_data(data, fractions=DEMO_SPLIT, overwrite=True)
    return run(data, out, recipe=DEMO, overwrite=overwrite, show=show)


def default_pretrain_epochs(backbone: str | None, init: str) -> int:
    """Epochs by the preset `mobile` for published weights of a network without patch tokens, with which it was found to
    do no harm (docs/pretraining.md); 0 for random weights, for a model's folder, and for transformers.

    Raises:
        UsageError: backbone and initial weights make no sense.
    """
    from dermedge.train.hybrid import PRESETS
    from dermedge.train.hybrid.model import has_patches
    from dermedge.train.lineage import choose_backbone

    if init == "none" or Path(init).is_dir():
        return 0
    chosen = choose_backbone(_teacher_backbone(backbone, init), {}, init)
    return 0 if has_patches(chosen) else PRESETS["mobile"].epochs


def _teacher_backbone(backbone: str | None, init: str) -> str | None:
    """The name that was given; None where the initial weights know it."""
    return backbone or (None if Path(init).exists() else "mobilenetv2_100")


def _pretrain(
    data: Path | str, out: Path, recipe: RunOptions, overwrite: bool, progress: Progress
) -> None:
    from dermedge.train.hybrid import pretrain
    from dermedge.train.lineage import choose_backbone

    assert recipe.pretraining is not None
    name = _teacher_backbone(recipe.backbone, recipe.teacher_init)
    backbone = choose_backbone(name, recipe.backbone_args or {}, recipe.teacher_init)
    pretrain(
        (data, *recipe.pretrain_on),
        out,
        recipe=replace(
            recipe.pretraining,
            backbone=backbone.name,
            backbone_args=dict(backbone.args),
            size=recipe.size,
        ),
        init=recipe.teacher_init,
        name=f"{recipe.name}-pretrained" if recipe.name else None,
        seed=recipe.seed,
        overwrite=overwrite,
        progress=progress,
    )


class _Heard:
    """A stage's progress that remembers whether there was any work to do."""

    def __init__(self, tell: Progress) -> None:
        self.tell, self.worked = tell, False

    def __call__(self, done: int, total: int, note: str) -> None:
        self.worked = True
        self.tell(done, total, note)


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(no_progress)


def _export_once(
    student: Path, data: Path | str, target: str, out: Path, progress: Progress
) -> Bundle:
    """The student's bundle, made unless `out` holds it; `export.json` says what it was made from."""
    table = read_table(data)
    inputs = {
        "student": sha256_file(student / "weights.safetensors"),
        "table": table_digest(table),
        "images": sha256_hex(canonical_json(digests(table).to_dict())),
        "target": target,
        "dermedge": version("dermedge"),
    }
    record = out / "export.json"
    if record.is_file():
        earlier = read_json(record, DataError)
        path = out / str(earlier.get("bundle"))
        if earlier.get("inputs") == inputs and path.is_dir():
            return Bundle.open(path)
    bundle = export(student, target, out, data=data, overwrite=True, progress=progress)
    atomic_write(record, pretty_json({"bundle": bundle.path.name, "inputs": inputs}))
    return bundle


def _refuse_errors(found: CheckReport) -> None:
    errors = [finding.message for finding in found.findings if finding.level == "error"]
    if errors:
        raise DataError(
            f"The data have errors: {' '.join(errors)} Mend them; `dermedge data check` lists the rows."
        )
