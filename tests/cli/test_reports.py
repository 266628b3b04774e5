"""Test the reports that commands print: values, JSON and text."""

import csv
import importlib
import inspect
import json
import platform
import runpy
import zipfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

import dermedge as library
from dermedge.cli import COMMANDS
from dermedge.data.check import check_data
from dermedge.data.draw import draw_data_set
from dermedge.data.importing.add import add_data
from dermedge.data.split import split_data
from dermedge.workflows.evaluate import evaluate
from dermedge_export.context import module_runner
from dermedge_export.synthetic.golden import COUNT
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import TARGETS
from support.command import TOY, dermedge


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw sixty lesions, all of them in test."""
    folder = tmp_path_factory.mktemp("reports") / "lesions"
    draw_data_set(folder, count=60, size=(80, 60))
    table = folder / "metadata.csv"
    header, *rows = table.read_text().splitlines()
    assert header.endswith(",split")
    table.write_text("\n".join([header, *(f"{row}test" for row in rows)]) + "\n")
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fitted_values(manifest: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the fitted values of a manifest by task, without null."""
    return {
        task: {name: value for name, value in values.items() if value is not None}
        for task, values in manifest["postprocessing"].items()
    }


def test_inspect_prints_the_manifest_and_the_path() -> None:
    with zipfile.ZipFile(TOY) as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
    ran = dermedge("inspect", TOY, "--json")
    assert ran.code == 0
    report = ran.json()
    for key in ("id", "spec", "tolerance", "parity", "files"):
        assert report[key] == manifest[key], key
    # The manifest is older than some values; missing and null are not fitted.
    assert fitted_values(report) == fitted_values(manifest) != {}
    assert report["path"] == str(TOY)
    assert report["artifact"]["path"] == "model.onnx"


def test_verify_prints_its_four_checks() -> None:
    with zipfile.ZipFile(TOY) as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
    report = dermedge("verify", TOY, "--json").json()
    assert report["bundle"] == manifest["id"]
    assert report["engine"] == f"onnxruntime {metadata.version('onnxruntime')}"
    assert report["status"] == "passed"
    assert [(check["name"], check["status"]) for check in report["checks"]] == [
        ("files", "passed"),
        ("preprocessing", "passed"),
        ("engine", "passed"),
        ("decoding", "passed"),
    ]
    assert report["checks"][0]["detail"] == (
        f"{len(manifest['files'])} files and {COUNT} golden cases are intact"
    )


def test_targets_prints_every_target_with_its_format_and_precisions() -> None:
    report = dermedge("targets", "--json").json()
    assert {entry["target"]["name"] for entry in report} == TARGETS.keys()
    by_name = {entry["target"]["name"]: entry for entry in report}
    for name, format_, precisions in (
        ("cpu", "onnx", ["fp32", "int8", "bf16"]),
        ("jetson", "tensorrt", ["fp16", "int8+fp16"]),
        ("ios", "coreml", ["fp16", "w8", "palettized", "w8a8"]),
    ):
        target = by_name[name]["target"]
        assert target["format"] == format_
        assert set(target["precisions"]) <= set(precisions), name
        assert by_name[name]["build"].keys() == set(target["precisions"])
    # These packages are installed where the tests run, so the CPU target can be built.
    assert by_name["cpu"]["build"]["fp32"] == []
    assert "onnxruntime" in by_name["cpu"]["run"]


def test_doctor_prints_the_versions_of_this_environment() -> None:
    report = dermedge("doctor", "--json").json()
    assert report["dermedge"] == metadata.version("dermedge")
    assert report["device"]["python"] == platform.python_version()
    assert report["device"]["machine"] == platform.machine()
    extras = {extra["name"]: extra for extra in report["extras"]}
    declared = set(metadata.metadata("dermedge").get_all("Provides-Extra") or ())
    assert extras.keys() <= declared
    for extra in extras.values():
        assert (extra["status"] == "ok") == (extra["missing"] == [])
        for package, version in extra["versions"].items():
            assert version == metadata.version(package), package


