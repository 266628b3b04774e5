"""Provide a toy model for all tests: a one-line engine, and a bundle for it."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import Case, drop_volatile, golden_files
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Artifact, Label, Postprocessing, Preprocess, Spec, Task

# Property tests draw the same examples in every run: a failure is always reproducible,
# and no database of examples is written. No deadline, because machines differ in speed.
settings.register_profile(
    "dermedge", deadline=None, derandomize=True, database=None, max_examples=60
)
settings.load_profile("dermedge")


class FakeRuntime:
    """Engine whose logits are mean colours, so that every pixel counts."""

    name = "fake"
    version = "1.0"

    def __init__(self) -> None:
        self.closed = False
        self.batches: list[int] = []

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> "FakeRuntime":
        return cls()

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        assert images.dtype == np.uint8
        assert images.ndim == 4
        self.batches.append(len(images))
        means = images.astype(np.float64).mean(axis=(1, 2)) / 64
        return {
            "diagnosis": means.astype(np.float32),
            "malignancy": (means[:, :1] - means[:, 1:2] - 0.5).astype(np.float32),
        }

    def close(self) -> None:
        self.closed = True


TOY_SPEC = Spec(
    name="toy",
    version="1.0.0",
    tasks=(
        Task(
            name="diagnosis",
            kind="classify",
            labels=(
                Label("nv", "Melanocytic naevus", malignant=False, codes={"icd11": "2F20"}),
                Label("mel", "Melanoma", malignant=True, codes={"icd11": "2C30"}),
                Label("akiec", "Actinic keratosis or Bowen's disease", malignant=None),
            ),
        ),
        Task(name="malignancy", kind="binary"),
    ),
    preprocess=Preprocess(size=32),
    intended_use="Tests only.",
    lineage={"data": {"name": "procedural lesions", "licence": "Apache-2.0"}},
)

TOY_POSTPROCESSING = {
    "diagnosis": Postprocessing(temperature=1.25),
    "malignancy": Postprocessing(temperature=0.8, threshold=0.4),
}


def toy_cases(spec: Spec = TOY_SPEC) -> list[Case]:
    """Return two golden cases on procedural lesions, with the fake engine's outputs."""
    cases = []
    for seed in (1, 2):
        stream = io.BytesIO()
        Image.fromarray(draw_lesion(seed, height=60, width=80).image).save(stream, "PNG")
        tensor = preprocess(stream.getvalue(), spec.preprocess, exact=True)
        expected = {name: array[0] for name, array in FakeRuntime().run(tensor[None]).items()}
        reference = {name: array + np.float32(1e-4) for name, array in expected.items()}
        prediction = decode(expected, spec, TOY_POSTPROCESSING)
        cases.append(
            Case(
                f"lesion-{seed}",
                stream.getvalue(),
                tensor,
                reference,
                expected,
                drop_volatile(prediction.to_json()),
            )
        )
    return cases


def toy_content() -> dict[str, Any]:
    """Return the arguments of `write_bundle` for the toy bundle, new on every call."""
    return {
        "spec": TOY_SPEC,
        "artifact": Artifact(
            "cpu", "fake", "model.fake", "fp32", requires=("fake>=1.0",), toolchain={"fake": "1.0"}
        ),
        "postprocessing": TOY_POSTPROCESSING,
        "tolerance": {"diagnosis": 1e-3, "malignancy": 1e-3},
        "parity": {"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        "files": {
            "model.fake": b"means of colours",
            "modelcard.md": "# toy\n\nFor tests, naïvely.\n".encode(),
            "LICENSES/Apache-2.0.txt": b"Apache License, Version 2.0\n",
            **golden_files(toy_cases()),
        },
    }


@pytest.fixture(scope="session")
def pristine_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "toy.dermedge"
    write_bundle(path, **toy_content())
    return path


@pytest.fixture
def fake_runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def toy_bundle_path(pristine_toy: Path, tmp_path: Path) -> Path:
    """Return a valid bundle that the test may damage."""
    return Path(shutil.copytree(pristine_toy, tmp_path / "toy.dermedge"))


def folder_bytes(path: Path) -> Mapping[str, bytes]:
    """Return the content of every file below a folder, to compare two folders."""
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }
