"""`export`: a student becomes a bundle for a target, measured against the student before anyone sees it."""

import contextlib
import glob
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibrate import fit_postprocessing
from dermedge_export.card import licences, model_card
from dermedge_export.gate import blocks
from dermedge_export.golden import golden_cases
from dermedge_export.lesions import draw_lesion
from dermedge_export.parity import parity
from dermedge_export.predictions import Predictions, Run, predict_table
from dermedge_export.target import Target, find_target
from dermedge_runtime.bench import device
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.container import MANIFEST
from dermedge_runtime.errors import BundleError, DataError, GateError, UsageError
from dermedge_runtime.files import check_free, pretty_json
from dermedge_runtime.golden import golden_files
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.registry import lookup
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Artifact, Postprocessing, Spec, to_json
from dermedge_runtime.verify import verify

EXPORTERS: dict[str, str] = {"onnx": "dermedge_export.onnx:export_onnx"}
GROUP = "dermedge.exporters"
PROCEDURAL = 128  # lesions that agreement is gated on where there is no labelled data
TOLERANCE = {"fp32": 1e-3}  # absolute, on logits: what engines and CPUs differ by in the order of their sums
LEFTOVER_SECONDS = 24 * 3600
PREFIX = 16  # hex digits of a training image's sha256: enough to find it again
Step = Callable[[str], None]


class Exportable(Protocol):
    """What an exporter needs of a model: a torch module from uint8 [N, S, S, 3] to logits by task, and its contract."""

    @property
    def module(self) -> Any: ...

    @property
    def spec(self) -> Spec: ...


class Evidence(Protocol):
    """Labelled images to fit and to judge on; `name` says whose they are."""

    @property
    def name(self) -> str: ...

    def predictions(self, split: str, run: Run) -> Predictions:
        """What `run` answers for every image of a split."""

    def digests(self, split: str) -> Sequence[str]:
        """sha256 of every image file of a split."""


@dataclass(frozen=True)
class Built:
    """What an exporter makes: the artifact's description and its files, by path inside the bundle."""

    artifact: Artifact
    files: Mapping[str, bytes]


class Exporter(Protocol):
    """A format. One function in a file of its own, named in `EXPORTERS` or by the entry points `dermedge.exporters`."""

    def __call__(self, source: Exportable, target: Target, *, dynamic_batch: bool = False) -> Built: ...


