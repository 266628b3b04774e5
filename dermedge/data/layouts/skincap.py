"""SkinCAP: 4,000 photographs with captions by dermatologists, no official split.

The photographs are those of Fitzpatrick17k and DDI. The caption is the polished English
one, `caption_zh_polish_en`, or `caption_en` for a row without it. DermINO's released
code reads `caption_en`. The rows' `source` is skincap; `dermedge data check --teacher`
takes into account that the images are those of the two sets.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="skincap",
    title="SkinCAP",
    licence="CC-BY-NC-SA-4.0",
    citation=(
        "Zhou J. et al.: SkinCAP: a multi-modal dermatology dataset annotated with rich medical "
        "captions. arXiv:2405.18004 (2024)."
    ),
    homepage="https://huggingface.co/datasets/joshuachou/SkinCAP",
    parts=(Part(table=("skincap_v*.csv", "skincap*.csv"), images=("skincap*",)),),
    columns={
        "image": "skincap_file_path",
        "dx": "disease",
        "caption": "caption_zh_polish_en",
        "malignant": "malignant",
        "fitzpatrick": "fitzpatrick_scale",
    },
    fallbacks={"caption": "caption_en"},
    keep=("ori_file_path",),
    values={"fitzpatrick": {"-1": "", "-1.0": ""}},
    open_labels=True,
    modality="clinical",
    expected=4000,
    evidence=(
        "Licence from the data card; columns as public code reads skincap_v240623.csv, of which "
        "malignant and fitzpatrick_scale are named by one reader only."
    ),
)
