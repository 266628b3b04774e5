"""Format numbers and names for people; unknown values read "not measured"."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from markupsafe import Markup, escape

from dermedge_runtime.report import Interval, Status

UNKNOWN = "not measured"
NO_INTERVAL = "no interval"
# Between a number and its unit, so that a line never breaks there.
SPACE = "\u00a0"
DIGEST = re.compile(r"\b([0-9a-f]{32,64})\b")
Format = Callable[[object], str]


def finite_number(value: object) -> float | None:
    """Return a finite number as a float, None for anything else.

    Examples:
        >>> [finite_number(value) for value in (3, float("nan"), "3", True)]
        [3.0, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def read_interval(value: object) -> Interval:
    """Return an interval, also from its JSON; without a value for anything else.

    Examples:
        >>> read_interval({"value": 0.8, "low": 0.7, "high": 0.9}).high
        0.9
        >>> read_interval(None)
        Interval(value=None, low=None, high=None)
    """
    if isinstance(value, Mapping):
        value = Interval(*(finite_number(value.get(key)) for key in ("value", "low", "high")))
    if not isinstance(value, Interval):
        return Interval(None)
    return Interval(finite_number(value.value), finite_number(value.low), finite_number(value.high))


def _number_format(template: str, scale: float = 1.0) -> Format:
    def format_number(value: object) -> str:
        known = finite_number(value)
        if known is None:
            return UNKNOWN
        text = template.format(known * scale).replace(" ", SPACE)
        # A small negative number must not read -0.0.
        return text if re.search("[1-9]", text) else text.removeprefix("-")

    return format_number


percent = _number_format("{:.1f} %", 100)
percent_fine = _number_format("{:.2f} %", 100)
points = _number_format("{:.2f} points", 100)
points_bare = _number_format("{:.1f}", 100)
decimal = _number_format("{:.3f}")
decimal_fine = _number_format("{:.4f}")
significant = _number_format("{:.3g}")
whole = _number_format("{:,.0f}")
megabytes = _number_format("{:,.2f} MB", 1e-6)
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


def milliseconds(value: object) -> str:
    """Format a time in milliseconds with about three digits.

    Examples:
        >>> milliseconds(0.4321).split(), milliseconds(1203.6).split()
        (['0.43', 'ms'], ['1,204', 'ms'])
    """
    known = finite_number(value)
    if known is None:
        return UNKNOWN
    digits = 2 if abs(known) < 10 else 1 if abs(known) < 100 else 0
    return f"{known:,.{digits}f}{SPACE}ms"


def duration(value: object) -> str:
    """Format a time in seconds as 41 s, 25 min or 1 h 12 min.

    Examples:
        >>> duration(4320).split()
        ['1', 'h', '12', 'min']
    """
    known = finite_number(value)
    if known is None:
        return UNKNOWN
    if known < 100:
        return f"{known:.0f}{SPACE}s"
    hours, minutes = divmod(round(known / 60), 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min"


def millions(value: object) -> str:
    """Format a number of parameters in millions.

    Examples:
        >>> millions(968_123).split(), millions(512)
        (['0.97', 'million'], '512')
    """
    known = finite_number(value)
    if known is None:
        return UNKNOWN
    return whole(known) if known < 1e4 else f"{known / 1e6:.2f}{SPACE}million"


def interval_ends(value: object, kind: str) -> str:
    """Format the ends of an interval.

    Args:
        value: The interval, or its JSON.
        kind: A key of `FORMATS`.

    Examples:
        >>> interval_ends(Interval(0.694, 0.636, 0.749), "percent").replace(SPACE, " ")
        '63.6 to 74.9 %'
    """
    interval, write = read_interval(value), FORMATS[kind]
    if interval.low is None or interval.high is None:
        return NO_INTERVAL
    low, high = write(interval.low), write(interval.high)
    unit = high.partition(SPACE)[2]
    return f"{low.removesuffix(SPACE + unit) if unit else low} to {high}"


def with_interval(value: object, kind: str) -> str:
    """Format a value with its interval, if it has one.

    Args:
        value: The interval, or its JSON.
        kind: A key of `FORMATS`.

    Examples:
        >>> with_interval(Interval(0.694, 0.636, 0.749), "percent").replace(SPACE, " ")
        '69.4 % (63.6 to 74.9)'
    """
    interval = read_interval(value)
    text, ends = FORMATS[kind](interval.value), interval_ends(interval, kind)
    if interval.value is None or ends == NO_INTERVAL:
        return text
    return f"{text} ({ends.partition(SPACE)[0]})"


def shorten_digests(value: object) -> Markup:
    """Return text as HTML, with every digest cut to its first twelve digits.

    A tooltip shows the whole digest.

    Examples:
        >>> html = str(shorten_digests("weights " + "ab12" * 16))
        >>> html.endswith(">ab12ab12ab12</code>")
        True
    """
    parts = []
    for index, part in enumerate(DIGEST.split(str(value))):
        parts.append(
            Markup('<code title="{}">{}</code>').format(part, part[:12])
            if index % 2
            else escape(part)
        )
    return Markup("").join(parts)


def status_of(value: object) -> str:
    """Return the status of a report; `not_run` if it has no known status.

    Examples:
        >>> [status_of({"status": word}) for word in ("passed", "great")]
        ['passed', 'not_run']
    """
    word = value.get("status") if isinstance(value, Mapping) else getattr(value, "status", None)
    return word if isinstance(word, str) and word in get_args(Status) else "not_run"


@dataclass(frozen=True)
class MetricText:
    """Display name of a metric, with its format and its meaning.

    Attributes:
        name: Name for people.
        kind: Key of `FORMATS` for a value.
        loss: Key of `FORMATS` for a loss between two values.
        meaning: Explanation in one sentence.

    Examples:
        >>> FORMATS[EVALUATION_METRICS["accuracy"].kind](0.7).split()
        ['70.0', '%']
    """

    name: str
    kind: str = "significant"
    loss: str = "significant"
    meaning: str = ""


EVALUATION_METRICS: Mapping[str, MetricText] = {
    "balanced_accuracy": MetricText(
        "Balanced accuracy",
        "percent",
        meaning="Share of correct diagnoses, averaged over diagnoses. Rare and frequent diagnoses "
        "have the same weight.",
    ),
    "accuracy": MetricText(
        "Accuracy",
        "percent",
        meaning="Share of images with a correct first diagnosis. Frequent diagnoses dominate it.",
    ),
    "macro_auroc": MetricText(
        "Macro AUROC",
        "decimal",
        meaning="Ranking of each diagnosis above all others, averaged. 0.5 is guessing, 1 is "
        "perfect.",
    ),
    "malignant_auroc": MetricText(
        "Malignant AUROC",
        "decimal",
        meaning="Probability that a malignant image scores above a benign image. 0.5 is guessing, "
        "1 is perfect.",
    ),
    "sensitivity": MetricText(
        "Sensitivity",
        "percent",
        meaning="Share of malignant images with a score at or above the threshold: the detected "
        "ones.",
    ),
    "specificity": MetricText(
        "Specificity",
        "percent",
        meaning="Share of benign images with a score below the threshold: no false alarm.",
    ),
    "ece": MetricText(
        "Calibration error (ECE)",
        "decimal",
        meaning="Mean gap between predicted confidence and observed accuracy. 0 is perfect; lower "
        "is better.",
    ),
    "coverage": MetricText(
        "Coverage of conformal sets",
        "percent",
        meaning="Share of images whose conformal set holds the correct diagnosis.",
    ),
    "set_size": MetricText(
        "Size of conformal sets",
        "decimal",
        meaning="Mean number of diagnoses in a conformal set. Lower is more informative; 0 "
        "diagnoses are possible.",
    ),
    "referred": MetricText(
        "Referred",
        "percent",
        meaning="Share of images with the decision refer: a person must examine them.",
    ),
    "severity_kappa": MetricText(
        "Severity, quadratic weighted kappa",
        "decimal",
        meaning="Agreement with the graded severity beyond chance; large errors weigh more. 1 is "
        "perfect.",
    ),
    "severity_mae": MetricText(
        "Severity, mean absolute error",
        "decimal",
        meaning="Mean distance from the graded severity, in levels. 0 is perfect; lower is better.",
    ),
    "dice": MetricText(
        "Lesion mask, Dice coefficient",
        "decimal",
        meaning="Overlap of the predicted lesion with the marked one, averaged over images with a "
        "marked lesion. 0 is "
        "none, 1 is perfect.",
    ),
    "ood_flagged": MetricText(
        "Flagged as foreign",
        "percent",
        meaning="Share of images with an OOD score above the threshold. By the fit, 5 % of the "
        "val images are flagged. The decision for a flagged image is to refer.",
    ),
}

GATE_METRICS: Mapping[str, MetricText] = {
    "non_finite": MetricText("Images with NaN or infinity", "whole", "whole"),
    "max_abs": MetricText("Largest difference of an output, relative to its scale"),
    "top1_agreement": MetricText("Same first diagnosis", "percent_fine", "points"),
    "balanced_accuracy": MetricText("Balanced accuracy", "percent_fine", "percent_fine"),
    "macro_auroc": MetricText("Macro AUROC", "decimal_fine", "percent_fine"),
    "malignant_sensitivity": MetricText("Malignant sensitivity", "percent_fine", "points"),
    "worst_subgroup": MetricText(
        "Worst subgroup's balanced accuracy", "percent_fine", "percent_fine"
    ),
    "ece": MetricText("Calibration error (ECE)", "decimal_fine", "decimal_fine"),
    "conformal_coverage": MetricText("Coverage of conformal sets", "percent_fine", "points"),
    "worst_subgroup_coverage": MetricText(
        "Worst subgroup's coverage of conformal sets", "percent_fine", "points"
    ),
    "worst_label_coverage": MetricText(
        "Worst diagnosis' coverage of conformal sets", "percent_fine", "points"
    ),
    "level_agreement": MetricText("Same severity", "percent_fine", "points"),
    "severity_kappa": MetricText(
        "Severity, quadratic weighted kappa", "decimal_fine", "decimal_fine"
    ),
    "mask_overlap": MetricText("Overlap of the masks (Dice)", "decimal_fine", "decimal_fine"),
    "dice": MetricText("Lesion mask, Dice coefficient", "decimal_fine", "percent_fine"),
    "embedding_cosine": MetricText(
        "Cosine similarity of centred embeddings", "decimal_fine", "decimal_fine"
    ),
    "cam_cosine": MetricText(
        "Cosine similarity of class activation maps", "decimal_fine", "decimal_fine"
    ),
    "ood_retention": MetricText("Images not flagged as foreign", "percent_fine", "points"),
    "ood_rejection": MetricText(
        "Drawn images without skin, flagged as foreign", "percent_fine", "points"
    ),
}

AGREEMENT_METRICS: Mapping[str, MetricText] = {
    "top1": MetricText("Same first diagnosis", "percent_fine"),
    "cosine": MetricText("Cosine similarity of logits, lowest", "decimal_fine"),
    "kl": MetricText("KL divergence of probabilities, mean"),
    "max_abs": MetricText("Largest difference of an output"),
    "non_finite": MetricText("Images with NaN or infinity", "whole"),
    "recall_loss": MetricText("Recall lost", "points"),
}

COLUMN_TITLES: Mapping[str, str] = {
    "fitzpatrick": "Skin type (Fitzpatrick)",
    "sex": "Sex",
    "age_band": "Age in years",
    "site": "Body site",
    "modality": "Modality",
}


def format_note(note: object) -> str:
    """Format the note of a gate metric; spell out a subgroup that it names.

    Examples:
        >>> [format_note(note) for note in ("age_band 30-49", "may be chance", None)]
        ['Age in years: 30-49', 'may be chance', '']
    """
    column, _, value = str(note or "").partition(" ")
    if column in COLUMN_TITLES and value:
        return f"{COLUMN_TITLES[column]}: {value}"
    return str(note or "")


def describe_agreement(name: str) -> MetricText:
    """Return name and format of an agreement metric of a parity report.

    Args:
        name: Name in the report, such as `top1` or `recall_loss:mel`.

    Examples:
        >>> describe_agreement("recall_loss:mel").name
        'Recall lost: mel'
    """
    # Agreement per class or per output is written as `recall_loss:mel`.
    key, _, part = name.partition(":")
    known = AGREEMENT_METRICS.get(key, MetricText(key))
    title = f"{known.name.removesuffix(', lowest')}: {part}" if part else known.name
    return MetricText(title, known.kind)
