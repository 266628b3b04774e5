"""Properties of `assign_splits` that hold for any table."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermedge.data.split import assign_splits
from dermedge.data.table import SPLITS, groups

SETTINGS = settings(max_examples=30, deadline=None)

# Few different ids, so that rows are connected in many ways.
ROW = st.fixed_dictionaries(
    {
        "lesion_id": st.sampled_from(["", *(f"L{n}" for n in range(6))]),
        "patient_id": st.sampled_from(["", *(f"P{n}" for n in range(4))]),
        "source": st.sampled_from(["", "ham10000"]),
        "dx": st.sampled_from(["", "nv", "mel", "df"]),
        "malignant": st.sampled_from([0.0, 1.0, float("nan")]),
        "split": st.sampled_from(["", "", "", *SPLITS]),
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=30)
SHARES = st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0), (0.2, 0.4, 0.4)])


def frame_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(image_id=[f"i{n:03d}" for n in range(len(rows))])


@given(ROWS, SHARES, st.integers(0, 3))
@SETTINGS
def test_every_row_has_a_split_and_existing_ones_are_kept(rows, shares, seed) -> None:
    """The result covers the index, and a row that had a split has the same one."""
    frame = frame_of(rows)
    splits = assign_splits(frame, shares, seed)
    assert splits.index.equals(frame.index)
    assert set(splits) <= set(SPLITS)
    had = frame["split"] != ""
    assert (splits[had] == frame.loc[had, "split"]).all()


@given(ROWS, SHARES, st.integers(0, 3))
@SETTINGS
def test_no_group_is_in_two_splits(rows, shares, seed) -> None:
    """A group has the split that it had, or one split for all of its rows."""
    frame = frame_of(rows)
    group = groups(frame)
    splits = assign_splits(frame, shares, seed)
    for _, members in frame.groupby(group):
        before = set(members["split"]) - {""}
        assigned = set(splits[members.index[members["split"] == ""]])
        assert len(assigned) <= 1
        # A group whose rows are in two splits already is trained on.
        if assigned and before:
            assert assigned == (before if len(before) == 1 else {"train"})


@given(ROWS, SHARES, st.integers(0, 3), st.randoms(use_true_random=False))
@SETTINGS
def test_the_result_depends_on_the_seed_and_not_on_the_order_of_rows(
    rows, shares, seed, random
) -> None:
    frame = frame_of(rows)
    order = list(frame.index)
    random.shuffle(order)
    shuffled = assign_splits(frame.loc[order], shares, seed)
    assert shuffled.loc[frame.index].tolist() == assign_splits(frame, shares, seed).tolist()


@given(ROWS, SHARES, st.integers(0, 3))
@SETTINGS
def test_official_splits_get_no_further_groups(rows, shares, seed) -> None:
    """An existing val or test split grows only by rows of its own groups."""
    frame = frame_of(rows)
    group = groups(frame)
    splits = assign_splits(frame, shares, seed)
    for name in ("val", "test"):
        if (frame["split"] == name).any():
            official = set(group[frame["split"] == name])
            assert set(group[splits == name]) <= official


@given(
    st.lists(st.sampled_from(["nv", "mel", "bcc"]), min_size=60, max_size=200),
    st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]),
    st.integers(0, 3),
)
@SETTINGS
def test_shares_are_near_the_given_ones_if_groups_are_small(labels, shares, seed) -> None:
    """With one image per group, a split misses its share by two images at most."""
    frame = pd.DataFrame({"dx": labels}).assign(
        image_id=[f"i{n:03d}" for n in range(len(labels))],
        lesion_id="",
        patient_id="",
        source="",
        malignant=float("nan"),
        split="",
    )
    splits = assign_splits(frame, shares, seed)
    for dx, count in Counter(labels).items():
        counts = Counter(splits[frame["dx"] == dx])
        for name, share in zip(SPLITS, shares, strict=True):
            assert counts[name] == pytest.approx(share * count, abs=2)


def test_a_seed_changes_the_result() -> None:
    """Two seeds give different splits of the same 200 rows."""
    frame = pd.DataFrame({"dx": ["nv"] * 200}).assign(
        image_id=[f"i{n:03d}" for n in range(200)],
        lesion_id="",
        patient_id="",
        source="",
        malignant=0.0,
        split="",
    )
    assert not assign_splits(frame, seed=0).equals(assign_splits(frame, seed=1))
