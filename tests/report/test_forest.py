"""Test the forest plot: positions of its lines, its labels and its colours."""

import re

import pytest

from dermedge.report.forest import draw_forest, make_scale

NAMES = {"mel": "Melanoma"}


def interval(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def group(column, value, cases, loss):
    return {
        "column": column,
        "value": value,
        "cases": cases,
        "loss": loss,
        "reference": {},
        "candidate": {},
    }


def report(**changes):
    overall = {
        "metric": "balanced_accuracy",
        "reference": 0.7,
        "candidate": 0.69,
        "allowed": 0.01,
        "cases": 1250,
    }
    found = {
        "limits": [
            overall | {"loss": interval(0.005, -0.01, 0.02)},
            {"metric": "worst_subgroup", "loss": interval(0.03), "allowed": 0.02, "cases": 600},
        ],
        "subgroups": [
            group("sex", "female", 600, interval(0.03, 0.01, 0.04)),
            group("fitzpatrick", "VI", 99, interval(0.5, -0.2, 0.9)),
            group("fitzpatrick", "I", 100, interval(0.0, -0.02, 0.02)),
        ],
        "classes": [group("class", "mel", 143, interval(0.035, 0.01, 0.04))],
    }
    return found | changes


def lines(plot):
    return {row.name: row for section in plot.sections for row in section.rows}


def numbers(plot, name, attribute):
    """Return the percentages of an attribute of the elements of a class, in order."""
    elements = re.findall(rf'<\w+[^>]*class="{name}"[^>]*>', plot)
    return [float(re.search(rf'\b{attribute}="([\d.]+)%', element)[1]) for element in elements]


def test_sections_are_overall_then_groups_then_diagnoses():
    plot = draw_forest(report(), NAMES)
    assert [(section.heading, section.allowed) for section in plot.sections] == [
        ("All images", 0.01),
        ("Skin type (Fitzpatrick)", 0.02),
        ("Sex", 0.02),
        ("Diagnosis (its recall)", None),
    ]
    assert list(lines(plot)) == ["Overall", "VI", "I", "female", "Melanoma"]


def test_the_coverage_of_each_diagnosis_has_the_limit_of_the_worst_one():
    covered = group("class", "mel", 143, interval(0.03, 0.01, 0.05))
    limit = {"metric": "worst_label_coverage", "loss": interval(0.03), "allowed": 0.02}
    section = draw_forest(report(coverage=[covered], limits=[limit]), NAMES).sections[-1]
    assert section.heading == "Diagnosis (coverage of its conformal sets)"
    assert section.allowed == 0.02
    assert [row.name for row in section.rows] == ["Melanoma"]


def test_positions_of_points_intervals_and_bands():
    plot = draw_forest(report(), NAMES)
    most = 0.04 * 1.08  # the largest end among groups that are large enough to judge
    at = {value: round(50 + 50 * value / most, 2) for value in (0, 0.03, 0.01, 0.04, 0.02)}
    female = lines(plot)["female"].plot
    (dot,) = numbers(female, "dot", "cx")
    assert dot == pytest.approx(at[0.03], abs=0.01)
    assert numbers(female, "whisker", "x1")[0] == pytest.approx(at[0.01], abs=0.01)
    assert numbers(female, "whisker", "x2")[0] == pytest.approx(at[0.04], abs=0.01)
    assert numbers(female, "zero", "x1") == [50]
    assert numbers(female, "band", "x") == [50]
    assert numbers(female, "band", "width")[0] == pytest.approx(at[0.02] - 50, abs=0.01)
    assert numbers(lines(plot)["Overall"].plot, "band", "width")[0] == pytest.approx(
        at[0.01] - 50, abs=0.01
    )
    assert "band" not in lines(plot)["Melanoma"].plot


def test_the_axis_has_few_round_ticks_around_zero():
    for largest in (1e-6, 0.004, 0.05, 0.3, 7.0):
        plot = draw_forest(
            report(limits=[], classes=[], subgroups=[group("sex", "f", 200, interval(largest))]), {}
        )
        ticks = [float(text) for text in re.findall(r">(-?[\d.]+)</text>", plot.axis)]
        assert 3 <= len(ticks) <= 7
        assert ticks == [-tick for tick in reversed(ticks)]
        assert len(set(ticks)) == len(ticks)


def test_an_unsigned_scale_starts_at_zero():
    for largest in (0.004, 0.308, 7.0):
        drawn = make_scale([largest, largest / 2], signed=False)
        ticks = [tick for tick, _ in drawn.ticks]
        assert (drawn.low, ticks[0]) == (0, 0)
        assert 2 <= len(ticks) <= 7
        assert ticks[-1] <= largest * 1.08 == drawn.high


def test_few_cases_are_grey_and_do_not_set_the_scale():
    plot = draw_forest(report(), NAMES)
    few = lines(plot)["VI"]
    assert few.few
    assert 'class="plot strip few"' in few.plot
    assert "too few cases" in few.plot
    assert numbers(few.plot, "dot", "cx") == [100]
    assert len(numbers(few.plot, "whisker", "x1")) == 1  # beyond the scale there is no stop
    assert not lines(plot)["I"].few


def test_losses_beyond_the_limit_are_marked():
    found = lines(draw_forest(report(), NAMES))
    assert 'class="plot strip over"' in found["female"].plot
    assert 'class="plot strip"' in found["Overall"].plot
    assert 'class="plot strip"' in found["Melanoma"].plot  # no limit, so it cannot be broken
    assert not any("passed" in row.plot for row in found.values())


def test_a_line_has_a_label_for_screen_readers():
    said = lines(draw_forest(report(), NAMES))["female"].plot.replace("\u00a0", " ")
    assert (
        'aria-label="Sex, female: loss 3.00 %, 95 % interval 1.00 to 4.00 %, 2.00 % allowed."'
        in said
    )


def test_missing_fields_are_left_out():
    assert draw_forest({}, {}) is None
    assert (
        draw_forest(
            {"limits": [{"metric": "balanced_accuracy", "loss": None}], "subgroups": None}, {}
        )
        is None
    )
    unknown = group("sex", "male", 200, interval(None))
    plot = draw_forest(
        report(
            limits=[], subgroups=[unknown, group("sex", "female", 200, interval(0.0))], classes=[]
        ),
        {},
    )
    assert lines(plot)["male"].plot is None
    assert lines(plot)["female"].plot is not None
