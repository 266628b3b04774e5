"""`build`: on the device, a bundle's ONNX file becomes an engine, which is held against the fp32 student there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_export.parity.compare import parity
from dermedge_export.parity.gate import failure_messages
from dermedge_export.parity.reference import Reference, read_reference
from dermedge_export.target import find_target
from dermedge_runtime.bench import percentiles
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.errors import BundleError, DataError, EngineError, GateError, UsageError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.report import REFERENCE_REPORT, ParityReport, Percentiles, VerifyReport
from dermedge_runtime.spec import Json, Postprocessing, Status, to_json
from dermedge_runtime.tensorrt.api import FLAGS, Engine, TensorRt
from dermedge_runtime.tensorrt.engine_cache import (
    SCHEMA,
    EngineFile,
    EngineKey,
    cached,
    read_plan,
    read_timings,
    record_path,
    store,
    write_timings,
)
from dermedge_runtime.tensorrt.precision import PrecisionReadback, read_precision
from dermedge_runtime.tensorrt.runtime import TensorRtRuntime
from dermedge_runtime.verify import verify

FORMAT = "tensorrt"
WARMUP, RUNS = 5, 30
BOARD = {"board": Path("/proc/device-tree/model"), "l4t": Path("/etc/nv_tegra_release")}
Step = Callable[[str], None]


class LabelledImages(Protocol):
    """Labelled images on the device; `name` says whose they are."""

    @property
    def name(self) -> str: ...

    def predictions(self, split: str, run: Run) -> Predictions:
        """What `run` answers for every image of a split."""

    def digests(self, split: str) -> Sequence[str]:
        """sha256 of every image file of a split, in the order of its predictions."""


@dataclass(frozen=True)
class DeviceReport:
    """What one device found: its engine, what that computes in, whether it is still the model, and how fast.

    `status` is that of the gate, `failed` also where `verify` failed. `latency` is of the bare engine call.
    `allowed_failures` are the reasons for which the gate was shut, where it was opened on purpose.
    """

    bundle: str
    status: Status
    device: Mapping[str, str]
    engine: EngineFile
    precision: PrecisionReadback
    verify: VerifyReport
    parity: ParityReport
    latency: Percentiles
    allowed_failures: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The content of `NAME.device.json`."""
        return {"schema": SCHEMA, **{name: to_json(value) for name, value in vars(self).items()}}


