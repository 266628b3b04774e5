import json

import numpy as np
import pytest

from dermedge_export.evaluation.predictions import Predictions
from dermedge_export.parity.reference import read_reference, reference_file
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.report import DIGEST_PREFIX
from dermedge_runtime.spec import Postprocessing

FITTED = {
    "diagnosis": Postprocessing(temperature=1.25),
    "malignancy": Postprocessing(0.9, 0.37),
    "grade": Postprocessing(),
    "mask": Postprocessing(),
}
COUNT = 50
DIGESTS = [f"{index:02x}" * 32 for index in range(COUNT)]
SHAPES = {
    "diagnosis": (3,),
    "malignancy": (1,),
    "grade": (2,),
    "mask": (1, 8, 8),
    "features": (64,),
}


def predictions(seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    return Predictions(
        image_ids=tuple(DIGESTS),
        outputs={
            name: (9 * rng.normal(size=(COUNT, *shape))).astype(np.float32)
            for name, shape in SHAPES.items()
        },
        labels=np.zeros(COUNT, np.int64),
        malignant=np.zeros(COUNT),
        groups=np.array(DIGESTS),
    )


@pytest.fixture
def data() -> bytes:
    return reference_file(predictions(), DIGESTS, FITTED, "test split of somewhere")


def test_every_float_is_read_back_exactly() -> None:
    table = predictions()
    bits = np.random.default_rng(1).integers(0, 2**32, 300, dtype=np.uint32).view(np.float32)
    odd = [0.1, -0.0, 1e-45, 9.9e14, 16777217.0, 1 / 3]
    values = np.where(np.abs(bits) < 1e15, bits, 1).astype(np.float32)
    table.outputs["diagnosis"][:] = np.resize(np.append(np.float32(odd), values), (COUNT, 3))
    found = read_reference(reference_file(table, DIGESTS, FITTED, "x"))
    np.testing.assert_array_equal(
        found.outputs["diagnosis"].view(np.uint32), _bits(table.outputs["diagnosis"])
    )


def _bits(values: np.ndarray) -> np.ndarray:
    """JSON has one zero."""
    return (values + np.float32(0)).view(np.uint32)


def test_fitted_tasks_are_stored_without_masks(data: bytes) -> None:
    found = read_reference(data)
    assert set(found.outputs) == {"diagnosis", "malignancy", "grade"}
    assert found.postprocessing == {name: FITTED[name] for name in found.outputs}
    assert found.basis == "test split of somewhere"
    assert found.images == tuple(digest[:DIGEST_PREFIX] for digest in DIGESTS)
    assert len(data) < COUNT * 6 * 14 + COUNT * 20 + 400, "shorter than the doubles would be"


def test_short_embeddings_are_stored() -> None:
    table = predictions()
    kept = {}
    for width in (512, 513):
        table.outputs["features"] = np.ones((COUNT, width), np.float32)
        fitted = {"features": Postprocessing()}
        kept[width] = set(read_reference(reference_file(table, DIGESTS, fitted, "x")).outputs)
    assert kept == {512: {"features"}, 513: set()}


def test_the_same_predictions_give_the_same_bytes(data: bytes) -> None:
    assert reference_file(predictions(), DIGESTS, FITTED, "test split of somewhere") == data
    assert reference_file(predictions(1), DIGESTS, FITTED, "test split of somewhere") != data


def test_images_are_found_by_their_files_digest_in_any_order(data: bytes) -> None:
    found = read_reference(data)
    wanted = [DIGESTS[7], "f" * 64, DIGESTS[0], DIGESTS[COUNT - 1]]
    assert found.locate(wanted).tolist() == [7, -1, 0, COUNT - 1]
    assert found.locate([]).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_student_that_is_not_finite_is_refused(value: float) -> None:
    table = predictions()
    table.outputs["grade"][3, 1] = value
    with pytest.raises(UsageError, match="is not a JSON number"):
        reference_file(table, DIGESTS, FITTED, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "dermedge.reference/2"}, "Upgrade dermedge"),
        ({"images": None}, "has no 'images'"),
        ({"images": ["00" * 8]}, r"'diagnosis' .* has shape \(50, 3\) for 1 images"),
        (
            {"outputs": {"diagnosis": [[1.0, 2.0], [3.0]] * 25}},
            "'diagnosis' .* is not a table of numbers",
        ),
        ({"outputs": {"diagnosis": ["a"] * 50}}, "'diagnosis' .* is not a table of numbers"),
        ({"postprocessing": {"diagnosis": {"temperature": -1}}}, "Temperature -1"),
    ],
)
def test_a_malformed_file_is_refused(data: bytes, change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_reference(canonical_json(json.loads(data) | change))
