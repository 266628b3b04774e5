"""ISIC 2016, part 1: 900 + 379 dermoscopic images with lesion masks, official split.

The set has no diagnosis.
"""

from dermedge.data.layouts import Layout, Part


def _part(name: str, split: str) -> Part:
    return Part(
        images=(f"ISBI2016_ISIC_Part1_{name}_Data",),
        masks=(f"ISBI2016_ISIC_Part1_{name}_GroundTruth",),
        split=split,
        path=r"[^/]+$",
    )


LAYOUT = Layout(
    name="isic2016_segmentation",
    title="ISIC 2016 challenge, part 1 (segmentation)",
    licence="CC0-1.0",
    citation=(
        "Gutman D. et al.: Skin lesion analysis toward melanoma detection: a challenge at the "
        "International Symposium on Biomedical Imaging (ISBI) 2016, hosted by the International "
        "Skin Imaging Collaboration (ISIC). arXiv:1605.01397 (2016)."
    ),
    homepage="https://challenge.isic-archive.com/data/#2016",
    parts=(_part("Training", ""), _part("Test", "test")),
    columns={},
    mask_suffix="_Segmentation",
    modality="dermoscopic",
    expected=1279,
    evidence="Folder and file names as public code that reads the challenge's downloads has them.",
)
