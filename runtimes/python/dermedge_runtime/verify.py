"""Verify that a bundle gives the same results on this machine as at its export.

`verify` runs four checks in order, so that a failure identifies its cause.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.container import open_container
from dermedge_runtime.decode import Outputs, decode, expected_shape, fits_shape
from dermedge_runtime.difference import DECODED_WITHIN, describe_difference
from dermedge_runtime.errors import (
    BundleError,
    DermedgeError,
    ElsewhereError,
    EngineError,
    MissingExtraError,
    UsageError,
)
from dermedge_runtime.golden import Case, drop_volatile
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import PARITY_REPORT, Check, Status, VerifyReport, read_report
from dermedge_runtime.requirements import check_engine
from dermedge_runtime.spec import optional

CHECKS = ("files", "preprocessing", "engine", "decoding")
SHOWN = 5  # Names of system files that the report lists.
AGAIN = "Get the bundle again or export the model again."


class _Failure(Exception):
    """Failure of one check; the message says what differs and what to do."""


def verify(
    bundle: str | Path | Bundle,
    *,
    engine: str | None = None,
    threads: int | None = None,
    runtime: Runtime | None = None,
) -> VerifyReport:
    """Verify a bundle on this machine, without data and without a network.

    The checks are, in this order:

    1. `files`: the files are intact, the golden cases fit the model, and the manifest
       has the status of the parity report.
    2. `preprocessing`: every golden image becomes its tensor, bit for bit.
    3. `engine`: the engine's version is one that the bundle requires, and the outputs
       are within the bundle's tolerance of the expected ones.
    4. `decoding`: the expected outputs decode to the expected prediction.

    The first failure ends the checks. If this machine cannot have the bundle's engine,
    that check is `not_run`. Then the bundle is `not_run` too, unless a check fails.

    Args:
        bundle: Path of a bundle, or an opened one. All files are read from the disk
            again.
        engine: Name of the engine; by default the one for the artifact's format.
        threads: Number of threads the engine computes with; by default the engine
            chooses.
        runtime: Runtime to check, instead of a new one; it stays open.

    Returns:
        The result of each check.

    Raises:
        UsageError: The path or the engine does not exist.
        MissingExtraError: The engine is not installed.

    Example:
        >>> report = verify("toy.dermedge")
        >>> report.status, [check.status for check in report.checks]
        ('passed', ['passed', 'passed', 'passed', 'passed'])
    """
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    identity, engine_name = str(path), "not started"
    results: list[tuple[Status, str]] = []
    try:
        opened, cases = _check_files(path)
        identity = opened.id
        intact = f"{len(opened.files)} files and {len(cases)} golden cases are intact"
        results.append(("passed", f"{intact}{_describe_system_files(path)}"))
        results.append(("passed", _check_preprocessing(opened, cases)))
        try:
            with _open_runtime(opened, engine, threads, runtime) as started:
                engine_name = f"{started.name} {started.version}"
                results.append(("passed", _check_engine(opened, cases, started)))
        except ElsewhereError as error:
            results.append(("not_run", str(error)))
        results.append(("passed", _check_decoding(opened, cases)))
    except _Failure as error:
        results.append(("failed", str(error)))
    results += [("not_run", "an earlier check failed")] * (len(CHECKS) - len(results))
    checks = tuple(Check(name, *result) for name, result in zip(CHECKS, results, strict=True))
    statuses = {check.status for check in checks}
    status: Status = (
        "failed" if "failed" in statuses else "not_run" if "not_run" in statuses else "passed"
    )
    return VerifyReport(identity, engine_name, status, checks)


def _check_files(path: Path) -> tuple[Bundle, list[Case]]:
    """Open the bundle and its golden cases, and check that the cases fit the model."""
    try:
        bundle = Bundle.open(path)
        cases = bundle.golden()
        _check_parity(bundle)
    except BundleError as error:
        raise _Failure(str(error)) from error
    size = bundle.spec.preprocess.size
    shapes = {task.name: expected_shape(task, size) for task in bundle.spec.tasks}
    for case in cases:
        if case.tensor.shape[0] != size:
            raise _Failure(
                f"Golden case {case.name!r} has a tensor of {case.tensor.shape[0]} px, "
                f"not {size}. {AGAIN}"
            )
        for kind, outputs in (("reference", case.reference), ("expected", case.expected)):
            _check_shapes(f"{kind} of golden case {case.name!r}", outputs, shapes)
    return bundle, cases


def _check_parity(bundle: Bundle) -> None:
    """Check that the manifest's statuses of parity are those of the reports.

    Raises:
        BundleError: A report is missing, is not readable, or has another status.
    """
    for side in ("host", "device"):
        path = optional(bundle.parity[side], "report", str, f"parity.{side}")
        if path is None and side == "host" and PARITY_REPORT in bundle.files:
            path = PARITY_REPORT
        if path is None:
            continue
        if path not in bundle.files:
            raise BundleError(f"parity.{side} names {path!r}, which is not a file. {AGAIN}")
        status, reported = bundle.parity[side]["status"], read_report(bundle, path).get("status")
        if status != reported:
            raise BundleError(
                f"parity.{side}.status of the manifest is {status!r}, but {path} has "
                f"{reported!r}. {AGAIN}"
            )


def _describe_system_files(path: Path) -> str:
    """Return the names of files that an operating system left in the bundle, if any."""
    with open_container(path) as container:
        names = container.system_files
    more = ", ..." if len(names) > SHOWN else ""
    return f"; ignored: {', '.join(map(repr, names[:SHOWN]))}{more}" if names else ""


def _check_shapes(
    where: str, outputs: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]]
) -> None:
    if outputs.keys() != shapes.keys():
        raise _Failure(f"{where} has outputs {sorted(outputs)}, not {sorted(shapes)}. {AGAIN}")
    for name, shape in shapes.items():
        actual = outputs[name].shape
        if not fits_shape(actual, shape):
            raise _Failure(f"{name!r} in {where} has shape {actual}, not {shape}. {AGAIN}")


def _check_preprocessing(bundle: Bundle, cases: Sequence[Case]) -> str:
    for case in cases:
        try:
            tensor = preprocess(case.image, bundle.spec.preprocess, exact=True)
        except DermedgeError as error:
            raise _Failure(f"Golden image {case.name!r} cannot be preprocessed: {error}") from error
        difference = np.abs(tensor.astype(int) - case.tensor.astype(int))
        if difference.any():
            raise _Failure(
                f"Preprocessing of golden image {case.name!r} differs in "
                f"{np.count_nonzero(difference)} of {difference.size} values, by up to "
                f"{difference.max()} of 255 (Pillow {PIL.__version__}). "
                "Do not use this machine's predictions. Install another Pillow."
            )
    return f"{len(cases)} golden images, bit for bit"


@contextmanager
def _open_runtime(
    bundle: Bundle, engine: str | None, threads: int | None, runtime: Runtime | None
) -> Iterator[Runtime]:
    """Yield the given runtime, or a new one that is closed afterwards."""
    if runtime is not None:
        try:
            check_engine(runtime.name, runtime.version, bundle.artifact.requires)
        except EngineError as error:
            raise _Failure(str(error)) from error
        yield runtime
        return
    try:
        model = load(bundle, engine=engine, threads=threads)
    except (ElsewhereError, MissingExtraError, UsageError):
        raise
    except DermedgeError as error:
        raise _Failure(str(error)) from error
    with model:
        yield model.runtime


def _check_engine(bundle: Bundle, cases: Sequence[Case], runtime: Runtime) -> str:
    """Compare the engine's outputs with `expected`.

    The distance of `expected` to the fp32 student is reported, not checked: the gate
    has already checked the loss of accuracy at export.
    """
    engine = f"{runtime.name} {runtime.version}"
    largest = dict.fromkeys(bundle.tolerance, 0.0)
    drift = dict.fromkeys(bundle.tolerance, 0.0)
    for case in cases:
        outputs = _run_case(case, runtime)
        for name, expected in case.expected.items():
            where = f"{engine}, golden case {case.name!r}, output {name!r}"
            actual = outputs.get(name)
            if actual is None or actual.shape != (1, *expected.shape):
                described = "nothing" if actual is None else f"shape {list(actual.shape)}"
                raise _Failure(
                    f"{where}: {described}, not shape {[1, *expected.shape]}. "
                    "Use the engine of the export."
                )
            difference = float(np.abs(actual[0].astype(np.float64) - expected).max())
            if not difference <= bundle.tolerance[name]:  # true for NaN as well
                raise _Failure(
                    f"{where}: off by {difference:.3g}, tolerance {bundle.tolerance[name]:.3g}. "
                    f"Use an engine that fits {', '.join(bundle.artifact.requires) or 'the export'}"
                    ", or export for this one."
                )
            largest[name] = max(largest[name], difference)
            to_reference = np.abs(expected.astype(np.float64) - case.reference[name])
            drift[name] = max(drift[name], float(to_reference.max()))
    return "; ".join(
        f"{name} off by {largest[name]:.2g} (tolerance {limit:.2g}, "
        f"{drift[name]:.2g} between export and fp32 student)"
        for name, limit in bundle.tolerance.items()
    )


def _run_case(case: Case, runtime: Runtime) -> Outputs:
    try:
        return runtime.run(case.tensor[None])
    except Exception as error:  # an engine of a third party may raise any error
        raise _Failure(
            f"{runtime.name} {runtime.version} failed on golden case {case.name!r}: {error}"
        ) from error


def _check_decoding(bundle: Bundle, cases: Sequence[Case]) -> str:
    for case in cases:
        try:
            prediction = drop_volatile(
                decode(case.expected, bundle.spec, bundle.postprocessing).to_json()
            )
        except DermedgeError as error:
            raise _Failure(f"Golden case {case.name!r} cannot be decoded: {error}") from error
        model = (case.expected, bundle.spec, bundle.postprocessing)
        if text := describe_difference(prediction, drop_volatile(case.prediction), *model):
            raise _Failure(f"Golden case {case.name!r} decodes differently: {text}")
    return f"{len(cases)} golden predictions, within {DECODED_WITHIN:g}"
