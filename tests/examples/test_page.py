"""The example page predicts as Python does, in a real browser, with and without a network.

The page is built from `examples/web`, served by a `dermedge serve` process, and used by
`examples/web/e2e/page.mjs` in Chromium.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

import dermedge
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.files import sha256_hex
from support.command import rewrite_manifest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "runtimes" / "web"
EXAMPLE = ROOT / "examples" / "web"
CONFORMANCE = ROOT / "tests" / "conformance"
BUNDLES = {form: CONFORMANCE / "bundles" / f"toy-{form}.zip" for form in ("onnx", "litert")}
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
# A browser that is offline writes this about the manifest, which the page asks for first.
OFFLINE = "net::ERR_INTERNET_DISCONNECTED"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}; set CHROMIUM")
    for folder in (WEB, EXAMPLE):
        if not (folder / "node_modules").is_dir():
            pytest.skip(f"`npm ci` has not run in {folder.relative_to(ROOT)}; run `make web`")
    out = tmp_path_factory.mktemp("page")
    if not (WEB / "dist" / "index.js").is_file():
        npm(WEB)
    npm(EXAMPLE, PAGE_OUT=str(out))
    return out


def npm(folder: Path, **environment: str) -> None:
    done = subprocess.run(
        ["npm", "run", "--silent", "build"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def served(bundle: Path, page: Path) -> Iterator[str]:
    """Run `dermedge serve` and yield its address."""
    command = [sys.executable, "-m", "dermedge", "serve", bundle, "--port", "0", "--page", page]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def drive(scenario: str, **options: Any) -> Any:
    """Run a scenario of `e2e/page.mjs` and return what it saw."""
    done = subprocess.run(
        ["node", "e2e/page.mjs", scenario, json.dumps({"chromium": CHROMIUM, **options})],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "lesion.png"
    Image.fromarray(draw_lesion(7, height=900, width=700).image).save(path)
    return path


@pytest.fixture(scope="module")
def url(page: Path) -> Iterator[str]:
    with served(BUNDLES["onnx"], page) as address:
        yield address


def expected(bundle: Path, photo: Path) -> dict[str, Any]:
    with dermedge.load(bundle) as model:
        return model.predict(photo).to_json()


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two predictions as `verify` does: numbers within 1e-6, all else equal."""
    volatile = ("timing", "provenance")
    assert {key for key in found if key not in volatile} == {
        key for key in wanted if key not in volatile
    }
    for key, value in wanted.items():
        if key not in volatile:
            assert flat(found[key]) == pytest.approx(flat(value), abs=1e-6), key


def flat(value: Any) -> Any:
    """Return a value of JSON without nesting, because `approx` refuses nested ones."""
    if isinstance(value, list):
        return {f"{i}.{k}": v for i, each in enumerate(value) for k, v in flat(each).items()}
    return value if isinstance(value, dict) else {"": value}


@pytest.mark.slow
@pytest.mark.parametrize("form", BUNDLES)
def test_it_predicts_as_python_online_and_offline(page: Path, photo: Path, form: str) -> None:
    if form == "litert":
        pytest.importorskip("ai_edge_litert")
    out = os.environ.get("SCREENSHOTS")  # Folder for screenshots, if somebody wants to look.
    with served(BUNDLES[form], page) as address:
        seen = drive("journey", url=address, photo=str(photo), out=out)
    wanted = expected(BUNDLES[form], photo)
    assert seen["isolated"]
    assert seen["offlineText"] == "Works offline"
    for state in ("first", "offline"):
        assert seen[state]["problem"] is None
        assert_equal(seen[state]["json"], wanted)
        assert seen[state]["names"] == [label["name"] for label in wanted["labels"]]
        shares = [float(value.split()[0]) for value in seen[state]["values"]]
        assert shares == pytest.approx(
            [100 * label["probability"] for label in wanted["labels"]], abs=0.06
        )
        assert f"the decision is {wanted['decision']}" in seen[state]["result"].lower()
    assert 0 < wanted["mask_fraction"] < 1
    assert seen["outline"] > 0
    assert seen["selfTest"]["status"] == "Self-test: passed"
    assert [line.split()[:2] for line in seen["selfTest"]["checks"]] == [
        ["passed", name] for name in ("files", "preprocessing", "engine", "decoding")
    ]
    bundle = Bundle.open(BUNDLES[form])
    assert bundle.id in seen["provenance"]
    assert "the copy on this device" in seen["provenance"]
    assert "not a diagnosis" in seen["about"]
    assert [fault for fault in seen["faults"] if OFFLINE not in fault] == []
    assert seen["violations"] == []
    assert not seen["wide"], "the page scrolls sideways"


