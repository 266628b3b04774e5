"""PH2: 200 dermoscopic images with masks, no official split.

The set holds 80 common nevi, 80 atypical nevi and 40 melanomas. Each row has the
diagnosis and the mask. PH2_dataset.txt is read. PH2_dataset.xlsx in the download
has the same content.
"""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="ph2",
    title="PH2",
    licence="not stated (research and education only)",
    citation=(
        "Mendonca T., Ferreira P.M., Marques J.S., Marcal A.R.S., Rozeira J.: PH2 - a dermoscopic "
        "image database for research and benchmarking. 35th IEEE EMBC 2013, 5437-5440. "
        "doi:10.1109/EMBC.2013.6610779."
    ),
    homepage="https://www.fc.up.pt/addi/ph2%20database.html",
    parts=(
        Part(
            table=("PH2_dataset.txt",),
            images=("IMD*_Dermoscopic_Image",),
            masks=("IMD*_lesion",),
            line=(
                r"^\|\|\s*(?P<name>IMD\d+)\s*\|\|(?P<histology>[^|]*)\|\|\s*(?P<diagnosis>[012])\s*\|\|"
                r"\s*(?P<asymmetry>[^|]*)\|"
            ),
        ),
    ),
    columns={"image": "name", "dx": "diagnosis"},
    keep=("histology", "asymmetry"),
    mask_suffix="_lesion",
    modality="dermoscopic",
    expected=200,
    evidence=(
        "Folders, file names, the form of PH2_dataset.txt and its codes as several public readers "
        "have them."
    ),
)
