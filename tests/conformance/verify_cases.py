"""Bundles that open, and whose `verify` passes or fails at a certain check."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from conformance.toy import (
    FITTED,
    SMALL_SPEC,
    digests,
    golden,
    onnx_artifact,
    onnx_model,
    sealed,
    toy_content,
)
from conformance.writing import Files, cases_json
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.container import MANIFEST, zip_bytes
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import Case, drop_volatile, golden_files
from dermedge_runtime.report import PARITY_REPORT
from dermedge_runtime.spec import Json, Postprocessing, Spec
from dermedge_runtime.verify import CHECKS

Edit = Callable[[Case], Case]


@dataclass(frozen=True)
class Fault:
    """A bundle that fails a check, or passes if `check` is empty.

    `cases` changes a golden case, and `content` the manifest. The golden predictions
    are decoded with `fitted` and with the labels of `spec`. `files` adds files.
    """

    name: str
    check: str = ""
    mentions: tuple[str, ...] = ()
    cases: Edit = lambda case: case
    content: Callable[[Json], object] = lambda content: None
    fitted: Mapping[str, Postprocessing] = field(default_factory=FITTED.copy)
    spec: Spec = SMALL_SPEC
    files: Mapping[str, bytes] | None = None


def verify_files() -> Files:
    """Return `verify.json` and its bundles."""
    files: Files = {}
    entries = []
    for fault in _faults():
        path = f"bundles/verify-{fault.name}.zip"
        files[path] = _write(fault)
        failed = CHECKS.index(fault.check) if fault.check else len(CHECKS)
        statuses = ["passed"] * failed + ["failed"] + ["not_run"] * (len(CHECKS) - failed - 1)
        checks = [
            {"name": name, "status": status} for name, status in zip(CHECKS, statuses, strict=False)
        ]
        entry = {"bundle": path, "status": "failed" if fault.check else "passed"}
        entries.append({**entry, "checks": checks, "mentions": list(fault.mentions)})
    return {"verify.json": cases_json(entries), **files}


def _write(fault: Fault) -> bytes:
    cases = [fault.cases(case) for case in golden(fault.spec, fault.fitted)[1:]]
    files = {
        "model.onnx": onnx_model(SMALL_SPEC),
        PARITY_REPORT: pretty_json({"status": "passed"}),
        **golden_files(cases),
        **(fault.files or {}),
    }
    content = toy_content(SMALL_SPEC, onnx_artifact())
    fault.content(content)
    content["files"] = digests(files)
    return zip_bytes({**files, MANIFEST: sealed(content)})


def _faults() -> Iterator[Fault]:
    yield Fault("passes")
    yield Fault("requires-passes", content=_require("onnxruntime>=1.2,<1000,!=1.3", "iOS>=99"))
    yield Fault("missing-keys-are-null", cases=_predict(drop=("severity", "ood", "embedding")))
    yield from _files()
    yield Fault("tensor", "preprocessing", ("alpha", "1 of 768"), _change_tensor)
    yield Fault("image-text", "preprocessing", ("alpha",), lambda c: replace(c, image=b"text"))
    yield from _engine()
    yield from _decoding()


def _files() -> Iterator[Fault]:
    """Yield bundles whose golden cases do not fit, or contradict the manifest."""
    report = {PARITY_REPORT: pretty_json({"status": "failed"})}
    words = ("parity.host", "passed", "failed", PARITY_REPORT)
    yield Fault("parity-status", "files", words, files=report)
    gone = {"status": "passed", "report": "reports/gone.json"}
    words = ("parity.device", "reports/gone.json")
    yield Fault("parity-report", "files", words, content=lambda c: c["parity"].update(device=gone))
    words = ("golden/cases.json",)
    for name, text in {
        "no-case": {"schema": "dermedge.golden/1", "cases": []},
        "golden-schema": {"schema": "dermedge.golden/2", "cases": []},
    }.items():
        yield Fault(name, "files", words, files={"golden/cases.json": pretty_json(text)})
    path = "golden/alpha.expected.malignancy.bin"
    nan = np.array([np.nan], "<f4").tobytes()
    yield Fault("golden-nan", "files", (path, "NaN"), files={path: nan})
    yield Fault("golden-size", "files", (path,), files={path: b"\0" * 8})
    few = {"malignancy": np.zeros(1, np.float32)}
    words = ("alpha", "diagnosis")
    yield Fault("golden-task", "files", words, lambda case: replace(case, expected=few))


def _engine() -> Iterator[Fault]:
    """Yield bundles whose engine is too old, or computes something else."""
    for bound in (">=1000", "<1", "==0.1", ">=1,<1.2"):
        words = (f"onnxruntime{bound}",)
        content = _require("iOS>=1", f"onnxruntime{bound}")
        name = "requires-" + "".join(
            {">": "more", "<": "less", "=": "", ",": "-", ".": ""}.get(c, c) for c in bound
        )
        yield Fault(name, "engine", words, content=content)
    for task in ("diagnosis", "malignancy"):
        yield Fault(f"expected-{task}", "engine", (task, "alpha"), _shift(task, 0.01))
    yield Fault("within-tolerance", cases=_shift("diagnosis", 0.00005))
    text = {"model.onnx": b"no network\n"}
    yield Fault("no-network", "engine", ("model.onnx",), files=text)


def _decoding() -> Iterator[Fault]:
    """Yield bundles whose golden predictions were decoded in another manner."""

    def refit(**changes: Postprocessing) -> Mapping[str, Postprocessing]:
        return {**FITTED, **changes}

    words = ("labels", "diagnosis", "temperature")
    yield Fault("labels-temperature", "decoding", words, fitted=refit(diagnosis=Postprocessing(2)))
    words = ("malignancy", "temperature")
    other = refit(malignancy=Postprocessing(0.5, 0.45))
    yield Fault("score-temperature", "decoding", words, fitted=other)
    words = ("malignancy", "threshold", "0.45")
    other = refit(malignancy=Postprocessing(0.9, 0.4))
    yield Fault("threshold", "decoding", words, fitted=other)
    diagnosis, malignancy = SMALL_SPEC.tasks
    turned = replace(diagnosis, labels=diagnosis.labels[::-1])
    spec = replace(SMALL_SPEC, tasks=(turned, malignancy))
    yield Fault("order-of-labels", "decoding", ("labels", "diagnosis"), spec=spec)
    yield Fault("decision", "decoding", ("decision", "unsure"), _predict(decision="unsure"))
    yield Fault("severity", "decoding", ("severity",), _predict(severity=1))
    yield Fault("added-later", "decoding", ("added_later",), _predict(added_later=True))


def _predict(drop: tuple[str, ...] = (), **changes: object) -> Edit:
    def edit(case: Case) -> Case:
        kept = {key: value for key, value in case.prediction.items() if key not in drop}
        return replace(case, prediction={**kept, **changes})

    return edit


def _require(*names: str) -> Callable[[Json], object]:
    return lambda content: content["artifact"].update(requires=list(names))


def _change_tensor(case: Case) -> Case:
    tensor = case.tensor.copy()
    tensor[5, 7, 1] ^= 1
    return replace(case, tensor=tensor)


def _shift(task: str, amount: float) -> Edit:
    def edit(case: Case) -> Case:
        expected = {**case.expected, task: case.expected[task] + np.float32(amount)}
        prediction = drop_volatile(decode(expected, SMALL_SPEC, FITTED).to_json())
        return replace(case, expected=expected, prediction=prediction)

    return edit
