"""DDI: 656 photographs of biopsied lesions of 570 patients, with 78 diagnoses.

The set is balanced over three ranges of skin tone. `skin_tone` is a pair of Fitzpatrick
types (12, 34 or 56) and is kept in that form. `fitzpatrick` stays empty, because either
type of a pair would be a guess. `dermedge.data.skin_tones` reads both columns, so that
subgroups can be compared.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="ddi",
    title="Diverse Dermatology Images (DDI)",
    licence="Stanford University Dataset Research Use Agreement (non-commercial)",
    citation=(
        "Daneshjou R. et al.: Disparities in dermatology AI performance on a diverse, curated "
        "clinical image set. Sci Adv 8:eabq6147 (2022). doi:10.1126/sciadv.abq6147."
    ),
    homepage="https://ddi-dataset.github.io/",
    parts=(Part(table=("ddi_metadata.csv",), images=("*",)),),
    columns={"image": "DDI_file", "dx": "disease", "malignant": "malignant"},
    keep=("skin_tone",),
    open_labels=True,
    modality="clinical",
    expected=656,
    evidence="Columns and the 78 labels as DDI-Dataset/DDI-Code and other public code read them.",
)
