"""`dermedge readers analyze` and `plan`: the report, the page, and the limits that they name."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import dermedge as api
from dermedge.readers.page import render_page
from dermedge.readers.report import JSON_FILE, PAGE_FILE
from dermedge.readers.simulate import draw_rows, write_study
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import to_json
from support.command import dermedge, refused

EVIL = "<script>alert('x')</script>"


class Words(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.csv"
    return write_study(path, readers=6, cases=60, seed=3)


@pytest.fixture(scope="module")
def report(table: Path) -> api.ReaderReport:
    return api.analyze_readers(table, replicates=300)


def test_the_command_writes_json_and_a_page_and_prints_the_result(
    table: Path, report: api.ReaderReport, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = dermedge("readers", "analyze", table, "-o", out, "--replicates", 300)
    assert (ran.code, ran.err) == (0, "")
    assert "random readers, random cases" in ran.out
    assert str(out / PAGE_FILE) in ran.out
    content = (out / JSON_FILE).read_bytes()
    assert content == canonical_json(to_json(report)) + b"\n"
    assert (out / PAGE_FILE).read_text("utf-8") == render_page(report)
    again = dermedge("readers", "analyze", table, "-o", out, "--replicates", 300)
    assert "exists already" in refused(again, 2)
    assert (out / JSON_FILE).read_bytes() == content
    ran = dermedge("readers", "analyze", table, "-o", out, "--overwrite", "--json")
    assert ran.json()["readers"] == 6


def test_the_report_agrees_with_itself(report: api.ReaderReport) -> None:
    assert list(report.pooled) == list(report.anova) == list(report.wilcoxon)
    for name, pooled in report.pooled.items():
        values = [reader.metrics[name] for reader in report.by_reader]
        mean = sum(each.difference.value for each in values) / len(values)
        assert pooled.difference.value == pytest.approx(mean)
        assert pooled.difference.value == pytest.approx(pooled.aided.value - pooled.unaided.value)
        test = report.anova[name].random
        assert test.difference.value == pytest.approx(pooled.difference.value)
        # The bootstrap and the analysis of variance estimate the same spread.
        spread = pooled.difference.high - pooled.difference.low
        assert spread == pytest.approx(test.difference.high - test.difference.low, rel=0.5)
        assert {each.model.value for each in values} == {pooled.model.value}
    gained = sum(reader.mcnemar.gained for reader in report.by_reader)
    assert report.mcnemar.gained == gained
    assert report.primary == "balanced_accuracy"
    assert {check.status for check in report.checks} == {"passed"}


def test_the_page_shows_every_section_and_asks_the_network_for_nothing(
    report: api.ReaderReport,
) -> None:
    page = Words(render_page(report))
    for reader in report.by_reader:
        assert reader.reader in page.words
    for text in (
        "Random readers, random cases",
        "automation bias",
        "resident",
        "Skin type (Fitzpatrick)",
        "odds ratio of a right answer",
        "Wash-out",
        f"{100 * report.pooled['accuracy'].unaided.value:.1f}",
    ):
        assert text in page.words, text
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)


def test_names_in_a_table_cannot_write_html(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table, dtype=str).assign(reader_group=EVIL, site=EVIL)
    frame.to_csv(tmp_path / "evil.csv", index=False)
    page = render_page(api.analyze_readers(tmp_path / "evil.csv", replicates=50))
    assert EVIL not in page
    assert "script" not in Words(page).tags


def test_one_reader_has_a_report_that_names_its_limit(tmp_path: Path) -> None:
    report = api.analyze_readers(
        write_study(tmp_path / "one.csv", readers=1, cases=40), replicates=100
    )
    assert any("One reader" in note for note in report.notes)
    anova = report.anova["balanced_accuracy"]
    assert (anova.random, anova.fixed_cases) == (None, None)
    assert anova.fixed_readers.p is not None
    assert report.wilcoxon["accuracy"].p is None
    assert "not run: one reader" in Words(render_page(report)).words


def test_a_table_without_confidence_model_or_order_has_what_it_allows(tmp_path: Path) -> None:
    rows = draw_rows(readers=3, cases=20, seed=2)
    columns = ["reader", "case", "condition", "answer", "truth"]
    rows.frame[columns].to_csv(tmp_path / "bare.csv", index=False)
    report = api.analyze_readers(tmp_path / "bare.csv", replicates=100)
    assert "auc" not in report.pooled
    assert report.pooled["accuracy"].model is None
    assert set(report.changes.rates) == {"gained", "lost"}
    assert report.shifts == ()
    text = " ".join(report.notes)
    for word in ("no column model", "no confidence", "3 readers"):
        assert word in text
    assert "not run" in Words(render_page(report)).words
    with pytest.raises(UsageError, match="does not define auc"):
        api.analyze_readers(tmp_path / "bare.csv", primary="auc")


def test_diagnoses_have_accuracy_as_the_primary_metric(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table, dtype=str)
    for name in ("answer", "truth", "model"):
        frame[name] = frame[name].map({"malignant": "mel", "benign": "nv"})
    frame.loc[frame.case == "c001", "truth"] = "bcc"
    frame.to_csv(tmp_path / "diagnoses.csv", index=False)
    report = api.analyze_readers(tmp_path / "diagnoses.csv", replicates=50)
    assert (report.primary, report.answers) == ("accuracy", "diagnoses")
    assert {group.value for group in report.subgroups if group.column == "truth"} == {
        "bcc",
        "mel",
        "nv",
    }
    assert report.pooled["sensitivity"].unaided.value is not None


def test_all_right_answers_have_no_tests_and_a_page(tmp_path: Path) -> None:
    frame = draw_rows(readers=3, cases=20).frame
    frame.assign(answer=frame.truth).to_csv(tmp_path / "right.csv", index=False)
    report = api.analyze_readers(tmp_path / "right.csv", replicates=50)
    assert report.pooled["accuracy"].unaided.value == 1
    assert (report.logistic, report.anova["accuracy"].random.p) == (None, None)
    assert "did not change" in Words(render_page(report)).words
    json.loads(canonical_json(to_json(report)))


def test_the_same_seed_gives_the_same_report(table: Path, report: api.ReaderReport) -> None:
    assert api.analyze_readers([table], replicates=300) == report
    other = api.analyze_readers(table, replicates=300, seed=1)
    assert other.anova == report.anova
    assert other.pooled != report.pooled


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (("no.csv",), "no.csv", 1),
        (("study.xlsx",), "save as", 1),
        (("empty",), "holds no .csv file", 1),
    ],
)
def test_a_wrong_path_is_one_message(
    args, words: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert words in refused(dermedge("readers", "analyze", *args, "-o", "out"), code).lower()
    assert not (tmp_path / "out").exists()


def test_plan_prints_the_power_of_each_size() -> None:
    options = ("--readers", 3, "--readers", 6, "--cases", 40, "--simulations", 10, "--json")
    studies = dermedge("readers", "plan", *options).json()["studies"]
    assert [(each["readers"], each["cases"], each["malignant"]) for each in studies] == [
        (3, 40, 20),
        (6, 40, 20),
    ]
    shown = dermedge("readers", "plan", *options[:-1])
    assert "structure HL" in shown.out
