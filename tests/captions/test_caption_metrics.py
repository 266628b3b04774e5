"""Metrics of captions agree with the libraries, in each replicate of the bootstrap too."""

import numpy as np
import pytest
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from dermedge.captions.baseline import most_common_captions
from dermedge.captions.metrics import (
    balanced_measure,
    mean_measure,
    overlap_measures,
    perplexity_measure,
)
from dermedge.captions.naming import check_names, names_diagnosis, names_site

REFERENCES = [
    "Melanoma of the upper back in a 45-year-old man. The lesion is large and black.",
    "This image shows a melanocytic nevus on the face of a woman.",
    "Basal cell carcinoma of the nose, with a regular border.",
    "The diagnosis is dermatofibroma, found on the lower extremity.",
]
CAPTIONS = [
    "Melanoma of the back in a 50-year-old man. The lesion is large and dark brown.",
    "This image shows melanocytic nevi on the face of a man.",
    "Actinic keratosis of the nose, with a border that is regular.",
    "The diagnosis is dermatofibroma, found on the trunk of a patient.",
]
ONCE = np.ones(4)


@pytest.fixture(scope="module")
def measures() -> dict[str, object]:
    return overlap_measures(CAPTIONS, REFERENCES)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_is_that_of_sacrebleu(measures: dict[str, object], order: int) -> None:
    bleu = BLEU(max_ngram_order=order, smooth_method="none")
    whole = bleu.corpus_score(CAPTIONS, [REFERENCES]).score / 100
    assert 0 < whole < 1
    assert float(measures[f"bleu_{order}"](ONCE)) == pytest.approx(whole)
    # A replicate that draws a row twice is a corpus that holds it twice.
    rows = [0, 0, 1, 3]
    drawn = bleu.corpus_score([CAPTIONS[r] for r in rows], [[REFERENCES[r] for r in rows]])
    both = measures[f"bleu_{order}"](np.array([[2.0, 1, 0, 1], ONCE]))
    assert both.tolist() == pytest.approx([drawn.score / 100, whole])


def test_bleu_without_a_match_is_zero() -> None:
    found = overlap_measures(["Entirely different words here now."], ["A nevus of the face."])
    assert float(found["bleu_4"](np.ones(1))) == 0


def test_rouge_and_meteor_are_the_means_of_the_libraries(measures: dict[str, object]) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = list(zip(CAPTIONS, REFERENCES, strict=True))
    rouge = [scorer.score(r, c)["rougeL"].fmeasure for c, r in pairs]
    assert float(measures["rouge_l"](ONCE)) == pytest.approx(np.mean(rouge))
    assert float(measures["rouge_l"](np.array([0.0, 3, 0, 1]))) == pytest.approx(
        (3 * rouge[1] + rouge[3]) / 4
    )

    class Nothing:
        def synsets(self, word: str) -> list[object]:
            return []

    words = [[w.strip(".,").lower() for w in text.split()] for text in (CAPTIONS[1], REFERENCES[1])]
    single = single_meteor_score(words[1], words[0], wordnet=Nothing())
    assert float(measures["meteor_stem"](np.eye(4)[1])) == pytest.approx(single)


def test_cider_prefers_the_right_caption(measures: dict[str, object]) -> None:
    perfect = overlap_measures(REFERENCES, REFERENCES)["cider_d"](ONCE)
    shuffled = overlap_measures(REFERENCES[1:] + REFERENCES[:1], REFERENCES)["cider_d"](ONCE)
    assert perfect > measures["cider_d"](ONCE) > shuffled


def test_identical_captions_have_full_marks() -> None:
    same = overlap_measures(REFERENCES, REFERENCES)
    for name in ("bleu_1", "bleu_4", "rouge_1", "rouge_l"):
        assert float(same[name](ONCE)) == pytest.approx(1)


def test_perplexity_weighs_by_tokens() -> None:
    measure = perplexity_measure(np.array([2.0, 4.0]), [1, 7])
    assert float(measure(np.array([3.0, 1.0]))) == pytest.approx(np.exp(10 / 10))


def test_the_balanced_mean_counts_each_class_once() -> None:
    values = np.array([1.0, 1.0, 0.0, np.nan])
    measure = balanced_measure(values, ["nv", "nv", "mel", "bcc"])
    assert measure(np.array([[1.0, 1, 1, 1], [5, 0, 1, 1], [1, 1, 0, 1]])).tolist() == [0.5, 0.5, 1]
    assert float(mean_measure(values)(ONCE)) == pytest.approx(2 / 3)


class TestNames:
    @pytest.mark.parametrize(
        ("caption", "diagnosis", "right"),
        [
            ("A melanoma of the back.", "mel", True),
            ("A MELANOMA.", "mel", True),
            ("Melanocytic nevi on the trunk.", "nv", True),
            ("A superficial basal cell carcinoma.", "bcc", True),
            ("A melanoma.", "mel_in_situ", False),
            ("A melanocytic lesion, most likely a melanoma.", "mel", True),
            ("A melanoma, not a nevus.", "mel", False),
            ("Actinic keratosis or Bowen's disease on the face.", "akiec", True),
            ("A benign lesion.", "nv", False),
            ("Eczema of the hand.", "eczema;psoriasis", True),
            ("Eczema or psoriasis.", "eczema;psoriasis", True),
            ("Eczema or a nevus.", "eczema;psoriasis", False),
            ("", "nv", False),
        ],
    )
    def test_a_diagnosis_is_named_alone_or_more_narrowly(
        self, caption: str, diagnosis: str, right: bool
    ) -> None:
        assert names_diagnosis(caption, diagnosis) is right

    def test_of_two_sites_the_longer_counts(self) -> None:
        sites = ["back", "upper back", "face"]
        assert names_site("On the upper back.", "upper back", sites)
        assert not names_site("On the upper back.", "back", sites)
        assert not names_site("On the face and back.", "face", sites)
        assert not names_site("Background of erythema.", "back", sites)

    def test_rows_of_unknown_diagnosis_and_site_do_not_count(self) -> None:
        diagnosis, site = check_names(["A nevus.", "A nevus."], ["", "nv"], ["face", ""])
        assert np.isnan(diagnosis).tolist() == [True, False]
        assert np.isnan(site).tolist() == [False, True]


def test_the_baseline_is_the_most_common_caption_of_the_predicted_label() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(2, 8)
    labels = ["nv"] * 30 + ["mel"] * 10
    gallery = centres[[0] * 30 + [1] * 10] + 0.05 * rng.standard_normal((40, 8))
    captions = ["a"] * 10 + ["b"] * 20 + ["d", "c"] * 5
    found = most_common_captions(
        gallery.astype(np.float32), labels, captions, centres[[1, 0]].astype(np.float32)
    )
    assert found == ["c", "b"]
