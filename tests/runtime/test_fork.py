"""Test that a forked process predicts or says what to do, and always ends."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.telemetry import no_telemetry
from support.command import TOY, TOY_LITERT

MODULES = {"litert": "ai_edge_litert"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Forks one child for each way to use and to leave a model. An alarm kills a child that
# hangs, so that the exit status shows it.
FORKS = """
import gc, json, multiprocessing, os, signal, sys, threading
import numpy as np
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.model import load

path, engine = sys.argv[1:]
image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
models = {"model": load(path, threads=2)}
expected = models["model"].outputs(image)
size = models["model"].bundle.spec.preprocess.size
shape = (2, size, size, 3)

def predict(model):
    found = model.outputs(image)
    return "same" if all(np.allclose(found[n], expected[n], atol=1e-5) for n in expected) else "no"

def drop():
    models.clear()
    gc.collect()
    return "dropped"

def load_again():
    with load(path, threads=2) as model:
        return predict(model)

def use_thread():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(attempt("predict")))
    thread.start()
    thread.join()
    return answers[0]

def fork_again():
    children = multiprocessing.get_context("fork").Pool(2)
    with children:
        return children.map(attempt, ["predict"])[0]

stream = models["model"].stream(image for _ in range(10))
next(stream)
ways = {
    "nothing": lambda: "nothing",
    "close": lambda: models["model"].close(),
    "predict": lambda: predict(models["model"]),
    "predict, close": lambda: (predict(models["model"]), models["model"].close())[0],
    "run": lambda: len(models["model"].runtime.run(np.zeros(shape, np.uint8))["malignancy"]),
    "drop": drop,
    "load again": load_again,
    "thread": use_thread,
    "fork again": fork_again,
    "go on with a stream": lambda: str(next(stream)),
    "new stream": lambda: len(list(models["model"].stream([image] * 3))),
}

def attempt(way):
    try:
        return ways[way]()
    except DermedgeError as error:
        return f"{type(error).__name__}: {error}"

answers = {}
for way in ways:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os.write(write, json.dumps(attempt(way)).encode())
        if way == "close":
            sys.exit(0)
        break  # to the end of the script
    os.close(write)
    with open(read) as stdout:
        answer = json.loads(stdout.read() or '"nothing written"')
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers[way] = [answer, status]
else:
    answers["parent"] = [predict(models["model"]), len(list(stream))]
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "litert"])
def forked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, list[object]]]:
    """Return an engine's name, and by way of use the answer and the exit status."""
    engine = str(request.param)
    if importlib.util.find_spec(MODULES.get(engine, engine)) is None:
        pytest.skip(f"{engine} is not installed")
    path = TOY_LITERT if engine == "litert" else TOY
    if engine == "openvino":
        path = as_openvino(TOY, tmp_path_factory.mktemp("fork"))
    # A grandchild that hangs holds the pipes open, so the whole test has a limit.
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, path, engine],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return engine, json.loads(ran.stdout)


def as_openvino(path: Path, folder: Path) -> Path:
    """Return a bundle with the same network as OpenVINO IR."""
    with no_telemetry():
        import openvino
    toy = Bundle.open(path)
    network = openvino.Core().read_model(toy.read(toy.artifact.path))
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)
    files = {f"model/{name}": (folder / name).read_bytes() for name in ("model.xml", "model.bin")}
    artifact = replace(toy.artifact, format="openvino", path="model", requires=())
    state = {"status": "not_run"}
    return write_bundle(
        folder / "toy.dermedge",
        spec=toy.spec,
        artifact=artifact,
        postprocessing={},
        tolerance={task.name: 1e-3 for task in toy.spec.tasks},
        parity={"host": state, "device": state},
        files=files,
    ).path


def test_every_child_ends_and_the_parent_goes_on(
    forked: tuple[str, dict[str, list[object]]],
) -> None:
    _, answers = forked
    assert answers.pop("parent") == ["same", 9]
    assert {way: status for way, (_, status) in answers.items() if status != 0} == {}


def test_a_child_predicts_with_an_engine_of_its_own_or_says_what_to_do(
    forked: tuple[str, dict[str, list[object]]],
) -> None:
    engine, answers = forked
    refusal = (
        "EngineError: The parent process used openvino before this process forked, so openvino "
        "cannot run here. Load the bundle in the worker only, or start workers with 'spawn'."
    )
    wanted = {
        "predict": "same",
        "predict, close": "same",
        "run": 2,
        "load again": "same",
        "thread": "same",
        "fork again": "same",
        "new stream": 3,
    }
    found = {way: answers[way][0] for way in wanted}
    assert found == (dict.fromkeys(wanted, refusal) if engine == "openvino" else wanted)


def test_a_stream_of_the_parent_is_refused_in_a_child(
    forked: tuple[str, dict[str, list[object]]],
) -> None:
    answer = str(forked[1]["go on with a stream"][0])
    assert answer.startswith("UsageError: ")
    assert answer.endswith("Start the iteration in the worker.")