# By reason: threshold of the OOD score, quantiles, the explanation, what else the page shows,
# and the number of thresholds on the scale of the score.
REFERRALS = {
    "uncertain": (
        *(1e6, [1, None, 1], "neither clearly low nor clearly high"),
        (
            "The model cannot tell",
            "below 5.0 % is benign, from 95.0 % on malignant",
            "With 90 % coverage one of: ",
            "For about 90 % of images like those of the calibration",
            "Unlike known images no, score",
        ),
        2,
    ),
    "ood": (
        *(-1e6, [0, 0, 0], "unlike the images that the model knows"),
        (
            "The model does not know such images",
            "The set at 90 % coverage is empty",
            "This coverage does not hold",
            "Unlike known images yes, score",
        ),
        0,
    ),
}


def referring_bundle(path: Path, ood_threshold: float, quantiles: list[float | None]) -> Bundle:
    """Save the toy with an OOD task, conformal sets and a wide gap between the thresholds."""
    bundle = Bundle.open(BUNDLES["onnx"]).save(path)
    model = onnx.load(bundle.path / "model.onnx")
    (score,) = (output for output in model.graph.output if output.name == "malignancy")
    model.graph.node.add(op_type="Identity", input=[score.name], output=["foreign"])
    model.graph.output.add(name="foreign", type=score.type)
    onnx.save(model, bundle.path / "model.onnx")
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    manifest["spec"]["tasks"].append({"name": "foreign", "kind": "ood"})
    sets = {"method": "lac", "coverage": 0.9, "quantiles": quantiles}
    manifest["postprocessing"]["diagnosis"]["conformal"] = sets
    manifest["postprocessing"]["malignancy"] |= {"threshold": 0.05, "rule_in": 0.95}
    manifest["postprocessing"]["foreign"] = {"ood_threshold": ood_threshold}
    manifest["tolerance"]["foreign"] = 0.1
    manifest["files"]["model.onnx"] = sha256_hex((bundle.path / "model.onnx").read_bytes())
    rewrite_manifest(bundle.path, manifest)
    return Bundle.open(bundle.path)


