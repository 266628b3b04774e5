"""Metrics of captions as functions of bootstrap weights, from published libraries.

Each library gives values or counts per caption. A replicate of the bootstrap then costs
a weighted sum.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation.metrics import (
    Floats,
    Statistic,
    mean_of_known,
    ratio,
    weighted_mean,
)
from dermedge_runtime.errors import MissingExtraError

ORDERS = (1, 2, 4)
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def overlap_measures(captions: Sequence[str], references: Sequence[str]) -> dict[str, Statistic]:
    """Return the metrics that compare captions [N] with their references [N].

    - `bleu_1`, `bleu_2`, `bleu_4`: BLEU of the corpus by sacrebleu's counts, with its
      tokenizer 13a, one reference and no smoothing.
    - `rouge_1`, `rouge_2`, `rouge_l`: mean F-measure of rouge-score with stemming.
    - `meteor_stem`: mean METEOR of nltk with exact and stemmed matches. Synonyms need
      WordNet, which is not used, so it is lower than METEOR.
    - `cider_d`: mean CIDEr-D of pycocoevalcap. Words are lower-case and without
      punctuation, and not tokenized by Java's PTBTokenizer. The document frequencies
      are those of all references, in each replicate too.

    Example:
        >>> texts = ["a melanoma of the upper back", "a nevus of the face"]
        >>> measures = overlap_measures(texts, texts)
        >>> [round(float(measures[name](np.ones(2))), 2) for name in ("bleu_4", "rouge_l")]
        [1.0, 1.0]

    Raises:
        MissingExtraError: A package of the extra `captions` is not installed.

    Sources: Papineni et al., BLEU, ACL 2002. Lin, ROUGE, 2004. Banerjee and Lavie,
    METEOR, 2005. Vedantam et al., CIDEr, CVPR 2015.
    """
    try:
        means = {
            **_rouge(captions, references),
            "meteor_stem": _meteor(captions, references),
            "cider_d": _cider(captions, references),
        }
        counts = _count_ngrams(captions, references)
    except ImportError as error:
        package = error.name or "sacrebleu"
        raise MissingExtraError(package, "captions", "The evaluation of captions") from error
    bleu = {f"bleu_{order}": _bleu_measure(counts, order) for order in ORDERS}
    return bleu | {name: mean_measure(values) for name, values in means.items()}


def mean_measure(values: Floats) -> Statistic:
    """Return the mean of values [N] as a measure, over those that are not NaN."""
    known = ~np.isnan(values)
    return lambda weights: weighted_mean(values[known], weights[..., known])


def balanced_measure(values: Floats, classes: Sequence[str]) -> Statistic:
    """Return the mean over classes of the mean of values [N], as a measure.

    Values that are NaN are left out, and classes without a value.

    Example:
        >>> measure = balanced_measure(np.array([1.0, 1.0, 0.0]), ["nv", "nv", "mel"])
        >>> float(measure(np.ones(3)))
        0.5
    """
    known = np.flatnonzero(~np.isnan(values))
    names, index = np.unique(np.asarray(classes)[known], return_inverse=True)
    member = np.eye(len(names))[index]

    def measure(weights: Floats) -> Floats:
        chosen = weights[..., known]
        return mean_of_known(ratio(chosen @ (member * values[known, None]), chosen @ member))

    return measure


def perplexity_measure(likelihoods: Floats, tokens: Sequence[int]) -> Statistic:
    """Return the perplexity per token as a measure.

    Args:
        likelihoods: Negative log-likelihood [N] of each caption in nats.
        tokens: Number of tokens [N] of each caption.

    Example:
        >>> measure = perplexity_measure(np.array([2.0, 4.0]), [1, 2])
        >>> round(float(measure(np.ones(2))), 3)  # exp(6 / 3)
        7.389
    """
    counts = np.asarray(tokens, np.float64)
    return lambda weights: np.exp(ratio(weights @ likelihoods, weights @ counts))


def _count_ngrams(captions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """Return sacrebleu's counts [N, 10]: lengths, then matches and totals of 1- to 4-grams."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(smooth_method="none", effective_order=True)
    scores = [
        bleu.sentence_score(caption, [reference])
        for caption, reference in zip(captions, references, strict=True)
    ]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], np.float64)


def _bleu_measure(counts: NDArray[np.float64], order: int) -> Statistic:
    """Return BLEU with 1- to `order`-grams, from the counts of each caption."""

    def measure(weights: Floats) -> Floats:
        sums = weights @ counts
        length, reference = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.exp(np.log(matches / totals).mean(-1))
            brevity = np.exp(np.minimum(0, 1 - reference / length))
        # Without a match of some order, BLEU is 0.
        return np.where((totals > 0).all(-1) & (matches > 0).all(-1), precision * brevity, 0.0)

    return measure


def _rouge(captions: Sequence[str], references: Sequence[str]) -> Mapping[str, Floats]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = [
        scorer.score(reference, caption)
        for caption, reference in zip(captions, references, strict=True)
    ]
    return {
        ours: np.array([score[name].fmeasure for score in scores]) for ours, name in ROUGE.items()
    }


class _NoSynonyms:
    """Stands for WordNet, whose data nltk would download."""

    def synsets(self, word: str) -> list[object]:
        return []


def _meteor(captions: Sequence[str], references: Sequence[str]) -> Floats:
    from nltk.translate.meteor_score import single_meteor_score

    scores = [
        single_meteor_score(_words(reference), _words(caption), wordnet=_NoSynonyms())
        for caption, reference in zip(captions, references, strict=True)
    ]
    return np.array(scores, np.float64)


def _cider(captions: Sequence[str], references: Sequence[str]) -> Floats:
    from pycocoevalcap.cider.cider import Cider

    def numbered(texts: Sequence[str]) -> dict[int, list[str]]:
        return {row: [" ".join(_words(text))] for row, text in enumerate(texts)}

    _, scores = Cider().compute_score(numbered(references), numbered(captions))
    return np.asarray(scores, np.float64)


def _words(text: str) -> list[str]:
    """Return the words of a text, lower-case and without punctuation."""
    return re.findall(r"\w+(?:[-'.]\w+)*", text.casefold())
