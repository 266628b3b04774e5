"""Test the HTML report: its numbers, its warnings and its independence of the network."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import toy_content
from dermedge.evaluation.report import (
    EvaluatedImage,
    EvaluationReport,
    Fairness,
    GroupScore,
    ReliabilityBin,
    Scores,
    SubgroupScores,
)
from dermedge.report import html, text
from dermedge.report.html import write_report
from dermedge.report.images import choose_examples
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.decode import Provenance
from dermedge_runtime.errors import BundleError, DataError, DermedgeError, UsageError
from dermedge_runtime.report import (
    Check,
    Interval,
    LatencyReport,
    Limit,
    ParityReport,
    Percentiles,
    Subgroup,
    VerifyReport,
)
from dermedge_runtime.spec import Conformal, Label, Postprocessing, to_json

EVIL = "<script>alert('x')</script>"
LABELS = ("nv", "mel", "akiec")
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Parser of a page: its text, its tags, and their nesting."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text("utf-8")
        self.tags, self.open, self.words = [], [], []
        self.rows = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.rows and "table" in self.open:
            self.rows[-1] += " " + data

    def row(self, start):
        """Return the text of the only table row that starts like this."""
        rows = [re.sub(r"\s+", " ", row).strip() for row in self.rows]
        (found,) = [row for row in rows if row.startswith(start)]
        return found

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def make_bundle(path, **changes):
    content = toy_content()
    content["files"]["reports/parity.json"] = b"{}"
    write_bundle(path, **content | changes)
    return Bundle.open(path)


def make_data(folder, **columns):
    (folder / "images").mkdir(parents=True)
    rows = []
    for seed in range(8):
        Image.fromarray(draw_lesion(seed, width=320, height=240).image).save(
            folder / f"images/i{seed}.jpg"
        )
        rows.append({"image_id": f"i{seed}", "image": f"images/i{seed}.jpg", "dx": "nv"} | columns)
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def scores(balanced, *, cases=1253, labelled=1250, malignant=143, groups=934, sensitivity=0.9021):
    found = {
        "balanced_accuracy": balanced,
        "accuracy": Interval(0.7013, 0.6702, 0.7315),
        "macro_auroc": Interval(0.9421, 0.9312, 0.9534),
        "malignant_auroc": Interval(0.9094, 0.8873, 0.9292),
        "sensitivity": Interval(sensitivity, 0.8411, 0.9513),
        "specificity": Interval(0.7425, 0.7132, 0.7719),
        "ece": Interval(0.0432, 0.0311, 0.0617),
    }
    return Scores(cases, labelled, malignant, groups, found)


def picture(number, label, predicted, probability, malignant, malignancy, **more):
    defaults = {"image": f"images/i{number}.jpg", "dx": label or "", "trained_on": False}
    return EvaluatedImage(
        image_id=f"i{number}",
        label=label,
        predicted=predicted,
        probability=probability,
        malignant=malignant,
        malignancy=malignancy,
        **defaults | more,
    )


def evaluation_of(bundle, **changes):
    found = EvaluationReport(
        model=Provenance(bundle.id, "toy", "1.0.0", "cpu", "fp32", "onnxruntime 1.23.2"),
        data="clinic",
        data_digest="d" * 64,
        split="test",
        labels=LABELS,
        postprocessing={
            "diagnosis": Postprocessing(1.25),
            "malignancy": Postprocessing(0.8, 0.2314),
        },
        threshold=0.2314,
        overall=scores(Interval(0.6944, 0.6357, 0.7491)),
        recall={
            "nv": Interval(0.8, 0.75, 0.85),
            "mel": Interval(0.613, 0.5, 0.7),
            "akiec": Interval(None),
        },
        support={"nv": 1000, "mel": 250, "akiec": 0},
        subgroups=(
            SubgroupScores("sex", "female", scores(Interval(0.71, 0.65, 0.77), labelled=600)),
            SubgroupScores("fitzpatrick", "II", scores(Interval(0.72, 0.66, 0.78), labelled=100)),
            SubgroupScores(
                "fitzpatrick", "VI", scores(Interval(0.987, 0.9, 1.0), labelled=99, malignant=7)
            ),
        ),
        confusion=((811, 140, 49), (93, 152, 5), (0, 0, 0)),
        reliability=(
            ReliabilityBin(0.0, 0.5, 0, None, None),
            ReliabilityBin(0.5, 1.0, 1250, 0.81, 0.7668),
        ),
        roc=((0.0, 0.0), (0.1, 0.8), (0.2575, 0.9021), (1.0, 1.0)),
        unmapped={"psoriasis": 3},
        trained_on=(),
        warnings=(
            "3 images have a diagnosis that no label of the model covers (psoriasis 3): left out.",
        ),
        images=(
            picture(0, "mel", "nv", 0.83, True, 0.0312),
            picture(1, "nv", "mel", 0.97, False, 0.8713),
            picture(2, "nv", "nv", 0.9912, False, 0.0101),
            picture(3, "mel", "mel", 0.9542, True, 0.9234),
            picture(4, None, "nv", 0.6, None, 0.3, dx="psoriasis"),
        ),
    )
    return replace(found, **changes)


SKIN = Fairness(
    column="fitzpatrick",
    metric="balanced_accuracy",
    classes=(0, 1),
    groups={
        "I-II": GroupScore(
            604, 252, Interval(0.747, 0.707, 0.787), Interval(0.667, 0.61, 0.724), Interval(0.091)
        ),
        "V-VI": GroupScore(
            154, 48, Interval(0.439, 0.356, 0.524), Interval(0.312, 0.174, 0.447), Interval(None)
        ),
    },
    insufficient={"III-IV": 29},
    unknown=1249,
    worst="V-VI",
    gap=Interval(0.308, 0.221, 0.401),
    chance=0.055,
    chance_high=0.113,
    equalised_odds=Interval(0.15, 0.07, 0.3),
    equalised_odds_chance=0.08,
    equalised_odds_chance_high=0.16,
)


PARITY = ParityReport(
    status="warn",
    basis="test split of clinic",
    cases=1253,
    engine="onnxruntime 1.23.2",
    hardware="Some CPU (avx2 fma)",
    precision="int8",
    limits=(
        Limit("non_finite", "passed", None, None, Interval(0.0), 0.0, 1253),
        Limit(
            "top1_agreement", "passed", 1.0, 0.9912, Interval(0.0088, 0.0041, 0.0133), 0.02, 1253
        ),
        Limit(
            "balanced_accuracy",
            "warn",
            0.7011,
            0.6944,
            Interval(0.0096, -0.0043, 0.0212),
            0.005,
            1250,
            "may be chance",
        ),
        Limit(
            "worst_subgroup",
            "insufficient",
            0.8,
            0.79,
            Interval(0.0125, -0.1, 0.11),
            0.02,
            99,
            "fitzpatrick VI",
        ),
        Limit("brightness_of_toes", "failed", 3.0, 2.0, Interval(1.0), 0.5, 12),
    ),
    subgroups=(
        Subgroup("fitzpatrick", "VI", 99, Interval(0.8), Interval(0.7654), Interval(0.0433)),
        Subgroup("sex", "female", 600, Interval(0.71), Interval(0.7), Interval(0.0141)),
    ),
    agreement={
        "top1": 0.9912,
        "kl": 0.00123,
        "cosine:diagnosis": 0.99931,
        "recall_loss:mel": 0.0123,
    },
    classes=(
        Subgroup(
            "class",
            "mel",
            143,
            Interval(0.6131),
            Interval(0.5754),
            Interval(0.0612, 0.0104, 0.1123),
        ),
    ),
)
CANDIDATES = {
    "schema": "dermedge.candidates/1",
    "machine": "Some CPU (avx2 fma)",
    "candidates": [
        {
            "name": "int8 onnx entropy",
            "status": "won",
            "reason": "fastest of those that passed: 9.60 ms against 13.40 ms",
            "size_bytes": 4_123_456,
            "latency_ms": 9.6,
            "top1": 0.9912,
            "kl": 0.00123,
            "balanced_accuracy_loss": {"value": 0.0021, "low": -0.004, "high": 0.009},
        },
        {
            "name": "fp32 onnx plain",
            "status": "passed",
            "reason": EVIL,
            "size_bytes": None,
            "latency_ms": 13.4,
        },
        {
            "name": "int8 onnx qat",
            "status": "skipped",
            "reason": "not needed",
            "balanced_accuracy_loss": None,
        },
    ],
}


def latency_of(bundle, **changes):
    found = LatencyReport(
        bundle=bundle.id,
        engine="onnxruntime",
        engine_version="1.23.2",
        device={"cpu": "Some CPU", "flags": "avx2 fma", "cores": "2"},
        threads=1,
        image="12.2 MP JPEG",
        end_to_end=Percentiles(24.31, 26.52, 31.13, 24.9, 100),
        preprocess=Percentiles(19.02, 20.13, 25.24, 19.5, 100),
        engine_only=Percentiles(4.815, 5.126, 6.737, 4.9, 100),
        cold_start_ms=312.4,
        resident_bytes=92_300_000,
    )
    return replace(found, **changes)


RUN = {
    "command": "distill",
    "finished": True,
    "settings": {
        "backbone": {"name": "mobilenetv4_conv_small_050", "args": {}},
        "init": "none",
        "spec": {"name": "student-a", "preprocess": {"size": 128, "fit": "crop"}},
        "temperature": 2.0,
        "soft_weight": 0.7,
        "views": 4,
        "teacher": "c0ffee11" * 8,
        "schedule": {"epochs": 20, "batch_size": 64, "lr": 0.001},
        "seed": 7,
    },
    "history": [
        {"loss": 2.1, "score": 0.31, "balanced_accuracy": 0.31, "malignant_auroc": 0.71},
        {"loss": 1.1, "score": 0.64, "balanced_accuracy": 0.64, "malignant_auroc": 0.88},
        {"loss": 0.9, "score": 0.63, "balanced_accuracy": 0.63, "malignant_auroc": 0.89},
    ],
    "best_epoch": 1,
    "metrics": {"balanced_accuracy": 0.6412, "loss": 1.1},
    "teacher_val": {"balanced_accuracy": 0.6987},
    "parameters": 968_123,
    "wall_seconds": 842.0,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("b") / "toy.dermedge")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("d") / "clinic")


def page(out, bundle, **changes):
    checks = (
        Check("files", "passed", "9 files are intact"),
        Check("engine", "not_run", "an earlier check failed"),
    )
    arguments = {
        "evaluation": evaluation_of(bundle),
        "parity": json.loads(json.dumps(to_json(PARITY))),
        "latency": latency_of(bundle),
        "verification": VerifyReport(bundle.id, "onnxruntime 1.23.2", "passed", checks),
        "runs": [RUN],
        "data": None,
    }
    return Page(write_report(out / "report.html", bundle=bundle, **arguments | changes))


def test_the_page_shows_every_number_of_a_known_input(tmp_path, bundle, data):
    found = page(tmp_path, bundle, data=data)
    headline = (
        "On 1,253 images of 934 lesions or patients (test split of clinic), the model classifies 3"
    )
    assert (
        f"{headline} diagnoses with a balanced accuracy of 69.4 % (95 % interval 63.6 to 74.9 %)."
        in found.text
    )
    assert "AUROC of 0.909." in found.text
    assert (
        "At its threshold of 0.231 it detects 90.2 % of the malignant images and correctly "
        "calls 74.2 %" in found.text
    )
    assert (
        "One prediction takes 24.3 ms from image file to result (Some CPU, 1 thread)" in found.text
    )
    assert found.row("Balanced accuracy 69.4 % 63.6 to 74.9 %")
    assert found.row("Macro AUROC 0.942 0.931 to 0.953")
    assert found.row("Sensitivity 90.2 % 84.1 to 95.1 %")
    assert found.row("Calibration error (ECE) 0.043 0.031 to 0.062")
    assert (
        "always predicts the most frequent diagnosis has 80.0 % accuracy and 50.0 % balanced "
        "accuracy" in found.text
    )
    nv = "Melanocytic naevus nv 811 81 % 140 14 % 49 5 % 1,000 80.0 % (75.0 to 85.0)"
    assert found.row("Melanocytic naevus nv") == nv
    assert (
        found.row("Actinic keratosis")
        == "Actinic keratosis or Bowen's disease akiec 0 0 0 0 not measured"
    )
    assert found.row("0.500 to 1.000") == "0.500 to 1.000 1,250 81.0 % 76.7 %"
    assert found.row("Same first diagnosis").endswith(
        "100.00 % 99.12 % 0.88 points 0.41 to 1.33 points 2.00 points 1,253 passed"
    )
    assert found.row("Balanced accuracy may be chance") == (
        "Balanced accuracy may be chance 70.11 % 69.44 % 0.96 % -0.43 to 2.12 % 0.50 % 1,250 warn"
    )
    assert found.row("Worst subgroup").startswith(
        "Worst subgroup's balanced accuracy Skin type (Fitzpatrick): VI 80.00"
    )
    assert found.row("brightness_of_toes") == "brightness_of_toes 3 2 1 0.5 12 failed"
    assert found.row("Overall") == "Overall 1,250 0.96 % (-0.43 to 2.12) 70.1 % 69.4 %"
    assert found.row("VI 99 4") == "VI 99 4.33 % 80.0 % 76.5 % insufficient"
    assert found.row("female 600 1.41") == "female 600 1.41 % 71.0 % 70.0 %"
    assert found.row("Melanoma 143") == "Melanoma 143 6.12 % (1.04 to 11.23) 61.3 % 57.5 %"
    assert found.row("Diagnosis (its recall)") == "Diagnosis (its recall) reported, no limit"
    assert "Cosine similarity of logits: diagnosis 0.9993" in found.text
    assert "Recall lost: mel 1.23 points" in found.text
    assert found.row("End to end") == "End to end 24.3 ms 26.5 ms 31.1 ms 100"
    assert found.row("Engine 4") == "Engine 4.82 ms 5.13 ms 6.74 ms 100"
    assert "Cold start 312 ms from a fresh process" in found.text
    assert "Memory 92.30 MB resident" in found.text
    assert "Balanced accuracy 64.1 %, teacher 69.9 %" in found.text
    assert "Parameters 0.97 million" in found.text
    assert "Wall time 14 min" in found.text
    assert "Epochs 3 of 20 planned Kept epoch 2" in found.text
    assert "temperature 2.0, soft weight 0.7, 4 views per image" in found.text
    for command in ("verify", "bench", "inspect"):
        assert f"dermedge {command} toy.dermedge" in found.text
    assert "Not a medical device" in found.text
    assert "procedural lesions" in found.text


def test_the_page_is_self_contained(tmp_path, bundle, data):
    found = page(tmp_path, bundle, data=data)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes)
        assert "srcset" not in attributes
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    targets = {attributes["href"][1:] for attributes in found.named("a")}
    assert targets <= {attributes.get("id") for _, attributes in found.tags}
    assert not re.search(r"url\(|@import|https?://", found.source)
    policy = next(
        m["content"]
        for m in found.named("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 30 for svg in found.named("svg"))
    assert len(found.named("svg")) == 8
    assert all(image["alt"] for image in found.named("img"))


def test_examples_are_small_jpegs_of_the_preprocessed_images(tmp_path, bundle, data):
    found = page(tmp_path, bundle, data=data)
    images = [
        Image.open(io.BytesIO(base64.b64decode(i["src"].partition(",")[2])))
        for i in found.named("img")
    ]
    assert len(images) == 4
    assert {image.format for image in images} == {"JPEG"}
    assert {image.size for image in images} == {(160, 160)}
    with Image.open(data / "images/i0.jpg") as original:
        expected = np.asarray(
            original.crop((40, 0, 280, 240)).resize((160, 160), Image.Resampling.BILINEAR), float
        )
    assert np.abs(np.asarray(images[0], float) - expected).mean() < 4
    missed = (
        "missed Truth Melanoma malignant Model Melanocytic naevus probability 83.0 % Decision "
        "benign"
    )
    assert f"{missed} malignancy 0.031 i0" in found.text
    assert "false alarm" not in found.text.partition("Confident and correct")[2]
    assert (
        "correct Truth Melanoma malignant Model Melanoma probability 95.4 % Decision malignant "
        "malignancy 0.923" in found.text
    )
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_examples_are_balanced_and_show_missed_malignant_first(bundle):
    images = [picture(n, "nv", "mel", 0.9 - n / 100, False, 0.9) for n in range(20)]
    images += [picture(100 + n, "mel", "mel", 0.6, True, 0.2 - n / 100) for n in range(10)]
    images += [
        picture(200, "akiec", "nv", 0.4, None, 0.1),
        picture(201, "nv", "nv", 0.99, False, 0.5),
    ]
    images += [picture(202, "nv", "nv", 0.3, False, 0.1)]
    kinds = choose_examples(evaluation_of(bundle, images=tuple(images)))
    assert [kind.word for kind in kinds] == ["missed", "wrong", "false alarm", "correct"]
    missed, wrong, alarms, right = ([image.image_id for image in kind.images] for kind in kinds)
    assert missed == [f"i{109 - n}" for n in range(6)]
    assert wrong[:2] == ["i0", "i200"]
    assert "i201" not in right
    assert right == ["i202"]
    assert [kind.total for kind in kinds] == [10, 21, 21, 1]
    assert len({*missed, *wrong, *alarms, *right}) == len(missed + wrong + alarms + right)


def test_a_referred_image_is_neither_missed_nor_an_alarm_nor_correct(bundle):
    images = (
        picture(0, "mel", "mel", 0.9, True, 0.1, referred=True),
        picture(1, "nv", "nv", 0.9, False, 0.9, referred=True),
        picture(2, "mel", "mel", 0.9, True, 0.1),
    )
    kinds = choose_examples(evaluation_of(bundle, images=images))
    shown = [(kind.word, [image.image_id for image in kind.images]) for kind in kinds]
    assert shown == [("missed", ["i2"])]


def test_without_a_threshold_no_image_is_missed(bundle):
    kinds = choose_examples(evaluation_of(bundle, threshold=None))
    assert [kind.word for kind in kinds] == ["wrong", "correct"]


@pytest.mark.parametrize("given", [{"images": False}, {"data": None}])
def test_images_can_be_left_out(tmp_path, bundle, data, given):
    found = page(tmp_path, bundle, **{"data": data} | given)
    assert found.named("img") == []
    assert "i0" not in found.text.split()
    assert (
        "left out of this page on request"
        if "images" in given
        else "written without the evaluated data"
    ) in found.text


def test_a_missing_image_leaves_a_note(tmp_path, bundle):
    data = make_data(tmp_path / "clinic")
    (data / "images/i0.jpg").unlink()
    (data / "images/i1.jpg").write_bytes(b"no image")
    found = page(tmp_path, bundle, data=data)
    assert len(found.named("img")) == 2
    assert found.text.count("The image could not be read.") == 2


def test_a_missing_table_is_an_error(tmp_path, bundle):
    with pytest.raises(DataError, match="nowhere"):
        page(tmp_path, bundle, data=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_all_text_from_data_is_escaped(tmp_path, data):
    content = toy_content()
    task = content["spec"].tasks[0]
    task = replace(task, labels=(Label("nv", EVIL), *task.labels[1:]))
    lineage = {"data": {EVIL: [EVIL, {"licence": EVIL}]}}
    spec = replace(
        content["spec"], tasks=(task, content["spec"].tasks[1]), intended_use=EVIL, lineage=lineage
    )
    failures = {"status": "failed", "allowed_failures": [EVIL]}
    bundle = make_bundle(
        tmp_path / "toy.dermedge",
        spec=spec,
        parity={"host": failures, "device": {"status": "not_run"}},
    )
    quoted = f'"{EVIL}'
    wrong = picture(0, EVIL, quoted, 0.5, True, 0.1, dx=EVIL)
    right = replace(picture(1, EVIL, EVIL, 0.5, False, 0.1), image_id=quoted)
    found = page(
        tmp_path,
        bundle,
        data=data,
        title=EVIL,
        evaluation=evaluation_of(
            bundle,
            data=EVIL,
            labels=(quoted, EVIL, "akiec"),
            recall={EVIL: Interval(0.5)},
            warnings=(EVIL,),
            unmapped={EVIL: 1},
            subgroups=(SubgroupScores(EVIL, EVIL, scores(Interval(0.5))),),
            fairness=(replace(SKIN, column=EVIL, metric=EVIL, insufficient={EVIL: 1}, worst=EVIL),),
            images=(wrong, right),
        ),
        parity={
            "status": EVIL,
            "basis": EVIL,
            "limits": [{"metric": EVIL, "status": quoted, "note": EVIL}],
            "agreement": {EVIL: EVIL},
            "subgroups": [{"column": EVIL, "value": EVIL}],
        },
        latency=latency_of(bundle, device={EVIL: EVIL, "cpu": EVIL}, image=EVIL),
        verification=VerifyReport(bundle.id, EVIL, "failed", (Check(EVIL, "failed", EVIL),)),
        runs=[
            RUN
            | {
                "settings": {"role": EVIL, "init": EVIL},
                "history": [{EVIL: 0.5}],
                "versions": {EVIL: EVIL},
            }
        ],
    )
    assert found.named("script") == []
    assert "<script" not in found.source
    assert found.text.count("alert('x')") > 30


def test_missing_values_read_not_measured(tmp_path, bundle):
    nothing = Scores(5, 0, 0, 5, {})
    found = page(
        tmp_path,
        bundle,
        latency=None,
        verification=None,
        parity={},
        runs=[],
        evaluation=evaluation_of(
            bundle,
            labels=(),
            threshold=None,
            overall=nothing,
            recall={},
            support={},
            subgroups=(),
            confusion=(),
            reliability=(),
            roc=(),
            unmapped={},
            trained_on=None,
            warnings=(),
            images=(),
        ),
    )
    assert found.row("Balanced accuracy").startswith("Balanced accuracy not measured")
    assert "Verification on this machine not run" in found.text
    assert "Parity with its student not run" in found.text
    assert "Run dermedge bench toy.dermedge on the device" in found.text
    assert "One prediction not measured" in found.text
    assert "the bundle carries no parity report" in found.text
    assert "No threshold was fitted" in found.text
    assert "Only 0 images have a label" in found.text
    assert "None" not in found.text
    assert "nan" not in found.text.split()


GRADED = {
    "severity_kappa": Interval(0.612, -0.1, 0.7),
    "severity_mae": Interval(1.205, 1.1, 1.3),
    "dice": Interval(0.813, 0.8, 0.83),
}


def test_a_model_without_classes_shows_severity_and_masks_only(tmp_path, bundle):
    answers = Scores(120, 0, 30, 90, GRADED)
    group = SubgroupScores("sex", "female", Scores(101, 0, 9, 80, GRADED))
    found = page(
        tmp_path,
        bundle,
        evaluation=evaluation_of(
            bundle,
            labels=(),
            threshold=None,
            overall=answers,
            subgroups=(group,),
            recall={},
            support={},
            confusion=(),
        ),
    )
    assert "Measured on 120 images of 90 lesions or patients" in found.text
    assert "a quadratic weighted kappa of 0.612 and a mean error of 1.205 levels" in found.text
    assert found.row("Lesion mask").startswith("Lesion mask, Dice coefficient 0.813 0.800 to 0.830")
    assert found.row("female 101") == "female 101 0.612 (-0.100 to 0.700)"
    for absent in (
        "AUROC",
        "Sensitivity",
        "diagnosis among the model's labels",
        "Confusion matrix",
        "Malignant detected",
    ):
        assert absent not in found.text.partition("Parity with the student")[0]
    assert all("--lo:-" not in attributes.get("style", "") for _, attributes in found.tags)


def test_a_pretraining_shows_its_losses_and_warnings(tmp_path, bundle):
    pretraining = {
        "command": "pretrain",
        "finished": True,
        "settings": {
            "backbone": {"name": "mobilenetv2_100", "args": {}},
            "recipe": {
                "size": 96,
                "epochs": 1,
                "batch_size": 64,
                "lr": 0.002,
                "weight_decay": [0.04, 0.2],
            },
        },
        "history": [
            {"dino": 5.5431, "label": 0.31, "ibot_per_masked_crop": 7.4, "images_per_second": 50.0}
        ],
        "warnings": ["The dino loss taught nothing."],
    }
    found = page(tmp_path, bundle, runs=[pretraining]).text
    assert "Pretraining: mobilenetv2_100 Pretraining has no validation metrics" in found
    assert "No epochs are recorded" not in found
    assert "Losses of the last epoch DINO 5.543; label 0.310; iBOT, per masked crop 7.400" in found
    assert "Warnings The dino loss taught nothing." in found
    assert "weight decay 0.04 to 0.2" in found
    assert "Input 96 x 96 pixels, crops" in found


def test_sets_and_referrals_are_shown_by_diagnosis_and_subgroup(tmp_path, bundle):
    def covered(share, size, referred):
        abstention = {
            "coverage": Interval(share, share - 0.02, share + 0.02),
            "set_size": Interval(size, size - 0.1, size + 0.1),
            "referred": Interval(referred),
        }
        answers = scores(Interval(0.71, 0.65, 0.77))
        return replace(answers, metrics=answers.metrics | abstention)

    sets = Postprocessing(1.25, conformal=Conformal("lac", 0.9, (0.8, 0.7, None)))
    found = page(
        tmp_path,
        bundle,
        evaluation=evaluation_of(
            bundle,
            postprocessing={"diagnosis": sets},
            overall=covered(0.911, 1.97, 0.183),
            subgroups=(SubgroupScores("sex", "female", covered(0.938, 2.1, 0.15)),),
            classes=(SubgroupScores("class", "mel", covered(0.844, 2.5, 0.31)),),
            images=(picture(0, "mel", "nv", 0.83, True, 0.5, referred=True),),
        ),
    )
    assert found.row("Coverage of conformal sets").startswith(
        "Coverage of conformal sets 91.1 % 89.1 to 93.1 %"
    )
    assert found.row("Referred 18.3 %")
    assert "the correct one for 90.0 %" in found.text
    assert found.row("Melanoma 1,253") == (
        "Melanoma 1,253 84.4 % (82.4 to 86.4) 2.500 (2.400 to 2.600) 31.0 %"
    )
    assert found.row("female 1,253 93.8") == (
        "female 1,253 93.8 % (91.8 to 95.8) 2.100 (2.000 to 2.200) 15.0 %"
    )
    assert "Conformal sets" not in page(tmp_path, bundle).text


def test_a_classifier_shows_no_severity_or_masks(tmp_path, bundle):
    assert "Severity" not in page(tmp_path, bundle).text
    both = scores(Interval(0.6944, 0.6357, 0.7491))
    both = replace(both, metrics={**both.metrics, **GRADED})
    found = page(tmp_path, bundle, evaluation=evaluation_of(bundle, overall=both))
    assert found.row("Severity, mean").startswith(
        "Severity, mean absolute error 1.205 1.100 to 1.300"
    )
    assert found.row("Balanced accuracy 69.4 %")


def test_incomplete_reports_are_shown(tmp_path, bundle):
    metrics = {
        "balanced_accuracy": Interval(0.5),
        "sensitivity": Interval(None),
        "ece": Interval(float("nan")),
    }
    found = page(
        tmp_path,
        bundle,
        latency=latency_of(
            bundle, threads=None, resident_bytes=None, device={}, sustained=(20.0, 30.0)
        ),
        parity={
            "status": "passed",
            "limits": [{"metric": "ece", "status": "not_run", "loss": None, "cases": None}],
        },
        runs=[
            {},
            {
                "finished": False,
                "settings": {"schedule": None},
                "history": [{"loss": 1.0}],
                "best_epoch": -1,
            },
        ],
        evaluation=evaluation_of(bundle, overall=replace(scores(Interval(0.5)), metrics=metrics)),
    )
    assert found.row("Balanced accuracy").startswith("Balanced accuracy 50.0 % no interval")
    assert found.row("Calibration error (ECE) not measured reported").endswith(
        "reported not measured not run"
    )
    assert "threads chosen by the engine" in found.text
    assert "Memory not measured" in found.text
    assert found.text.count("not finished") == 2
    assert any("30.0" in svg["aria-label"] for svg in found.named("svg"))


def test_only_passed_is_green(tmp_path, bundle):
    found = page(tmp_path, bundle, parity={"status": "insufficient"}, verification=None)
    assert "passed" not in {
        c for _, attributes in found.tags for c in (attributes.get("class") or "").split()
    }
    badges = [
        attributes["class"]
        for attributes in found.named("span")
        if "status" in (attributes.get("class") or "")
    ]
    assert badges[:2] == ["status insufficient", "status not_run"]
    strange = page(tmp_path, bundle, parity={"status": "great"}, verification=None)
    assert "Parity with its student not run" in strange.text
    style = found.source.partition("</style>")[0].partition("<style>")[2]
    rules = re.findall(r"([^{}]+)\{[^{}]*var\(--passed", style)
    assert [rule.strip() for rule in rules] == [".status.passed"]


def carrying(path, device=None, **reports):
    content = toy_content()
    content["files"] |= {
        f"reports/{name}.json": json.dumps(to_json(found)).encode()
        for name, found in reports.items()
    }
    artifact = replace(
        content["artifact"],
        details={"opset": 19, "kept_fp32": ["/stem/Conv", "/head/Gemm"]},
        calibration={"digest": "ab12" * 16, "split": "train", "count": 300},
    )
    parity = {"host": {"status": "warn"}, "device": device or {"status": "not_run"}}
    return write_bundle(path, **content | {"artifact": artifact, "parity": parity})


def test_a_bundle_alone_is_enough_for_a_page(tmp_path):
    todo = {"status": "not_run", "todo": "on a Mac: dermedge verify toy.dermedge"}
    bundle = carrying(tmp_path / "toy.dermedge", todo, parity=PARITY, candidates=CANDIDATES)
    found = Page(write_report(tmp_path / "page.html", bundle=bundle))
    assert (
        "On 1,253 images (test split of clinic), the fp32 artifact predicts the same first "
        "diagnosis as its student for 99.1 %." in found.text
    )
    assert (
        "It lost 0.96 % of the student's balanced accuracy (95 % interval -0.43 to 2.12 %)."
        in found.text
    )
    assert (
        "measured on the target device yet. To do on a Mac: dermedge verify toy.dermedge."
        in found.text
    )
    badges = (
        "Parity with its student warn Parity on its device not run Verification on this machine "
        "not run"
    )
    assert badges in found.text
    assert "KL divergence of probabilities, mean 0.00123" in found.text
    assert found.row("female 600") == "female 600 1.41 % 71.0 % 70.0 %"
    assert "Calibration 300 images of split train, digest ab12ab12ab12" in found.text
    assert "2 layers Names /stem/Conv, /head/Gemm" in found.text
    assert {a["href"] for a in found.named("a")} == {"#parity", "#check"}
    assert {a["href"][1:] for a in found.named("a")} <= {
        attributes.get("id") for _, attributes in found.tags
    }
    assert 'id="metrics"' not in found.source
    assert "None" not in found.text


def test_candidates_are_listed_with_their_outcomes(tmp_path):
    bundle = carrying(tmp_path / "toy.dermedge", parity=PARITY, candidates=CANDIDATES)
    found = Page(write_report(tmp_path / "page.html", bundle=bundle))
    assert "Measured on Some CPU (avx2 fma)." in found.text
    assert found.row("int8 onnx entropy") == (
        "int8 onnx entropy fastest of those that passed: 9.60 ms against 13.40 ms selected 4.12 MB "
        "9.60 ms 99.12 % 0.00123 0.21 % (-0.40 to 0.90)"
    )
    assert found.row("fp32 onnx plain") == f"fp32 onnx plain {EVIL} passed 13.4 ms"
    assert found.row("int8 onnx qat") == "int8 onnx qat not needed skipped"
    assert found.named("script") == []
    classes = {
        attributes["class"]
        for attributes in found.named("span")
        if "status" in (attributes.get("class") or "")
    }
    assert "status selected" not in classes
    assert "status plain" in classes


def test_a_bundle_without_candidates_and_parity_has_a_page(tmp_path):
    found = Page(write_report(tmp_path / "page.html", bundle=carrying(tmp_path / "toy.dermedge")))
    assert "Candidates" not in found.text
    assert "the bundle carries no parity report" in found.text
    assert "was not compared with its student" in found.text
    assert found.named("svg") == []


def test_a_bundled_report_that_is_not_an_object_is_refused(tmp_path):
    bundle = carrying(tmp_path / "toy.dermedge", candidates=[1])
    with pytest.raises(BundleError, match=r"reports/candidates.json .* not a JSON object"):
        write_report(tmp_path / "page.html", bundle=bundle)


def test_small_subgroups_are_marked_insufficient(tmp_path, bundle):
    found = page(tmp_path, bundle)
    assert found.row("VI 99 98.7 %") == "VI 99 98.7 % (90.0 to 100.0) insufficient 90.2 % of 7"
    assert "insufficient" not in found.row("II 100 72.0 %")
    assert "insufficient" not in found.row("female 600 71.0 % (")
    assert found.text.index("Skin type (Fitzpatrick)") < found.text.index("Sex")


def test_differences_between_groups_are_shown_with_chance(tmp_path, bundle):
    found = page(tmp_path, bundle, evaluation=evaluation_of(bundle, fairness=(SKIN,)))
    assert found.row("I-II") == "I-II 604 74.7 % (70.7 to 78.7) 66.7 % (61.0 to 72.4) of 252 9.1 %"
    assert (
        found.row("V-VI")
        == "V-VI worst 154 43.9 % (35.6 to 52.4) 31.2 % (17.4 to 44.7) of 48 not measured"
    )
    assert found.row("III-IV") == "III-IV 29 insufficient"
    assert found.row("Gap in balanced accuracy") == (
        "Gap in balanced accuracy 30.8 (22.1 to 40.1) 5.5 (11.3) more than chance"
    )
    assert (
        found.row("Equalised odds") == "Equalised odds 15.0 (7.0 to 30.0) 8.0 (16.0) may be chance"
    )
    answer = (
        "By skin type, the worst group is V-VI: 30.8 points below the best group. With randomly"
    )
    assert answer in found.text
    assert "because they have fewer than 30 images: III-IV 29." in found.text
    assert (
        "because a group has fewer than 5 images of them: Actinic keratosis or Bowen's disease."
        in found.text
    )
    assert "1,249 images" in found.text
    warning = (
        "By skin type, accuracy is lowest for V-VI: 30.80 points below the best group, more than"
    )
    assert found.text.index(warning) < found.text.index("Intervals come from a bootstrap")
    gap, odds = (
        next(svg for svg in found.named("svg") if name in svg["aria-label"])
        for name in ("Gap in balanced accuracy", "Equalised odds")
    )
    assert gap["class"] == "plot strip over"
    assert odds["class"] == "plot strip"
    assert "up to 11.30 points by chance" in gap["aria-label"].replace(text.SPACE, " ")


def test_a_gap_within_chance_has_no_warning_and_no_status_passed(tmp_path, bundle):
    sex = replace(SKIN, column="sex", chance_high=0.4)
    found = page(tmp_path, bundle, evaluation=evaluation_of(bundle, fairness=(sex,)))
    assert "accuracy is lowest" not in found.text
    assert found.row("Gap in balanced accuracy").endswith("5.5 (40.0) may be chance")
    assert "does not show that the model is equally accurate for all groups" in found.text
    assert (
        "status passed" not in found.source.partition('id="fairness"')[2].partition("</section>")[0]
    )


def test_insufficient_groups_are_not_compared(tmp_path, bundle):
    few = replace(
        SKIN,
        groups={},
        insufficient={"I-II": 28, "V-VI": 12},
        worst=None,
        gap=Interval(None),
        chance=None,
        chance_high=None,
        equalised_odds=None,
        equalised_odds_chance=None,
        equalised_odds_chance_high=None,
    )
    found = page(tmp_path, bundle, evaluation=evaluation_of(bundle, fairness=(few,)))
    assert "By skin type, groups cannot be compared. No group has 30 or more images" in found.text
    assert found.row("V-VI") == "V-VI 12 insufficient"
    assert "None" not in found.text
    assert "Difference" not in found.text


def test_an_evaluation_without_fairness_has_a_page(tmp_path, bundle):
    found = page(tmp_path, bundle)
    assert evaluation_of(bundle).fairness == ()
    assert "Not compared: no image with a known class has a skin type or a sex" in found.text
    assert "This does not show that the model is equally accurate for all groups." in found.text


def test_data_without_skin_types_get_a_note(tmp_path, bundle):
    assert "the accuracy on dark skin is unknown" not in page(tmp_path, bundle).text
    lighter = evaluation_of(bundle, subgroups=evaluation_of(bundle).subgroups[:1])
    assert "the accuracy on dark skin is unknown" in page(tmp_path, bundle, evaluation=lighter).text


def test_warnings_come_before_the_numbers(tmp_path, bundle, data):
    evaluation = evaluation_of(
        bundle,
        trained_on=("i3",),
        warnings=("The model was TRAINED ON 1 of these 1253 images: ...", "Something else."),
        overall=scores(Interval(0.9), labelled=99),
    )
    drawn = make_data(tmp_path / "demo", source="procedural")
    failed = VerifyReport(
        bundle.id, "onnxruntime", "failed", (Check("files", "failed", "model.onnx is damaged"),)
    )
    found = page(
        tmp_path,
        bundle,
        evaluation=evaluation,
        data=drawn,
        parity={"status": "failed"},
        verification=failed,
    )
    tiles = found.text.index("Balanced accuracy 90.0 %")
    for warning in (
        "TRAINED ON 1",
        "Something else.",
        "Only 99 images",
        "are drawn",
        "gate FAILED",
        "Verification FAILED",
    ):
        assert found.text.index(warning) < tiles
    levels = {a.get("class") for a in found.named("li") if a.get("class") in ("warn", "failed")}
    assert levels == {"warn", "failed"}
    assert "model.onnx is damaged" in found.text
    assert "are drawn" not in page(tmp_path, bundle, data=data).text


def test_reports_about_another_bundle_are_refused(tmp_path, bundle):
    other = replace(bundle, id="0" * 64)
    for name, report in (
        ("evaluation", evaluation_of(other)),
        ("latency", latency_of(other)),
        ("verification", VerifyReport(other.id, "", "passed", ())),
    ):
        with pytest.raises(UsageError, match=f"{name}.*000000000000.*again"):
            page(tmp_path, bundle, **{name: report})
    assert list(tmp_path.iterdir()) == []
    page(
        tmp_path,
        bundle,
        verification=VerifyReport("some/path.dermedge", "not started", "failed", ()),
    )


def test_a_failed_write_leaves_the_old_page(tmp_path, bundle, monkeypatch):
    page(tmp_path, bundle)
    before = (tmp_path / "report.html").read_bytes()

    def killed(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(DermedgeError):
        page(tmp_path, bundle, title="Another")
    assert (tmp_path / "report.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_input_gives_the_same_bytes(tmp_path, bundle, data):
    page(tmp_path, bundle, data=data)
    (tmp_path / "folder").mkdir()
    arguments = {
        "evaluation": evaluation_of(bundle),
        "parity": {},
        "latency": None,
        "verification": None,
        "runs": [],
    }
    written = [write_report(tmp_path / "folder", bundle=bundle, data=data, **arguments)]
    written.append(write_report(tmp_path / "other.html", bundle=bundle, data=data, **arguments))
    assert [path.name for path in written] == ["report.html", "other.html"]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_large_evaluation_stays_a_small_page(tmp_path, bundle, data):
    rng = np.random.default_rng(0)
    steps = np.sort(rng.random((20_000, 2)), axis=0)
    images = tuple(
        picture(n % 8, "nv", "mel", 0.5, bool(n % 2), 0.1 + (n % 3) / 10) for n in range(10_000)
    )
    evaluation = evaluation_of(bundle, roc=tuple(map(tuple, steps.tolist())), images=images)
    page(tmp_path, bundle, data=data, evaluation=evaluation)
    assert (tmp_path / "report.html").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.percent(-0.00001), "0.0 %"),
        (text.percent(-0.0043), "-0.4 %"),
        (text.percent_fine(-0.0043), "-0.43 %"),
        (text.significant(-1.2e-6), "-1.2e-06"),
        (text.percent(None), "not measured"),
        (text.decimal(float("inf")), "not measured"),
        (text.whole(True), "not measured"),
        (text.milliseconds(1203.6), "1,204 ms"),
        (text.milliseconds(0.4321), "0.43 ms"),
        (text.duration(41.2), "41 s"),
        (text.duration(4320), "1 h 12 min"),
        (text.duration(7190), "2 h 0 min"),
        (
            text.interval_ends({"value": 0.5, "low": -0.1, "high": 0.2}, "points"),
            "-10.00 to 20.00 points",
        ),
        (text.with_interval(Interval(0.5, 0.4, 0.6), "decimal"), "0.500 (0.400 to 0.600)"),
        (text.with_interval(Interval(0.5), "percent"), "50.0 %"),
        (text.format_note("age_band 30-49"), "Age in years: 30-49"),
        (text.format_note("fewer than 100 cases"), "fewer than 100 cases"),
    ],
)
def test_numbers_are_formatted_for_people(written, expected):
    assert written.replace(text.SPACE, " ") == expected


def test_the_package_holds_the_template_and_its_style():
    folder = Path(html.__file__).parent
    assert (folder / "report.html.j2").is_file()
    assert (folder / "report.css").is_file()
