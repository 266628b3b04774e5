"""Map labels to the tree of diagnoses."""

import pytest

from dermedge.data.taxonomy import (
    ALIASES,
    SOURCE_ALIASES,
    TAXONOMY,
    lineage,
    malignancy,
    project,
    resolve,
)
from dermedge_runtime.errors import DataError


def test_the_tree_is_a_tree() -> None:
    for diagnosis in TAXONOMY.values():
        path = list(lineage(diagnosis.id))
        assert path[0] == diagnosis.id
        assert len(path) == len(set(path)) <= 5
        assert diagnosis.parent is None or diagnosis.parent in TAXONOMY


def test_a_wider_diagnosis_never_contradicts_a_narrower_one() -> None:
    for diagnosis in TAXONOMY.values():
        for wider in lineage(diagnosis.id):
            assert TAXONOMY[wider].malignant in (None, diagnosis.malignant), (diagnosis.id, wider)


def test_codes_and_names_are_unique() -> None:
    names = [d.name for d in TAXONOMY.values()]
    codes = [d.icd11 for d in TAXONOMY.values() if d.icd11]
    assert len(set(names)) == len(names)
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("label", "source", "expected", "malignant"),
    [
        ("akiec", "ham10000", "akiec", None),
        ("AKIEC", "isic2018", "akiec", None),
        ("AK", "isic2019", "ak", False),
        ("SCC", "isic2019", "scc", True),
        ("UNK", "isic2019", "other", None),
        ("ACK", "pad_ufes_20", "ak", False),
        ("SEK", "pad_ufes_20", "sk", False),
        ("seborrheic_keratosis", "isic2017", "sk", False),
        ("nevus", "isic2017", "nv", False),
        ("Bowen's disease", None, "bowen", True),
        ("Basal-cell  Carcinoma", None, "bcc", True),
        ("melanoma", "a set nobody knows", "mel", True),
    ],
)
def test_labels_of_the_public_sets(
    label: str, source: str | None, expected: str, malignant: bool | None
) -> None:
    found = resolve(label, source)
    assert (found.id, found.malignant) == (expected, malignant)


def test_every_alias_maps_to_a_diagnosis() -> None:
    for target in [
        *ALIASES.values(),
        *(t for labels in SOURCE_ALIASES.values() for t in labels.values()),
    ]:
        assert target in TAXONOMY


def test_an_unknown_label_is_refused_with_a_suggestion() -> None:
    with pytest.raises(DataError, match=r"'melonoma'.*Did you mean 'mel'"):
        resolve("melonoma")


def test_project_finds_the_narrowest_label_that_covers() -> None:
    ham = {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert project("sk", ham) == "bkl"
    assert project("ak", ham) == "akiec"
    assert project("lentigo_maligna", ham) == "mel"
    assert project("lentigo_maligna", ham | {"mel_in_situ"}) == "mel_in_situ"
    assert project("psoriasis", ham) is None


def test_several_diagnoses_have_a_label_only_if_it_covers_all_of_them() -> None:
    assert project("sk;lplk", ["nv", "bkl"]) == "bkl"
    assert project("sk;nv", ["nv", "bkl"]) is None
    assert project("sk;psoriasis", ["nv", "bkl"]) is None
    assert project("", ["nv"]) is None


def test_several_diagnoses_are_malignant_only_if_all_are() -> None:
    assert malignancy("mel;bcc") is True
    assert malignancy("sk;nv") is False
    assert malignancy("mel;nv") is None
    assert malignancy("mel;akiec") is None
    assert malignancy("") is None
