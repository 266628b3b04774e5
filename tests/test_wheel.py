"""The wheel holds the three packages, and works with its required dependencies only.

Nothing is downloaded. A separate virtual environment links to the installed packages that it
may use.
"""

import configparser
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import dermedge
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.model import RUNTIMES
from dermedge_runtime.registry import load_entry

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "data" / "toy.dermedge"
PACKAGES = {
    "dermedge": ROOT / "dermedge",
    "dermedge_export": ROOT / "export" / "dermedge_export",
    "dermedge_runtime": ROOT / "runtimes" / "python" / "dermedge_runtime",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


class Device:
    """A virtual environment with the wheel and links to the packages that it may use."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=os.name != "nt")
        scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python, self.command = scripts / "python", scripts / "dermedge"
        self.site = Path(
            sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        )
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*pip, "--disable-pip-version-check", wheel], check=True)

    def may_use(self, distributions: Iterable[str]) -> None:
        link_packages(self.site, distributions)

    def run(self, *args: object) -> subprocess.CompletedProcess[str]:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PYTHON")
        }
        return subprocess.run(
            [self.command, *map(str, args)],
            cwd=self.site,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )


def link_packages(site: Path, distributions: Iterable[str]) -> None:
    """Link installed distributions and their requirements into a folder."""
    for name in closure(distributions):
        found = distribution(name)
        for top in {
            file.parts[0]
            for file in found.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))


def closure(distributions: Iterable[str]) -> set[str]:
    """Return installed distributions with their installed requirements."""
    found: set[str] = set()
    pending = list(distributions)
    while pending:
        name = re.split(r"[ ;<>=!~\[(]", pending.pop())[0].lower()
        try:
            required = distribution(name).requires or ()
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            pending += [line for line in required if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Make a device with the required dependencies: no engine, no extra."""
    made = Device(tmp_path_factory.mktemp("device"), wheel)
    base = [line for line in distribution("dermedge").requires or () if "extra ==" not in line]
    assert {re.split(r"[<>=]", line)[0] for line in base} == {"numpy", "pillow", "click", "rich"}
    made.may_use(base)
    return made


@pytest.fixture(scope="module")
def device_with_engine(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    made = Device(tmp_path_factory.mktemp("engine"), wheel)
    made.may_use(["numpy", "pillow", "click", "rich", "onnxruntime"])
    return made


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "lesion.png"
    Image.fromarray(draw_lesion(5).image).save(path)
    return path


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    held = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    source = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == source
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert "dermedge/report/report.html.j2" in held
    # The page of `dermedge serve` is in the wheel if it was built, and `dermedge embed` has
    # snippets for apps. `dermedge students` reads the measurements of the student presets, and
    # `dermedge readers kit` the parts of its page.
    kit = tuple(f"dermedge/readers/kit.{kind}" for kind in ("html", "js", "md"))
    apart = (
        *kit,
        "dermedge/page/",
        "dermedge/snippets/",
        "dermedge/models/student_presets.json",
    )
    written = {name for name in held if not name.startswith(apart)}
    assert {Path(name).suffix for name in written} <= {".py", ".typed", ".j2", ".css"}, (
        "no test, no picture, no data"
    )
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_a_package_index_shows_the_readme_without_links_that_lead_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "# dermedge" in metadata and "docs/glossary.md" in metadata
    targets = re.findall(r"\]\(([^)]+)\)", metadata)
    assert [target for target in targets if not target.startswith("http")] == []


def test_without_any_extra_it_explains_itself_and_reads_bundles(device: Device) -> None:
    help_text = device.run("--help")
    assert help_text.returncode == 0
    assert "predict" in help_text.stdout
    version = device.run("--version")
    assert version.stdout.strip() == f"dermedge {distribution('dermedge').version}"
    inspected = device.run("inspect", TOY, "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["id"] == dermedge.Bundle.open(TOY).id
    assert device.run("inspect", TOY).returncode == device.run("targets").returncode == 0


def test_without_any_extra_the_doctor_says_what_to_install(device: Device) -> None:
    shown = device.run("doctor")
    assert shown.returncode == 0, shown.stderr
    for extra in ("onnxruntime", "evaluate", "data", "report", "export", "train"):
        (row,) = (line for line in shown.stdout.splitlines() if line.split()[:1] == [extra])
        assert row.split()[1] == "missing"
        assert row.endswith(f"pip install 'dermedge[{extra}]'")


def test_without_its_extra_a_verb_names_it(device: Device, photo: Path) -> None:
    for extra, args in (
        ("onnxruntime", ("predict", TOY, photo)),
        ("onnxruntime", ("verify", TOY)),
        ("onnxruntime", ("bench", TOY)),
        ("evaluate", ("evaluate", TOY, "--data", photo.parent)),
        ("data", ("data", "check", photo.parent)),
        ("export", ("export", photo.parent, "--target", "cpu", "-o", photo.parent / "out")),
        ("train", ("finetune", "--data", photo.parent, "-o", photo.parent / "out")),
        ("train", ("demo", "-o", photo.parent / "out")),
    ):
        refused = device.run(*args)
        assert refused.returncode == 4, refused.stderr
        assert refused.stdout == ""
        assert refused.stderr.startswith("Error: ")
        assert refused.stderr.rstrip().endswith(f"pip install 'dermedge[{extra}]'.")
        assert len(refused.stderr.splitlines()) == 1


def test_with_an_engine_it_verifies_and_predicts_as_here(
    device_with_engine: Device, photo: Path
) -> None:
    verified = device_with_engine.run("verify", TOY)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stderr == ""
    predicted = device_with_engine.run("predict", TOY, photo, "--json")
    assert predicted.returncode == 0, predicted.stderr
    answer = json.loads(predicted.stdout)
    with dermedge.load(TOY) as model:
        expected = json.loads(json.dumps(model.predict(photo).to_json()))
    for key in expected.keys() - {"timing"}:
        assert answer[key] == expected[key], key
    where = device_with_engine.run("doctor", "--json")
    assert {extra["name"]: extra["status"] for extra in json.loads(where.stdout)["extras"]}[
        "onnxruntime"
    ] == "ok"


def test_the_installed_wheel_is_what_the_device_ran(device: Device) -> None:
    code = (
        "import dermedge_runtime.model as m, sys; print(m.__file__); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [device.python, "-I", "-c", code],
        cwd=device.site.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    file, torch = done.stdout.splitlines()
    assert Path(file).is_relative_to(device.site)
    assert torch == "False"


def test_pyinstaller_finds_the_hook_and_the_hook_names_every_engine(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        declared = configparser.ConfigParser()
        declared.read_string(archive.read(name).decode())
    folders = load_entry(declared["pyinstaller40"]["hook-dirs"])()
    (hook,) = (path for folder in folders for path in Path(folder).glob("hook-*.py"))
    assert hook.name == "hook-dermedge_runtime.py"
    # PyInstaller is no requirement of the tests; the hook asks it for one function.
    hooks = SimpleNamespace(copy_metadata=lambda name: [(f"{name}.dist-info", ".")])
    for module in ("PyInstaller", "PyInstaller.utils", "PyInstaller.utils.hooks"):
        monkeypatch.setitem(sys.modules, module, hooks)
    collected = runpy.run_path(str(hook))
    assert set(collected["hiddenimports"]) >= {entry.split(":")[0] for entry in RUNTIMES.values()}
    assert all(importlib.util.find_spec(name) for name in collected["hiddenimports"])
    assert ("dermedge.dist-info", ".") in collected["datas"]


ZIPPED = """
import sys
import dermedge
from dermedge_runtime.model import GROUP, RUNTIMES
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.registry import list_entries
with dermedge.load(sys.argv[1]) as model:
    print(model.predict(sys.argv[2]).labels[0].id)
print(dermedge_version(), list_entries(RUNTIMES, GROUP) == RUNTIMES, dermedge.doctor().dermedge)
print(dermedge.__file__)
"""


def test_a_zip_of_the_packages_without_metadata_predicts(
    wheel: Path, photo: Path, tmp_path: Path
) -> None:
    app, site = tmp_path / "app.zip", tmp_path / "site"
    site.mkdir()
    link_packages(site, ["numpy", "pillow", "onnxruntime"])
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(app, "w") as made:
        for name in source.namelist():
            if ".dist-info/" not in name:
                made.writestr(name, source.read(name))
        made.writestr("__main__.py", ZIPPED)
    # Without site packages, so that an installed dermedge is not found.
    ran = subprocess.run(
        [sys.executable, "-S", app, TOY, photo],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert ran.returncode == 0, ran.stderr
    label, versions, file = ran.stdout.splitlines()
    with dermedge.load(TOY) as model:
        assert label == model.predict(photo).labels[0].id
    assert versions == "unknown True unknown"
    assert file.startswith(str(app))
