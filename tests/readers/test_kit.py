"""The kit's page runs a study in a real browser, and its answers are what `analyze` reads.

`examples/web/e2e/readers.mjs` uses the page in Chromium, from a file and without a network.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermedge as api
from dermedge.data.draw import draw_data_set
from dermedge.readers.kit import CASES, GUIDE, PAGE
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError, UsageError
from support.command import TOY, dermedge, refused

EXAMPLE = Path(__file__).parents[2] / "examples" / "web"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
COUNT = 6


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a small data set whose ids tell the diagnosis."""
    folder = tmp_path_factory.mktemp("cases") / "lesions"
    draw_data_set(folder, count=24, seed=4)
    frame = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    known = frame[frame.dx.isin(["bcc", "mel", "nv"])].head(COUNT)
    known = known.assign(image_id=[f"{dx}-{n}" for n, dx in enumerate(known.dx)])
    known.to_csv(folder / "metadata.csv", index=False)
    assert len(known) == COUNT
    return folder


@pytest.fixture(scope="module")
def kit(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kit") / "kit"
    api.write_reader_kit(TOY, cases=lesions, out=out, washout_days=0, seed=5)
    return out


def study_of(kit: Path) -> dict[str, Any]:
    text = (kit / PAGE).read_text("utf-8")
    match = re.search(r'<script type="application/json" id="study">(.*?)</script>', text)
    assert match is not None
    return json.loads(match[1])


def test_the_page_holds_images_and_predictions_but_not_the_truth(kit: Path, lesions: Path) -> None:
    study, cases = study_of(kit), pd.read_csv(kit / CASES, dtype=str, keep_default_na=False)
    table = pd.read_csv(lesions / "metadata.csv", dtype=str).set_index("image_id")
    assert [case["id"] for case in study["cases"]] == cases["case"].tolist()
    assert set(cases.image_id) == set(table.index)
    assert set(study["cases"][0]) == {"id", "image", "prediction"}
    text = (kit / PAGE).read_text("utf-8")
    assert not any(identifier in text for identifier in table.index)
    with api.load(TOY) as model:
        for case, row in zip(study["cases"], cases.itertuples(), strict=True):
            prediction = model.predict(lesions / table.image[row.image_id], exact=True)
            assert float(row.model_score) == pytest.approx(prediction.malignancy, abs=1e-6)
            called = prediction.malignancy >= prediction.threshold
            assert row.model == ("malignant" if called else "benign")
            assert row.dx == table.dx[row.image_id]
            assert dict(case["prediction"])["Decision"] == row.model
            picture = Image.open(io.BytesIO(base64.b64decode(case["image"].partition(",")[2])))
            assert (picture.format, dict(picture.getexif())) == ("JPEG", {})


def test_the_page_allows_no_request_and_only_its_own_script(kit: Path) -> None:
    text = (kit / PAGE).read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?://", text)


def test_the_cases_are_shuffled_by_the_seed(kit: Path, lesions: Path, tmp_path: Path) -> None:
    order = pd.read_csv(kit / CASES).image_id.tolist()
    api.write_reader_kit(TOY, cases=lesions, out=tmp_path / "same", washout_days=0, seed=5)
    assert (tmp_path / "same" / PAGE).read_bytes() == (kit / PAGE).read_bytes()
    api.write_reader_kit(TOY, cases=lesions, out=tmp_path / "other", seed=6)
    assert pd.read_csv(tmp_path / "other" / CASES).image_id.tolist() != order
    assert order != sorted(order)


def test_diagnoses_are_those_of_the_bundle(lesions: Path, tmp_path: Path) -> None:
    api.write_reader_kit(TOY, cases=lesions, out=tmp_path / "kit", question="diagnosis")
    study, cases = study_of(tmp_path / "kit"), pd.read_csv(tmp_path / "kit" / CASES)
    assert [choice["id"] for choice in study["choices"]] == ["nv", "mel", "bcc"]
    assert (cases.truth == cases.dx).all()
    assert set(cases.model) <= {"mel", "nv", "bcc"}


def test_the_command_says_that_the_files_are_private(lesions: Path, tmp_path: Path) -> None:
    ran = dermedge("readers", "kit", TOY, "--cases", lesions, "-o", tmp_path / "kit")
    assert ran.code == 0, ran.err
    assert "Keep them within the study." in ran.out
    assert f"({COUNT} cases" in ran.out
    assert "study.html" in (tmp_path / "kit" / GUIDE).read_text()


def test_a_kit_is_never_written_into_a_bundle(lesions: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "toy.dermedge"
    Bundle.open(TOY).save(bundle)
    before = sorted(bundle.rglob("*"))
    for out in (bundle, bundle / "study", tmp_path / "x" / ".." / "toy.dermedge" / "a" / "b"):
        ran = dermedge("readers", "kit", bundle, "--cases", lesions, "-o", out, "--overwrite")
        assert "lies in the bundle" in refused(ran, 2)
    assert sorted(bundle.rglob("*")) == before


def test_cases_without_truth_or_image_are_named(lesions: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(lesions / "metadata.csv", dtype=str, keep_default_na=False)
    folder = tmp_path / "cases"
    shutil.copytree(lesions, folder)
    frame.assign(dx="", malignant="").to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(DataError, match=r"case '.*' has no truth: it needs malignant"):
        api.write_reader_kit(TOY, cases=folder, out=tmp_path / "kit")
    with pytest.raises(DataError, match="it needs a dx among the bundle's labels"):
        api.write_reader_kit(TOY, cases=folder, out=tmp_path / "kit", question="diagnosis")
    frame.to_csv(folder / "metadata.csv", index=False)
    (folder / frame.image[0]).write_bytes(b"no image")
    with pytest.raises(DataError, match="A study needs every image"):
        api.write_reader_kit(TOY, cases=folder, out=tmp_path / "kit")
    with pytest.raises(UsageError, match="Unknown question 'benign'"):
        api.write_reader_kit(TOY, cases=lesions, out=tmp_path / "kit", question="benign")
    assert not (tmp_path / "kit").exists()


def drive(scenario: str, **options: Any) -> Any:
    """Run a scenario of `e2e/readers.mjs` and return what it saw."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not Path(CHROMIUM).is_file():
        pytest.skip(f"there is no Chromium at {CHROMIUM}; set CHROMIUM")
    if not (EXAMPLE / "node_modules").is_dir():
        pytest.skip("`npm ci` has not run in examples/web; run `make web`")
    out = os.environ.get("SCREENSHOTS")  # Folder for screenshots, if somebody wants to look.
    options = {"chromium": CHROMIUM, "out": out, **options}
    done = subprocess.run(
        ["node", "e2e/readers.mjs", scenario, json.dumps(options)],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_readers_answer_in_a_browser_and_the_answers_are_analyzed(
    kit: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    seen = drive("study", url=(kit / PAGE).as_uri(), readers=["anna", "ben"], save=str(answers))
    assert seen["faults"] == []
    assert seen["violations"] == []
    assert not seen["wide"], "the page scrolls sideways"
    assert seen["predictions"] == {"first list": 0, "second list": 2 * COUNT}
    frames = [pd.read_csv(answers / f"answers-{name}.csv") for name in ("anna", "ben")]
    for frame in frames:
        assert frame.order.tolist() == list(range(1, 2 * COUNT + 1))
        first, second = frame[:COUNT], frame[COUNT:]
        assert set(first.condition) == {"unaided"}
        assert set(second.condition) == {"aided"}
        assert set(first.case) == set(second.case)
        assert first.case.tolist() != second.case.tolist()
        assert frame.confidence.between(1, 5).all()
        assert (frame.seconds >= 0).all()
    assert frames[0].case.tolist() != frames[1].case.tolist()
    assert frames[0].reader_group.tolist() == ['residents, "A"'] * 2 * COUNT
    report = api.analyze_readers(answers, cases=kit / CASES, washout_days=0, replicates=50)
    assert (report.readers, report.cases) == (2, COUNT)
    status = {check.name: check.status for check in report.checks}
    assert status["wash-out"] == status["unaided first"] == "passed"
    expected = np.mean([frame.answer == "malignant" for frame in frames])
    assert expected == pytest.approx(seen["malignant"])


@pytest.mark.slow
def test_the_second_list_waits_and_the_answers_survive_the_browser(
    lesions: Path, tmp_path: Path
) -> None:
    api.write_reader_kit(TOY, cases=lesions, out=tmp_path / "kit", washout_days=14)
    seen = drive("washout", url=(tmp_path / "kit" / PAGE).as_uri(), days=14)
    assert seen["afterReload"] == f"Case 3 of {COUNT}"
    assert "The second list opens on" in seen["early"]
    assert not seen["openEarly"]
    assert not seen["openDayBefore"]
    assert seen["openLater"]
    assert seen["second"] == "Second list, with the model"
    assert "answered in another window" in seen["otherTab"]
    assert seen["faults"] == []
