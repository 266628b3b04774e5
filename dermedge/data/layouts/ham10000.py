"""HAM10000: 10,015 dermoscopic images of 7,470 lesions, 7 classes.

The set is published on Harvard Dataverse; Kaggle has the same files.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="ham10000",
    title="HAM10000",
    licence="CC-BY-NC-4.0",
    citation=(
        "Tschandl P., Rosendahl C., Kittler H.: The HAM10000 dataset, a large collection of "
        "multi-source dermatoscopic images of common pigmented skin lesions. Sci Data 5:180161 "
        "(2018). doi:10.1038/sdata.2018.161. Masks: Tschandl P. et al.: Human-computer "
        "collaboration for skin cancer recognition. Nat Med 26:1229-1234 (2020)."
    ),
    homepage="https://doi.org/10.7910/DVN/DBW86T",
    parts=(
        Part(
            table=("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"),
            images=("HAM10000_images_part_*",),
            masks=("HAM10000_segmentations*",),
        ),
    ),
    columns={
        "image": "image_id",
        "lesion_id": "lesion_id",
        "dx": "dx",
        "age": "age",
        "sex": "sex",
        "site": "localization",
    },
    keep=("dx_type", "dataset"),
    modality="dermoscopic",
    expected=10015,
    evidence=(
        "Labels, ids, ages and sexes agree with a re-packed copy of the set; the download itself "
        "was not seen."
    ),
)
