"""`write_reader_kit`: write the page on which readers answer the cases of a study."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermedge.data.table import Table, read_table
from dermedge.data.taxonomy import is_known, project
from dermedge.evaluation.known_images import find_known_images
from dermedge.readers.cells import BENIGN, MALIGNANT
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import DataError, ImageError, UsageError
from dermedge_runtime.files import atomic_folder, check_free, write_files
from dermedge_runtime.image import decode
from dermedge_runtime.predict import predict
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.registry import pick_known

PAGE, CASES, GUIDE = "study.html", "cases.csv", "README.md"
QUESTIONS: Mapping[str, str] = {
    "malignant": "Is the lesion malignant or benign?",
    "diagnosis": "What is the diagnosis?",
}
LABELS_SHOWN = 3
# Keys a to z choose an answer.
MOST_CHOICES = 26
# A photograph fills half of a large screen; with this quality no artefact is visible.
LARGEST_SIDE, QUALITY = 1024, 90
CASE_COLUMNS = ("dx", "fitzpatrick", "sex", "site", "modality", "patient_id")


@dataclass(frozen=True)
class ReaderKit:
    """Result of `write_reader_kit`.

    Attributes:
        page: The page for the readers.
        cases: The table of cases for `analyze_readers`; it holds the truth.
        count: Number of cases.
        size: Bytes of the page.
        known: Number of cases that the model was trained or selected on.

    Examples:
        >>> ReaderKit(Path("study.html"), Path("cases.csv"), 40, 900_000, 0).count
        40
    """

    page: Path
    cases: Path
    count: int
    size: int
    known: int


def write_reader_kit(
    bundle: str | Path | Bundle,
    *,
    cases: str | Path,
    out: str | Path,
    question: str = "malignant",
    washout_days: float = 14.0,
    title: str = "Reader study",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReaderKit:
    """Write the offline page of a reader study, and its table of cases.

    The page holds the photographs and the bundle's predictions, but not the truth. Each
    reader sees every case without the model, and after the wash-out with it. The order
    is random for each reader and condition. The answers are saved as a CSV file that
    `analyze_readers` reads.

    The page and the table hold patient data. Keep them within the study.

    Args:
        bundle: The bundle whose predictions are shown.
        cases: Data set with one row per case: a folder with a table, or a table.
        out: Folder to write, outside the bundle.
        question: `malignant` (or benign), or `diagnosis` among the bundle's labels.
        washout_days: Least days between the first list and the second one.
        title: Title of the page.
        seed: Random seed of the case numbers and of every reader's order.
        overwrite: Replace a folder that this function wrote.
        progress: Called after every case.

    Raises:
        UsageError: The bundle does not answer the question, or `out` exists or lies in
            the bundle.
        DataError: A case has no truth, or its image is not readable.
        BundleError: The bundle is damaged.

    Example:
        >>> kit = write_reader_kit("toy.dermedge", cases="lesions", out="kit")
        >>> kit.count, kit.page.name
        (80, 'study.html')
    """
    pick_known("question", question, QUESTIONS)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    out = Path(out)
    _refuse_bundle(opened.path, out)
    check_free(out, overwrite=overwrite, marker=CASES)
    choices = _list_choices(opened, question)
    table = read_table(cases)
    truth = _find_truth(table, question, [choice["id"] for choice in choices])
    # Case numbers in the order of the table could tell the diagnosis.
    order = np.random.default_rng(seed).permutation(len(table))
    table = table.replace(table.frame.iloc[order])
    truth = [truth[row] for row in order]
    shown, rows = [], []
    for number, (image, prediction) in enumerate(_predict(opened, table, progress), 1):
        case = f"c{number:04d}"
        shown.append({"id": case, "image": image, "prediction": _describe(prediction, question)})
        rows.append({"case": case, "truth": truth[number - 1], **_answer(prediction, question)})
    study = {
        "title": title,
        "question": QUESTIONS[question],
        "choices": choices,
        "seed": seed,
        "washoutDays": washout_days,
        "bundle": opened.id,
        "cases": shown,
    }
    page = render_kit(study)
    count = f"{len(rows)} cases, bundle {opened.id[:12]}"
    with atomic_folder(out, overwrite=overwrite, marker=CASES) as folder:
        content = {
            PAGE: page,
            CASES: _write_cases(rows, table),
            GUIDE: _read("kit.md").replace("@COUNT@", count).encode(),
        }
        write_files(folder, content)
    known = find_known_images(opened, table)
    used = np.zeros(len(table), bool)
    for part in (known.training, known.validation):
        used |= False if part is None else part
    return ReaderKit(out / PAGE, out / CASES, len(rows), len(page), int(used.sum()))


def _refuse_bundle(bundle: Path, out: Path) -> None:
    if bundle.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(
            f"{out} lies in the bundle {bundle}. A bundle never holds patient images; choose "
            "another folder."
        )


def _list_choices(bundle: Bundle, question: str) -> list[dict[str, str]]:
    """Return the answers that a reader can choose."""
    if question == "malignant":
        if all(fit.threshold is None for fit in bundle.postprocessing.values()):
            raise UsageError(
                f"{bundle.path} has no threshold for malignant, so it gives no such prediction. "
                "Use --question diagnosis, or export a bundle with a fitted threshold."
            )
        return [{"id": name, "name": name.capitalize()} for name in (MALIGNANT, BENIGN)]
    labels = [
        label for task in bundle.spec.tasks if task.kind == "classify" for label in task.labels
    ]
    if not 2 <= len(labels) <= MOST_CHOICES:
        raise UsageError(
            f"{bundle.path} has {len(labels)} diagnoses, but the page needs 2 to {MOST_CHOICES}. "
            "Use --question malignant."
        )
    foreign = [label.id for label in labels if not is_known(label.id)]
    if foreign:
        raise UsageError(
            f"The label {foreign[0]!r} of {bundle.path} is not in the taxonomy. Use --question "
            "malignant."
        )
    return [{"id": label.id, "name": label.name} for label in labels]


def _find_truth(table: Table, question: str, labels: Sequence[str]) -> list[str]:
    """Return the true answer of every row.

    Raises:
        DataError: A row has none.
    """
    truth: list[str] = []
    for row in table.frame.to_dict("records"):
        if question == "malignant":
            known = {1.0: MALIGNANT, 0.0: BENIGN}.get(row["malignant"])
        else:
            known = project(row["dx"], labels) if row["dx"] else None
        if known is None:
            wanted = "malignant" if question == "malignant" else "a dx among the bundle's labels"
            raise DataError(
                f"{table.file}: case {row['image_id']!r} has no truth: it needs {wanted}. Fill it, "
                "or remove the row."
            )
        truth.append(known)
    return truth


def _predict(
    bundle: Bundle, table: Table, progress: Progress | None
) -> Iterator[tuple[str, Prediction]]:
    """Yield the image of each row as a data URL, and its prediction."""
    paths = [table.path(image) for image in table.frame["image"]]
    answers = predict(bundle, paths, exact=True, progress=progress or no_progress)
    for path, (_, prediction) in zip(paths, answers, strict=True):
        if isinstance(prediction, ImageError):
            raise DataError(f"{prediction} A study needs every image; repair or remove the case.")
        yield _data_url(path), prediction


def _data_url(path: Path) -> str:
    picture = decode(path).picture
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    # Pixels only: the metadata of a photograph may name the patient or the place.
    picture.save(buffer, "JPEG", quality=QUALITY, exif=b"")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _called_malignant(prediction: Prediction) -> bool:
    """Return whether the score reaches the threshold, also where the model refers."""
    score, threshold = prediction.malignancy, prediction.threshold
    return score is not None and threshold is not None and score >= threshold


def _describe(prediction: Prediction, question: str) -> list[tuple[str, str]]:
    """Return the rows of the prediction as a reader sees them."""
    rows = [
        (label.name, f"{100 * label.probability:.0f} %")
        for label in prediction.labels[:LABELS_SHOWN]
    ]
    if question == "malignant":
        word = MALIGNANT if _called_malignant(prediction) else BENIGN
        rows.insert(0, ("Decision", word))
        rows.insert(1, ("Malignancy score", f"{prediction.malignancy:.2f}"))
    return rows


def _answer(prediction: Prediction, question: str) -> dict[str, str]:
    """Return the model's cells in the table of cases."""
    score = "" if prediction.malignancy is None else f"{prediction.malignancy:.6f}"
    if question == "malignant":
        return {
            "model": MALIGNANT if _called_malignant(prediction) else BENIGN,
            "model_score": score,
        }
    return {"model": prediction.labels[0].id, "model_score": score}


