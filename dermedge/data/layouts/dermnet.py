"""DermNet as published on Kaggle: 19,559 photographs in 23 folders, official split.

Each folder is a mixture of diseases. It is mapped to the narrowest group of the
taxonomy that covers most of it.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="dermnet",
    title="DermNet (Kaggle, 23 classes)",
    licence="not stated (images copyright DermNet)",
    citation="DermNet, dermnet.com; folders by S. Goel, Kaggle: shubhamgoel27/dermnet (2020).",
    homepage="https://www.kaggle.com/datasets/shubhamgoel27/dermnet",
    parts=(
        Part(
            images=("train", "test"),
            path=r"(?<![^/])(?P<split>train|test)/(?P<label>[^/]+)/[^/]+$",
        ),
    ),
    columns={"dx": "label", "split": "split"},
    values={"split": {"train": ""}},
    open_labels=True,
    expected=19559,
    evidence=(
        "Folder names as public code that reads the Kaggle download has them; the count is from "
        "memory."
    ),
)
