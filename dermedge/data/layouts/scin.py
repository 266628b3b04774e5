"""SCIN: about 10,000 photographs by web users, labelled by dermatologists.

Each of the 5,033 contributions has up to three images, which share a lesion_id.

- The diagnosis is the label with the largest weight in `weighted_skin_condition_label`,
  the first among equals. `--column dx=dermatologist_skin_condition_on_label_name` reads
  all labels of the dermatologists instead.
- The skin type is the contributor's own statement. The dermatologists' estimates are
  kept in columns of their own.
- Ages are ranges and are kept in a column of their own.
- Some images are listed more than once; the first row counts.
"""

from dermedge.data.layouts import Join, Layout, Part

LAYOUT = Layout(
    name="scin",
    title="SCIN (Skin Condition Image Network)",
    licence="SCIN Data Use License",
    citation=(
        "Ward A. et al.: Creating an empirical dermatology dataset through crowdsourcing with web "
        "search advertisements. JAMA Netw Open 7:e2446615 (2024)."
    ),
    homepage="https://github.com/google-research-datasets/scin",
    parts=(
        Part(
            table=("scin_cases.csv",),
            images=("*",),
            joins=(Join("scin_labels.csv", "case_id", on="case_id"),),
        ),
    ),
    columns={
        "lesion_id": "case_id",
        "dx": "weighted_skin_condition_label",
        "sex": "sex_at_birth",
        "fitzpatrick": "fitzpatrick_skin_type",
    },
    views={"image_1_path": "image 1", "image_2_path": "image 2", "image_3_path": "image 3"},
    keep=(
        *("age_group", "related_category", "weighted_skin_condition_label"),
        *(f"dermatologist_fitzpatrick_skin_type_label_{n}" for n in (1, 2, 3)),
        *("monk_skin_tone_label_india", "monk_skin_tone_label_us"),
    ),
    weighted=True,
    values={
        "fitzpatrick": {**{f"FST{n}": str(n) for n in range(1, 7)}, "NONE_SELECTED": ""},
        "sex": {"other_or_unspecified": ""},
    },
    open_labels=True,
    modality="clinical",
    evidence=(
        "Columns and values from the repository's dataset_schema.md; file names as public code "
        "reads them."
    ),
)
