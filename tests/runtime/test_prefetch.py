"""Test the order, the bound and the errors of `prefetch`."""

import itertools
import threading

import pytest

from dermedge_runtime.errors import DataError
from dermedge_runtime.prefetch import prefetch, prefetch_batches


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(prefetch(lambda n: n * n, range(50), workers=workers)) == [n * n for n in range(50)]
    assert list(prefetch(len, [], workers=workers)) == []


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, 1), (1, 4), (3, 3), (3, 7)])
def test_at_most_ahead_items_are_read_and_not_yet_used(batch_size, ahead):
    read = 0

    def items():
        nonlocal read
        while True:
            read += 1
            yield read

    batches = prefetch_batches(lambda n: n, items(), batch_size=batch_size, workers=2, ahead=ahead)
    assert read == 0
    for used in range(0, 30, batch_size):
        assert next(batches) == list(range(used + 1, used + 1 + batch_size))
        assert read <= used + ahead
    batches.close()


def test_the_last_batch_may_be_shorter():
    batches = prefetch_batches(lambda n: n, range(5), batch_size=2, workers=2, ahead=4)
    assert list(batches) == [[0, 1], [2, 3], [4]]


def test_an_error_of_the_function_is_raised_at_its_place():
    def make(key):
        if key == 2:
            raise DataError("the third is broken")
        return key

    results = prefetch(make, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="the third"):
        next(results)
    assert not any(name.startswith("dermedge-prefetch") for name in names())


def test_an_error_of_the_items_is_raised_after_all_earlier_results():
    def items():
        yield from range(3)
        raise DataError("the table ends here")

    given = []
    with pytest.raises(DataError, match="ends here"):
        for result in prefetch(lambda n: n, items(), ahead=8):
            given.append(result)
    assert given == [0, 1, 2]


def test_a_reader_that_stops_ends_the_threads():
    results = prefetch(lambda key: key, itertools.count(), workers=3)
    next(results)
    assert any(name.startswith("dermedge-prefetch") for name in names())
    results.close()
    assert not any(name.startswith("dermedge-prefetch") for name in names())
