"""Outputs with conformal sets, `rule_in` and OOD scores, which are in `decode.json`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from conformance.tasks import BENIGN, DIAGNOSIS, MALIGNANCY
from dermedge_runtime.spec import Conformal, Postprocessing, Task

OOD = Task("foreign", "ood")
# Equal probabilities are exact in every language, as exp() need not be.
EQUAL = (0.0, 0.0, 0.0, 0.0)
LOGITS = (0.5, 0.25, 1.0, -0.75)
TEMPERATURE = 1.3
Case = tuple[Any, ...]


def abstain_cases() -> Iterator[Case]:
    """Yield cases of `decode.json`."""
    yield from _sets()
    yield from _ties()
    yield from _decisions()
    yield from _foreign()
    yield from _all()


def _set(
    name: str,
    method: str,
    quantiles: Sequence[float | None],
    logits: Sequence[float] = LOGITS,
    **fitted: Any,
) -> Case:
    """Return a case of the diagnosis task; penalty and free go to the conformal sets."""
    sets = {key: fitted.pop(key) for key in ("penalty", "free") if key in fitted}
    conformal = Conformal(method, 0.9, tuple(quantiles), **sets)
    values = Postprocessing(**fitted, conformal=conformal)
    return (name, (DIAGNOSIS,), {"diagnosis": logits}, {"diagnosis": values})


def _sets() -> Iterator[Case]:
    """Yield sets of each method; the labels are ranked akiec, nv, mel, bcc."""
    yield _set("lac", "lac", (0.71, 0.71, 0.71, 0.71))
    yield _set("lac, each label has its quantile", "lac", (0.6, 0.9, 0.5, 0.95))
    yield _set("lac, a quantile of 0", "lac", (0.0, 0.0, 0.0, 0.0), (900.0, 0.0, 0.0, 0.0))
    yield _set("lac, a quantile of 1", "lac", (1.0, 1.0, 1.0, 1.0))
    yield _set("lac, score equal to the quantile", "lac", (0.0, 0.75, 0.0, 0.0), EQUAL)
    below = math.nextafter(0.75, 0)
    yield _set("lac, score just above the quantile", "lac", (0.0, below, 0.0, 0.0), EQUAL)
    yield _set("lac with a temperature", "lac", (0.7, 0.75, 0.62, 0.75), temperature=TEMPERATURE)
    yield _set("lac, empty set", "lac", (0.1, 0.1, 0.1, 0.1))
    yield _set("aps", "aps", (0.8, 0.8, 0.8, 0.8))
    yield _set("aps, each label has its quantile", "aps", (0.5, 0.95, 0.3, 1.1))
    yield _set("aps, score equal to the quantile", "aps", (0.0, 0.5, 0.75, 0.0), EQUAL)
    below = math.nextafter(0.5, 0)
    yield _set("aps, score just above the quantile", "aps", (0.0, below, 0.75, 0.0), EQUAL)
    yield _set("aps with a temperature", "aps", (0.7, 0.9, 0.4, 0.9), temperature=TEMPERATURE)
    yield _set("aps, empty set", "aps", (0.2, 0.2, 0.2, 0.2))
    yield _set("aps, a set without its first label", "aps", (0.9, 0.95, 0.1, 0.2))
    yield _set("aps, penalty and free are of raps", "aps", (0.8,) * 4, penalty=9.0, free=1)
    raps = {"penalty": 0.125, "free": 2}
    yield _set("raps", "raps", (1.0, 1.0, 1.0, 1.0), **raps)
    yield _set("raps, score equal to the quantile", "raps", (0.0, 0.5, 0.875, 0.0), EQUAL, **raps)
    yield _set("raps, nothing is free", "raps", (1.0, 1.0, 1.0, 1.0), penalty=0.25)
    yield _set("raps, everything is free", "raps", (0.8,) * 4, penalty=0.25, free=9)
    yield _set("raps without a penalty", "raps", (0.8, 0.8, 0.8, 0.8))
    yield _set("raps with a temperature", "raps", (0.9,) * 4, temperature=TEMPERATURE, **raps)
    for method in ("lac", "aps", "raps"):
        name = f"{method}, a null quantile"
        yield _set(name, method, (0.2, None, 0.2, None), (3.0, -1.0, 1.0, -2.0))
        yield _set(f"{method}, all quantiles are null", method, (None,) * 4)


def _ties() -> Iterator[Case]:
    """Yield equal probabilities, which keep the order of the task."""
    yield _set("lac, ties", "lac", (0.75, 0.75, 0.75, 0.5), EQUAL)
    yield _set("aps, ties", "aps", (0.25, 0.5, 0.5, 1.0), EQUAL)
    yield _set("aps, ties at the same quantile", "aps", (0.5, 0.5, 0.5, 0.5), EQUAL)
    yield _set("raps, ties", "raps", (0.6, 0.6, 0.8, 1.2), EQUAL, penalty=0.125, free=1)
    yield _set("aps, a tie behind the first", "aps", (0.9, 0.9, 0.9, 0.9), (-2.0, 1.0, -2.0, -2.0))


def _decisions() -> Iterator[Case]:
    """Yield malignancy scores around `threshold` and `rule_in`."""

    def binary(name: str, logit: float, **fitted: float) -> Case:
        values = Postprocessing(**fitted)
        return (name, (MALIGNANCY,), {"malignancy": [logit]}, {"malignancy": values})

    half = {"threshold": 0.25, "rule_in": 0.5}
    yield binary("score equal to rule_in", 0.0, **half)
    yield binary("score just below rule_in", -1e-6, **half)
    yield binary("score equal to the threshold below rule_in", 0.0, threshold=0.5, rule_in=0.75)
    yield binary("score just below the threshold and rule_in", -1e-6, threshold=0.5, rule_in=0.75)
    yield binary("score above rule_in", 4.0, **half)
    yield binary("score below the threshold", -4.0, **half)
    yield binary("rule_in equal to the threshold", 0.0, threshold=0.5, rule_in=0.5)
    yield binary("rule_in of 1", 30000.0, threshold=0.5, rule_in=1.0)
    yield binary("rule_in of 1, score below it", 3.0, threshold=0.5, rule_in=1.0)
    yield binary("rule_in of 0", -30000.0, threshold=0.0, rule_in=0.0)
    yield binary("rule_in with a temperature", 2.0, temperature=4.0, threshold=0.3, rule_in=0.7)
    sums = Postprocessing(1.4, 0.3, rule_in=0.6)
    yield (
        "sum of malignant labels between threshold and rule_in",
        (DIAGNOSIS,),
        {"diagnosis": LOGITS},
        {"diagnosis": sums},
    )


def _foreign() -> Iterator[Case]:
    """Yield OOD scores, alone and with a malignancy score."""

    def alone(name: str, score: float, threshold: float | None = None) -> Case:
        fitted = Postprocessing(ood_threshold=threshold)
        return (name, (OOD,), {"foreign": [score]}, {"foreign": fitted})

    yield alone("ood score without a threshold", 2.5)
    yield alone("ood score equal to the threshold", 2.5, 2.5)
    yield alone("ood score above the threshold", 2.5, math.nextafter(2.5, 0))
    yield alone("ood score below the threshold", -3.5, -3.25)
    yield alone("ood score above a negative threshold", -3.0, -3.25)

    def both(name: str, score: float, logit: float, **fitted: float) -> Case:
        return (
            name,
            (MALIGNANCY, OOD),
            {"malignancy": [logit], "foreign": [score]},
            {"malignancy": Postprocessing(**fitted), "foreign": Postprocessing(ood_threshold=1.0)},
        )

    half = {"threshold": 0.25, "rule_in": 0.5}
    yield both("ood wins over malignant", 2.0, 9.0, **half)
    yield both("ood wins over benign", 2.0, -9.0, **half)
    yield both("ood wins over uncertain", 2.0, -0.5, **half)
    yield both("ood without a threshold of the score", 2.0, -0.5)
    yield both("not ood, uncertain", 0.5, -0.5, **half)
    yield both("not ood, malignant", 0.5, 9.0, **half)
    for value in (math.nan, math.inf, -math.inf):
        name = f"{value} in an ood output"
        yield (name, (OOD,), {"foreign": [value]}, {}, ("foreign", "NaN"))
    for shape in ((0.0, 0.0), 0.0, [[0.0]]):
        name = f"ood output {shape}"
        yield (name, (OOD,), {"foreign": shape}, {}, ("foreign", "shape"))


def _all() -> Iterator[Case]:
    values = Postprocessing(1.3, 0.2, 0.4, Conformal("raps", 0.9, (0.9, 0.9, None, 0.9), 0.1, 1))
    yield (
        "sets, refer and ood together",
        (DIAGNOSIS, OOD),
        {"diagnosis": LOGITS, "foreign": [0.5]},
        {"diagnosis": values, "foreign": Postprocessing(ood_threshold=0.75)},
    )
    lac = Postprocessing(conformal=Conformal("lac", 0.9, (0.5, 0.5, 0.5)))
    yield (
        "the first of each kind gives the set and the ood score",
        (BENIGN, Task("second", "classify", BENIGN.labels), OOD, Task("other", "ood")),
        {
            "type": (2.0, 0.0, 0.0),
            "second": (0.0, 2.0, 0.0),
            "foreign": [0.0],
            "other": [9.0],
        },
        {"type": lac, "second": lac, "other": Postprocessing(ood_threshold=1.0)},
    )
    yield (
        "no set where only the second classification has one",
        (BENIGN, Task("second", "classify", BENIGN.labels)),
        {"type": (2.0, 0.0, 0.0), "second": (0.0, 2.0, 0.0)},
        {"second": lac},
    )
