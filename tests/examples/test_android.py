"""The Gradle files of Android name files and versions that exist; the example has no network."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tomllib

from dermedge.workflows.embed import embed

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtimes" / "android"
APP = ROOT / "examples" / "android"
CATALOGUE = RUNTIME / "gradle" / "libs.versions.toml"
GRADLE_FILES = sorted([*RUNTIME.rglob("*.gradle.kts"), *APP.rglob("*.gradle.kts")])
ANDROID = "{http://schemas.android.com/apk/res/android}"
TOOLS = "{http://schemas.android.com/tools}"
MAVEN = {"m": "http://maven.apache.org/POM/4.0.0"}
REFUSED = {"INTERNET", "ACCESS_NETWORK_STATE"}


def test_the_example_has_the_camera_and_no_network() -> None:
    (path,) = APP.rglob("AndroidManifest.xml")
    permissions = {
        element.attrib[f"{ANDROID}name"].removeprefix("android.permission."): element.attrib
        for element in ElementTree.parse(path).getroot()
        if element.tag.startswith("uses-permission")
    }
    granted = {name for name, found in permissions.items() if found.get(f"{TOOLS}node") != "remove"}
    assert granted == {"CAMERA"}
    # A library's own manifest could add a permission; these entries take it away again.
    assert set(permissions) - granted == REFUSED


def test_every_file_that_gradle_names_exists() -> None:
    assert {path.parent.name for path in GRADLE_FILES} >= {"android", "core", "app"}
    for path in GRADLE_FILES:
        text = path.read_text(encoding="utf-8")
        for named in re.findall(r"(?:files|includeBuild)\(\"([^\"]+)\"\)", text):
            assert (path.parent / named).exists(), f"{path}: {named}"
        for line in re.findall(r"(?:^include|listOf)\((.*)\)", text, re.MULTILINE):
            for module in re.findall(r'":?([\w-]+)"', line):
                folder = path.parent / module
                assert (folder / "build.gradle.kts").is_file(), f"{path}: {module}"
                assert (folder / "src" / "main").is_dir(), f"{path}: {module}"


def test_every_name_of_the_catalogue_exists() -> None:
    catalogue = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    known = {
        f"{prefix}{name.replace('-', '.')}"
        for table, prefix in (("libraries", ""), ("plugins", "plugins."))
        for name in catalogue[table]
    }
    used = {
        name
        for path in GRADLE_FILES
        for name in re.findall(r"\blibs\.([\w.]+)", path.read_text(encoding="utf-8"))
        if not name.startswith("versions.toml")
    }
    assert used <= known
    versions = {
        entry["version"]["ref"]
        for table in ("libraries", "plugins")
        for entry in catalogue[table].values()
    }
    assert versions == set(catalogue["versions"])


def test_gradle_and_maven_use_the_same_versions() -> None:
    properties = ElementTree.parse(RUNTIME / "pom.xml").find("m:properties", MAVEN)
    assert properties is not None
    maven = {
        element.tag.partition("}")[2].removesuffix(".version"): element.text
        for element in properties
        if element.tag.endswith(".version")
    }
    gradle = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))["versions"]
    shared = maven.keys() & gradle.keys()
    assert {"kotlin", "onnxruntime"} <= shared
    assert {name: maven[name] for name in shared} == {name: gradle[name] for name in shared}


@pytest.mark.parametrize("path", [*GRADLE_FILES, CATALOGUE], ids=lambda path: path.name)
def test_no_file_names_a_registry(path: Path) -> None:
    assert "http" not in path.read_text(encoding="utf-8")


def test_the_snippet_of_the_maven_tests_is_what_embed_writes(tmp_path: Path) -> None:
    tests = RUNTIME / "android" / "src" / "test"
    asset, snippet = (
        tests / "assets" / "toy.dermedge",
        tests / "kotlin" / "embedded" / "EmbeddedToy.kt",
    )
    embedded = embed(asset, platform="android", out=tmp_path / "app")
    assert embedded.snippet.read_bytes() == snippet.read_bytes(), (
        f"Run dermedge embed {asset} --platform android, and copy the snippet to {snippet}."
    )
    assert embedded.bundle.read_bytes() == asset.read_bytes()
