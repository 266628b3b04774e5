"""Verbs that go the whole way: `run` on a table, `demo` on procedural lesions; and `export`, which they end in."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dermedge.data.check import check
from dermedge.data.generate import generate
from dermedge.data.split import split
from dermedge.data.table import read_table, table_digest
from dermedge.evaluate import EvaluationReport, evaluate
from dermedge.exporting import export as export
from dermedge.models import load_student
from dermedge.report import write_report
from dermedge.train import Schedule, distill, finetune
from dermedge_export.target import find_target
from dermedge_runtime.bench import bench
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write, canonical_json, pretty_json, read_json, sha256_file, sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.report import LatencyReport
from dermedge_runtime.spec import to_json
from dermedge_runtime.verify import verify

# Shows what is being done: a context per stage that yields what its work reports to.
Show = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Recipe:
    """What `run` trains. `teacher_init` and `student_init` are what `finetune` and `distill` accept as `init`."""

    backbone: str | None = None
    backbone_args: Mapping[str, Any] | None = None
    teacher_init: str = "none"
    student: str = "mobilenetv2_050"
    student_args: Mapping[str, Any] | None = None
    student_stages: int | None = None
    student_init: str = "auto"
    size: int = 160
    fit: str = "crop"
    name: str | None = None
    views: int = 4
    teacher_schedule: Schedule = field(default_factory=Schedule)
    student_schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0


# Small residual networks learn something from a few hundred lesions within two minutes on two cores.
DEMO = Recipe(
    backbone="resnet10t",
    backbone_args={"channels": (32, 64, 128, 256), "stem_width": 16},
    student="resnet10t",
    student_args={"channels": (16, 32, 64, 128), "stem_width": 8},
    size=96,
    name="demo",
    views=2,
    teacher_schedule=Schedule(epochs=30, batch_size=32, lr=2e-3, patience=10),
    student_schedule=Schedule(epochs=24, batch_size=32, lr=2e-3, patience=10),
)
DEMO_IMAGES = 1200
DEMO_SPLIT = (0.5, 0.15, 0.35)  # a test split of over 100 malignant lesions, so that the gate can judge them


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
    recipe: Recipe | None = None,
    images: bool = True,
    overwrite: bool = False,
    show: Show | None = None,
) -> RunReport:
    """Go the whole way: check the data, train a teacher, distil a student, export it, measure it, write `report.html`.

    Every stage keeps its result in `out`; one that was done there before with the same inputs is skipped.

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
    recipe, out = recipe or Recipe(), Path(out)
    find_target(target)
    stages = Stages(out, show or (lambda title: nullcontext(lambda done, total, note: None)))
    digest = table_digest(read_table(data))

    with stages.open("check the data") as tell:
        found = stages.json("data-check.json", {"data": digest}, lambda: to_json(check(data, progress=tell)))
    _refuse_errors(found)
    teacher, student = out / "teacher", out / "student"
    with stages.open("train the teacher") as tell:
        finetune(
            data,
            teacher,
            backbone=recipe.backbone or (None if Path(recipe.teacher_init).exists() else "mobilenetv2_100"),
            backbone_args=recipe.backbone_args,
            init=recipe.teacher_init,
            size=recipe.size,
            fit=recipe.fit,
            name=f"{recipe.name}-teacher" if recipe.name else None,
            schedule=recipe.teacher_schedule,
            seed=recipe.seed,
            overwrite=overwrite,
            progress=stages.heard("teacher", tell),
        )
    with stages.open("distil the student") as tell:
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
            progress=stages.heard("student", tell),
        )
    with stages.open(f"export for {target}") as tell:
        bundle = stages.bundle(student, data, target, digest, tell)
    with stages.open("verify") as tell:
        verified = verify(bundle)
    with stages.open("evaluate on test") as tell:
        evaluation = stages.evaluation(bundle, data, digest, tell)
    with stages.open("measure speed") as tell:
        latency = stages.latency(bundle, tell)
    with stages.open("write the report"):
        page = write_report(
            out / "report.html",
            bundle=bundle,
            evaluation=evaluation,
            parity=json.loads(bundle.read("reports/parity.json")),
            latency=latency,
            verification=verified,
            runs=[read_json(folder / "run.json", DataError) for folder in (teacher, student)],
            data=Path(data),
            images=images,
        )
    if verified.status != "passed":
        raise DermedgeError(f"{bundle.path} does not verify: run `dermedge verify {bundle.path}` to see why.")
    return RunReport(
        out=str(out),
        bundle=str(bundle.path),
        report=str(page),
        parity=bundle.parity["host"]["status"],
        verified=verified.status,
        evaluation=evaluation,
        latency=latency,
        skipped=tuple(stages.skipped),
    )


