"""ACNE04: 1,457 photographs of faces with acne, four levels of severity, lesion counts.

The levels are those of Hayashi. The lists of the five folds hold file name, level and
count. The first fold is the split here, as in the authors' code. Without the lists, the
level is read from folders called acne0 to acne3, which some copies have.
"""

from dermedge.data.layouts import Layout, Part

_LIST = r"^(?P<image>\S+\.jpe?g)\s+(?P<severity>[0-3])\s+(?P<lesions>\d+)\s*$"

LAYOUT = Layout(
    name="acne04",
    title="ACNE04",
    licence="not stated (academic research only)",
    citation=(
        "Wu X. et al.: Joint acne image grading and counting via label distribution learning. "
        "IEEE/CVF International Conference on Computer Vision (ICCV) 2019."
    ),
    homepage="https://github.com/xpwu95/LDL",
    parts=(
        Part(table=("NNEW_trainval_0.txt",), images=("JPEGImages",), line=_LIST),
        Part(table=("NNEW_test_0.txt",), images=("JPEGImages",), line=_LIST, split="test"),
        Part(
            images=("acne?*",),
            path=r"(?<![^/])acne(?P<severity>[0-3])(?:_\d+)?/[^/]+$",
            instead=True,
        ),
    ),
    columns={"image": "image", "severity": "severity"},
    keep=("lesions",),
    otherwise="acne",
    modality="clinical",
    expected=1457,
    evidence=(
        "File names and columns as public code that reads the lists has them (the five folds' "
        "NNEW_*.txt)."
    ),
)
