"""Every verb prints what its Python function returns: as JSON exactly, for people in words."""

import importlib
import inspect
import json
import runpy
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

import dermedge as library
from dermedge.cli import COMMANDS
from dermedge.data import add_data, check_data, draw_data_set, split_data
from dermedge.evaluation import evaluate
from dermedge.workflows.doctor import doctor
from dermedge.workflows.targets import targets
from dermedge_export.context import module_runner
from dermedge_export.synthetic.golden import SHAPES
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.spec import to_json
from support.command import TOY, dermedge


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty procedural lesions, all of them in test."""
    folder = tmp_path_factory.mktemp("reports") / "lesions"
    draw_data_set(folder, count=60, size=(80, 60))
    table = folder / "metadata.csv"
    header, *rows = table.read_text().splitlines()
    assert header.endswith(",split")
    table.write_text("\n".join([header, *(f"{row}test" for row in rows)]) + "\n")
    return folder


def plain(report: Any) -> Any:
    """A report the way JSON gives it back."""
    return json.loads(json.dumps(to_json(report), default=str))


def test_inspect_and_verify_print_the_reports_of_their_functions() -> None:
    inspected = dermedge("inspect", TOY, "--json")
    assert inspected.code == 0
    assert inspected.json() == plain(library.Bundle.open(TOY))
    verified = dermedge("verify", TOY, "--json")
    assert verified.code == 0
    assert verified.json() == plain(library.verify(TOY))


def test_targets_and_doctor_print_the_reports_of_their_functions() -> None:
    assert dermedge("targets", "--json").json() == plain(targets())
    assert dermedge("doctor", "--json").json() == plain(doctor())


def test_evaluate_prints_the_report_of_its_function(data: Path) -> None:
    ran = dermedge("evaluate", TOY, "--data", data, "--replicates", 50, "--seed", 3, "--json")
    assert ran.code == 0
    assert ran.json() == plain(evaluate(TOY, data, replicates=50, seed=3))


def test_json_stays_json_where_a_metric_is_undefined(data: Path) -> None:
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


def test_the_verbs_of_data_print_the_reports_of_their_functions(data: Path, tmp_path: Path) -> None:
    assert dermedge("data", "check", data, "--json").json() == plain(check_data(data))
    ran = dermedge("data", "split", data, "-o", data / "other.csv", "--redo", "--seed", 2, "--json")
    again = split_data(data, data / "other.csv", redo=True, seed=2, overwrite=True)
    assert ran.json() == plain(again)
    ran = dermedge("data", "add", "csv", data, "-o", tmp_path / "copy", "--json")
    assert ran.code == 0
    assert ran.json() == plain(add_data("csv", data, tmp_path / "copy", overwrite=True))
    (data / "other.csv").unlink()


def test_data_check_says_what_it_found_and_fails_on_errors(tmp_path: Path) -> None:
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


def test_bench_reports_as_many_runs_as_were_asked_for(tmp_path: Path) -> None:
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


def test_inspect_shows_what_a_device_must_know() -> None:
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


def test_verify_shows_every_question_and_its_answer() -> None:
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
def test_every_command_explains_itself(name: str) -> None:
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
    said = " ".join(dermedge("--help").out.split())
    assert (
        "3 accuracy gate failed, 4 an engine or extra is missing, 5 bundle verification failed"
        in said
    )
    folder = Path(inspect.getfile(dermedge.__globals__["main"])).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "console"}
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


def test_the_committed_bundle_is_small_whole_and_what_its_script_makes() -> None:
    assert TOY.stat().st_size < 700_000
    bundle = library.Bundle.open(TOY)
    assert bundle.artifact.format == "onnx"
    assert bundle.parity["host"]["status"] == bundle.parity["device"]["status"] == "passed"
    cases = bundle.golden()
    assert {case.name.rpartition("-")[2] for case in cases} == {
        f"{height}x{width}" for height, width in SHAPES
    }
    assert len({case.prediction["labels"][0]["id"] for case in cases}) > 1
    assert {case.prediction["decision"] for case in cases} == {"malignant", "benign"}
    script = runpy.run_path(str(TOY.with_name("make_toy.py")))
    assert script["SPEC"] == bundle.spec
    outputs = module_runner(script["Network"]())(cases[0].tensor[None])
    assert {name: array.shape for name, array in outputs.items()} == {
        "diagnosis": (1, 3),
        "malignancy": (1, 1),
    }
