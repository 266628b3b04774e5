"""Test that each check of `verify` fails on its own, and names the cause."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import TOY_POSTPROCESSING, TOY_SPEC, FakeRuntime, toy_cases, toy_content
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.decode import decode
from dermedge_runtime.errors import ElsewhereError, MissingExtraError, UsageError
from dermedge_runtime.golden import drop_volatile, golden_files
from dermedge_runtime.model import RUNTIMES
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import PARITY_REPORT
from dermedge_runtime.spec import Postprocessing, Preprocess, to_json
from dermedge_runtime.verify import verify

CHECKS = ["files", "preprocessing", "engine", "decoding"]


def bundle_with(path, cases, **changes):
    content = toy_content()
    files = {
        name: data for name, data in content["files"].items() if not name.startswith("golden/")
    }
    return write_bundle(
        path, **{**content, "files": {**files, **(golden_files(cases) if cases else {})}, **changes}
    ).path


def failed_detail(report, name):
    """Return the detail of the one failed check, after which no check ran."""
    index = CHECKS.index(name)
    assert report.status == "failed"
    assert [check.name for check in report.checks] == CHECKS
    assert [c.status for c in report.checks] == ["passed"] * index + ["failed"] + ["not_run"] * (
        3 - index
    )
    return report.checks[index].detail


class Absent(FakeRuntime):
    """An engine that exists on other machines only."""

    @classmethod
    def open(cls, bundle, *, threads=None):
        raise ElsewhereError(
            "Core ML runs on Apple's systems only: on a Mac, type dermedge verify toy.dermedge."
        )


class Shifted(FakeRuntime):
    """An engine that computes one output a little differently."""

    def __init__(self, shift, output="malignancy"):
        super().__init__()
        self.shift, self.output = np.float32(shift), output

    def run(self, images):
        outputs = super().run(images)
        return {**outputs, self.output: outputs[self.output] + self.shift}


@pytest.mark.parametrize("form", ["folder", "zip", "opened", "text"])
def test_an_intact_bundle_passes(toy_bundle_path, tmp_path, fake_runtime, form):
    bundle = Bundle.open(toy_bundle_path)
    given = {
        "folder": toy_bundle_path,
        "text": str(toy_bundle_path),
        "opened": bundle,
        "zip": bundle.save(tmp_path / "toy.zip", zipped=True).path,
    }[form]
    report = verify(given, runtime=fake_runtime)
    assert report.status == "passed"
    assert [(check.name, check.status) for check in report.checks] == [
        (name, "passed") for name in CHECKS
    ]
    assert (report.bundle, report.engine) == (bundle.id, "fake 1.0")
    assert "0.0001 between export and fp32 student" in report.checks[2].detail
    assert not fake_runtime.closed
    assert json.loads(json.dumps(to_json(report)))["checks"][3]["name"] == "decoding"


def test_engine_is_found_by_the_artifacts_format_and_closed(toy_bundle_path, monkeypatch):
    started = []

    class Recorded(FakeRuntime):
        @classmethod
        def open(cls, bundle, *, threads=None):
            started.append((cls(), bundle.artifact.path, threads))
            return started[-1][0]

    monkeypatch.setattr("conftest.Recorded", Recorded, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", "conftest:Recorded")
    assert verify(toy_bundle_path, threads=2).status == "passed"
    [(runtime, path, threads)] = started
    assert (runtime.closed, path, threads) == (True, "model.fake", 2)
    with pytest.raises(UsageError, match=r"Did you mean 'fake'"):
        verify(toy_bundle_path, engine="fak")


@pytest.fixture
def absent_engine(monkeypatch):
    monkeypatch.setattr("conftest.Absent", Absent, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", "conftest:Absent")


def test_an_engine_of_other_machines_is_not_run_and_the_other_checks_run(
    toy_bundle_path, absent_engine
):
    report = verify(toy_bundle_path)
    assert report.status == "not_run"
    assert [check.status for check in report.checks] == ["passed", "passed", "not_run", "passed"]
    assert "on a Mac, type dermedge verify" in report.checks[2].detail
    assert (report.bundle, report.engine) == (Bundle.open(toy_bundle_path).id, "not started")


def test_an_engine_of_other_machines_does_not_hide_a_failed_check(tmp_path, absent_engine):
    case = toy_cases()[0]
    path = bundle_with(
        tmp_path / "x", [replace(case, prediction={**case.prediction, "decision": "unsure"})]
    )
    report = verify(path)
    assert report.status == "failed"
    assert [check.status for check in report.checks] == ["passed", "passed", "not_run", "failed"]
    (tmp_path / "x" / "model.fake").write_bytes(b"?")
    assert failed_detail(verify(path), "files")


def test_an_engine_that_is_not_installed_is_an_error(toy_bundle_path, monkeypatch):
    class Missing(FakeRuntime):
        @classmethod
        def open(cls, bundle, *, threads=None):
            raise MissingExtraError("fake", "fake", "A fake bundle")

    monkeypatch.setattr("conftest.Missing", Missing, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", "conftest:Missing")
    with pytest.raises(MissingExtraError):
        verify(toy_bundle_path)


def test_a_path_without_bundle_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone"):
        verify(tmp_path / "gone")


@pytest.mark.parametrize(
    "name", ["model.fake", "golden/lesion-1.png", "golden/cases.json", "LICENSES/Apache-2.0.txt"]
)
def test_a_damaged_file_fails_the_files_check(toy_bundle_path, fake_runtime, name):
    bundle = Bundle.open(toy_bundle_path)
    (toy_bundle_path / name).write_bytes((toy_bundle_path / name).read_bytes()[:-1] + b"?")
    for given in (toy_bundle_path, bundle):
        report = verify(given, runtime=fake_runtime)
        assert name in failed_detail(report, "files")
        assert (report.bundle, report.engine) == (str(toy_bundle_path), "not started")


def test_golden_cases_that_are_absent_or_of_another_model_fail_the_files_check(
    tmp_path, fake_runtime
):
    case = toy_cases()[0]
    one = {"diagnosis": case.expected["diagnosis"]}
    other_size = toy_cases(replace(TOY_SPEC, preprocess=Preprocess(size=48)))
    wide = {**case.reference, "diagnosis": np.zeros(4, np.float32)}
    for index, (cases, found) in enumerate(
        [
            ([], r"golden/cases.json"),
            ([replace(case, expected=one)], r"expected of golden case 'lesion-1'"),
            ([replace(case, reference=one)], r"reference of golden case 'lesion-1'"),
            ([replace(case, reference=wide)], r"(4,)"),
            (other_size, r"48 px"),
        ]
    ):
        report = verify(bundle_with(tmp_path / str(index), cases), runtime=fake_runtime)
        assert found in failed_detail(report, "files")


def test_a_tensor_off_by_one_fails_the_preprocessing_check(tmp_path, fake_runtime):
    first, second = toy_cases()
    tensor = second.tensor.copy()
    tensor[5, 7, 1] ^= 1
    path = bundle_with(tmp_path / "x", [first, replace(second, tensor=tensor)])
    detail = failed_detail(verify(path, runtime=fake_runtime), "preprocessing")
    assert "'lesion-2' differs in 1 of 3072 values, by up to 1 of 255" in detail


def test_another_kernel_on_this_machine_fails_the_preprocessing_check(
    toy_bundle_path, fake_runtime, monkeypatch
):
    def bicubic(source, spec, *, exact=False):
        image = Image.fromarray(preprocess(source, replace(spec, size=64), exact=exact))
        return np.array(image.resize((spec.size, spec.size), Image.Resampling.BICUBIC))

    monkeypatch.setattr("dermedge_runtime.verify.preprocess", bicubic)
    assert "'lesion-1' differs" in failed_detail(
        verify(toy_bundle_path, runtime=fake_runtime), "preprocessing"
    )


def test_a_golden_image_that_is_no_image_fails_the_preprocessing_check(tmp_path, fake_runtime):
    path = bundle_with(tmp_path / "x", [replace(toy_cases()[0], image=b"no PNG")])
    assert "'lesion-1' cannot be preprocessed" in failed_detail(
        verify(path, runtime=fake_runtime), "preprocessing"
    )


@pytest.mark.parametrize("output", ["diagnosis", "malignancy"])
def test_an_engine_outside_the_tolerance_fails_the_engine_check(toy_bundle_path, output):
    assert verify(toy_bundle_path, runtime=Shifted(0.9e-3, output)).status == "passed"
    for shift in (2e-3, -2e-3, np.nan, np.inf):
        report = verify(toy_bundle_path, runtime=Shifted(shift, output))
        detail = failed_detail(report, "engine")
        assert "fake 1.0" in detail
        assert f"output {output!r}" in detail
        assert report.engine == "fake 1.0"


def test_each_output_has_its_own_tolerance(tmp_path):
    path = bundle_with(
        tmp_path / "x", toy_cases(), tolerance={"diagnosis": 0.5, "malignancy": 1e-6}
    )
    assert verify(path, runtime=Shifted(0.4, "diagnosis")).status == "passed"
    assert "'malignancy'" in failed_detail(verify(path, runtime=Shifted(1e-5)), "engine")


def test_an_engine_that_fails_or_forgets_fails_the_engine_check(toy_bundle_path, monkeypatch):
    class Broken(FakeRuntime):
        answer = None

        def run(self, images):
            if self.answer is None:
                raise RuntimeError("out of memory")
            return self.answer

    assert "out of memory" in failed_detail(verify(toy_bundle_path, runtime=Broken()), "engine")
    good = FakeRuntime().run(toy_cases()[0].tensor[None])
    for answer in (
        {},
        {**good, "malignancy": good["malignancy"][0]},
        {**good, "diagnosis": good["diagnosis"][:, :2]},
    ):
        Broken.answer = answer
        assert "golden case 'lesion-1'" in failed_detail(
            verify(toy_bundle_path, runtime=Broken()), "engine"
        )


def test_an_artifact_that_the_engine_refuses_fails_the_engine_check(tmp_path):
    pytest.importorskip("onnxruntime")
    artifact = replace(toy_content()["artifact"], format="onnx")
    path = bundle_with(tmp_path / "x", toy_cases(), artifact=artifact)
    assert "model.fake" in failed_detail(verify(path), "engine")


def test_the_distance_to_the_reference_is_reported_and_not_checked(tmp_path, fake_runtime):
    cases = [
        replace(c, reference={n: a + np.float32(3) for n, a in c.expected.items()})
        for c in toy_cases()
    ]
    report = verify(bundle_with(tmp_path / "x", cases), runtime=fake_runtime)
    assert report.status == "passed"
    assert "3 between export and fp32 student" in report.checks[2].detail


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (
            lambda p: p["labels"][0].update(probability=p["labels"][0]["probability"] + 1e-5),
            "labels[0].probability",
        ),
        (lambda p: p["labels"].reverse(), "labels[0]."),
        (lambda p: p["labels"].pop(), "labels"),
        (lambda p: p.update(decision="unsure"), "decision"),
        (lambda p: p.update(threshold=0.41), "threshold"),
        (lambda p: p.update(malignancy=None), "malignancy"),
        (lambda p: p.update(added_later=1), "added_later"),
    ],
)
def test_a_prediction_that_differs_fails_the_decoding_check(tmp_path, fake_runtime, edit, found):
    first, second = toy_cases()
    prediction = json.loads(json.dumps(second.prediction))
    edit(prediction)
    path = bundle_with(tmp_path / "x", [first, replace(second, prediction=prediction)])
    detail = failed_detail(verify(path, runtime=fake_runtime), "decoding")
    assert "'lesion-2' decodes differently" in detail
    assert found in detail


def test_decoding_is_compared_without_times_and_within_a_millionth(tmp_path, fake_runtime):
    case = toy_cases()[0]
    prediction = json.loads(json.dumps(case.prediction))
    prediction["labels"][0]["probability"] += 5e-7
    prediction |= {
        "timing": {"engine_ms": 99.0},
        "provenance": {"engine": "other"},
        "added_later": None,
    }
    path = bundle_with(tmp_path / "x", [replace(case, prediction=prediction)])
    assert verify(path, runtime=fake_runtime).status == "passed"


def decoded_with(fitted, spec=TOY_SPEC):
    """Return the detail of a bundle whose golden cases were decoded with other values."""

    def detail(path, **changes):
        cases = []
        for case in toy_cases():
            prediction = drop_volatile(decode(case.expected, spec, fitted).to_json())
            cases.append(replace(case, prediction=prediction))
        report = verify(bundle_with(path, cases, **changes), runtime=FakeRuntime())
        return failed_detail(report, "decoding")

    return detail


def fit(**changes):
    return {**TOY_POSTPROCESSING, **changes}


def test_a_threshold_of_another_precision_is_named(tmp_path):
    detail = decoded_with(fit(malignancy=Postprocessing(0.8, 0.6)))(tmp_path / "x")
    assert "decision is 'malignant', not 'benign'" in detail
    assert "Task 'malignancy' has temperature 0.8 and threshold 0.4" in detail
    assert detail.endswith("Export the model again.")


@pytest.mark.parametrize("temperature", [0.3, 1.0, None, 2.5])
@pytest.mark.parametrize("task", ["diagnosis", "malignancy"])
def test_a_temperature_that_explains_the_golden_prediction_is_named(tmp_path, task, temperature):
    changed = replace(TOY_POSTPROCESSING[task], temperature=temperature)
    detail = decoded_with(fit(**{task: changed}))(tmp_path / "x")
    assert f"Task {task!r} has temperature {TOY_POSTPROCESSING[task].temperature} and" in detail
    assert f"but temperature {temperature or 1:g} gives the golden prediction" in detail
    assert detail.endswith("Export the model again.")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda labels: [*labels[1:], labels[0]], "in another order than at the export"),
        (
            lambda labels: [replace(labels[0], id="naevus"), *labels[1:]],
            "has the labels ['akiec', 'mel', 'nv'], and the golden case ['akiec', 'mel', 'naevus']",
        ),
        (
            lambda labels: [replace(labels[0], name="Mole"), *labels[1:]],
            "The label 'nv' is 'Melanocytic naevus', and in the golden case 'Mole'",
        ),
    ],
)
def test_other_labels_are_named(tmp_path, edit, found):
    diagnosis, malignancy = TOY_SPEC.tasks
    tasks = (replace(diagnosis, labels=tuple(edit(diagnosis.labels))), malignancy)
    detail = decoded_with(TOY_POSTPROCESSING, replace(TOY_SPEC, tasks=tasks))(tmp_path / "x")
    assert found in detail
    assert detail.endswith("Export the model again.")


def test_other_malignant_labels_are_named(tmp_path):
    diagnosis = TOY_SPEC.tasks[0]
    alone = replace(TOY_SPEC, tasks=(diagnosis,))
    labels = tuple(replace(label, malignant=label.id != "mel") for label in diagnosis.labels)
    other = replace(alone, tasks=(replace(diagnosis, labels=labels),))
    cases = []
    for case in toy_cases():
        outputs = {"diagnosis": case.expected["diagnosis"]}
        prediction = decode(outputs, other, TOY_POSTPROCESSING).to_json()
        cases.append(
            replace(case, reference=outputs, expected=outputs, prediction=drop_volatile(prediction))
        )
    fitted = {"diagnosis": TOY_POSTPROCESSING["diagnosis"]}
    changes = {"spec": alone, "postprocessing": fitted, "tolerance": {"diagnosis": 1e-3}}

    class Alone(FakeRuntime):
        def run(self, images):
            return {"diagnosis": super().run(images)["diagnosis"]}

    report = verify(bundle_with(tmp_path / "x", cases, **changes), runtime=Alone())
    detail = failed_detail(report, "decoding")
    assert "malignancy is " in detail
    assert "The malignant labels of task 'diagnosis' are ['mel']" in detail


def test_a_difference_without_a_known_cause_asks_for_another_dermedge(tmp_path, fake_runtime):
    case = toy_cases()[0]
    rubbish = (
        {"labels": None},
        {"labels": 3},
        {"labels": [{"id": "nv"}]},
        {"labels": [[]] * 3},
        {"labels": [{"id": "nv", "name": 1, "probability": "x"}]},
        {"malignancy": "high"},
        {"decision": "unsure"},
        {"severity": 2},
    )
    for index, edit in enumerate(rubbish):
        path = bundle_with(
            tmp_path / str(index), [replace(case, prediction={**case.prediction, **edit})]
        )
        detail = failed_detail(verify(path, runtime=fake_runtime), "decoding")
        assert detail.endswith(("Install the newest dermedge.", "Export the model again."))
        assert next(iter(edit)) in detail


def parity_bundle(path, parity, reports):
    content = toy_content()
    files = {name: json.dumps(report).encode() for name, report in reports.items()}
    return write_bundle(path, **{**content, "parity": parity, "files": content["files"] | files})


@pytest.mark.parametrize(
    ("host", "device", "reports", "found"),
    [
        ({"status": "passed"}, {}, {PARITY_REPORT: {"status": "failed"}}, "'failed'"),
        ({"status": "not_run"}, {}, {PARITY_REPORT: {"status": "passed"}}, "parity.host.status"),
        ({"status": "passed"}, {}, {PARITY_REPORT: {}}, "None"),
        ({"status": "passed"}, {}, {PARITY_REPORT: []}, "not a JSON object"),
        ({"status": "passed", "report": "gone.json"}, {}, {}, "gone.json"),
        ({"status": "passed", "report": ""}, {}, {PARITY_REPORT: {"status": "passed"}}, "''"),
        ({"status": "passed", "report": 3}, {}, {}, "parity.host.report"),
        (
            {"status": "passed"},
            {"status": "passed", "report": "reports/device.json"},
            {PARITY_REPORT: {"status": "passed"}, "reports/device.json": {"status": "warn"}},
            "parity.device.status",
        ),
    ],
)
def test_a_status_of_parity_that_its_report_does_not_have_fails_the_files_check(
    tmp_path, fake_runtime, host, device, reports, found
):
    parity = {"host": host, "device": {"status": "not_run", **device}}
    bundle = parity_bundle(tmp_path / "x", parity, reports)
    assert found in failed_detail(verify(bundle, runtime=fake_runtime), "files")


@pytest.mark.parametrize("status", ["passed", "failed", "insufficient"])
def test_a_status_of_parity_that_its_report_has_passes(tmp_path, fake_runtime, status):
    entry = {"status": status, "report": PARITY_REPORT}
    bundle = parity_bundle(
        tmp_path / "x", {"host": entry, "device": entry}, {PARITY_REPORT: {"status": status}}
    )
    assert verify(bundle, runtime=fake_runtime).status == "passed"
