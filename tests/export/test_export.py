"""Test that an export writes a verified bundle, or leaves no file."""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import folder_bytes
from dermedge.cli import main
from dermedge.data.table import digests, read_table
from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.models import TrainedModel, load_model_folder
from dermedge_export import export as exporter
from dermedge_export import staging, target
from dermedge_export.context import BuiltArtifact, module_runner
from dermedge_export.export import ExportSession
from dermedge_export.exporters import registry
from dermedge_export.options import ExportOptions
from dermedge_export.parity import evaluator
from dermedge_export.parity.gate import LIMITS
from dermedge_export.target import Target
from dermedge_runtime import files
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.decode import decode
from dermedge_runtime.errors import BundleError, DataError, DermedgeError, GateError, UsageError
from dermedge_runtime.golden import drop_volatile
from dermedge_runtime.model import load
from dermedge_runtime.spec import Postprocessing
from dermedge_runtime.verify import verify
from support import small
from support.small import PREBUILT, die, edited, export_model, in_process

NAME = "small-prebuilt.dermedge"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def data(base: Path) -> Path:
    return small.data_set(base)


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    return small.student_folder(base)


@pytest.fixture(scope="module")
def student(folder: Path) -> TrainedModel:
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def evaluation_data(data: Path, student: TrainedModel) -> TableEvaluationData:
    return TableEvaluationData(data, student.spec)


@pytest.fixture(autouse=True)
def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[BuiltArtifact], None]:
    """The target `prebuilt`; call the fixture to let it export another artifact."""
    monkeypatch.setitem(registry.EXPORTERS, "prebuilt", "support.small:prebuilt")
    monkeypatch.setitem(target.TARGETS, "prebuilt", "support.small:PREBUILT")
    monkeypatch.setattr(small, "BUILT", [small.built(folder)])
    return lambda artifact: monkeypatch.setattr(small, "BUILT", [artifact])


@pytest.fixture(scope="module")
def with_data(
    folder: Path,
    student: TrainedModel,
    evaluation_data: TableEvaluationData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, list[str]]:
    """A bundle of the real exporter with data, and the notes of its progress."""
    notes: list[str] = []
    out = tmp_path_factory.mktemp("with_data")

    made = export_model(
        student,
        "cpu",
        out,
        data=evaluation_data,
        training_images=student.training_images,
        progress=lambda done, total, note: notes.append(note),
    )
    assert [path.name for path in out.iterdir()] == ["small-cpu.dermedge"]
    return made, notes


def hidden(out: Path) -> list[str]:
    return (
        sorted(path.name for path in out.iterdir() if path.name.startswith("."))
        if out.exists()
        else []
    )


