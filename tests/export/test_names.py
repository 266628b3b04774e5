"""`dermedge_export` has lazy public names that need no training or export package."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dermedge_export

# Imports every public name; prints the top-level packages that this brought in.
CODE = """
import json, sys
known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
import dermedge_export
before = set(sys.modules)
for name in dermedge_export.__all__:
    getattr(dermedge_export, name)
own = {name for name, module in sys.modules.items() if getattr(module, "__spec__", None)}
print(json.dumps([
    sorted(name for name in before if name.startswith("dermedge_export.")),
    sorted({name.partition(".")[0] for name in own} - known),
]))
"""


def run_fresh(names: str) -> tuple[list[str], set[str]]:
    """Return the submodules and the packages that a fresh interpreter has imported."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("dermedge_export.__all__", names)],
        capture_output=True,
        text=True,
        check=True,
    )
    submodules, packages = json.loads(done.stdout)
    return submodules, set(packages)


def test_importing_the_package_imports_no_submodule_and_targets_need_numpy_and_pillow() -> None:
    names = "['Candidate', 'Target', 'ExportOptions', 'find_target', 'Calibration']"
    submodules, packages = run_fresh(names)
    assert submodules == []
    assert packages == {"numpy", "PIL", "dermedge_export", "dermedge_runtime"}


def test_no_public_name_imports_torch_or_onnx() -> None:
    _, packages = run_fresh("dermedge_export.__all__")
    assert "numpy" in packages
    assert not packages & {"torch", "timm", "onnx", "onnx_ir", "onnxscript", "nncf", "openvino"}


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(dermedge_export.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(declared) == sorted(dermedge_export.__all__)
    for name, module in declared.items():
        assert getattr(dermedge_export, name) is getattr(sys.modules[module], name)


def test_no_name_is_a_submodule() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(dermedge_export.__path__)}
    assert not submodules & set(dermedge_export.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ExportOption'"):
        dermedge_export.ExportOption  # noqa: B018
