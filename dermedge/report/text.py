"""Numbers and names as a person reads them. What is None, missing or not finite reads "not measured"."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from markupsafe import Markup, escape

from dermedge_runtime.report import Interval, Status

UNKNOWN = "not measured"
NO_INTERVAL = "no interval"
SPACE = "\u00a0"
DIGEST = re.compile(r"\b([0-9a-f]{32,64})\b")
Format = Callable[[Any], str]


def number(value: Any) -> float | None:
    """The value where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(value: Any) -> Interval:
    """An interval, also from its JSON; one without a value where it is none."""
    if isinstance(value, Mapping):
        value = Interval(*(number(value.get(key)) for key in ("value", "low", "high")))
    if not isinstance(value, Interval):
        return Interval(None)
    return Interval(number(value.value), number(value.low), number(value.high))


def _of(template: str, scale: float = 1.0) -> Format:
    def written(value: Any) -> str:
        known = number(value)
        if known is None:
            return UNKNOWN
        text = template.format(known * scale).replace(" ", SPACE)
        return text if re.search("[1-9]", text) else text.removeprefix("-")

    return written


percent = _of("{:.1f} %", 100)
percent_fine = _of("{:.2f} %", 100)
points = _of("{:.2f} points", 100)
points_bare = _of("{:.1f}", 100)
decimal = _of("{:.3f}")
decimal_fine = _of("{:.4f}")
significant = _of("{:.3g}")
whole = _of("{:,.0f}")
megabytes = _of("{:,.2f} MB", 1e-6)
FORMATS: Mapping[str, Format] = {
    "percent": percent,
    "percent_fine": percent_fine,
    "points": points,
    "points_bare": points_bare,
    "decimal": decimal,
    "decimal_fine": decimal_fine,
    "significant": significant,
    "whole": whole,
}


def milliseconds(value: Any) -> str:
    """Three digits or so: 0.43 ms, 25.1 ms, 1,204 ms."""
    known = number(value)
    if known is None:
        return UNKNOWN
    digits = 2 if abs(known) < 10 else 1 if abs(known) < 100 else 0
    return f"{known:,.{digits}f}{SPACE}ms"


