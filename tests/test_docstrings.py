"""The usage examples in docstrings run as they are written."""

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import dermedge
import dermedge_export
import dermedge_runtime
from dermedge_export.synthetic.lesions import draw_lesion
from support import small
from support.command import TOY

ROOTS = (dermedge, dermedge_export, dermedge_runtime)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FEWEST = 20


def modules_with_examples() -> list[str]:
    names = []
    for root in ROOTS:
        found = {root.__name__: Path(root.__file__)}
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            path = Path(module.module_finder.path, *module.name.split(".")[-1:])
            found[module.name] = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        names += [name for name, path in found.items() if ">>>" in path.read_text(encoding="utf-8")]
    return names


MODULES = modules_with_examples()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def folder(tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder in which examples run: a bundle, an image, a data set and two models."""
    (tmp_path / "toy.dermedge").symlink_to(TOY)
    Image.fromarray(draw_lesion(3).image).save(tmp_path / "lesion.png")
    (tmp_path / "lesions").symlink_to(small.data_set(session_folder))
    (tmp_path / "teacher").symlink_to(small.teacher_folder(session_folder))
    (tmp_path / "student").symlink_to(small.student_folder(session_folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, folder: Path) -> None:
    if name == "dermedge_runtime.coreml" and sys.platform == "darwin":
        pytest.skip("the example shows the error of a machine without Core ML")
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    output: list[str] = []
    for example in found:
        runner.run(example, out=output.append)
    assert runner.failures == 0, "".join(output)
