"""`embed` copies a bundle as it is, and its snippets are code whatever the names are."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import TOY_SPEC, toy_content
from dermedge.snippets import kotlin, swift, typescript
from dermedge.workflows.embed import GUIDE, PLATFORMS, embed
from dermedge_runtime.bundle import MANIFEST, Bundle, write_bundle
from dermedge_runtime.container import open_container
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Artifact, Task
from dermedge_runtime.verify import verify
from support.command import TOY, dermedge, refused, snapshot

ROOT = Path(__file__).parents[2]
WEB = ROOT / "runtimes" / "web"
ANDROID_TESTS = ROOT / "runtimes" / "android" / "android" / "src" / "test"
# Every letter with a meaning in a string or a comment of one of the languages.
AWKWARD = "\"'\\ ${x} $x \\(x) `*/ //\n\t\f\x7f\u2028\u202e naïve \U0001f600"


def written(folder: Path, format: str, name: str = "toy", text: str = "") -> Bundle:
    """Write a bundle whose artifact has a format; no engine could load its content."""
    path = {"coreml": "model.mlpackage/Manifest.json", "openvino": "model/model.xml"}
    content = toy_content()
    content["files"][path.get(format, "model.bin")] = b"not a model"
    del content["files"]["model.fake"]
    entry = path.get(format, "model.bin").partition("/")[0]
    content["artifact"] = Artifact("device", format, entry, "fp32")
    content["spec"] = replace(TOY_SPEC, name=name, intended_use=text)
    if text:
        labels = tuple(replace(label, name=text) for label in TOY_SPEC.tasks[0].labels)
        content["spec"] = replace(
            content["spec"], tasks=(replace(TOY_SPEC.tasks[0], labels=labels), TOY_SPEC.tasks[1])
        )
    return write_bundle(folder / "written.dermedge", **content)


@pytest.mark.parametrize("platform", ["android", "web"])
def test_the_copy_is_the_same_bundle_and_verifies(platform: str, tmp_path: Path) -> None:
    ran = dermedge("embed", TOY, "--platform", platform, "-o", tmp_path / "app", "--json")
    embedded = ran.json()
    assert ran.code == 0
    assert dermedge("verify", embedded["bundle"]).code == 0
    original, copy = Bundle.open(TOY), Bundle.open(embedded["bundle"])
    assert copy.id == original.id == embedded["id"]
    with open_container(original.path) as before, open_container(copy.path) as after:
        assert before.read(MANIFEST) == after.read(MANIFEST)
    for key in ("snippet", "guide"):
        text = Path(embedded[key]).read_text()
        assert "{{" not in text.replace("${{", "")
        assert original.id in text
    snippet = Path(embedded["snippet"]).read_text()
    assert all(f'"{label.name}"' in snippet for label in copy.spec.tasks[0].labels)


def test_a_core_ml_bundle_is_laid_out_as_a_folder(tmp_path: Path) -> None:
    bundle = written(tmp_path, "coreml")
    embedded = embed(bundle, platform="ios", out=tmp_path / "app")
    assert (embedded.bundle / "model.mlpackage" / "Manifest.json").is_file()
    assert Bundle.open(embedded.bundle).id == bundle.id
    assert 'appendingPathComponent("model.mlpackage")' in embedded.snippet.read_text()
    report = verify(embedded.bundle)
    expected = "failed" if sys.platform == "darwin" else "not_run"
    assert {check.name: check.status for check in report.checks}["engine"] == expected


@pytest.mark.parametrize(
    ("format", "platform"),
    [
        ("openvino", "android"),
        ("coreml", "android"),
        ("tensorrt", "web"),
        ("openvino", "web"),
        ("onnx", "ios"),
        ("litert", "ios"),
    ],
)
def test_a_format_that_the_platform_cannot_run_is_refused(
    format: str, platform: str, tmp_path: Path
) -> None:
    bundle = written(tmp_path, format)
    before = snapshot(tmp_path)
    message = refused(
        dermedge("embed", bundle.path, "--platform", platform, "-o", tmp_path / "app"), 2
    )
    assert repr(format) in message
    assert f"--target {platform}" in message
    assert snapshot(tmp_path) == before


def test_a_damaged_bundle_is_refused_and_nothing_is_written(toy_bundle_path: Path) -> None:
    (toy_bundle_path / "modelcard.md").write_text("another")
    out = toy_bundle_path.parent / "app"
    message = refused(dermedge("embed", toy_bundle_path, "--platform", "web", "-o", out), 5)
    assert "modelcard.md" in message
    assert list(toy_bundle_path.parent.iterdir()) == [toy_bundle_path]


def test_only_a_folder_of_embed_is_overwritten(tmp_path: Path) -> None:
    app = tmp_path / "app"
    arguments = ("embed", TOY, "--platform", "web", "-o", app)
    assert dermedge(*arguments).code == 0
    (app / "old.txt").write_text("left by an older version")
    assert "--overwrite" in refused(dermedge(*arguments), 2)
    assert dermedge(*arguments, "--overwrite").code == 0
    assert not (app / "old.txt").exists()
    (app / GUIDE).unlink()
    before = snapshot(app)
    assert GUIDE in refused(dermedge(*arguments, "--overwrite"), 2)
    assert snapshot(app) == before


def test_an_unknown_platform_is_named() -> None:
    with pytest.raises(UsageError, match=r"'androd'. Did you mean 'android'\?"):
        embed(TOY, platform="androd", out="app")  # type: ignore[arg-type]
    assert "'androd'" in dermedge("embed", TOY, "--platform", "androd", "-o", "app").err


def test_a_bundle_of_another_target_is_named_to_the_developer(tmp_path: Path) -> None:
    ran = dermedge("embed", TOY, "--platform", "android", "-o", tmp_path / "app")
    assert "exported for 'cpu'" in ran.out


@pytest.mark.parametrize("platform", sorted(PLATFORMS))
def test_no_name_ends_a_string_or_a_comment(platform: str, tmp_path: Path) -> None:
    layout = PLATFORMS[platform]
    bundle = written(tmp_path, layout.formats[0], "3-d.model_x", AWKWARD)
    snippet = embed(bundle, platform=platform, out=tmp_path / "app").snippet
    text = snippet.read_text()
    assert snippet.stem.lower() == "embeddedmodel3dmodelx"
    assert text.isascii()
    # All of the text is between the quotes of four literals: the use and three labels.
    strings = re.findall(r'"(?:[^"\\\n]|\\.)*"', text)
    literals = [string for string in strings if "//" in string]
    assert len(literals) == 4
    assert len(set(literals)) == 1
    assert unquote(literals[0], platform) == AWKWARD


def unquote(literal: str, platform: str) -> str:
    """Read a string literal of a platform's language by its own escapes."""
    assert literal.isprintable()
    if platform == "ios":
        assert not re.search(r"(?<!\\)(\\\\)*\\[^u\\\"]", literal)
        points = re.sub(r"\\u\{(\w+)\}", lambda found: chr(int(found[1], 16)), literal[1:-1])
        return re.sub(r"\\(.)", r"\1", points, flags=re.DOTALL)
    if platform == "android":
        assert not re.search(r"(?<!\\)\$", literal)
        literal = literal.replace("\\$", "$")
    return str(json.loads(literal))


def test_a_model_without_labels_has_an_empty_table() -> None:
    spec = replace(TOY_SPEC, tasks=(Task("malignancy", "binary"),))
    assert kotlin(spec)["labels"] == typescript(spec)["labels"] == ""
    assert swift(spec)["tasks"] == '(name: "malignancy", labels: []),'


@pytest.mark.skipif(
    not (WEB / "node_modules" / "typescript").is_dir(),
    reason="needs the packages of runtimes/web: run 'npm ci' there",
)
def test_the_typescript_snippet_passes_the_type_checker(tmp_path: Path) -> None:
    snippets = [embed(TOY, platform="web", out=tmp_path / "toy").snippet]
    awkward = written(tmp_path, "litert", "awkward", AWKWARD)
    snippets.append(embed(awkward, platform="web", out=tmp_path / "awkward").snippet)
    options = json.loads((WEB / "tsconfig.json").read_text())["compilerOptions"]
    config = {
        "compilerOptions": options
        | {"types": [], "noEmit": True, "paths": {"dermedge": [str(WEB / "src" / "index.ts")]}},
        "files": [str(snippet) for snippet in snippets],
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    node = shutil.which("node")
    assert node is not None
    compiler = WEB / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node, compiler, "--noEmit", "-p", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
