"""List the numeric precisions that training accepts, without importing torch."""

from typing import Literal, get_args

from dermedge_runtime.errors import UsageError

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str) -> None:
    """Check the name of a Lightning Fabric precision.

    Raises:
        UsageError: Training does not support the precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"Unknown precision {precision!r}. Use one of {', '.join(PRECISIONS)}.")