def _write_cases(rows: Sequence[Mapping[str, str]], table: Table) -> bytes:
    frame = pd.DataFrame(rows)
    frame.insert(1, "image_id", table.frame["image_id"])
    for name in CASE_COLUMNS:
        values = table.frame[name]
        if name == "fitzpatrick":
            values = values.map(lambda value: "" if np.isnan(value) else f"{value:.0f}")
        frame[name] = values
    return frame.to_csv(index=False).encode()


def render_kit(study: Mapping[str, Any]) -> bytes:
    """Return the page of a study.

    Args:
        study: Title, question, choices, seed, washoutDays, bundle and cases. The id of
            the study, under which a browser stores the answers, is added.

    Examples:
        >>> page = render_kit({"title": "</script>", "cases": []}).decode()
        >>> "</script>" in page.split('id="study">')[1].partition("</script>")[0]
        False
    """
    text = json.dumps(study, sort_keys=True)
    identifier = hashlib.sha256(text.encode()).hexdigest()[:16]
    # An element of JSON ends at the first </script>, wherever it stands.
    data = json.dumps({**study, "id": identifier}, sort_keys=True).replace("<", "\\u003c")
    page = _read("kit.html")
    for name, content in (("STYLE", _read("kit.css")), ("SCRIPT", _read("kit.js"))):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        page = page.replace(f"@{name}_DIGEST@", digest).replace(f"@{name}@", content)
    return page.replace("@STUDY@", data).encode()


def _read(name: str) -> str:
    return files("dermedge.readers").joinpath(name).read_text(encoding="utf-8")