class TestWithData:
    def test_the_bundle_verifies_and_agrees_with_the_student(
        self, student: TrainedModel, with_data: tuple[Bundle, list[str]]
    ) -> None:
        made, notes = with_data
        assert verify(made.path).status == "passed"
        assert notes[-1] == "verifying the bundle"
        images = small.pixels(3).numpy()
        with load(made.path) as model:
            found = model.run(images)
        for name, values in module_runner(student.module)(images).items():
            np.testing.assert_allclose(found[name], values, atol=1e-4)

    def test_postprocessing_is_fitted_on_val_for_this_artifact(
        self,
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        with_data: tuple[Bundle, list[str]],
    ) -> None:
        made, _ = with_data
        with load(made.path) as model:
            val = evaluation_data.predictions("val", model.run)
        fitted = made.postprocessing
        assert all(post.temperature is not None for post in fitted.values())
        assert fitted["malignancy"].temperature != 1.0
        assert fitted["diagnosis"].threshold is None
        threshold = fitted["malignancy"].threshold
        assert threshold is not None
        logits = (
            val.outputs["malignancy"][:, 0].astype(np.float64) / fitted["malignancy"].temperature
        )
        scores = np.sort((1 / (1 + np.exp(-logits)))[val.malignant == 1])
        found = (scores >= threshold).mean()
        assert found >= 0.9
        assert (scores >= threshold * 1.001).mean() < 0.9 or threshold == pytest.approx(
            scores[0], rel=1e-3
        )

        losses = []
        for temperature in np.array([0.8, 1, 1.25]) * fitted["diagnosis"].temperature:
            scaled = val.outputs["diagnosis"] / temperature
            log_p = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
            losses.append(-log_p[np.arange(len(val)), val.labels].mean())
        assert losses[1] == min(losses)

    def test_the_manifest_holds_the_parity_on_test(
        self, data: Path, evaluation_data: TableEvaluationData, with_data: tuple[Bundle, list[str]]
    ) -> None:
        made, _ = with_data
        tested = evaluation_data.table.select_split("test")
        report = json.loads(made.read("reports/parity.json"))
        for side in ("host", "device"):
            entry = made.parity[side]
            assert entry["status"] == report["status"] == "insufficient"  # a gate needs 100 cases
            assert entry["basis"] == "test split of lesions"
            assert entry["cases"] == len(tested)
            assert entry["engine"].startswith("onnxruntime ")
            assert "allowed_failures" not in entry
        limits = {limit["metric"]: limit for limit in report["limits"]}
        unasked = {"level_agreement", "severity_kappa", "mask_overlap", "dice", "embedding_cosine"}
        unasked |= {"ood_retention", "ood_rejection", "cam_cosine"}
        assert set(limits) == set(LIMITS) - unasked  # it has no such task
        assert limits["max_abs"]["status"] == limits["non_finite"]["status"] == "passed"
        assert limits["max_abs"]["loss"]["value"] <= 1e-4
        assert limits["balanced_accuracy"]["status"] == "insufficient"
        assert limits["balanced_accuracy"]["candidate"] == limits["balanced_accuracy"]["reference"]

    def test_the_bundle_has_card_and_licences_and_no_image_of_the_table(
        self, data: Path, folder: Path, student: TrainedModel, with_data: tuple[Bundle, list[str]]
    ) -> None:
        made, _ = with_data
        assert made.spec == student.spec
        assert made.artifact.target == "cpu"
        card = made.read("modelcard.md").decode()
        threshold = made.postprocessing["malignancy"].threshold
        assert f"{threshold:.4f}" in card
        assert "test split of lesions" in card
        assert json.loads(made.read("LICENSES/lineage.json"))["data"]["licences"] == ["CC0-1.0"]
        listed = made.read("reports/training_images.txt").decode().split()
        assert listed == [digest[:16] for digest in student.training_images]
        val = digests(read_table(data).select_split("val")).tolist()
        listed = made.read("reports/validation_images.txt").decode().split()
        assert listed == sorted({digest[:16] for digest in val})
        table = digests(read_table(data))
        assert not set(table) & set(made.files.values())
        assert not {name for name in made.files if name.endswith((".jpg", ".jpeg"))}
        for name, content in folder_bytes(made.path).items():
            for trace in (folder.parent, Path.home(), made.path.parent):
                assert str(trace).encode() not in content, name

    def test_golden_cases_hold_both_outputs_and_the_decoded_prediction(
        self, student: TrainedModel, with_data: tuple[Bundle, list[str]]
    ) -> None:
        made, _ = with_data
        run = module_runner(student.module)
        for case in made.golden():
            for name, values in run(case.tensor[None]).items():
                np.testing.assert_array_equal(case.reference[name], values[0])
                assert np.abs(case.expected[name] - values[0]).max() <= made.tolerance[name]
            decoded = decode(case.expected, made.spec, made.postprocessing)
            assert case.prediction == drop_volatile(decoded.to_json())
            assert case.prediction["threshold"] == made.postprocessing["malignancy"].threshold