def demo(out: Path | str, *, images: int = DEMO_IMAGES, overwrite: bool = False, show: Show | None = None) -> RunReport:
    """`run` on procedural lesions that are drawn into `OUT/lesions`: no data set and no network is needed.

    Raises:
        UsageError: `out` holds something else.
    """
    out = Path(out)
    data = out / "lesions"
    shown = show or (lambda title: nullcontext(lambda done, total, note: None))
    if overwrite or not (data / "metadata.csv").is_file():
        with shown("draw lesions") as tell:
            generate(data, count=images, overwrite=overwrite, progress=tell)
    if (read_table(data).frame["split"] == "").any():
        split(data, fractions=DEMO_SPLIT, overwrite=True)
    return run(data, out, recipe=DEMO, overwrite=overwrite, show=show)


class Stages:
    """The results that stand in a run's folder, each with the digest of what it was made from."""

    def __init__(self, out: Path, show: Show) -> None:
        self.out, self.show = out, show
        self.skipped: list[str] = []
        self.inputs = read_json(out / "stages.json", DataError) if (out / "stages.json").is_file() else {}

    def open(self, title: str) -> AbstractContextManager[Progress]:
        """Show a stage."""
        return self.show(title)

    def heard(self, name: str, tell: Progress) -> Progress:
        """`tell`, with `name` taken as skipped until it is called."""
        self.skipped.append(name)

        def progress(done: int, total: int, note: str) -> None:
            if name in self.skipped:
                self.skipped.remove(name)
            tell(done, total, note)

        return progress

    def json(self, name: str, inputs: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """The JSON file `name`, from an earlier run with the same inputs, or from `work`."""
        path = self.out / name
        if self.known(name, inputs) and path.is_file():
            return read_json(path, DataError)
        result = work()
        atomic_write(path, pretty_json(result))
        self.remember(name, inputs)
        return result

    def known(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether `name` was made from these inputs; counted as skipped then."""
        same = self.inputs.get(name) == sha256_hex(canonical_json(to_json(inputs)))
        if same:
            self.skipped.append(name)
        return bool(same)

    def remember(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Keep the digest of what `name` was made from."""
        self.inputs[name] = sha256_hex(canonical_json(to_json(inputs)))
        atomic_write(self.out / "stages.json", pretty_json(self.inputs))

    def bundle(self, student: Path, data: Path | str, target: str, digest: str, tell: Progress) -> Bundle:
        """The student's bundle."""
        name = load_student(student).spec.name
        path = self.out / f"{name}-{target}.dermedge"
        inputs = {"student": sha256_file(student / "weights.safetensors"), "data": digest, "target": target}
        if self.known(path.name, inputs) and path.exists():
            return Bundle.open(path)
        made = export(student, target, self.out, data=data, overwrite=True, progress=tell)
        self.remember(path.name, inputs)
        return made

    def evaluation(self, bundle: Bundle, data: Path | str, digest: str, tell: Progress) -> EvaluationReport:
        """The bundle on the test split. Cheap beside training, so it is done each time."""
        report = evaluate(bundle, data, progress=tell)
        atomic_write(self.out / "evaluation.json", pretty_json(to_json(report)))
        return report

    def latency(self, bundle: Bundle, tell: Progress) -> LatencyReport:
        """The bundle's speed here. Measured each time: it belongs to this moment of this machine."""
        report = bench(bundle, progress=tell)
        atomic_write(self.out / "latency.json", pretty_json(to_json(report)))
        return report


def _refuse_errors(found: Mapping[str, Any]) -> None:
    errors = [finding["message"] for finding in found["findings"] if finding["level"] == "error"]
    if errors:
        raise DataError(f"The data have errors: {' '.join(errors)} Mend them; `dermedge data check` lists the rows.")
