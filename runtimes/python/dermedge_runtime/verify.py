"""Is this still the model that was exported, here, on this machine? Four questions, so that a no names its culprit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import decode, expected_shape
from dermedge_runtime.errors import (
    BundleError,
    DermedgeError,
    ElsewhereError,
    MissingExtraError,
    UsageError,
)
from dermedge_runtime.golden import Case, stable
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import Check, Status, VerifyReport

QUESTIONS = ("files", "preprocessing", "engine", "decoding")
DECODED_WITHIN = 1e-6
AGAIN = "get the bundle again or export the model again."


class _Failure(Exception):
    """The answer no, with what was found and what to do."""


def verify(
    bundle: str | Path | Bundle,
    *,
    engine: str | None = None,
    threads: int | None = None,
    runtime: Runtime | None = None,
) -> VerifyReport:
    """Asks of a bundle, in this order: are the files intact, is preprocessing exact, does the engine give the expected
    outputs within the bundle's tolerance, does decoding them give the expected prediction. Stops at the first no. An
    engine that this machine cannot have is not asked; then the bundle is `not_run`, whatever the other answers.

    It needs neither data nor a network. Everything is read from the disk again, also of an opened bundle.

    Args:
        bundle: The path of a bundle, or an opened one.
        engine: The name of a runtime; by default the one for the artifact's format.
        threads: How many threads the engine computes with; by default it decides.
        runtime: A started engine to ask, in place of one that is started here; it stays open.

    Returns:
        The answers. `bundle` is the bundle's id, or its path where it could not be opened.

    Raises:
        UsageError: There is no such path or engine.
        MissingExtraError: The engine is not installed.
    """
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    identity, engine_name = str(path), "not started"
    answers: list[tuple[Status, str]] = []
    try:
        opened, cases = _files(path)
        identity = opened.id
        answers.append(
            ("passed", f"{len(opened.files)} files and {len(cases)} golden cases are intact")
        )
        answers.append(("passed", _preprocessing(opened, cases)))
        try:
            with _started(opened, engine, threads, runtime) as started:
                engine_name = f"{started.name} {started.version}"
                answers.append(("passed", _engine(opened, cases, started)))
        except ElsewhereError as error:
            answers.append(("not_run", str(error)))
        answers.append(("passed", _decoding(opened, cases)))
    except _Failure as error:
        answers.append(("failed", str(error)))
    answers += [("not_run", "an earlier check failed")] * (len(QUESTIONS) - len(answers))
    checks = tuple(Check(name, *answer) for name, answer in zip(QUESTIONS, answers, strict=True))
    found = {check.status for check in checks}
    status: Status = (
        "failed" if "failed" in found else "not_run" if "not_run" in found else "passed"
    )
    return VerifyReport(identity, engine_name, status, checks)


def _files(path: Path) -> tuple[Bundle, list[Case]]:
    """Opens everything, and checks that the golden cases are about this model."""
    try:
        bundle = Bundle.open(path)
        cases = bundle.golden()
    except BundleError as error:
        raise _Failure(str(error)) from error
    size = bundle.spec.preprocess.size
    tasks = {task.name: expected_shape(task, size) for task in bundle.spec.tasks}
    for case in cases:
        if case.tensor.shape[0] != size:
            raise _Failure(
                f"Golden case {case.name!r} has a tensor of {case.tensor.shape[0]} px, not {size}; {AGAIN}"
            )
        for kind, outputs in (("reference", case.reference), ("expected", case.expected)):
            if outputs.keys() != tasks.keys():
                raise _Failure(
                    f"{kind} of golden case {case.name!r} has {sorted(outputs)}, not {sorted(tasks)}; {AGAIN}"
                )
            for name, shape in tasks.items():
                found = outputs[name].shape
                if len(found) != len(shape) or any(
                    w not in (None, h) for h, w in zip(found, shape, strict=True)
                ):
                    raise _Failure(
                        f"{kind} {name!r} of golden case {case.name!r} has shape {found}, not {shape}; {AGAIN}"
                    )
    return bundle, cases


def _preprocessing(bundle: Bundle, cases: Sequence[Case]) -> str:
    for case in cases:
        try:
            tensor = preprocess(case.image, bundle.spec.preprocess, exact=True)
        except DermedgeError as error:
            raise _Failure(f"Golden image {case.name!r} cannot be preprocessed: {error}") from error
        difference = np.abs(tensor.astype(int) - case.tensor.astype(int))
        if difference.any():
            raise _Failure(
                f"Preprocessing of golden image {case.name!r} differs in {np.count_nonzero(difference)} of "
                f"{difference.size} values, by up to {difference.max()} of 255 (Pillow {PIL.__version__}); "
                "do not use this machine's predictions, install another Pillow."
            )
    return f"{len(cases)} golden images, bit for bit"


@contextmanager
def _started(
    bundle: Bundle, engine: str | None, threads: int | None, runtime: Runtime | None
) -> Iterator[Runtime]:
    if runtime is not None:
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


def _engine(bundle: Bundle, cases: Sequence[Case], runtime: Runtime) -> str:
    """Compares the engine's outputs with `expected`; how far that is from the fp32 student is told, not judged."""
    worst = dict.fromkeys(bundle.tolerance, 0.0)
    drift = dict.fromkeys(bundle.tolerance, 0.0)
    for case in cases:
        try:
            outputs = runtime.run(case.tensor[None])
        except (
            Exception
        ) as error:  # an engine may raise anything; all of it means that the engine is the culprit
            raise _Failure(
                f"{runtime.name} {runtime.version} failed on golden case {case.name!r}: {error}"
            ) from error
        for name, expected in case.expected.items():
            where = f"{runtime.name} {runtime.version}, golden case {case.name!r}, output {name!r}"
            got = outputs.get(name)
            if got is None or got.shape != (1, *expected.shape):
                found = "nothing" if got is None else f"shape {list(got.shape)}"
                raise _Failure(
                    f"{where}: {found}, not shape {[1, *expected.shape]}; use the engine of the export."
                )
            difference = float(np.abs(got[0].astype(np.float64) - expected).max())
            if not difference <= bundle.tolerance[name]:
                raise _Failure(
                    f"{where}: off by {difference:.3g}, tolerance {bundle.tolerance[name]:.3g}; use an engine that "
                    f"fits {', '.join(bundle.artifact.requires) or 'the export'}, or export for this one."
                )
            worst[name] = max(worst[name], difference)
            drift[name] = max(
                drift[name], float(np.abs(expected.astype(np.float64) - case.reference[name]).max())
            )
    return "; ".join(
        f"{name} off by {worst[name]:.2g} (tolerance {limit:.2g}, {drift[name]:.2g} between export and fp32 student)"
        for name, limit in bundle.tolerance.items()
    )