def test_a_session_is_complete_after_construction(
    student: TrainedModel, evaluation_data: TableEvaluationData
) -> None:
    def report(done: int, total: int, note: str) -> None: ...

    options = ExportOptions(dynamic_batch=True)
    session = ExportSession.open(student, options, data=evaluation_data, progress=report)
    # The exporters report slow steps, such as a sensitivity sweep, to the same function.
    assert session.context.progress is session.progress is report
    assert session.context.dynamic_batch
    assert session.context.calibration.split == "train"
    with pytest.raises(FrozenInstanceError):
        session.context.calibration_source = None  # type: ignore[misc]


class TestWithoutData:
    def test_only_agreement_is_measured_and_nothing_is_fitted(
        self, student: TrainedModel, tmp_path: Path
    ) -> None:
        made = export_model(student, "prebuilt", tmp_path)
        assert set(made.postprocessing.values()) == {Postprocessing()}
        host = made.parity["host"]
        assert host["status"] == "passed"
        assert host["basis"].startswith(
            f"{evaluator.SYNTHETIC_COUNT} procedural lesions (no labels: agreement only)"
        )
        measured = {
            limit["metric"]
            for limit in json.loads(made.read("reports/parity.json"))["limits"]
            if limit["status"] != "not_run"
        }
        assert measured == {"non_finite", "max_abs", "top1_agreement"}
        assert verify(made).status == "passed"
        assert {case.prediction["threshold"] for case in made.golden()} == {None}
        assert {case.prediction["decision"] for case in made.golden()} == {None}
        assert "temperature not fitted" in made.read("modelcard.md").decode()


