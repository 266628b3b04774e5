"""Each purpose draws its own lesions."""

from itertools import combinations

from dermedge_export import calibration, debug
from dermedge_export.parity import evaluator
from dermedge_export.synthetic import golden, seeds

RANGES = {name: value for name, value in vars(seeds).items() if isinstance(value, range)}


def test_no_seed_range_overlaps_another_one() -> None:
    assert len(RANGES) >= 4
    for (first, some), (second, others) in combinations(RANGES.items(), 2):
        assert not set(some) & set(others), f"{first} overlaps {second}"


def test_each_range_is_long_enough_for_its_purpose() -> None:
    assert len(seeds.AGREEMENT) >= evaluator.SYNTHETIC_COUNT
    assert len(seeds.GOLDEN) >= golden.COUNT
    assert len(seeds.CALIBRATION) >= calibration.SYNTHETIC_COUNT
    assert len(seeds.DEBUG) >= debug.LESIONS
