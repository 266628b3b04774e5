"""Write made-up folders in the form of published sets, tiny and with few rows."""

from collections.abc import Callable
from pathlib import Path

from support.tables import save, write_csv


def acne04(root: Path) -> Path:
    for fold, split, levels in ((0, "trainval", [0, 3, 1]), (0, "test", [2])):
        names = [f"levle{level}_{10 * (split == 'test') + n}.jpg" for n, level in enumerate(levels)]
        lines = [
            f"{name}  {level}  {5 * level + 1}" for name, level in zip(names, levels, strict=True)
        ]
        for n, name in enumerate(names):
            save(root / "Classification" / "JPEGImages" / name, 10 * (split == "test") + n)
        (root / "Classification" / f"NNEW_{split}_{fold}.txt").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
    return root


def ddi(root: Path) -> Path:
    rows = []
    for n, (tone, malignant, disease) in enumerate(
        [
            (56, True, "melanoma-in-situ"),
            (12, False, "melanocytic-nevi"),
            (34, True, "squamous-cell-carcinoma-keratoacanthoma"),
            (56, False, "verruca-vulgaris"),
        ]
    ):
        name = f"{n + 1:06}.png"
        rows.append(
            {
                "": n,
                "DDI_ID": n + 1,
                "DDI_file": name,
                "skin_tone": tone,
                "malignant": malignant,
                "disease": disease,
            }
        )
        save(root / name, n)
    write_csv(root / "ddi_metadata.csv", rows)
    return root


def derm7pt(root: Path) -> Path:
    rows = []
    for n, label in enumerate(
        ["melanoma (in situ)", "clark nevus", "miscellaneous", "melanoma metastasis"]
    ):
        rows.append(
            {
                "case_num": n + 1,
                "diagnosis": label,
                "seven_point_score": n,
                "pigment_network": "atypical",
                "sex": "female",
                "location": "back",
                # The same name in two folders, and a suffix in another case than the
                # table's.
                "clinic": f"NEL/NEL{n:03}.jpg",
                "derm": f"FAL/NEL{n:03}.jpg",
            }
        )
        save(root / "release_v0" / "images" / "NEL" / f"NEL{n:03}.JPG", 2 * n, format="JPEG")
        save(root / "release_v0" / "images" / "FAL" / f"NEL{n:03}.jpg", 2 * n + 1)
    meta = root / "release_v0" / "meta"
    write_csv(meta / "meta.csv", rows)
    for name, indexes in (("train", [3, 0]), ("valid", [1]), ("test", [2])):
        write_csv(meta / f"{name}_indexes.csv", [{"indexes": index} for index in indexes])
    return root


def dermnet(root: Path) -> Path:
    classes = ["Melanoma Skin Cancer Nevi and Moles", "Vascular Tumors", "Acne and Rosacea Photos"]
    for n, (part, label) in enumerate(
        (part, label) for part in ("train", "test") for label in classes
    ):
        save(root / part / label / "lesion-1.jpg", n)
    return root


def fitzpatrick17k(root: Path) -> Path:
    rows = []
    for n, (label, nine, three, scale) in enumerate(
        [
            ("psoriasis", "inflammatory", "non-neoplastic", 3),
            ("keratoacanthoma like", "malignant epidermal", "malignant", -1),
            ("becker nevus", "benign melanocyte", "benign", 6),
            ("superficial spreading melanoma ssm", "malignant melanoma", "malignant", 1),
        ]
    ):
        name = f"{n:032x}"
        rows.append(
            {
                "md5hash": name,
                "fitzpatrick_scale": scale,
                "fitzpatrick_centaur": scale,
                "label": label,
                "nine_partition_label": nine,
                "three_partition_label": three,
                "qc": "",
                "url": f"https://atlas.invalid/{n},{n}.jpg",
                "url_alphanum": f"{n}.jpg",
            }
        )
        save(root / "images" / f"{name}.jpg", n)
    write_csv(root / "fitzpatrick17k.csv", rows)
    return root


def masked(root: Path, images: str, masks: str, ending: str, seeds: range) -> None:
    for n in seeds:
        save(root / images / f"ISIC_00000{n:02}.jpg", n)
        save(root / masks / f"ISIC_00000{n:02}{ending}.png", 100 + n)


def isic2016_segmentation(root: Path) -> Path:
    for part, seeds in (("Training", range(3)), ("Test", range(3, 5))):
        start = f"ISBI2016_ISIC_Part1_{part}"
        masked(root, f"{start}_Data", f"{start}_GroundTruth", "_Segmentation", seeds)
    return root


def isic2017_segmentation(root: Path) -> Path:
    for part, seeds in (
        ("Training", range(2)),
        ("Validation", range(2, 4)),
        ("Test_v2", range(4, 6)),
    ):
        start = f"ISIC-2017_{part}"
        masked(root, f"{start}_Data", f"{start}_Part1_GroundTruth", "_segmentation", seeds)
        for n in seeds:
            save(root / f"{start}_Data" / f"ISIC_00000{n:02}_superpixels.png", 200 + n)
    return root


