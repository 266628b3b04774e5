"""The names that users import exist, and type checkers see the same objects."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dermedge
import dermedge_export
import dermedge_runtime


def imported_for_checkers() -> dict[str, str]:
    """Return module by name, from the block for type checkers in `dermedge/__init__.py`."""
    tree = ast.parse(Path(dermedge.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_public_name_is_what_a_type_checker_takes_it_for() -> None:
    declared = imported_for_checkers()
    assert sorted(declared) == sorted(dermedge.__all__)
    for name, module in declared.items():
        assert getattr(dermedge, name) is getattr(importlib.import_module(module), name)


def test_the_promised_names_are_there() -> None:
    promised = {"load", "verify", "bench", "Bundle", "Model", "Prediction", "DermedgeError"}
    assert promised <= set(dermedge.__all__) <= set(dir(dermedge))
    errors = importlib.import_module("dermedge_runtime.errors")
    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert own <= set(dermedge.__all__)


def test_star_import_and_unknown_names() -> None:
    namespace: dict[str, object] = {}
    exec("from dermedge import *", namespace)
    assert set(dermedge.__all__) <= set(namespace)
    with pytest.raises(AttributeError, match="'dermedge' has no attribute 'laod'"):
        dermedge.laod  # noqa: B018
    with pytest.raises(ImportError):
        exec("from dermedge import laod")


def test_the_names_come_from_a_fresh_interpreter_in_one_line() -> None:
    code = (
        "from dermedge import verify; import dermedge; "
        "print(dermedge.verify is verify, dermedge.load.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "load"]


def with_names() -> list[str]:
    packages = (dermedge, dermedge_export, dermedge_runtime)
    found = [
        m.name
        for p in packages
        for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")
        if m.ispkg
    ]
    assert "dermedge.data" in found
    return found


@pytest.mark.parametrize("package", with_names())
def test_every_package_has_the_names_that_it_lists(package: str) -> None:
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name, None) is not None, f"{package}.{name}"
        assert getattr(getattr(module, name), "__doc__", None) or not callable(
            getattr(module, name)
        )
