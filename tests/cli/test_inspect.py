"""`dermedge inspect` shows the content of a bundle; `verify` names a missing engine."""

import json
import sys
from pathlib import Path

import pytest

from conftest import FakeRuntime, toy_content
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.errors import ElsewhereError
from dermedge_runtime.model import RUNTIMES
from support.command import TOY, dermedge, refused

CANDIDATES = {
    "schema": "dermedge.candidates/1",
    "machine": "Some CPU",
    "candidates": [
        {
            "name": "int8 onnx entropy",
            "status": "won",
            "reason": "fastest",
            "size_bytes": 4_123_456,
            "latency_ms": 9.6,
        },
        {
            "name": "int8 onnx qat",
            "status": "skipped",
            "reason": "not needed",
            "top1": None,
            "kl": None,
        },
    ],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    content = toy_content()
    content["files"]["reports/candidates.json"] = json.dumps(CANDIDATES).encode()
    content["parity"]["device"] = {
        "status": "not_run",
        "todo": "on a Mac: dermedge verify toy.dermedge",
    }
    return write_bundle(tmp_path / "toy.dermedge", **content).path


def test_inspect_shows_the_candidates_and_the_next_step(bundle: Path) -> None:
    lines = [line.split() for line in dermedge("inspect", bundle).out.splitlines()]
    assert ["int8", "onnx", "entropy", "selected", "4.12", "9.60", "-", "-", "fastest"] in lines
    assert ["int8", "onnx", "qat", "skipped", "-", "-", "-", "-", "not", "needed"] in lines
    assert ["to", "do", "on", "a", "Mac:", "dermedge", "verify", "toy.dermedge"] in lines
    assert "candidate" not in dermedge("inspect", TOY).out


def test_inspect_replaces_a_page_only_with_overwrite(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert (
        dermedge("inspect", bundle, "--html", page, "--json").json()["id"] == Bundle.open(bundle).id
    )
    assert "Candidates" in page.read_text("utf-8")
    page.write_text("mine")
    assert "--overwrite" in refused(dermedge("inspect", bundle, "--html", page), 2)
    assert page.read_text() == "mine"
    assert dermedge("inspect", bundle, "--html", page, "--overwrite").code == 0
    assert "Candidates" in page.read_text("utf-8")


def test_verify_exits_with_4_if_this_machine_cannot_have_the_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent(FakeRuntime):
        @classmethod
        def open(cls, bundle: Bundle, *, threads: int | None = None) -> FakeRuntime:
            raise ElsewhereError(
                "Core ML is not here: on a Mac, type dermedge verify toy.dermedge."
            )

    monkeypatch.setattr("conftest.Absent", Absent, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", "conftest:Absent")
    ran = dermedge("verify", bundle)
    assert ran.code == 4
    (engine,) = (line for line in ran.out.splitlines() if line.split()[:1] == ["engine"])
    assert engine.split()[1] == "not_run"
    assert engine.endswith("type dermedge verify toy.dermedge.")
    assert "run `dermedge verify` on the target device" in ran.out
    assert dermedge("verify", bundle, "--json").json()["status"] == "not_run"


def test_the_page_needs_the_extra_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dermedge.report.html", None)
    message = refused(dermedge("inspect", TOY, "--html", tmp_path / "page.html"), 4)
    assert "dermedge[report]" in message
