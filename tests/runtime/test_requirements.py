"""Test that an engine runs a bundle only if its version is one that the bundle requires."""

from dataclasses import replace

import pytest

from conftest import FakeRuntime, toy_content
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.errors import BundleError, EngineError
from dermedge_runtime.model import RUNTIMES, load
from dermedge_runtime.requirements import check_engine, check_requirement
from dermedge_runtime.verify import verify


@pytest.mark.parametrize(
    ("version", "requirement"),
    [
        ("1.17", "engine>=1.17"),
        ("1.17.0", "engine>=1.17"),
        ("1.17", "engine>=1.17.0.0"),
        ("1.100.2", "engine>=1.17"),
        ("2", "engine>1.99,<3"),
        ("2.9.9", "engine<3,>=2"),
        ("1.0", "engine==1"),
        ("1.0.1", "engine!=1"),
        ("3.0", "engine<=3"),
        ("1.17.0rc1", "engine>=1.17"),
        ("2026.2.1-21919-ab", "engine>=2024.4"),
        ("20261127123456", "engine>=999999999"),
        ("0.1", "engine"),
        ("unknown", "engine"),
        ("0.1", "engine-web>=1.17"),
        ("0.1", "Engine>=1.17"),
        ("0.1", "iOS>=17"),
    ],
)
def test_a_version_within_the_bounds_is_accepted(version, requirement):
    check_requirement(requirement)
    check_engine("engine", version, [requirement])


@pytest.mark.parametrize(
    ("version", "requirement"),
    [
        ("1.16.3", "engine>=1.17"),
        ("1.9", "engine>=1.17"),
        ("3.0", "engine>=2,<3"),
        ("3.0.0", "engine<3"),
        ("1.0.0", "engine>1"),
        ("1.0.1", "engine==1.0"),
        ("1", "engine!=1.0"),
        ("3.0.1", "engine<=3"),
        ("unknown", "engine>=1"),
        ("", "engine>=0"),
        ("v2", "engine>=1"),
    ],
)
def test_a_version_outside_the_bounds_is_refused_with_both_versions(version, requirement):
    with pytest.raises(EngineError) as failure:
        check_engine("engine", version, ["iOS>=99", requirement])
    assert requirement in str(failure.value)
    assert f"engine {version}" in str(failure.value)


@pytest.mark.parametrize(
    "requirement",
    [
        *("", ">=1", "a b", "engine>=", "engine>=1.", "engine>=1,", "engine>=1,2", "engine=1"),
        *("engine~=1", "engine>=1.0rc1", "engine >= 1", "engine>=\u0661", "engine>=1\n"),
        *(f"engine>={'9' * 5000}", 1, None, ["engine"]),
    ],
)
def test_a_requirement_that_is_not_readable_is_refused_when_a_bundle_is_written(
    requirement, tmp_path
):
    content = toy_content()
    content["artifact"] = replace(content["artifact"], requires=("iOS>=17", requirement))
    with pytest.raises(BundleError, match="requirement"):
        write_bundle(tmp_path / "x", **content)


@pytest.fixture
def needy(tmp_path, monkeypatch):
    """Return a bundle that needs a later version of the fake engine, and the engines."""
    started = []

    class Recorded(FakeRuntime):
        @classmethod
        def open(cls, bundle, *, threads=None):
            started.append(cls())
            return started[-1]

    monkeypatch.setattr("conftest.Recorded", Recorded, raising=False)
    monkeypatch.setitem(RUNTIMES, "fake", "conftest:Recorded")
    content = toy_content()
    content["artifact"] = replace(content["artifact"], requires=("fake>=99",))
    return write_bundle(tmp_path / "x", **content), started


def test_load_refuses_an_engine_that_is_too_old_and_closes_it(needy):
    bundle, started = needy
    with pytest.raises(EngineError, match=r"requires fake>=99, and this is fake 1\.0"):
        load(bundle)
    assert [runtime.closed for runtime in started] == [True]


@pytest.mark.parametrize("given", [True, False])
def test_verify_fails_the_engine_check_of_an_engine_that_is_too_old(needy, given):
    report = verify(needy[0], runtime=FakeRuntime() if given else None)
    assert [check.status for check in report.checks] == ["passed", "passed", "failed", "not_run"]
    assert "requires fake>=99" in report.checks[2].detail
