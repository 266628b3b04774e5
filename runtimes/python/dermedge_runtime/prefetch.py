"""Compute results ahead of their reader, in order and in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from dermedge_runtime.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int = 1,
    ahead: int = 4,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order; threads work ahead.

    The threads end when the iterator is exhausted, closed or garbage-collected.

    Args:
        function: Called in a worker thread, once per item.
        items: Any iterable, also an endless one. It is read in the calling thread, only
            as far as needed.
        workers: Number of threads.
        ahead: Largest number of items that are read and whose results are not yet used.
            The result that the reader holds counts until it takes the next one.

    Raises:
        Exception: `function` or `items` raised it; it is raised at that item's place,
            after all earlier results.
        UsageError: The process was forked since the first result was read.

    Example:
        >>> list(prefetch(len, ["a", "bcd", ""], workers=2))
        [1, 3, 0]
    """
    batches = prefetch_batches(function, items, batch_size=1, workers=workers, ahead=ahead)
    with closing(batches):
        for (result,) in batches:
            yield result


def prefetch_batches(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    batch_size: int,
    workers: int,
    ahead: int,
) -> Generator[list[Result], None, None]:
    """Yield the results of `prefetch` in lists; the last one may be shorter.

    Args:
        function: As in `prefetch`.
        items: As in `prefetch`.
        batch_size: Number of results per list.
        workers: As in `prefetch`.
        ahead: As in `prefetch`, at least `batch_size`. The whole list that the reader
            holds counts until it takes the next one.

    Raises:
        Exception: As in `prefetch`. Earlier results of the same list are lost.
    """
    # The import takes a tenth of the time to a first prediction, which has no threads.
    from concurrent.futures import ThreadPoolExecutor

    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    failure: Exception | None = None
    owner = os.getpid()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dermedge-prefetch")
    try:
        while True:
            while failure is None and len(pending) < ahead:
                try:
                    item = next(remaining)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                else:
                    _check_process(owner)
                    pending.append(pool.submit(function, item))
            _check_process(owner)
            batch = [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
            if batch:
                yield batch
            elif failure is not None:
                raise failure
            else:
                return
    finally:
        # A forked process has no threads to end, and their locks may be held for ever.
        if os.getpid() == owner:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_process(owner: int) -> None:
    if os.getpid() != owner:
        raise UsageError(
            "These results are computed by threads of the parent process. Start the iteration "
            "in the worker."
        )
