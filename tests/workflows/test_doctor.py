"""The extras that `doctor` names are enough: each verb runs without the others."""

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from dermedge.cli import COMMANDS
from dermedge.readers.simulate import write_study
from dermedge.workflows.doctor import doctor
from dermedge.workflows.extras import PURPOSES, VERBS, distribution_of, extra_of, extras
from support import language, small
from support.command import TOY, without_modules

# Runs each command line of sys.argv, which are separated by a line of their own.
RUN = """
import sys
from dermedge.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split("\\n"))
    except SystemExit as leaving:
        if leaving.code:
            sys.exit(f"{line!r} left with {leaving.code}")
"""


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    (tmp_path / "lesions").symlink_to(small.data_set(base))
    (tmp_path / "student").symlink_to(small.student_folder(base))
    write_study(tmp_path / "study.csv", readers=3, cases=20)
    (tmp_path / "captioned").symlink_to(language.captioned(base))
    (tmp_path / "language-model").symlink_to(language.language_model_folder(base))
    return tmp_path


COMMAND_LINES = {
    "evaluate": [["evaluate", TOY, "--data", "lesions", "--split", "all", "--replicates", "10"]],
    "data": [["data", "check", "lesions"], ["data", "sets"]],
    "readers": [["readers", "analyze", "study.csv", "-o", "out", "--replicates", "10"]],
    "export": [["export", "student", "--target", "cpu", "-o", "out"]],
    "train": [
        *[["finetune", "--data", "lesions", "--backbone", "test_resnet", "-o", "teacher"]],
        *[["distill", "teacher", "--data", "lesions", "--backbone", "test_resnet", "-o", "small"]],
        *[["probe", "teacher", "--data", "lesions", "--task", "diagnosis", "--replicates", "10"]],
        *[["run", "--data", "lesions", "--backbone", "test_resnet", "-o", "out"]],
    ],
    "captions": [
        [
            *["caption", "train", "student", "--lm", "language-model", "--data", "captioned"],
            *["-o", "captioner"],
        ],
        ["caption", "evaluate", "captioner", "--data", "captioned", "--limit", "2"],
    ],
    "pretrain": [
        *[["pretrain", "--data", "lesions", "--preset", "mobile", "--steps", "1", "-o", "start"]]
    ],
}
EXTRA_ARGUMENTS = {
    "finetune": ["--epochs", "1", "--size", "32", "--batch-size", "16"],
    "distill": ["--epochs", "1", "--views", "1", "--batch-size", "16"],
    "run": [
        *["--student", "test_resnet", "--student-stages", "2"],
        *["--size", "32", "--epochs", "1", "--student-epochs", "1", "--views", "1"],
    ],
    "probe": ["--protocol", "linear", "-o", "probe.json"],
    "pretrain": [
        *["--backbone", "test_resnet", "--epochs", "1", "--batch-size", "8"],
        *["--size", "32", "--local-size", "32"],
    ],
}


@pytest.mark.parametrize("extra", COMMAND_LINES)
def test_the_extra_of_a_verb_is_enough_to_run_it(
    extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    # The engine of the bundle is an extra of its own.
    allowed = extras()[extra] | (extras()["onnxruntime"] if extra == "evaluate" else frozenset())
    others = frozenset().union(*extras().values()) - allowed
    modules = [
        module
        for module, owners in packages_distributions().items()
        if {distribution_of(owner) for owner in owners} & others
    ]
    lines = [
        "\n".join(map(str, [*line, *EXTRA_ARGUMENTS.get(str(line[0]), [])]))
        for line in COMMAND_LINES[extra]
    ]
    ran = without_modules(RUN, *modules, arguments=lines)
    assert ran.code == 0, ran.err
    assert all(VERBS[line.split("\n")[0]] == extra for line in lines)


def test_the_verbs_and_extras_of_the_table_exist() -> None:
    assert set(VERBS) <= set(COMMANDS)
    assert set(VERBS.values()) | set(PURPOSES) == set(extras())
    assert {extra.name for extra in doctor().extras} == set(extras())
    assert all(extra.enables for extra in doctor().extras)


def test_a_missing_package_is_named_with_the_extra_of_the_verb() -> None:
    assert extra_of("torch", "export") == "export"
    assert extra_of("torch", "distill") == "train"
    assert extra_of("sklearn", "evaluate") == "evaluate"
    assert extra_of("lightly", "run") == "pretrain"
    assert extra_of("json", "run") is None


def test_a_missing_package_counts_as_missing() -> None:
    ran = without_modules(
        "from dermedge.workflows import doctor as module\n"
        "known = module.find_version\n"
        "module.find_version = lambda name: None if name == 'torch' else known(name)\n"
        "print([e.name for e in module.doctor().extras if 'torch' in e.missing])"
    )
    assert ran.code == 0, ran.err
    assert set(eval(ran.out)) == {name for name, brings in extras().items() if "torch" in brings}
