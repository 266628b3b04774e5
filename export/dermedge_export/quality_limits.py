"""Limits of image quality that an export writes into the manifest."""

from dataclasses import replace

from dermedge_runtime.quality import DETAIL, QualityLimits
from dermedge_runtime.spec import Spec

# Measured by tests/benchmarks/quality.py on photographs of HAM10000, ISIC 2017 and
# PAD-UFES-20: each limit flags at most 1 % of the photographs of every data set at 96 to
# 384 px. docs/benchmarks.md has the rule, and the shares of degraded photographs that
# these limits flag.
PIXEL_LIMITS = QualityLimits(sharpness=527, dark=47, bright=225, glare=127)
LESION_LIMITS = QualityLimits(small=3, cut=694)


def limits_for(spec: Spec) -> QualityLimits | None:
    """Return the limits for a model, None for one whose images cannot be judged.

    Args:
        spec: Spec of the model. Its pixels are judged if the input is large enough, and
            the size of the lesion if it has a `segment` task.

    Example:
        >>> from dermedge_runtime.spec import Preprocess, Task
        >>> lesion, score = Task("lesion", "segment"), Task("malignancy", "binary")
        >>> limits_for(Spec("small", "1", (score,), Preprocess(64))) is None
        True
        >>> limits_for(Spec("small", "1", (lesion,), Preprocess(64))) == LESION_LIMITS
        True
    """
    # Below 96 px even a sharp photograph loses the detail that the sharpness measures.
    limits = PIXEL_LIMITS if spec.preprocess.size >= DETAIL else QualityLimits()
    if any(task.kind == "segment" for task in spec.tasks):
        limits = replace(limits, small=LESION_LIMITS.small, cut=LESION_LIMITS.cut)
    return None if limits == QualityLimits() else limits