@pytest.mark.slow
@pytest.mark.parametrize("reason", REFERRALS)
def test_a_referral_gives_its_reason_and_the_set_its_coverage(
    page: Path, photo: Path, tmp_path: Path, reason: str
) -> None:
    ood_threshold, quantiles, because, shown, ticks = REFERRALS[reason]
    bundle = referring_bundle(tmp_path / "refer.dermedge", ood_threshold, quantiles)
    with served(bundle.path, page) as address:
        out = os.environ.get("SCREENSHOTS")
        seen = drive("result", url=address, photo=str(photo), out=out, name=reason)
    wanted = expected(bundle.path, photo)
    assert (wanted["decision"], wanted["refer_reason"]) == ("refer", reason)
    assert_equal(seen["json"], wanted)
    assert "The decision is refer" in seen["result"]
    for text in (seen["result"], seen["announced"]):
        assert because in text
        assert "ee a dermatologist" in text
    result = " ".join(seen["result"].split())
    for text in shown:
        assert text in result
    assert seen["ticks"] == ticks
    assert seen["faults"] == []
    assert seen["violations"] == []


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Return files that are no usable photos, with a word of each message."""
    folder = tmp_path_factory.mktemp("bad")
    Image.new("L", (10_000, 10_000)).save(folder / "100-megapixels.jpg", quality=10)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "letter.jpg").write_text("Dear Sir or Madam")
    images = CONFORMANCE / "images"
    return {
        folder / "100-megapixels.jpg": "10000 x 10000",
        folder / "empty.jpg": "0 bytes",
        folder / "letter.jpg": "image",
        images / "drawing.svg": "not an image",
        images / "truncated.jpg": "truncated",
        images / "animated.png": "animated",
        ROOT / "tests" / "data" / "lesion.heic": "HEI",
    }


@pytest.mark.slow
def test_a_file_that_is_no_photo_is_explained_and_the_next_one_works(
    url: str, photo: Path, bad_files: dict[Path, str]
) -> None:
    seen = drive("files", url=url, photo=str(photo), bad=[str(path) for path in bad_files])
    wanted = expected(BUNDLES["onnx"], photo)
    for path, word in bad_files.items():
        case = seen["shownFor"][str(path)]
        assert case["result"] is None, path.name
        assert word in case["problem"], (path.name, case["problem"])
        assert_equal(case["after"], wanted)
    assert seen["faults"] == []


@pytest.mark.slow
def test_a_damaged_bundle_is_refused_and_a_repaired_one_loads(url: str, photo: Path) -> None:
    seen = drive("damage", url=url, model="model.onnx", photo=str(photo))
    wanted = expected(BUNDLES["onnx"], photo)
    assert "WebAssembly" in seen.pop("no WebAssembly")["problem"]
    words = {
        "changed": "model.onnx",
        "truncated": "model.onnx",
        "gone": "The server does not answer",
        "missing": "model.onnx",
        "other": "manifest.json",
    }
    assert seen.keys() == words.keys()
    for name, word in words.items():
        assert word in seen[name]["problem"], (name, seen[name]["problem"])
        assert not any("bundle-" in kept for kept in seen[name]["kept"]), name
        assert_equal(seen[name]["after"], wanted)


@pytest.mark.slow
def test_a_model_that_the_engine_refuses_is_explained(page: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(BUNDLES["onnx"]).save(tmp_path / "cut.dermedge")
    model = bundle.path / "model.onnx"
    model.write_bytes(model.read_bytes()[:200])
    digests = {**bundle.files, "model.onnx": sha256_hex(model.read_bytes())}
    rewrite_manifest(bundle.path, {"files": digests})
    with served(bundle.path, page) as address:
        seen = drive("refused", url=address)
    assert "onnxruntime" in seen["problem"]
    assert "Try again" in seen["problem"]
    assert seen["faults"] == []


@pytest.mark.slow
def test_the_camera_takes_a_photo_and_a_refusal_is_explained(url: str, photo: Path) -> None:
    seen = drive("camera", url=url, photo=str(photo))
    assert seen["hint"]
    assert seen["focused"] == "shoot"
    assert seen["taken"]["json"]["labels"]
    assert seen["live"] == {"afterShot": False, "whileOpen": True, "afterStop": False}
    assert "The camera is not allowed." in seen["denied"]["problem"]
    assert seen["denied"]["afterProblem"] is None
    assert_equal(seen["denied"]["after"], expected(BUNDLES["onnx"], photo))
    assert seen["faults"] == []


@pytest.mark.slow
def test_the_keyboard_is_enough(url: str, photo: Path) -> None:
    seen = drive("keyboard", url=url, photo=str(photo))
    assert seen["order"][0] == "skip"
    assert seen["order"].index("camera") < seen["order"].index("file")
    assert "self-test" in seen["order"]
    assert seen["focused"] == "result-title"
    assert seen["still"] == "self-test"
    assert seen["announced"].startswith("Result: ")
    assert seen["faults"] == []


@pytest.mark.slow
def test_a_new_bundle_replaces_the_old_one(page: Path, tmp_path: Path, url: str) -> None:
    old = Bundle.open(BUNDLES["onnx"])
    new = old.save(tmp_path / "new.dermedge")
    manifest = json.loads((new.path / "manifest.json").read_bytes())
    rewrite_manifest(new.path, {"spec": manifest["spec"] | {"version": "2.0.0"}})
    new = Bundle.open(new.path)
    with served(new.path, page) as address:
        seen = drive("update", url=url, nextUrl=address)
    assert old.id in seen["before"]["provenance"]
    assert old.id in seen["offline"]["provenance"]
    assert new.id in seen["after"]["provenance"]
    assert f"bundle-{old.id}" in seen["offline"]["caches"]
    assert [name for name in seen["after"]["caches"] if name.startswith("bundle-")] == [
        f"bundle-{new.id}"
    ]
    assert [fault for fault in seen["faults"] if OFFLINE not in fault] == []