@pytest.mark.parametrize("broken", [small.with_noise, small.with_bgr])
class TestGate:
    """The artifact of an exporter computes another function than the student."""

    @pytest.fixture(autouse=True)
    def distorted(
        self,
        folder: Path,
        prepared: Callable[[BuiltArtifact], None],
        broken: Callable[[BuiltArtifact], BuiltArtifact],
    ) -> None:
        prepared(broken(small.built(folder)))

    def test_the_artifact_is_not_written(
        self, student: TrainedModel, evaluation_data: TableEvaluationData, tmp_path: Path
    ) -> None:
        with pytest.raises(
            GateError,
            match=r"accuracy of its student\. fp32 prebuilt plain: max_abs: .*--allow-parity",
        ):
            export_model(student, "prebuilt", tmp_path / "out", data=evaluation_data)
        assert list((tmp_path / "out").iterdir()) == []

    def test_the_exit_code_of_the_command_is_3(
        self, folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [
            "export",
            str(folder),
            "--target",
            "prebuilt",
            "--data",
            str(data),
            "-o",
            str(tmp_path / "out"),
        ]
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 3
        last = capsys.readouterr().err.splitlines()[-1]
        assert (
            "No artifact for prebuilt keeps the accuracy of its student. fp32 prebuilt plain: "
            in last
        )
        assert list((tmp_path / "out").iterdir()) == []

    def test_an_allowed_failure_is_written_and_recorded_as_failed(
        self, student: TrainedModel, evaluation_data: TableEvaluationData, tmp_path: Path
    ) -> None:
        made = export_model(
            student, "prebuilt", tmp_path, data=evaluation_data, allow_parity_failure=True
        )
        reopened = Bundle.open(tmp_path / NAME)
        assert reopened == made
        for side in ("host", "device"):
            assert reopened.parity[side]["status"] == "failed"
            assert reopened.parity[side]["allowed_failures"][0].startswith(
                "max_abs: outputs differ by up to"
            )
        assert "**failed**" in made.read("modelcard.md").decode()
        assert verify(made).status == "passed"  # the artifact agrees with its own golden cases

    def test_without_data_the_artifact_is_not_written_either(
        self, student: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluator, "SYNTHETIC_COUNT", 6)
        with pytest.raises(GateError):
            export_model(student, "prebuilt", tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestRefusal:
    def test_images_that_the_model_was_trained_on_do_not_evaluate_it(
        self, folder: Path, data: Path, student: TrainedModel, tmp_path: Path
    ) -> None:
        def leak(frame: Any) -> Any:
            frame.loc[frame.index[frame["split"] == "train"][:2], "split"] = "test"
            frame.loc[frame.index[frame["split"] == "val"][:1], "split"] = "test"
            return frame

        leaky = edited(data, tmp_path / "leaky", leak)
        with pytest.raises(
            DataError,
            match="The model was trained on 3 test images of leaky",
        ):
            export_model(
                student,
                "prebuilt",
                tmp_path / "out",
                data=TableEvaluationData(leaky, student.spec),
                training_images=student.training_images,
            )
        assert not (tmp_path / "out").exists()
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "export",
                    str(folder),
                    "--target",
                    "prebuilt",
                    "--data",
                    str(leaky),
                    "-o",
                    str(tmp_path / "out"),
                ]
            )
        assert ended.value.code == 1
        assert not (tmp_path / "out").exists()

    def test_an_existing_bundle_is_kept_without_overwrite(
        self, student: TrainedModel, evaluation_data: TableEvaluationData, tmp_path: Path
    ) -> None:
        first = export_model(student, "prebuilt", tmp_path, data=evaluation_data)
        before = folder_bytes(tmp_path)
        with pytest.raises(UsageError, match="exists already"):
            export_model(student, "prebuilt", tmp_path, data=evaluation_data)
        assert folder_bytes(tmp_path) == before
        renamed = replace(student, spec=replace(student.spec, version="2"))
        second = export_model(renamed, "prebuilt", tmp_path, data=evaluation_data, overwrite=True)
        assert second.id != first.id
        assert Bundle.open(tmp_path / NAME) == second
        assert [path.name for path in tmp_path.iterdir()] == [NAME]

    def test_a_folder_that_is_no_bundle_is_not_overwritten(
        self, student: TrainedModel, evaluation_data: TableEvaluationData, tmp_path: Path
    ) -> None:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "holiday.txt").write_text("photographs")
        with pytest.raises(UsageError, match="without manifest"):
            export_model(student, "prebuilt", tmp_path, data=evaluation_data, overwrite=True)
        assert (tmp_path / NAME / "holiday.txt").read_text() == "photographs"

    def test_a_target_that_is_not_known(self, student: TrainedModel, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="Did you mean 'prebuilt'"):
            export_model(student, "prebuild", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_artifact_that_no_engine_loads_leaves_no_file(
        self,
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        prepared: Callable[[BuiltArtifact], None],
        tmp_path: Path,
    ) -> None:
        whole = small.BUILT[-1]
        prepared(BuiltArtifact(whole.artifact, {"model.onnx": whole.files["model.onnx"][:-500]}))
        with pytest.raises(Exception, match=r"onnxruntime .* refuses model\.onnx"):
            export_model(student, "prebuilt", tmp_path, data=evaluation_data)
        assert list(tmp_path.iterdir()) == []

    def test_a_bundle_that_does_not_verify_is_not_written(
        self,
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        drawn = exporter.golden_cases

        def wrong(*arguments: Any) -> list[Any]:
            cases = drawn(*arguments)
            shifted = {name: values + np.float32(0.1) for name, values in cases[2].expected.items()}
            return [*cases[:2], replace(cases[2], expected=shifted), *cases[3:]]

        monkeypatch.setattr(exporter, "golden_cases", wrong)
        with pytest.raises(BundleError, match=r"does not verify \(engine: .*Nothing was written"):
            export_model(student, "prebuilt", tmp_path, data=evaluation_data)
        assert list(tmp_path.iterdir()) == []


def killed_export(
    student: Path, data: Path, out: Path, artifact: BuiltArtifact, place: str, overwrite: bool
) -> None:
    small.BUILT.append(artifact)
    registry.EXPORTERS["prebuilt"] = "support.small:prebuilt"
    if place.startswith("_"):
        assert hasattr(files, place)
        setattr(files, place, lambda *arguments, **options: die())
    model = load_model_folder(student)
    export_model(
        model,
        PREBUILT,
        out,
        data=TableEvaluationData(data, model.spec),
        overwrite=overwrite,
        progress=lambda done, total, note: die() if note == place else None,
    )


def export_to_a_full_disk(student: Path, out: Path, artifact: BuiltArtifact) -> None:
    small.BUILT.append(artifact)
    registry.EXPORTERS["prebuilt"] = "support.small:prebuilt"
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, 100_000)
    )  # as write() sees it, no different from a full disk
    try:
        export_model(load_model_folder(student), PREBUILT, out)
    except DermedgeError as error:
        os._exit(
            error.exit_code if "Free space" in str(error) and "Cannot write" in str(error) else 90
        )
    os._exit(91)


