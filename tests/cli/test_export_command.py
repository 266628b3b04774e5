"""`dermedge export` on the command line: folders, several targets, next command."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dermedge.workflows.export import ExportSummary, export_all, folder_beside
from dermedge_export import target
from dermedge_export.exporters import registry
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError, GateError, MissingExtraError
from support import small
from support.command import TOY, dermedge, refused

NAME = "small-prebuilt.dermedge"


@pytest.fixture
def run_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run, which holds a student."""
    student = small.student_folder(tmp_path_factory.getbasetemp())
    shutil.copytree(student, tmp_path / "runs" / "student")
    return tmp_path / "runs"


@pytest.fixture
def prebuilt(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.EXPORTERS, "prebuilt", "support.small:prebuilt")
    monkeypatch.setitem(target.TARGETS, "prebuilt", "support.small:PREBUILT")
    monkeypatch.setattr(small, "BUILT", [small.built(run_folder / "student")])


def last_line(out: str) -> list[str]:
    return out.splitlines()[-1].split(maxsplit=1)


@pytest.mark.usefixtures("prebuilt")
@pytest.mark.parametrize("place", ["", "student"])
def test_a_run_and_a_model_folder_give_a_bundle_in_the_runs_folder(
    run_folder: Path, place: str
) -> None:
    ran = dermedge("export", run_folder / place, "--target", "prebuilt")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in run_folder.iterdir()) == [NAME, "student"]
    assert last_line(ran.out) == ["next", f"dermedge verify {run_folder / NAME}"]
    assert dermedge("verify", run_folder / NAME).code == 0


@pytest.mark.usefixtures("prebuilt")
def test_the_model_folder_may_be_the_current_folder(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder / "student")
    ran = dermedge("export", ".", "--target", "prebuilt")
    assert ran.code == 0, ran.err
    assert (run_folder / NAME).is_dir()
    assert last_line(ran.out) == ["next", f"dermedge verify {os.path.join('..', NAME)}"]  # noqa: PTH118


def test_the_default_output_is_the_parent_of_the_model_folder() -> None:
    assert folder_beside(Path("student")) == Path(".")  # noqa: PTH201
    assert folder_beside(Path(".")) == Path("..")  # noqa: PTH201
    assert folder_beside(Path("runs/student")) == Path("runs")


@pytest.mark.usefixtures("prebuilt")
def test_the_output_folder_can_be_chosen(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "my bundles"
    ran = dermedge("export", run_folder, "--target", "prebuilt", "-o", out)
    assert ran.code == 0, ran.err
    assert last_line(ran.out) == ["next", f"dermedge verify '{out / NAME}'"]
    assert [path.name for path in run_folder.iterdir()] == ["student"]


def test_the_next_command_of_a_jetson_bundle_is_build(run_folder: Path) -> None:
    ran = dermedge("export", run_folder, "--target", "jetson")
    assert ran.code == 0, ran.err
    command = "on the Jetson: dermedge build small-jetson.dermedge --data DIR"
    assert last_line(ran.out) == ["next", command]
    bundle = Bundle.open(run_folder / "small-jetson.dermedge")
    assert bundle.artifact.format == "tensorrt"
    assert bundle.parity["device"] == {"status": "not_run", "todo": command}


def test_a_folder_without_a_model_is_refused_with_one_message(tmp_path: Path) -> None:
    message = refused(dermedge("export", tmp_path, "--target", "cpu"), 1)
    assert f"{tmp_path} holds neither a model (student.json or teacher.json) nor a run" in message
    assert "Give the folder that `dermedge run`, `distill` or `finetune` wrote." in message
    nowhere = tmp_path / "nowhere"
    assert f"no folder {nowhere}" in refused(dermedge("export", nowhere, "--target", "cpu"), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_not_exported_again(tmp_path: Path) -> None:
    message = refused(dermedge("export", TOY, "--target", "cpu", "-o", tmp_path), 2)
    assert "which cannot be exported again" in message
    assert "the model 'toy'" in message


def test_a_teacher_needs_data(run_folder: Path) -> None:
    command = ("export", run_folder, "--target", "cpu", "--teacher", run_folder / "student")
    assert "Give --data too, or leave --teacher out." in refused(dermedge(*command), 2)


class TestSeveralTargets:
    @pytest.fixture
    def targets(
        self, prebuilt: None, monkeypatch: pytest.MonkeyPatch
    ) -> dict[str, DataError | GateError]:
        """Replace `all` by three targets. Targets in this mapping raise its errors."""
        errors: dict[str, Any] = {}
        names = ["prebuilt", "missing", "failing"]
        monkeypatch.setattr("dermedge.workflows.export.families", lambda: names)
        export = small.ExportSession.export

        def fails(session: Any, name: str, out: Path) -> Bundle:
            if name in errors:
                raise errors[name]
            return export(session, "prebuilt", out)

        monkeypatch.setattr(small.ExportSession, "export", fails)
        errors["missing"] = MissingExtraError("coremltools", "coreml", "Core ML")
        errors["failing"] = GateError("It lost too much.")
        return errors

    def test_one_error_does_not_stop_the_others_and_the_highest_exit_code_counts(
        self, run_folder: Path, targets: dict[str, Any]
    ) -> None:
        ran = dermedge("export", run_folder, "--target", "all")
        assert ran.code == 4
        assert (run_folder / NAME).is_dir()
        assert "missing: Core ML needs coremltools" in ran.err
        assert "failing: It lost too much." in ran.err
        assert "2 of 3 targets were not written: missing, failing." in ran.err
        assert last_line(ran.out) == ["next", f"dermedge verify {run_folder / NAME}"]

    def test_json_is_the_list_of_bundles(self, run_folder: Path, targets: dict[str, Any]) -> None:
        targets.clear()
        ran = dermedge("export", run_folder, "--target", "all", "--overwrite", "--json")
        assert ran.code == 0, ran.err
        assert [bundle["spec"]["name"] for bundle in ran.json()] == ["small"] * 3

    def test_the_summary_is_the_same_in_python(
        self, run_folder: Path, targets: dict[str, Any]
    ) -> None:
        summary = export_all(run_folder)
        assert isinstance(summary, ExportSummary)
        assert [bundle.path for bundle in summary.bundles] == [run_folder / NAME]
        assert dict(summary.errors) == targets