def isic2018_segmentation(root: Path) -> Path:
    for part, seeds in (("Training", range(2)), ("Validation", range(2, 4)), ("Test", range(4, 6))):
        masked(
            root,
            f"ISIC2018_Task1-2_{part}_Input",
            f"ISIC2018_Task1_{part}_GroundTruth",
            "_segmentation",
            seeds,
        )
    return root


def med_node(root: Path) -> Path:
    for n, (label, name) in enumerate(
        [("melanoma", "1"), ("melanoma", "2"), ("naevus", "1"), ("naevus", "3")]
    ):
        save(root / "complete_mednode_dataset" / label / f"{name}.jpg", n)
    return root


def ph2(root: Path) -> Path:
    lines = [
        "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | "
        "Pigment Network | Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil "
        "||           Colors ||"
    ]
    for n, (histology, code) in enumerate([("", 0), ("Compound nevus", 1), ("Melanoma", 2)]):
        name = f"IMD{n + 2:03}"
        lines.append(
            f"|| {name} || {histology:22} ||                  {code} ||         {n} |   T |"
            "  A |  A |  A |  A ||"
        )
        folder = root / "PH2Dataset" / "PH2 Dataset images" / name
        save(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp", n)
        save(folder / f"{name}_lesion" / f"{name}_lesion.bmp", 100 + n)
        save(folder / f"{name}_roi" / f"{name}_R1_Label1.bmp", 200 + n)
    lines += [
        "",
        "Legends:",
        "  Clinical Diagnosis: 0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma",
    ]
    (root / "PH2Dataset" / "PH2_dataset.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


def scin(root: Path) -> Path:
    cases, labels = [], []
    weights = [
        "{'Psoriasis': 0.41, 'Eczema': 0.59}",
        "{'SK/ISK': 0.5, 'Melanoma': 0.5}",
        "{}",
        "{'Moon rash': 1.0}",
    ]
    for n, weight in enumerate(weights):
        paths = [f"dataset/images/-{n}{k}.png" for k in range(3 if n == 0 else 1)]
        for path in paths:
            save(root / path, int(Path(path).stem[1:]))
        cases.append(
            {
                "case_id": f"-{n}00",
                "age_group": "AGE_30_TO_39",
                "sex_at_birth": ["FEMALE", "MALE", "OTHER_OR_UNSPECIFIED", ""][n],
                "fitzpatrick_skin_type": ["FST1", "FST6", "NONE_SELECTED", ""][n],
                **{f"image_{k + 1}_path": paths[k] if k < len(paths) else "" for k in range(3)},
            }
        )
        labels.append(
            {
                "case_id": f"-{n}00",
                "dermatologist_fitzpatrick_skin_type_label_1": "FST2",
                "weighted_skin_condition_label": weight,
            }
        )
    write_csv(root / "dataset" / "scin_cases.csv", cases)
    write_csv(root / "dataset" / "scin_labels.csv", labels[::-1])
    return root


def sd198(root: Path) -> Path:
    labels = ["Terry's_Nails", "Actinic_solar_Damage(Actinic_Keratosis)", "Malignant_Melanoma"]
    for n, label in enumerate(labels):
        save(root / "sd-198" / "images" / label / f"{n:06}.jpg", n)
    (root / "sd-198" / "classes.txt").write_text("1 x\n", encoding="utf-8")
    return root


def skincap(root: Path) -> Path:
    rows = []
    for n, (disease, caption) in enumerate(
        [
            ("psoriasis", 'Red plaques, with "silvery" scale.'),
            ("melanoma-in-situ", "A dark macule."),
            ("unheard of", ""),
        ]
    ):
        rows.append(
            {
                "id": n,
                "skincap_file_path": f"{n + 1}.png",
                "ori_file_path": f"{n:032x}.jpg",
                "disease": disease,
                "caption_zh": "x",
                "caption_zh_polish_en": caption,
                "caption_en": f"{caption} As translated." if caption else "",
                "malignant": n % 2,
                "fitzpatrick_scale": [2.0, "", -1][n],
            }
        )
        save(root / "skincap" / f"{n + 1}.png", n)
    write_csv(root / "skincap_v240623.csv", rows)
    return root


def waterloo(root: Path) -> Path:
    seed = 0
    for number, label in enumerate(["melanoma", "notmelanoma"], start=1):
        for atlas in ("dermis", "dermquest"):
            folder = root / f"Skin Image Data Set-{number}" / "skin_data" / label / atlas
            save(folder / "7_orig.jpg", seed)
            save(folder / "7_contour.png", 100 + seed)
            seed += 1
    return root


FOLDERS: dict[str, Callable[[Path], Path]] = {
    maker.__name__: maker
    for maker in (
        *(
            acne04,
            ddi,
            derm7pt,
            dermnet,
            fitzpatrick17k,
            isic2016_segmentation,
            isic2017_segmentation,
        ),
        *(isic2018_segmentation, med_node, ph2, scin, sd198, skincap, waterloo),
    )
}