def test_a_full_disk_gives_one_message_and_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    assert in_process(export_to_a_full_disk, folder, tmp_path / "out", small.built(folder)) == 1
    assert list((tmp_path / "out").iterdir()) == []


class TestKill:
    @pytest.fixture
    def kill(self, folder: Path, data: Path, tmp_path: Path) -> Iterator[Callable[..., None]]:
        def kill(place: str, *, overwrite: bool = False) -> None:
            arguments = (folder, data, tmp_path / "out", small.built(folder), place, overwrite)
            assert in_process(killed_export, *arguments) == -9, place

        yield kill
        assert [
            path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")
        ] == [NAME]

    def test_after_a_kill_there_is_no_bundle_and_the_next_export_cleans_up(
        self,
        kill: Callable[..., None],
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        tmp_path: Path,
    ) -> None:
        out = tmp_path / "out"
        for place in ("comparing fp32 prebuilt plain with the student", "_move_into_place"):
            kill(place)
            assert not (out / NAME).exists()
        left = hidden(out)
        assert len(left) >= 2
        bystander = out / ".small-prebuilt-other.dermedge.kept"
        bystander.mkdir()
        aside = out / f".{NAME}.old-0123abcd"
        aside.mkdir()
        long_ago = time.time() - 2 * staging.LEFTOVER_SECONDS
        for name in (*left[1:], bystander.name, aside.name):
            os.utime(out / name, (long_ago, long_ago))
        made = export_model(student, "prebuilt", out, data=evaluation_data)
        assert verify(made).status == "passed"
        # A young folder may belong to another export; a bundle that was renamed aside may be
        # the only copy.
        assert hidden(out) == sorted([left[0], bystander.name, aside.name])

    def test_the_old_bundle_stays_whole_until_the_new_one_is(
        self,
        kill: Callable[..., None],
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        tmp_path: Path,
    ) -> None:
        out = tmp_path / "out"
        old = export_model(
            replace(student, spec=replace(student.spec, version="0")),
            "prebuilt",
            out,
            data=evaluation_data,
        )
        before = folder_bytes(old.path)
        kill("_move_into_place", overwrite=True)
        assert folder_bytes(out / NAME) == before
        kill("_remove", overwrite=True)  # the new bundle is there; the old one is being deleted
        assert Bundle.open(out / NAME).spec == student.spec
        assert verify(out / NAME).status == "passed"


