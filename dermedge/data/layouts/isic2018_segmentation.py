"""ISIC 2018, task 1: 2,594 + 100 + 1,000 dermoscopic images with masks, official split.

The set has no diagnosis.
"""

from dermedge.data.layouts import Layout, Part


def _part(name: str, split: str) -> Part:
    return Part(
        images=(f"ISIC2018_Task1-2_{name}_Input",),
        masks=(f"ISIC2018_Task1_{name}_GroundTruth",),
        split=split,
        path=r"[^/]+$",
    )


LAYOUT = Layout(
    name="isic2018_segmentation",
    title="ISIC 2018 challenge, task 1 (segmentation)",
    licence="CC-BY-NC-4.0",
    citation=(
        "Codella N. et al.: Skin lesion analysis toward melanoma detection 2018: a challenge "
        "hosted by the International Skin Imaging Collaboration (ISIC). arXiv:1902.03368 (2019). "
        "Tschandl P., Rosendahl C., Kittler H.: The HAM10000 dataset. Sci Data 5:180161 (2018). "
        "doi:10.1038/sdata.2018.161."
    ),
    homepage="https://challenge.isic-archive.com/data/#2018",
    parts=(_part("Training", ""), _part("Validation", "val"), _part("Test", "test")),
    columns={},
    modality="dermoscopic",
    expected=3694,
    evidence=(
        "Folder and file names of the training set as public code reads them; the others follow "
        "them."
    ),
)
