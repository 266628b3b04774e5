"""ISIC 2017, part 1: 2,000 + 150 + 600 dermoscopic images, masks, official split.

The set has no diagnosis. The layout isic2017 reads the same images with their
diagnoses, and these masks too if they are present.
"""

from dermedge.data.layouts import Layout, Part


def _part(name: str, split: str) -> Part:
    return Part(
        images=(f"ISIC-2017_{name}_Data",),
        masks=(f"ISIC-2017_{name}_Part1_GroundTruth",),
        split=split,
        path=r"[^/]+$",
    )


LAYOUT = Layout(
    name="isic2017_segmentation",
    title="ISIC 2017 challenge, part 1 (segmentation)",
    licence="CC0-1.0",
    citation=(
        "Codella N. et al.: Skin lesion analysis toward melanoma detection: a challenge at the "
        "2017 International Symposium on Biomedical Imaging (ISBI), hosted by the International "
        "Skin Imaging Collaboration (ISIC). arXiv:1710.05006 (2017)."
    ),
    homepage="https://challenge.isic-archive.com/data/#2017",
    parts=(_part("Training", ""), _part("Validation", "val"), _part("Test_v2", "test")),
    columns={},
    ignore=("*_superpixels.png",),
    modality="dermoscopic",
    expected=2750,
    evidence="Folder and file names as public code that reads the challenge's downloads has them.",
)
