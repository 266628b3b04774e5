"""PAD-UFES-20: 2,298 smartphone photographs of 1,641 lesions, 6 classes.

The lesions are of 1,373 patients. The set is published on Mendeley Data.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="pad_ufes_20",
    title="PAD-UFES-20",
    licence="CC-BY-4.0",
    citation=(
        "Pacheco A.G.C. et al.: PAD-UFES-20: a skin lesion dataset composed of patient data and "
        "clinical images collected from smartphones. Data in Brief 32:106221 (2020). "
        "doi:10.1016/j.dib.2020.106221."
    ),
    homepage="https://doi.org/10.17632/zr7vgbcyr2.1",
    parts=(Part(table=("metadata.csv",), images=("imgs_part_*", "images")),),
    columns={
        "image": "img_id",
        "lesion_id": "lesion_id",
        "patient_id": "patient_id",
        "dx": "diagnostic",
        "age": "age",
        "sex": "gender",
        "site": "region",
        "fitzpatrick": "fitspatrick",
    },
    keep=("biopsed", "diameter_1", "diameter_2"),
    modality="clinical",
    expected=2298,
    evidence=(
        "Labels, ids and the clinical columns agree with a re-packed copy of part of the set; the "
        "download itself was not seen."
    ),
)
