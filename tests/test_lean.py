"""A device imports nothing that only training and export need.

The tests walk the packages, so they cover new modules too, and import each in a fresh
interpreter.
"""

import json
import pkgutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dermedge
import dermedge_export
import dermedge_runtime
from dermedge.workflows.extras import distribution_of, extras
from dermedge_export.synthetic.lesions import CLASSES
from support.command import without_modules

TOY = Path(__file__).parent / "data" / "toy.dermedge"
TRAINING = frozenset(
    ("torch", "timm", "onnx", "onnxscript", "nncf", "albumentations", "cv2", "matplotlib", "jinja2")
)
NUMBERS = frozenset(("pandas", "scipy", "sklearn"))
DEVICE = frozenset(("numpy", "PIL", "dermedge", "dermedge_runtime"))
COMMAND_LINE = DEVICE | {"click", "rich", "dermedge_export"}

# Imports modules one by one, and prints the third-party packages that each one imported.
# A module without a spec is a namespace of numpy's compiled modules, not a package.
IMPORTS = """
import importlib, json, sys
known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
brought = {}
for module in sys.argv[1:]:
    importlib.import_module(module)
    loaded = [n for n, found in sys.modules.items() if getattr(found, "__spec__", None)]
    now = {name.partition(".")[0] for name in loaded}
    brought[module] = sorted(now - known)
    known |= now
print(json.dumps(brought))
"""


def fresh(code: str, *args: object) -> str:
    """Run code in a new interpreter and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def brought_in(*modules: str) -> dict[str, set[str]]:
    found: dict[str, list[str]] = json.loads(fresh(IMPORTS, *modules))
    return {module: set(packages) for module, packages in found.items()}


def walked(package: object, prefix: str) -> list[str]:
    return [
        prefix,
        *(found.name for found in pkgutil.walk_packages(package.__path__, f"{prefix}.")),
    ]  # type: ignore[attr-defined]


def below(folder: str) -> list[str]:
    return [
        name
        for name in walked(dermedge, "dermedge")
        if f"{name}.".startswith(f"dermedge.{folder}.")
    ]


def test_the_runtime_imports_numpy_and_pillow_only() -> None:
    modules = walked(dermedge_runtime, "dermedge_runtime")
    assert "dermedge_runtime.onnxruntime" in modules
    for module, packages in brought_in(*modules).items():
        assert packages <= {"numpy", "PIL", "dermedge_runtime"}, module


def test_importing_dermedge_imports_nothing() -> None:
    assert brought_in("dermedge") == {"dermedge": {"dermedge"}}


def test_the_public_names_of_the_runtime_need_numpy_and_pillow_only() -> None:
    names = [name for name, home in dermedge._HOMES.items() if home.startswith("dermedge_runtime")]
    assert {"load", "verify", "Bundle", "GateError"} <= set(names)
    code = IMPORTS.replace(
        "print(", f"import dermedge\nfor n in {names}: getattr(dermedge, n)\nprint("
    )
    code = code.replace(
        "print(", "brought = sorted({n.partition('.')[0] for n in sys.modules} - known)\nprint("
    )
    assert set(json.loads(fresh(code))) == DEVICE


def test_a_verb_without_its_packages_names_the_extra() -> None:
    code = """
import dermedge
for name in ("finetune", "check_data", "evaluate"):
    try:
        getattr(dermedge, name)
    except dermedge.MissingExtraError as error:
        print(name, error.package, error.extra)
"""
    ran = without_modules(code, "torch", "pandas")
    assert ran.code == 0, ran.err
    assert ran.out.split("\n")[:3] == [
        "finetune torch train",
        "check_data pandas data",
        "evaluate pandas evaluate",
    ]


def test_the_command_line_imports_no_engine_and_no_training_package() -> None:
    modules = below("cli")
    assert "dermedge.cli.predict" in modules
    for module, packages in brought_in(*modules).items():
        assert packages <= COMMAND_LINE, module


@pytest.mark.parametrize(
    "package", ["export", "data", "evaluation", "probing", "readers", "report"]
)
def test_no_module_imports_torch_before_a_verb_needs_it(package: str) -> None:
    modules = walked(dermedge_export, "dermedge_export") if package == "export" else below(package)
    assert len(modules) > 3
    allowed = {"jinja2", "matplotlib"} if package in ("readers", "report") else set()
    for module, packages in brought_in(*modules).items():
        assert not packages & (TRAINING - allowed), module


def test_targets_lesions_golden_cases_and_the_gate_need_numpy_and_pillow_only() -> None:
    modules = [
        f"dermedge_export.{name}"
        for name in (
            "target",
            "parity.gate",
            "synthetic.lesions",
            "synthetic.golden",
            "evaluation.predictions",
            "model_card",
        )
    ]
    for module, packages in brought_in(*modules).items():
        assert packages <= DEVICE | {"dermedge_export"}, module


# Runs command lines in one process, and prints the packages that each one imported.
RUNS = """
import contextlib, io, json, sys
from dermedge.cli import main
packages, runs = json.loads(sys.argv[1])
answers = []
for args in runs:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(args)
    except SystemExit as leaving:
        code = leaving.code
    imported = [name for name in packages if name in sys.modules]
    answers.append([args[0], code, err.getvalue(), imported])
print(json.dumps(answers))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from dermedge.data.draw import draw_data_set

    folder = tmp_path / "lesions"
    draw_data_set(folder, count=2 * len(CLASSES), size=(64, 48))
    return folder


def test_no_verb_of_the_device_imports_torch_when_it_really_runs(data: Path) -> None:
    image = next((data / "images").iterdir())
    toy = str(TOY)
    runs = [
        ["targets"],
        ["doctor"],
        ["inspect", toy],
        ["verify", toy],
        ["predict", toy, str(image)],
        ["bench", toy, "--image", str(image), "--runs", "2", "--warmup", "0"],
        ["evaluate", toy, "--data", str(data), "--split", "all", "--replicates", "10"],
        ["data", "check", str(data)],
    ]
    answers = json.loads(fresh(RUNS, json.dumps([sorted(TRAINING | NUMBERS), runs])))
    assert len(answers) == len(runs)
    for verb, code, err, packages in answers:
        assert code == 0 or verb == "data", err
        assert "Error" not in err
        assert not TRAINING & set(packages), verb
        assert verb in ("evaluate", "data") or not NUMBERS & set(packages), verb


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("evaluate", ["dermedge.evaluation"]),
        ("data", ["dermedge.data"]),
        ("report", ["dermedge.report"]),
        ("readers", [f"dermedge.readers.{name}" for name in ("analyze", "page", "plan")]),
        ("export", ["dermedge.workflows.export", "dermedge_export.exporters.onnx"]),
    ],
)
def test_a_verb_needs_no_more_than_its_extra_brings(extra: str, modules: list[str]) -> None:
    absent = frozenset().union(*extras().values()) - extras()[extra]
    packages = [
        name
        for name, owners in packages_distributions().items()
        if {distribution_of(owner) for owner in owners} & absent
    ]
    assert {"torch", "albumentations", "lightning_fabric"} & set(packages)
    imports = "\n".join(f"import {module}" for module in modules)
    ran = without_modules(imports, *packages)
    assert ran.code == 0, ran.err
