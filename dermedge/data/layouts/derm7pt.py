"""Derm7pt (seven-point checklist): 1,011 lesions, two images of each, official split.

The dermoscopic and the clinical image of a case share a lesion_id; `view` distinguishes
them. The files meta/*_indexes.csv list rows of meta/meta.csv.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="derm7pt",
    title="Derm7pt (seven-point checklist)",
    licence="not stated (academic, non-commercial research)",
    citation=(
        "Kawahara J., Daneshvar S., Argenziano G., Hamarneh G.: Seven-point checklist and skin "
        "lesion classification using multitask multimodal neural nets. IEEE J Biomed Health Inform"
        " 23:538-546 (2019). doi:10.1109/JBHI.2018.2824327."
    ),
    homepage="https://derm.cs.sfu.ca",
    parts=(
        Part(
            table=("meta.csv",),
            images=("images",),
            splits={
                "train": "train_indexes.csv",
                "val": "valid_indexes.csv",
                "test": "test_indexes.csv",
            },
        ),
    ),
    columns={
        "lesion_id": "case_num",
        "dx": "diagnosis",
        "sex": "sex",
        "site": "location",
        "modality": "view",
        "split": "split",
    },
    views={"derm": "dermoscopic", "clinic": "clinical"},
    keep=(
        *(
            "seven_point_score",
            "pigment_network",
            "streaks",
            "pigmentation",
            "regression_structures",
        ),
        *("dots_and_globules", "blue_whitish_veil", "vascular_structures", "management"),
    ),
    expected=2022,
    evidence=(
        "Files, columns and labels as jeremykawahara/derm7pt reads them; that index 0 is the first"
        " row follows from its iloc. The column names case_num and management are from memory."
    ),
)