def test_evaluate_prints_metrics_of_the_models_predictions(data: Path) -> None:
    ran = dermedge("evaluate", TOY, "--data", data, "--replicates", 50, "--seed", 3, "--json")
    assert ran.code == 0
    report = ran.json()
    rows = {row["image_id"]: row for row in read_rows(data / "metadata.csv")}
    with library.load(TOY) as model:
        predictions = {
            name: model.predict(data / row["image"], exact=True) for name, row in rows.items()
        }
        labels = [label.id for label in model.bundle.spec.diagnosis.labels]
    known = [name for name, row in rows.items() if row["dx"] in labels]
    truth = [rows[name]["dx"] for name in known]
    predicted = [predictions[name].labels[0].id for name in known]
    metrics = report["overall"]["metrics"]
    assert (report["overall"]["cases"], report["overall"]["labelled"]) == (60, len(known))
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(truth, predicted)
    )
    assert report["labels"] == labels
    assert report["confusion"] == confusion_matrix(truth, predicted, labels=labels).tolist()
    assert [image["predicted"] for image in report["images"]] == [
        predictions[image["image_id"]].labels[0].id for image in report["images"]
    ]
    assert sum(report["unmapped"].values()) == 60 - len(known)
    assert report["model"]["bundle"] == library.Bundle.open(TOY).id


def test_an_undefined_metric_is_null_in_json(data: Path) -> None:
    only = data / "only.csv"
    lines = (data / "metadata.csv").read_text().splitlines()
    only.write_text("\n".join([lines[0], *(line for line in lines if ",nv," in line)]) + "\n")
    report = dermedge("evaluate", TOY, "--data", only, "--replicates", 20, "--json").json()
    only.unlink()
    assert report["overall"]["metrics"]["malignant_auroc"]["value"] is None


def test_evaluate_shows_metrics_classes_and_subgroups(data: Path) -> None:
    report = evaluate(TOY, data, replicates=50)
    ran = dermedge("evaluate", TOY, "--data", data, "--replicates", 50)
    assert ran.code == 0
    for name in ("balanced_accuracy", "macro_auroc", "malignant_auroc", "sensitivity", "ece"):
        value = report.overall.metrics[name]
        shown = f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"
        assert any(
            line.split()[0] == name and shown in line
            for line in ran.out.splitlines()
            if line.strip()
        )
    for label in ("nv", "mel", "bcc", "sex female", "fitzpatrick III"):
        assert any(line.strip().startswith(label) for line in ran.out.splitlines())
    assert "no label of the model covers" in ran.err


def test_the_verbs_of_data_count_the_rows_of_the_table(data: Path, tmp_path: Path) -> None:
    rows = read_rows(data / "metadata.csv")
    patients = len({row["patient_id"] for row in rows})
    diagnoses = Counter(row["dx"] for row in rows)

    check = dermedge("data", "check", data, "--json").json()
    assert (check["images"], check["groups"], check["classes"]) == (60, patients, diagnoses)

    out = data / "other.csv"
    split = dermedge("data", "split", data, "-o", out, "--redo", "--seed", 2, "--json").json()
    written = read_rows(out)
    out.unlink()
    assert (split["images"], split["groups"], split["kept"]) == (60, patients, 0)
    for name in ("train", "val", "test"):
        assert split["counts"][name] == Counter(
            row["dx"] for row in written if row["split"] == name
        )

    ran = dermedge("data", "add", "csv", data, "-o", tmp_path / "copy", "--json")
    assert ran.code == 0
    added = ran.json()
    assert (added["images"], added["labels"]) == (60, diagnoses)
    assert (added["rows_without_image"], added["images_without_row"]) == (0, 0)
    assert len(list((tmp_path / "copy" / "images").iterdir())) == 60