def export(
    source: Exportable,
    target: str | Target,
    out: Path | str,
    *,
    evidence: Evidence | None = None,
    training_images: Sequence[str] = (),
    dynamic_batch: bool = False,
    allow_parity_failure: bool = False,
    overwrite: bool = False,
    step: Step | None = None,
) -> Bundle:
    """Build the artifact, fit its postprocessing, compare it with the student, and write `OUT/NAME-TARGET.dermedge`.

    With `evidence`, postprocessing is fitted on its val split for this very artifact and the gate judges its test
    split. Without, only agreement with the student on procedural lesions is gated, and nothing is fitted. The bundle
    has passed `verify` before it stands at its place; after an error, or a kill, nothing stands there.

    Args:
        source: the model.
        target: name of a target, or one.
        out: folder to write into.
        evidence: labelled images.
        training_images: sha256 of the image files that the model has learned from; the bundle keeps prefixes of them.
        dynamic_batch: leave the batch size open; it is 1 by default.
        allow_parity_failure: write the bundle although the gate failed, which its manifest records.
        overwrite: replace an older bundle.
        step: told what is being done.

    Raises:
        UsageError: an unknown target, or the bundle exists and may not be replaced.
        DataError: the model has learned from test images.
        GateError: the artifact lost more than its target allows.
        BundleError: the written bundle did not verify.
    """
    target = target if isinstance(target, Target) else find_target(target)
    tell = step or (lambda _: None)
    path = Path(out) / f"{source.spec.name}-{target.name}.dermedge"
    check_free(path, overwrite=overwrite, marker=MANIFEST)
    if evidence is not None:
        check_leakage(evidence, training_images)
    tell(f"building {target.format} for {target.name}")
    exporter: Exporter = lookup("format", target.format, EXPORTERS, GROUP)
    built = exporter(source, target, dynamic_batch=dynamic_batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = _write(Path(folder) / "draft", source.spec, built, {}, {}, {})
        with load(draft) as model:
            tell("comparing it with the student")
            report, fitted = _measure(source, built.artifact, model.runtime, target, evidence)
            tell("drawing golden cases")
            golden = golden_files(golden_cases(source.spec, module_run(source.module), model.run, fitted))
        reasons = blocks(report)
        if reasons and not allow_parity_failure:
            raise GateError(
                f"The {built.artifact.precision} artifact for {target.name} is not the same model: {' '.join(reasons)} "
                "No bundle was written; --allow-parity-failure writes it all the same and records that."
            )
        files = {
            **golden,
            "reports/parity.json": pretty_json(to_json(report)),
            "reports/training_images.txt": "".join(f"{d[:PREFIX]}\n" for d in sorted(training_images)).encode(),
            "modelcard.md": model_card(source.spec, built.artifact, fitted, report).encode(),
            **licences(source.spec),
        }
        tell("verifying the bundle")
        final = _write(Path(folder) / "final", source.spec, built, fitted, _parity_entries(report, reasons), files)
        answer = verify(final)
        if answer.status != "passed":
            failed = next(check for check in answer.checks if check.status == "failed")
            raise BundleError(f"The new bundle does not verify ({failed.name}: {failed.detail}); nothing was written.")
        return final.save(path, overwrite=overwrite)


def _sweep(path: Path) -> None:
    """Delete what killed exports to `path` left beside it. One that is younger than a day may still be at work."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):
            if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover)


def check_leakage(evidence: Evidence, training_images: Sequence[str]) -> None:
    """Raise DataError if the model has learned from an image that it would be judged on."""
    seen = set(training_images) & set(evidence.digests("test"))
    if seen:
        raise DataError(
            f"{len(seen)} test images of {evidence.name} are among those that the model has learned from: "
            "judge it on other images, or train it again on this table's own split."
        )


def module_run(module: Any) -> Run:
    """A torch module as a function from uint8 [N, S, S, 3] to float32 outputs [N, ...] by task."""
    import torch

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(images)))
        return {name: output.float().numpy() for name, output in outputs.items()}

    module.eval()
    return run


def procedural_predictions(spec: Spec, run: Run, count: int = PROCEDURAL) -> Predictions:
    """What `run` answers for procedural lesions; nothing is known about them, so only agreement can be judged."""
    tensors = [preprocess(draw_lesion(seed).image, spec.preprocess) for seed in range(count)]
    names = tuple(f"procedural-{seed}" for seed in range(count))
    return Predictions(
        image_ids=names,
        outputs=predict_table(run, tensors),
        labels=np.full(count, -1, np.int64),
        malignant=np.full(count, np.nan),
        groups=np.array(names),
    )


def _measure(
    source: Exportable, artifact: Artifact, runtime: Runtime, target: Target, evidence: Evidence | None
) -> tuple[ParityReport, dict[str, Postprocessing]]:
    """The parity of the artifact with its student, and the postprocessing fitted for the artifact."""
    spec, reference = source.spec, module_run(source.module)
    if evidence is None:
        tables = [procedural_predictions(spec, run) for run in (reference, runtime.run)]
        fitted: list[dict[str, Postprocessing]] = [{}, {}]
        basis = f"{PROCEDURAL} procedural lesions, agreement only"
    else:
        fitted = [fit_postprocessing(evidence.predictions("val", run), spec) for run in (reference, runtime.run)]
        tables = [evidence.predictions("test", run) for run in (reference, runtime.run)]
        basis = f"test split of {evidence.name}"
    report = parity(
        tables[0],
        tables[1],
        spec,
        fitted[0],
        fitted[1],
        precision=artifact.precision,
        basis=basis,
        engine=f"{runtime.name} {runtime.version}",
        hardware=_hardware(),
        limits=target.gate,
    )
    return report, {task.name: Postprocessing() for task in spec.tasks} | fitted[1]


def _hardware() -> str:
    """The CPU and the instruction sets that decide what its numbers are."""
    this = device()
    return f"{this['cpu']} ({this['flags']})" if this["flags"] else this["cpu"]


def _parity_entries(report: ParityReport, reasons: list[str]) -> dict[str, Any]:
    """The manifest's `parity`: this machine is both the exporting host and, for a CPU target, the device."""
    entry: dict[str, Any] = {
        "status": report.status,
        "basis": report.basis,
        "cases": report.cases,
        "engine": report.engine,
        "hardware": report.hardware,
        "report": "reports/parity.json",
    }
    if reasons:
        entry["allowed_failures"] = reasons
    return {"host": entry, "device": entry}


def _write(
    path: Path,
    spec: Spec,
    built: Built,
    fitted: Mapping[str, Postprocessing],
    parity_entries: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Bundle:
    if built.artifact.precision not in TOLERANCE:
        raise UsageError(f"No tolerance is known for precision {built.artifact.precision!r}: add it to TOLERANCE.")
    tolerance = TOLERANCE[built.artifact.precision]
    return write_bundle(
        path,
        spec=spec,
        artifact=built.artifact,
        postprocessing=fitted,
        tolerance={task.name: tolerance for task in spec.tasks},
        parity=parity_entries or {"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={**built.files, **files},
    )
