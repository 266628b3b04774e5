"""Build the engine of a bundle on a device, and compare it with the fp32 student."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Protocol

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
    find_cached_engine,
    read_plan,
    read_timings,
    record_path,
    store_engine,
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
    """Labelled images on the device, split by split.

    Example:
        >>> from dermedge.evaluation.export_data import TableEvaluationData
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> images: LabelledImages = TableEvaluationData("lesions", spec)
        >>> images.name, len(images.digests("test"))
        ('lesions', 12)
    """

    @property
    def name(self) -> str:
        """Name of the data set, for messages."""

    def predictions(self, split: str, run: Run) -> Predictions:
        """Return the outputs of `run` for every image of a split."""

    def digests(self, split: str) -> Sequence[str]:
        """Return the sha256 of each image file of a split, in order of predictions."""


@dataclass(frozen=True)
class DeviceReport:
    """The results of one device: its engine, precision, parity and latency.

    Attributes:
        bundle: Id of the bundle.
        status: Status of the gate; also `failed` if `verify` failed.
        device: Facts about the device, such as its GPU and its board.
        engine: The engine file in the cache.
        precision: Precisions that the engine computes in, as TensorRT reports them.
        verify: Result of `verify` on this engine.
        parity: Parity of the engine with the fp32 student.
        latency: Milliseconds of the engine call alone.
        allowed_failures: Messages of the failed limits that the caller allowed.

    Example:
        >>> bundle, basis = "ab" * 32, ("test split", 400, "tensorrt", "Orin", "fp16")
        >>> report = DeviceReport(  # as `build_engine` returns it
        ...     bundle=bundle,
        ...     status="passed",
        ...     device={"gpu": "Orin"},
        ...     engine=EngineFile(EngineKey("cd" * 32, "10.3.0", "87", {}), "ef" * 32),
        ...     precision=PrecisionReadback("fp16", 40, {"fp16": 40}, (), 0),
        ...     verify=VerifyReport(bundle, "tensorrt 10.3.0", "passed", ()),
        ...     parity=ParityReport("passed", *basis, limits=()),
        ...     latency=percentiles([1.5, 1.5, 1.5]),
        ... )
        >>> f"{report.status}: {report.latency.p50} ms on {report.device['gpu']}"
        'passed: 1.5 ms on Orin'
        >>> report.to_json()["precision"]["counts"]
        {'fp16': 40}
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
        """Return the content of `NAME.device.json`."""
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
    """Build the engine of a TensorRT bundle on this device, verify it, and gate it.

    The result is written to `NAME.device.json` beside the bundle. With `images`, the
    gate compares the engine with the student's predictions in the bundle. It compares
    the test images that are on this device. Without `images`, it compares only the
    golden cases, which are too few to pass.

    Args:
        bundle: A bundle or its path; the bundle stays as it is.
        images: Labelled images on this device.
        workspace_mb: Memory in MB that one layer may use; all of the GPU's by default.
        rebuild: Build the engine even if the cache holds it.
        allow_parity_failure: Use the engine even if the gate fails; the record keeps
            the failures.
        machine: TensorRT to build with; by default this machine's.
        step: Receives the name of each step.

    Returns:
        The report that was written.

    Raises:
        UsageError: The bundle needs no engine, or `images` are given and the bundle
            carries no predictions of its student.
        ElsewhereError: This machine has no TensorRT or no GPU.
        EngineError: TensorRT refuses the model, or its engine does not compute in the
            precision of the bundle.
        DataError: The bundle has no prediction for any of the images.
        GateError: The engine lost more accuracy than the target allows. The record says
            so, and the engine is not used.
        BundleError: The bundle is damaged, or the engine does not verify.

    Example:
        >>> from dermedge_export import build_engine
        >>> build_engine("toy.dermedge")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: toy.dermedge needs no engine: ...
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    report_step = step or (lambda note: None)
    if opened.artifact.format != FORMAT:
        raise UsageError(
            f"{opened.path} needs no engine: its {opened.artifact.format} artifact runs as it is. "
            "Give a bundle that was exported for a jetson target."
        )
    reference = _read_reference(opened) if images is not None else None
    machine = machine or TensorRt.open(opened.path)
    file, engine = _load_or_build(opened, machine, workspace_mb, rebuild, report_step)
    runtime = TensorRtRuntime(engine, opened.spec, machine.version)
    try:
        precision = read_precision(engine.layers(), opened.artifact.precision)
        report_step("verifying")
        checks = verify(opened, runtime=runtime)
        report_step("comparing it with the student")
        if images is None or reference is None:
            tables = _golden_tables(opened, runtime.run)
        else:
            tables = _image_tables(reference, images, runtime.run)
        compared = _compare(opened, tables, machine)
        latency = _measure_latency(opened, runtime)
    finally:
        runtime.close()
    failed = "failed" in (checks.status, compared.status)
    report = DeviceReport(
        bundle=opened.id,
        status="failed" if failed else compared.status,
        device=_device_facts(machine),
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
    _raise_failures(report, path)
    return report


def _raise_failures(report: DeviceReport, path: Path) -> None:
    """Raise the error of a report whose engine must not be used."""
    for check in report.verify.checks:
        if check.status == "failed":
            raise BundleError(
                f"The engine is not the model that was exported ({check.name}: {check.detail}). "
                f"It is not used; {path.name} records the failure."
            )
    reasons = failure_messages(report.parity)
    if reasons and not report.allowed_failures:
        raise GateError(
            f"The engine lost too much accuracy on this device: {' '.join(reasons)} "
            f"It is not used; {path.name} records the failure. Export in another precision, "
            "or use the engine anyway with --allow-parity-failure."
        )


def _load_or_build(
    bundle: Bundle, machine: TensorRt, workspace_mb: int | None, rebuild: bool, report_step: Step
) -> tuple[EngineFile, Engine]:
    """Return the engine from the cache if it is intact, else build one."""
    flags = {**FLAGS, "workspace_mb": workspace_mb}
    key = EngineKey(bundle.files[bundle.artifact.path], machine.version, machine.gpu.sm, flags)
    if not rebuild:
        try:
            file = find_cached_engine(bundle.path, key)
            if file is not None:
                return file, machine.load(read_plan(bundle.path, file))
        except EngineError as error:
            report_step(f"building again: {error}")
    report_step(
        f"building for {machine.gpu.name} with TensorRT {machine.version}; this takes minutes"
    )
    plan, timings = machine.build(
        bundle.read(bundle.artifact.path),
        workspace=workspace_mb * 2**20 if workspace_mb is not None else None,
        timings=b"" if rebuild else read_timings(bundle.path, key),
    )
    engine = machine.load(plan)
    write_timings(bundle.path, key, timings)
    return store_engine(bundle.path, key, plan), engine


def _read_reference(bundle: Bundle) -> Reference:
    """Return the student's predictions in a bundle.

    Raises:
        UsageError: The bundle carries none.
    """
    if REFERENCE_REPORT not in bundle.files:
        raise UsageError(
            f"{bundle.path} has no predictions of its student ({REFERENCE_REPORT}), so images "
            "cannot be compared. Leave --data out, or export the model again with --data."
        )
    return read_reference(bundle.read(REFERENCE_REPORT))


@dataclass(frozen=True, eq=False)
class _Tables:
    """Predictions of the student and of the engine on the same images."""

    student: Predictions
    engine: Predictions
    fitted: Mapping[str, Postprocessing] | None
    basis: str


def _image_tables(reference: Reference, images: LabelledImages, run: Run) -> _Tables:
    """Return both sides' predictions on the images that the reference contains.

    Raises:
        DataError: The reference contains none of the test images.
    """
    places = reference.locate(images.digests("test"))
    known = places >= 0
    if not known.any():
        raise DataError(
            f"None of the {len(places)} test images of {images.name} is one of {reference.basis}, "
            "which the student has predicted. Give the unchanged data set that the model was "
            "exported with."
        )
    engine = images.predictions("test", run).rows(known)
    student = {task: output[places[known]] for task, output in reference.outputs.items()}
    basis = reference.basis
    if (missing := len(reference.images) - len(engine)) > 0:
        basis = f"{len(engine)} images of {basis} ({missing} more are not on this device)"
    return _Tables(
        replace(engine, outputs=student),
        replace(engine, outputs={task: engine.outputs[task] for task in student}),
        reference.postprocessing,
        basis,
    )


def _golden_tables(bundle: Bundle, run: Run) -> _Tables:
    """Return the predictions on the golden cases, which have no labels."""
    cases = bundle.golden()
    count, names = len(cases), tuple(case.name for case in cases)
    outputs = run(np.stack([case.tensor for case in cases]))
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
    return _Tables(student, replace(student, outputs=outputs), None, f"{count} golden cases")


def _compare(bundle: Bundle, tables: _Tables, machine: TensorRt) -> ParityReport:
    with np.errstate(invalid="ignore"):  # NaN in the outputs fails the gate later
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


def _measure_latency(bundle: Bundle, runtime: TensorRtRuntime) -> Percentiles:
    """Return the latency of one image, with its copies to and from the GPU."""
    image = bundle.golden()[0].tensor[None]
    taken = []
    for _ in range(WARMUP + RUNS):
        start = perf_counter()
        runtime.run(image)
        taken.append((perf_counter() - start) * 1000)
    return percentiles(taken[WARMUP:])


def _device_facts(machine: TensorRt) -> dict[str, str]:
    """Return facts about the device: CPU, board, GPU and CUDA."""
    gpu = vars(machine.gpu)
    board = {name: _first_line(path) for name, path in BOARD.items() if path.is_file()}
    return {
        **describe_device(),
        **board,
        "gpu": gpu["name"],
        **{name: str(gpu[name]) for name in ("sm", "cuda", "memory")},
    }


def _first_line(path: Path) -> str:
    """Return the first line of a text file without NUL bytes and spaces at its ends."""
    return path.read_text(errors="replace").partition("\n")[0].strip("\0 ")
