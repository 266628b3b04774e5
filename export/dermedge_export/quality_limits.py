"""Limits of image quality that an export writes into the manifest."""

from dermedge_runtime.quality import DETAIL, QualityLimits

# Measured by tests/benchmarks/quality.py on photographs of HAM10000, ISIC 2017 and
# PAD-UFES-20: each limit flags at most 1 % of the photographs of every data set at 96 to
# 384 px. docs/benchmarks.md has the rule, and the shares of degraded photographs that
# these limits flag.
QUALITY_LIMITS = QualityLimits(sharpness=527, dark=47, bright=225, glare=127)


def limits_for(size: int) -> QualityLimits | None:
    """Return the limits for a network's input, None for one too small to judge.

    Args:
        size: S, side of the network's input in pixels.

    Example:
        >>> limits_for(160) is QUALITY_LIMITS, limits_for(64)
        (True, None)
    """
    # Below 96 px even a sharp photograph loses the detail that the sharpness measures.
    return QUALITY_LIMITS if size >= DETAIL else None
