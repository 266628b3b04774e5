"""SD-198: 6,584 photographs of 198 conditions, one folder each.

Several splits of the set are in use; none of them is read.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="sd198",
    title="SD-198",
    licence="not stated (research)",
    citation=(
        "Sun X., Yang J., Sun M., Wang K.: A benchmark for automatic visual classification of "
        "clinical skin disease images. European Conference on Computer Vision (ECCV) 2016."
    ),
    homepage="",
    parts=(Part(images=("images",), path=r"(?<![^/])(?P<label>[^/]+)/[^/]+$"),),
    columns={"dx": "label"},
    open_labels=True,
    modality="clinical",
    expected=6584,
    evidence="Folder names, labels and count as public code that reads sd-198.zip has them.",
)
