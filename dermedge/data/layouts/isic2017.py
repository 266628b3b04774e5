"""ISIC 2017, part 3: 2,000 + 150 + 600 dermoscopic images, 3 classes, official split.

The classes are melanoma, seborrheic keratosis and nevus.
"""

from dermedge.data.layouts import Join, Layout, Part


def _part(name: str, split: str) -> Part:
    return Part(
        table=(f"ISIC-2017_{name}_Part3_GroundTruth.csv",),
        images=(f"ISIC-2017_{name}_Data",),
        joins=(Join(f"ISIC-2017_{name}_Data_metadata.csv", "image_id"),),
        masks=(f"ISIC-2017_{name}_Part1_GroundTruth",),
        split=split,
    )


LAYOUT = Layout(
    name="isic2017",
    title="ISIC 2017 challenge, part 3",
    licence="CC0-1.0",
    citation=(
        "Codella N. et al.: Skin lesion analysis toward melanoma detection: a challenge at the "
        "2017 International Symposium on Biomedical Imaging (ISBI), hosted by the International "
        "Skin Imaging Collaboration (ISIC). arXiv:1710.05006 (2017)."
    ),
    homepage="https://challenge.isic-archive.com/data/#2017",
    parts=(_part("Training", ""), _part("Validation", "val"), _part("Test_v2", "test")),
    columns={"image": "image_id", "age": "age_approximate", "sex": "sex"},
    one_hot=("melanoma", "seborrheic_keratosis"),
    otherwise="nevus",
    ignore=("*_superpixels.png",),
    modality="dermoscopic",
    expected=2750,
    evidence=(
        "Labels, ids, ages, sexes and the split agree with a re-packed copy of the set; the "
        "download itself was not seen."
    ),
)
