"""Measure the latency of several engines in turns."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.model import Runtime

TURNS, CALLS, SETTLE_SECONDS = 12, 8, 0.05


@dataclass(frozen=True)
class Clock:
    """A source of time; a test can pass one that does not wait.

    Attributes:
        now: Function that returns the time in seconds.
        sleep: Function that waits for a number of seconds.

    Example:
        >>> ticks = iter([10.0, 11.5])
        >>> clock = Clock(now=lambda: next(ticks), sleep=lambda seconds: None)
        >>> start = clock.now()
        >>> clock.sleep(60)
        >>> clock.now() - start
        1.5
    """

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


def measure_latencies(
    runtimes: Mapping[str, Runtime], image: NDArray[np.uint8], clock: Clock | None = None
) -> dict[str, float]:
    """Return the median latency of each engine in milliseconds.

    The engines take turns, so that a slow phase of the machine affects all of them.
    Every other turn runs in reverse order, so that no engine always follows the same
    one.

    Args:
        runtimes: Runtimes by name.
        image: One preprocessed image, uint8 [1, S, S, 3].
        clock: Source of time; the system's by default.

    Example:
        >>> import numpy as np
        >>> from dermedge_export import Simulation
        >>> from dermedge_export.selection.latency import Clock, measure_latencies
        >>> ticks = iter(range(1000))
        >>> clock = Clock(now=lambda: next(ticks), sleep=lambda seconds: None)
        >>> engine = Simulation("engine", "1", lambda images: {})
        >>> image = np.zeros((1, 8, 8, 3), np.uint8)
        >>> measure_latencies({"engine": engine}, image, clock)
        {'engine': 1000.0}
    """
    clock = clock or Clock()
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    order = list(runtimes)
    for turn in range(TURNS):
        for name in order if turn % 2 else reversed(order):
            run = runtimes[name].run
            # The threads of an engine spin for a while after a call and would slow down
            # the next engine. The pause lets them sleep; the untimed call then wakes
            # this engine's own threads and fills its caches.
            clock.sleep(SETTLE_SECONDS)
            run(image)
            for _ in range(CALLS):
                start = clock.now()
                run(image)
                times[name].append((clock.now() - start) * 1000)
    return {name: float(median(values)) for name, values in times.items()}