def duration(value: Any) -> str:
    """Seconds as 41 s, 25 min or 1 h 12 min."""
    known = number(value)
    if known is None:
        return UNKNOWN
    if known < 100:
        return f"{known:.0f}{SPACE}s"
    hours, minutes = divmod(round(known / 60), 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min"


def millions(value: Any) -> str:
    """A count of parameters: 0.97 million."""
    known = number(value)
    return (
        UNKNOWN
        if known is None
        else whole(known)
        if known < 1e4
        else f"{known / 1e6:.2f}{SPACE}million"
    )


def low_high(value: Any, kind: str) -> str:
    """The ends of an interval: 63.6 to 74.9 %."""
    found, written = interval(value), FORMATS[kind]
    if found.low is None or found.high is None:
        return NO_INTERVAL
    low, high = written(found.low), written(found.high)
    unit = high.partition(SPACE)[2]
    return f"{low.removesuffix(SPACE + unit) if unit else low} to {high}"


def spread(value: Any, kind: str) -> str:
    """A value with its interval where it has one: 69.4 % (63.6 to 74.9)."""
    found = interval(value)
    text, ends = FORMATS[kind](found.value), low_high(found, kind)
    return (
        text
        if found.value is None or ends == NO_INTERVAL
        else f"{text} ({ends.partition(SPACE)[0]})"
    )


def digested(value: Any) -> Markup:
    """Text as HTML, every digest in it by its first twelve digits; the whole one is shown on hovering."""
    parts = []
    for index, part in enumerate(DIGEST.split(str(value))):
        parts.append(
            Markup('<code title="{}">{}</code>').format(part, part[:12])
            if index % 2
            else escape(part)
        )
    return Markup("").join(parts)


def status_of(value: Any) -> str:
    """A report's status; what is none of the known words counts as not run."""
    word = value.get("status") if isinstance(value, Mapping) else getattr(value, "status", None)
    return word if isinstance(word, str) and word in get_args(Status) else "not_run"


@dataclass(frozen=True)
class Named:
    """A metric's name for people, how its value is written (`kind`) and its loss (`loss`), and what it means."""

    name: str
    kind: str = "significant"
    loss: str = "significant"
    meaning: str = ""


METRICS: Mapping[str, Named] = {
    "balanced_accuracy": Named(
        "Balanced accuracy",
        "percent",
        meaning="Share of images recognised, averaged over diagnoses: a rare one counts as much as a frequent one.",
    ),
    "accuracy": Named(
        "Accuracy",
        "percent",
        meaning="Share of images whose first diagnosis is right; frequent diagnoses dominate it.",
    ),
    "macro_auroc": Named(
        "Macro AUROC",
        "decimal",
        meaning="How well each diagnosis is ranked above all others, averaged; 0.5 is guessing, 1 is perfect.",
    ),
    "malignant_auroc": Named(
        "Malignant AUROC",
        "decimal",
        meaning="Chance that a malignant image scores above a benign one; 0.5 is guessing, 1 is perfect.",
    ),
    "sensitivity": Named(
        "Sensitivity",
        "percent",
        meaning="Share of malignant images whose score reaches the threshold: what is found.",
    ),
    "specificity": Named(
        "Specificity",
        "percent",
        meaning="Share of benign images whose score stays below it: what is not a false alarm.",
    ),
    "ece": Named(
        "Calibration error (ECE)",
        "decimal",
        meaning="Mean gap between stated confidence and observed accuracy; 0 is perfect, lower is better.",
    ),
    "severity_kappa": Named(
        "Severity, quadratic weighted kappa",
        "decimal",
        meaning="Agreement with the graded severity beyond chance, far misses counting more; 1 is perfect.",
    ),
    "severity_mae": Named(
        "Severity, mean absolute error",
        "decimal",
        meaning="Mean distance from the graded severity, in levels; 0 is perfect, lower is better.",
    ),
    "dice": Named(
        "Lesion mask, Dice coefficient",
        "decimal",
        meaning="Overlap of the drawn lesion with the marked one, averaged over images; 0 is none, 1 is perfect.",
    ),
}

LIMITS: Mapping[str, Named] = {
    "non_finite": Named("Images with NaN or infinity", "whole", "whole"),
    "max_abs": Named("Largest difference of an output"),
    "top1_agreement": Named("Same first diagnosis", "percent_fine", "points"),
    "balanced_accuracy": Named("Balanced accuracy", "percent_fine", "percent_fine"),
    "macro_auroc": Named("Macro AUROC", "decimal_fine", "percent_fine"),
    "malignant_sensitivity": Named("Malignant sensitivity", "percent_fine", "points"),
    "worst_subgroup": Named("Worst subgroup's balanced accuracy", "percent_fine", "percent_fine"),
    "ece": Named("Calibration error (ECE)", "decimal_fine", "decimal_fine"),
    "level_agreement": Named("Same severity", "percent_fine", "points"),
    "severity_kappa": Named("Severity, quadratic weighted kappa", "decimal_fine", "decimal_fine"),
    "mask_overlap": Named("Overlap of the masks (Dice)", "decimal_fine", "decimal_fine"),
    "dice": Named("Lesion mask, Dice coefficient", "decimal_fine", "percent_fine"),
    "embedding_cosine": Named(
        "Cosine similarity of centred embeddings", "decimal_fine", "decimal_fine"
    ),
}

AGREEMENT: Mapping[str, Named] = {
    "top1": Named("Same first diagnosis", "percent_fine"),
    "cosine": Named("Cosine similarity of logits, lowest", "decimal_fine"),
    "kl": Named("KL divergence of probabilities, mean"),
    "max_abs": Named("Largest difference of an output"),
    "non_finite": Named("Images with NaN or infinity", "whole"),
    "recall_loss": Named("Recall lost", "points"),
}

COLUMNS: Mapping[str, str] = {
    "fitzpatrick": "Skin type (Fitzpatrick)",
    "sex": "Sex",
    "age_band": "Age in years",
    "site": "Body site",
}


def remark(note: Any) -> str:
    """A limit's note; one that names a subgroup (`age_band 30-49`) says so in words."""
    column, _, value = str(note or "").partition(" ")
    return f"{COLUMNS[column]}: {value}" if column in COLUMNS and value else str(note or "")


def agreement(name: str) -> Named:
    """How a number of a parity report's agreement is named and written, such as `recall_loss:mel`."""
    key, _, part = name.partition(":")
    known = AGREEMENT.get(key, Named(key))
    return Named(
        f"{known.name.removesuffix(', lowest')}: {part}" if part else known.name, known.kind
    )