def build_engine(
    bundle: str | Path | Bundle,
    *,
    images: LabelledImages | None = None,
    workspace_mb: int | None = None,
    rebuild: bool = False,
    allow_parity_failure: bool = False,
    machine: TensorRt | None = None,
    step: Step | None = None,
) -> DeviceReport:
    """Build the engine of a TensorRT bundle on this device, verify and gate it, and write `NAME.device.json` beside it.

    With `images` the gate compares the engine with the answers of the fp32 student that the bundle brings, over those
    images of the test split that are found here. Without, only over the golden cases, which are too few to pass.

    Args:
        bundle: the path of a bundle, or an opened one; it stays as it is.
        images: labelled images on this device.
        workspace_mb: memory that a layer may use while it computes; by default all of the GPU's.
        rebuild: build anew what is in the cache.
        allow_parity_failure: let the engine be used although the gate failed, which is recorded.
        machine: the TensorRT to build with; by default this machine's.
        step: told what is being done.

    Raises:
        UsageError: there is nothing to build for this format, or `images` but no answers of the student.
        ElsewhereError: this machine has no TensorRT or no GPU.
        EngineError: TensorRT refuses the model, or its engine does not compute in the precision that was asked for.
        DataError: none of the images is one that the student answered.
        GateError: the engine lost more than the target allows; it is recorded as failed and not used.
        BundleError: the bundle is damaged, or the engine does not verify.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    tell = step or (lambda _: None)
    if opened.artifact.format != FORMAT:
        raise UsageError(
            f"{opened.path} has nothing to build: its {opened.artifact.format} artifact runs as it is; "
            "engines are built from bundles that were exported for a jetson target."
        )
    reference = _reference(opened) if images is not None else None
    machine = machine or TensorRt.open(opened.path)
    file, engine = _engine(opened, machine, workspace_mb, rebuild, tell)
    runtime = TensorRtRuntime(engine, opened.spec, machine.version)
    try:
        precision = read_precision(engine.layers(), opened.artifact.precision)
        tell("verifying")
        checks = verify(opened, runtime=runtime)
        tell("comparing it with the student")
        if images is None or reference is None:
            tables = _golden_tables(opened, runtime.run)
        else:
            tables = _image_tables(reference, images, runtime.run)
        compared = _parity(opened, tables, machine)
        latency = _latency(opened, runtime)
    finally:
        runtime.close()
    failed = "failed" in (checks.status, compared.status)
    report = DeviceReport(
        bundle=opened.id,
        status="failed" if failed else compared.status,
        device=_facts(machine),
        engine=file,
        precision=precision,
        verify=checks,
        parity=compared,
        latency=latency,
        allowed_failures=tuple(failure_messages(compared))
        if allow_parity_failure and checks.status == "passed"
        else (),
    )
    path = record_path(opened.path)
    atomic_write(path, pretty_json(report.to_json()))
    _raise(report, path)
    return report


def _raise(report: DeviceReport, path: Path) -> None:
    """The error of a record that shuts its engine out."""
    for check in report.verify.checks:
        if check.status == "failed":
            raise BundleError(
                f"The engine is not the model that was exported ({check.name}: {check.detail}); it is not used, "
                f"{path.name} records it."
            )
    reasons = failure_messages(report.parity)
    if reasons and not report.allowed_failures:
        raise GateError(
            f"On this device the model is not the same: {' '.join(reasons)} The engine is not used, {path.name} "
            "records it; export in another precision, or let it be used all the same with --allow-parity-failure."
        )


def _engine(
    bundle: Bundle, machine: TensorRt, workspace_mb: int | None, rebuild: bool, tell: Step
) -> tuple[EngineFile, Engine]:
    """The engine of the cache where it is whole, else a new one."""
    flags = {**FLAGS, "workspace_mb": workspace_mb}
    key = EngineKey(bundle.files[bundle.artifact.path], machine.version, machine.gpu.sm, flags)
    if not rebuild:
        try:
            file = cached(bundle.path, key)
            if file is not None:
                return file, machine.load(read_plan(bundle.path, file))
        except EngineError as error:
            tell(f"building again: {error}")
    tell(f"building for {machine.gpu.name} with TensorRT {machine.version}; this takes minutes")
    plan, timings = machine.build(
        bundle.read(bundle.artifact.path),
        workspace=workspace_mb * 2**20 if workspace_mb is not None else None,
        timings=b"" if rebuild else read_timings(bundle.path, key),
    )
    engine = machine.load(plan)
    write_timings(bundle.path, key, timings)
    return store(bundle.path, key, plan), engine


def _reference(bundle: Bundle) -> Reference:
    if REFERENCE_REPORT not in bundle.files:
        raise UsageError(
            f"{bundle.path} brings no answers of its student ({REFERENCE_REPORT}), so images cannot judge the engine: leave --data "
            "out, or export the model again with --data."
        )
    return read_reference(bundle.read(REFERENCE_REPORT))


@dataclass(frozen=True, eq=False)
class _Tables:
    """The student's answers and the engine's over the same images."""

    student: Predictions
    engine: Predictions
    fitted: Mapping[str, Postprocessing] | None
    basis: str


def _image_tables(reference: Reference, images: LabelledImages, run: Run) -> _Tables:
    """Over the images of the test split that the student answered."""
    places = reference.locate(images.digests("test"))
    found = places >= 0
    if not found.any():
        raise DataError(
            f"None of the {len(places)} test images of {images.name} is one of {reference.basis}, which the student "
            "answered: give the data set that the model was exported with, its files unchanged."
        )
    answers = images.predictions("test", run).rows(found)
    student = {task: output[places[found]] for task, output in reference.outputs.items()}
    basis = reference.basis
    if (missing := len(reference.images) - len(answers)) > 0:
        basis = f"{len(answers)} images of {basis} ({missing} more are not on this device)"
    return _Tables(
        replace(answers, outputs=student),
        replace(answers, outputs={task: answers.outputs[task] for task in student}),
        reference.postprocessing,
        basis,
    )


def _golden_tables(bundle: Bundle, run: Run) -> _Tables:
    """Over the golden cases, of which nothing is known but what the student answered."""
    cases = bundle.golden()
    count, names = len(cases), tuple(case.name for case in cases)
    found = run(np.stack([case.tensor for case in cases]))
    student = Predictions(
        image_ids=names,
        outputs={
            task.name: np.stack([case.reference[task.name] for case in cases])
            for task in bundle.spec.tasks
        },
        labels=np.full(count, -1, np.int64),
        malignant=np.full(count, np.nan),
        groups=np.array(names),
    )
    return _Tables(student, replace(student, outputs=found), None, f"{count} golden cases")


def _parity(bundle: Bundle, tables: _Tables, machine: TensorRt) -> ParityReport:
    with np.errstate(invalid="ignore"):  # an engine that gives NaN is judged, and fails
        return parity(
            tables.student,
            tables.engine,
            bundle.spec,
            tables.fitted if tables.fitted is not None else bundle.postprocessing,
            bundle.postprocessing,
            precision=bundle.artifact.precision,
            basis=tables.basis,
            engine=f"{FORMAT} {machine.version}",
            hardware=f"{machine.gpu.name}, SM {machine.gpu.sm}",
            limits=find_target(bundle.artifact.target).gate,
        )


def _latency(bundle: Bundle, runtime: TensorRtRuntime) -> Percentiles:
    """Of one image through the engine, its copies to and from the GPU included."""
    image = bundle.golden()[0].tensor[None]
    taken = []
    for _ in range(WARMUP + RUNS):
        start = perf_counter()
        runtime.run(image)
        taken.append((perf_counter() - start) * 1000)
    return percentiles(taken[WARMUP:])


def _facts(machine: TensorRt) -> dict[str, str]:
    """What this device is."""
    gpu: dict[str, Any] = vars(machine.gpu)
    board = {name: _first_line(path) for name, path in BOARD.items() if path.is_file()}
    return {
        **describe_device(),
        **board,
        "gpu": gpu["name"],
        **{name: str(gpu[name]) for name in ("sm", "cuda", "memory")},
    }


def _first_line(path: Path) -> str:
    return path.read_text(errors="replace").partition("\n")[0].strip("\0 ")
