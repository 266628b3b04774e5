"""University of Waterloo skin cancer set: 206 photographs with masks, melanoma or not.

The photographs are from DermIS and DermQuest. The set publishes no diagnosis for
lesions that are not melanomas. Their `dx` is empty, and their `malignant` is 0.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="waterloo",
    title="Skin cancer detection set of the University of Waterloo",
    licence="not stated (research)",
    citation=(
        "Glaister J., Amelard R., Wong A., Clausi D.A.: MSIM: multistage illumination modeling of "
        "dermatological photographs for illumination-corrected skin lesion analysis. IEEE Trans "
        "Biomed Eng 60:1873-1883 (2013)."
    ),
    homepage=(
        "https://uwaterloo.ca/vision-image-processing-lab/research-demos/skin-cancer-detection"
    ),
    parts=(
        Part(
            images=("melanoma", "notmelanoma"),
            masks_beside=True,
            path=r"(?<![^/])(?P<label>melanoma|notmelanoma)/(?P<atlas>[^/]+)/[^/]+_orig\.\w+$",
        ),
    ),
    columns={"dx": "label", "malignant": "label"},
    keep=("atlas",),
    values={
        "dx": {"melanoma": "mel", "notmelanoma": ""},
        "malignant": {"melanoma": "1", "notmelanoma": "0"},
    },
    image_suffix="_orig",
    mask_suffix="_contour",
    modality="clinical",
    expected=206,
    evidence=(
        "Folders and the endings _orig.jpg and _contour.png as several public readers have them."
    ),
)