@pytest.fixture(scope="module")
def auto_bundle(student: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that `auto` selected from the artifacts of three engines."""
    cpu = replace(target.CPU, precisions=("fp32",))
    return export_model(student, cpu, tmp_path_factory.mktemp("auto"), precision="auto")


class TestAuto:
    """`--precision auto` with three real engines, real timing and real artifacts."""

    def test_every_engine_is_timed_and_the_fastest_wins(self, auto_bundle: Bundle) -> None:
        report = json.loads(auto_bundle.read("reports/candidates.json"))
        assert set(report) == {"schema", "machine", "candidates", "basis"}
        assert report["basis"] == auto_bundle.parity["host"]["basis"].partition(" (")[0]
        entries = {entry["name"]: entry for entry in report["candidates"]}
        assert list(entries) == ["fp32 onnx plain", "fp32 openvino plain", "fp32 litert plain"]
        for entry in entries.values():
            assert entry["latency_ms"] > 0
            assert entry["top1"] == 1.0
            assert entry["kl"] < 1e-6
            assert entry["size_bytes"] > 10_000
        (selected,) = (entry for entry in entries.values() if entry["status"] == "won")
        others = [entry for entry in entries.values() if entry["status"] == "passed"]
        assert len(others) == 2
        assert f"{selected['latency_ms']:.2f} ms" in selected["reason"]
        for other in others:
            # Latencies within 3 % are equal; then the KL divergence decides.
            assert selected["latency_ms"] <= 1.03 * other["latency_ms"]
            assert f"{other['latency_ms']:.2f} ms against" in other["reason"]

    def test_the_bundle_holds_the_selected_artifact_and_verifies_on_its_engine(
        self, auto_bundle: Bundle
    ) -> None:
        report = json.loads(auto_bundle.read("reports/candidates.json"))
        selected = next(entry for entry in report["candidates"] if entry["status"] == "won")
        artifact = auto_bundle.artifact
        assert (selected["format"], selected["precision"]) == (artifact.format, artifact.precision)
        found = verify(auto_bundle.path)
        assert found.status == "passed"
        assert found.engine.startswith(
            {"onnx": "onnxruntime", "openvino": "openvino", "litert": "litert"}[artifact.format]
        )
        sizes = [len(auto_bundle.read(name)) for name in artifact_files(auto_bundle)]
        assert selected["size_bytes"] == sum(sizes)

    def test_a_second_export_reads_all_artifacts_from_the_cache(
        self, auto_bundle: Bundle, student: TrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: Any) -> BuiltArtifact:
            raise DermedgeError("The cache was not read.")

        monkeypatch.setattr("dermedge_export.exporters.onnx.export_onnx", fails)
        monkeypatch.setattr("dermedge_export.exporters.openvino.export_openvino", fails)
        monkeypatch.setattr("dermedge_export.exporters.litert.export_litert", fails)
        cpu = replace(target.CPU, precisions=("fp32",))
        out = auto_bundle.path.parent
        again = export_model(student, cpu, out, precision="auto", overwrite=True)
        assert again.artifact.precision == "fp32"


class TestSelectedCandidateThatFailsOnTest:
    """A candidate that passes on val and loses too much on test."""

    @pytest.fixture
    def target(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
        """A target whose int8 and fp32 are the same, but whose int8 fails on test."""
        monkeypatch.setattr(small, "BUILT", [small.built(folder)])
        compare = evaluator.ParityEvaluator.compare

        def harsh(
            self: Any, split: str, answers: Any, fitted: Any, precision: str, *others: Any
        ) -> Any:
            report = compare(self, split, answers, fitted, precision, *others)
            if (split, precision) != ("test", "int8"):
                return report
            limits = (
                tuple(replace(limit, status="failed") for limit in report.limits[:1])
                + report.limits[1:]
            )
            return replace(report, status="failed", limits=limits)

        monkeypatch.setattr(evaluator.ParityEvaluator, "compare", harsh)
        return replace(small.PREBUILT, precisions=("int8", "fp32"))

    def test_fp32_replaces_it_and_the_bundle_says_why(
        self,
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        target: Target,
        tmp_path: Path,
    ) -> None:
        made = export_model(student, target, tmp_path, data=evaluation_data)
        assert made.artifact.precision == "fp32"
        tried = {
            entry["precision"]: entry
            for entry in json.loads(made.read("reports/candidates.json"))["candidates"]
        }
        assert tried["int8"]["status"] == "failed"
        assert tried["int8"]["reason"].startswith("selected on val, but failed on test: non_finite")
        assert tried["fp32"]["status"] == "won"
        assert verify(made).status == "passed"

    def test_with_precision_int8_no_bundle_is_written(
        self,
        student: TrainedModel,
        evaluation_data: TableEvaluationData,
        target: Target,
        tmp_path: Path,
    ) -> None:
        with pytest.raises(
            GateError,
            match=r"The int8 artifact for prebuilt lost too much accuracy on .*: non_finite",
        ):
            export_model(student, target, tmp_path, data=evaluation_data, precision="int8")
        assert list(tmp_path.iterdir()) == []