def test_data_check_prints_its_findings_and_fails_on_errors(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lesion = Image.fromarray(draw_lesion(1, height=96, width=128).image)
    for name in ("a.png", "b.png"):
        lesion.save(tmp_path / "images" / name)
    (tmp_path / "metadata.csv").write_text(
        "image_id,image,dx,lesion_id,split\nA,images/a.png,nv,L1,train\nB,images/b.png,nv,L2,test\n"
    )
    ran = dermedge("data", "check", tmp_path)
    assert ran.code == 1
    assert "error: 1 pair of byte-identical images is in two splits" in ran.out
    assert "A = B" in ran.out
    assert ran.out.rstrip().endswith("2 images of 2 lesions or patients, error")
    assert dermedge("data", "check", tmp_path, "--json").code == 1


def test_bench_reports_the_requested_number_of_runs(tmp_path: Path) -> None:
    photo = tmp_path / "lesion.png"
    Image.fromarray(draw_lesion(1).image).save(photo)
    ran = dermedge(
        "bench", TOY, "--image", photo, "--runs", 7, "--warmup", 0, "--threads", 1, "--json"
    )
    assert ran.code == 0
    report = ran.json()
    assert report["bundle"] == library.Bundle.open(TOY).id
    assert report["image"] == "lesion.png, 256 x 192 PNG"
    assert report["threads"] == 1
    for stage in ("end_to_end", "preprocess", "engine_only"):
        assert report[stage]["count"] == 7
        assert 0 < report[stage]["p50"] <= report[stage]["p90"] <= report[stage]["p99"]
    assert report["cold_start_ms"] > report["end_to_end"]["p50"]


def test_inspect_shows_id_engine_and_preprocessing() -> None:
    bundle = library.Bundle.open(TOY)
    ran = dermedge("inspect", TOY)
    assert ran.code == 0
    for words in (
        bundle.id,
        "toy 1.0.0",
        "onnxruntime>=1.17",
        "48 x 48",
        "nv, mel, bcc",
        "43 files",
    ):
        assert words in ran.out
    assert f"{bundle.postprocessing['malignancy'].threshold:.4f}" in ran.out


def test_verify_shows_every_check_and_its_status() -> None:
    ran = dermedge("verify", TOY)
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines() if " passed " in line] == [
        "files",
        "preprocessing",
        "engine",
        "decoding",
    ]
    assert ran.out.rstrip().endswith("passed")


def test_in_a_pipe_a_row_is_one_line_without_padding_or_colour() -> None:
    for verb in (("verify", TOY), ("inspect", TOY), ("doctor",), ("targets",)):
        lines = dermedge(*verb).out.splitlines()
        assert all(line == line.rstrip() for line in lines)
        assert not any("\x1b" in line for line in lines)
    (engine,) = (
        line for line in dermedge("verify", TOY).out.splitlines() if line.split()[:1] == ["engine"]
    )
    assert engine.endswith("between export and fp32 student)")


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = importlib.import_module(f"dermedge.cli.{name}").command
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": command.commands[below] for below in command.commands}
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_help(name: str) -> None:
    ran = dermedge(*name.split(), "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert ran.out.startswith(f"Usage: dermedge {name} ")
    assert "\\b" not in ran.out
    command = commands()[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert parameter.opts[-1] in ran.out


def test_the_first_help_lists_every_verb_and_the_exit_codes() -> None:
    shown = [
        line.split()[0]
        for line in dermedge("--help").out.partition("Commands:")[2].splitlines()
        if line.strip()
    ]
    assert [word for word in shown if word in COMMANDS] == list(COMMANDS)
    help_text = " ".join(dermedge("--help").out.split())
    assert (
        "3 accuracy gate failed, 4 an engine or extra is missing, 5 bundle verification failed"
        in help_text
    )
    folder = Path(inspect.getfile(dermedge.__globals__["main"])).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    assert files == set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "needed", "function"),
    [
        ("verify", ["b"], library.verify),
        ("bench", ["b"], library.bench),
        ("evaluate", ["b", "--data", "d"], evaluate),
        ("data add", ["csv", "s", "-o", "o"], add_data),
        ("data check", ["d"], check_data),
        ("data split", ["d"], split_data),
    ],
)
def test_a_command_has_the_arguments_and_defaults_of_its_function(
    name: str, needed: list[str], function: Any
) -> None:
    given = commands()[name].make_context(name, needed).params
    arguments = inspect.signature(function).parameters
    assert given.keys() - {"as_json"} == arguments.keys() - {"progress", "runtime"}
    for key in given.keys() - {"as_json"}:
        default = arguments[key].default
        if default is not inspect.Parameter.empty:
            assert (given[key] or None) == (default or None), key


def test_the_committed_bundle_is_small_complete_and_agrees_with_its_script() -> None:
    assert TOY.stat().st_size < 700_000
    bundle = library.Bundle.open(TOY)
    assert bundle.artifact.format == "onnx"
    assert bundle.parity["host"]["status"] == bundle.parity["device"]["status"] == "passed"
    cases = bundle.golden()
    assert len(cases) == COUNT
    assert len({case.prediction["labels"][0]["id"] for case in cases}) > 1
    assert {case.prediction["decision"] for case in cases} == {"malignant", "benign"}
    script = runpy.run_path(str(TOY.with_name("make_toy.py")))
    assert script["SPEC"] == bundle.spec
    outputs = module_runner(script["Network"]())(cases[0].tensor[None])
    assert {name: array.shape for name, array in outputs.items()} == {
        "diagnosis": (1, 3),
        "malignancy": (1, 1),
    }
