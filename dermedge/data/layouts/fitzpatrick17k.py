"""Fitzpatrick17k: 16,577 photographs of 114 conditions, with skin types.

The photographs are from two atlases. The set is a table of addresses. Get the images
from its authors, as <md5hash>.jpg, in any folder; nothing is downloaded here.

The diagnosis is one of 114. `--column dx=nine_partition_label` and
`--column dx=three_partition_label` read the nine-way and the three-way labels instead.
`malignant` is 1 for the malignant class of the three-way label and 0 for the other two.

The labels are known to be noisy, and some pictures occur twice.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="fitzpatrick17k",
    title="Fitzpatrick17k",
    licence="CC-BY-NC-SA-3.0",
    citation=(
        "Groh M. et al.: Evaluating deep neural networks trained on clinical images in dermatology"
        " with the Fitzpatrick 17k dataset. arXiv:2104.09957 (2021)."
    ),
    homepage="https://github.com/mattgroh/fitzpatrick17k",
    parts=(Part(table=("fitzpatrick17k.csv",), images=("*",)),),
    columns={
        "image": "md5hash",
        "dx": "label",
        "malignant": "three_partition_label",
        "fitzpatrick": "fitzpatrick_scale",
    },
    keep=("label", "nine_partition_label", "three_partition_label", "fitzpatrick_centaur", "qc"),
    values={
        "malignant": {"malignant": "1", "benign": "0", "non-neoplastic": "0"},
        "fitzpatrick": {"-1": ""},
    },
    open_labels=True,
    modality="clinical",
    expected=16577,
    evidence=(
        "Licence and count from the repository's README; columns and labels as public code reads "
        "them."
    ),
)