def _decoding(bundle: Bundle, cases: Sequence[Case]) -> str:
    for case in cases:
        try:
            prediction = stable(decode(case.expected, bundle.spec, bundle.postprocessing).to_json())
        except DermedgeError as error:
            raise _Failure(f"Golden case {case.name!r} cannot be decoded: {error}") from error
        if difference := _difference(prediction, stable(case.prediction), ""):
            raise _Failure(
                f"Golden case {case.name!r} decodes differently: {difference}; install the newest dermedge."
            )
    return f"{len(cases)} golden predictions, within {DECODED_WITHIN:g}"


def _difference(got: Any, want: Any, where: str) -> str:
    """Where two JSON values differ, or nothing. A missing key is null, so that fields may be added later."""
    if isinstance(got, Mapping) and isinstance(want, Mapping):
        parts = ((got.get(key), want.get(key), f"{where}.{key}") for key in sorted({*got, *want}))
    elif isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
        parts = ((got[i], want[i], f"{where}[{i}]") for i in range(len(got)))
    else:
        numbers = all(
            isinstance(value, (int, float)) and not isinstance(value, bool) for value in (got, want)
        )
        same = (
            abs(got - want) <= DECODED_WITHIN
            if numbers
            else (type(got) is type(want) and got == want)
        )
        return "" if same else f"{where.lstrip('.') or 'it'} is {got!r}, not {want!r}"
    return next(filter(None, (_difference(*part) for part in parts)), "")
