"""ISIC 2019: 25,331 dermoscopic images of 8 classes, and 8,238 test images.

The training images are those of HAM10000, BCN20000 and MSK. The test images have one
more class, for lesions of none of the eight.
"""

from dermedge.data.layouts import Join, Layout, Part


def _part(name: str, split: str) -> Part:
    return Part(
        table=(f"ISIC_2019_{name}_GroundTruth.csv",),
        images=(f"ISIC_2019_{name}_Input",),
        joins=(Join(f"ISIC_2019_{name}_Metadata.csv", "image"),),
        split=split,
    )


LAYOUT = Layout(
    name="isic2019",
    title="ISIC 2019 challenge",
    licence="CC-BY-NC-4.0",
    citation=(
        "Tschandl P., Rosendahl C., Kittler H.: The HAM10000 dataset. Sci Data 5:180161 (2018). "
        "Codella N. et al.: arXiv:1710.05006 (2017). Combalia M. et al.: BCN20000: dermoscopic "
        "lesions in the wild. arXiv:1908.02288."
    ),
    homepage="https://challenge.isic-archive.com/data/#2019",
    parts=(_part("Training", ""), _part("Test", "test")),
    columns={
        "image": "image",
        "lesion_id": "lesion_id",
        "age": "age_approx",
        "sex": "sex",
        "site": "anatom_site_general",
    },
    one_hot=("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"),
    modality="dermoscopic",
    expected=33569,
    evidence=(
        "Names of files, columns and labels are those of the challenge; the download itself was not"
        " seen."
    ),
)
