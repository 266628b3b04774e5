"""MED-NODE: photographs of 70 melanomas and 100 nevi, no official split.

The photographs are from Groningen. Each class has a folder.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="med_node",
    title="MED-NODE",
    licence="not stated (research)",
    citation=(
        "Giotis I. et al.: MED-NODE: a computer-assisted melanoma diagnosis system using "
        "non-dermoscopic images. Expert Syst Appl 42:6578-6585 (2015). "
        "doi:10.1016/j.eswa.2015.04.034."
    ),
    homepage="https://www.cs.rug.nl/~imaging/databases/melanoma_naevi/",
    parts=(
        Part(images=("melanoma", "naevus"), path=r"(?<![^/])(?P<label>melanoma|naevus)/[^/]+$"),
    ),
    columns={"dx": "label"},
    modality="clinical",
    expected=170,
    evidence=(
        "Folder names and counts as public code that reads complete_mednode_dataset.zip has them."
    ),
)
