"""ISIC 2018, task 3: HAM10000 for training, 193 + 1,512 more images, official split."""

from dermedge.data.layouts import Join, Layout, Part


def _part(name: str, split: str, joins: tuple[Join, ...] = ()) -> Part:
    return Part(
        table=(f"ISIC2018_Task3_{name}_GroundTruth.csv",),
        images=(f"ISIC2018_Task3_{name}_Input",),
        joins=joins,
        split=split,
    )


LAYOUT = Layout(
    name="isic2018",
    title="ISIC 2018 challenge, task 3",
    licence="CC-BY-NC-4.0",
    citation=(
        "Codella N. et al.: Skin lesion analysis toward melanoma detection 2018: a challenge "
        "hosted by the International Skin Imaging Collaboration (ISIC). arXiv:1902.03368 (2019). "
        "Tschandl P., Rosendahl C., Kittler H.: The HAM10000 dataset. Sci Data 5:180161 (2018). "
        "doi:10.1038/sdata.2018.161."
    ),
    homepage="https://challenge.isic-archive.com/data/#2018",
    parts=(
        _part("Training", "", (Join("ISIC2018_Task3_Training_LesionGroupings.csv", "image"),)),
        _part("Validation", "val"),
        _part("Test", "test"),
    ),
    columns={"image": "image", "lesion_id": "lesion_id"},
    keep=("diagnosis_confirm_type",),
    one_hot=("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"),
    modality="dermoscopic",
    expected=11720,
    evidence=(
        "Names of files, columns and labels are those of the challenge; the download itself was not"
        " seen."
    ),
)
