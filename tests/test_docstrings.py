"""Every public class and verb has a usage example, and the examples run as written."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import dermedge
import dermedge_export
import dermedge_runtime
from dermedge.workflows import run
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime import bench
from support import language, small
from support.command import TOY, TOY_LITERT

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules(root: ModuleType) -> dict[str, str]:
    """Return the source text of a package's modules by name, without importing them."""
    assert root.__file__ is not None
    found = {root.__name__: Path(root.__file__)}
    for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        path = Path(module.module_finder.path, *module.name.split(".")[-1:])
        found[module.name] = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


SOURCES = {root.__name__: modules(root) for root in (dermedge, dermedge_export, dermedge_runtime)}
MODULES = [name for texts in SOURCES.values() for name, text in texts.items() if ">>>" in text]


def has_example(docstring: str | None) -> bool:
    """Return True if a docstring has an example that is not skipped."""
    examples = doctest.DocTestParser().get_examples(docstring or "")
    return any(not example.options.get(doctest.SKIP) for example in examples)


def public_classes(source: str) -> Iterator[tuple[str, list[str | None]]]:
    """Yield the public classes of a module: name, and docstrings of class and methods."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            yield node.name, [ast.get_docstring(part) for part in (node, *methods)]


@pytest.mark.parametrize("root", SOURCES)
def test_every_public_class_has_an_example(root: str) -> None:
    without = [
        f"{module}.{name}"
        for module, source in SOURCES[root].items()
        for name, docstrings in public_classes(source)
        if not any(map(has_example, docstrings))
    ]
    assert without == []


def test_every_verb_has_an_example() -> None:
    public = [getattr(dermedge, name) for name in dermedge.__all__]
    verbs = [value for value in public if inspect.isfunction(value)]
    assert [verb.__name__ for verb in verbs if not has_example(verb.__doc__)] == []
    assert run.demo in verbs


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def folder(tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder in which examples run: a bundle, an image, a data set and three models."""
    (tmp_path / "toy.dermedge").symlink_to(TOY)
    (tmp_path / "toy-litert.zip").symlink_to(TOY_LITERT)
    Image.fromarray(draw_lesion(3).image).save(tmp_path / "lesion.png")
    (tmp_path / "lesions").symlink_to(small.data_set(session_folder))
    (tmp_path / "teacher").symlink_to(small.teacher_folder(session_folder))
    (tmp_path / "student").symlink_to(small.student_folder(session_folder))
    (tmp_path / "language-model").symlink_to(language.language_model_folder(session_folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the parts of `run` and `demo` that take minutes and have no option."""
    monkeypatch.setattr(run, "DEMO", replace(run.DEMO, size=32, epochs=1, student_epochs=1))
    monkeypatch.setattr(run, "DEMO_IMAGES", 60)
    monkeypatch.setattr(run, "bench", partial(bench.bench, image="lesion.png", runs=1, warmup=0))
    monkeypatch.setattr(bench, "COLD_STARTS", 1)


@pytest.mark.usefixtures("short_demo")
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
