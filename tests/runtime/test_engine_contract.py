"""Test one contract on every engine: outputs, errors, bundles and telemetry."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext
from dermedge_export.exporters.registry import EXPORTERS
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.target import CPU, IOS, JETSON
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.errors import EngineError, UsageError
from dermedge_runtime.golden import golden_files
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.litert import LiteRtRuntime
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.openvino import OpenVinoRuntime, check_precision
from dermedge_runtime.registry import load_entry
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.spec import Spec
from dermedge_runtime.verify import verify
from support import toy_onnx
from support.command import TOY_LITERT

SPEC = toy_onnx.spec()
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
# By engine: the target and candidate that it runs, the package that it is, and how far
# from fp32 it may compute.
ENGINES = {
    "onnxruntime": (CPU, Candidate("fp32", "onnx"), "onnxruntime", 1e-4),
    "openvino": (CPU, Candidate("fp32", "openvino"), "openvino", 1e-4),
    "litert": (CPU, Candidate("fp32", "litert"), "litert_torch", 1e-4),
    "tensorrt": (JETSON, Candidate("fp16", "tensorrt"), "tensorrt", 0.05),
    "coreml": (IOS, Candidate("fp16", "coreml"), "coremltools", 0.05),
}
ANY_BATCH = ("onnxruntime", "openvino")


def absent(engine: str) -> str:
    """Return why this machine cannot have an engine; "" if it can."""
    package = ENGINES[engine][2]
    if engine == "coreml" and sys.platform != "darwin":
        return "Core ML computes on a Mac only"
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


HERE = [name for name in ENGINES if not absent(name)]
FORMS = [*HERE, *(f"{name}, any batch" for name in HERE if name in ANY_BATCH)]


@pytest.mark.parametrize("name", ENGINES)
def test_each_engine_of_this_machine_has_a_test_artifact(name: str) -> None:
    if reason := absent(name):
        pytest.skip(reason)
    assert name in FORMS


@dataclass(frozen=True)
class Toy:
    """Toy network as an exporter takes it."""

    spec: Spec = SPEC

    @property
    def module(self) -> Any:
        """Network for exporters that do not start from ONNX."""
        import torch

        p = {name: torch.from_numpy(values) for name, values in toy_onnx.parameters().items()}

        class Network(torch.nn.Module):
            def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
                x = ((image.float() - p["mean"]) / p["std"]).permute(0, 3, 1, 2)
                x = torch.nn.functional.conv2d(x, p["conv.weight"], p["conv.bias"], stride=2)
                x = x.relu().mean((2, 3))
                return {
                    task.name: x @ p[f"{task.name}.weight"] + p[f"{task.name}.bias"]
                    for task in SPEC.tasks
                }

        return Network()


def bench(batch: int | str = 1) -> ExportContext:
    """Return the context of an export whose toy network is already traced."""
    graph = toy_onnx.graph(batch=batch)
    graphs = {target.opset: graph for target, *_ in ENGINES.values()}
    context = ExportContext(Toy(), dynamic_batch=batch != 1)
    for opset, graph in graphs.items():
        context.cached(("graph", opset), lambda graph=graph: graph)
    return context


@pytest.fixture(scope="module", params=FORMS)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(engine: str) -> BuiltArtifact:
    name, _, form = engine.partition(", ")
    target, candidate, _, _ = ENGINES[name]
    made: BuiltArtifact = load_entry(EXPORTERS[candidate.format])(
        bench("N" if form else 1), target, candidate
    )
    return made


def write(
    path: Path, built: BuiltArtifact, spec: Spec = SPEC, golden: dict[str, bytes] | None = None
) -> Bundle:
    return write_bundle(
        path,
        spec=spec,
        artifact=built.artifact,
        postprocessing={},
        tolerance={task.name: 1e-3 for task in spec.tasks},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={**built.files, **(golden or {})},
    )


@pytest.fixture(scope="module")
def bundle(engine: str, built: BuiltArtifact, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle whose golden cases the engine computed, as in an export."""
    folder = tmp_path_factory.mktemp("engine")
    draft = write(folder / "draft.dermedge", built)
    if engine == "tensorrt":
        from dermedge_export.build import build_engine

        build_engine(draft)
    with load(draft) as model:
        cases = golden_cases(SPEC, single, model.run, {})
    return write(folder / "contract.dermedge", built, SPEC, golden_files(cases))


def single(images: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float32) for name, values in toy_onnx.forward(images).items()}


@pytest.fixture
def runtime(bundle: Bundle) -> Iterator[Runtime]:
    with load(bundle) as model:
        yield model.runtime


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


class TestOutputs:
    def test_outputs_are_float32_by_task_with_one_row_per_image(self, runtime: Runtime) -> None:
        for count in (1, 2, 5):
            outputs = runtime.run(PIXELS[:count])
            assert {name: (values.dtype, values.shape) for name, values in outputs.items()} == {
                "malignancy": (np.float32, (count, 1)),
                "diagnosis": (np.float32, (count, 3)),
            }

    def test_outputs_are_those_of_the_network(self, engine: str, runtime: Runtime) -> None:
        tolerance = ENGINES[engine.partition(", ")[0]][3]
        outputs = runtime.run(PIXELS)
        for name, values in toy_onnx.forward(PIXELS).items():
            assert (
                np.ptp(values, axis=0).max() > tolerance
            )  # images differ by more than the engine may
            np.testing.assert_allclose(outputs[name], values, atol=tolerance)

    def test_a_batch_gives_the_outputs_of_single_images(self, runtime: Runtime) -> None:
        alone = [runtime.run(PIXELS[index : index + 1]) for index in range(len(PIXELS))]
        equal(
            runtime.run(PIXELS),
            {name: np.concatenate([row[name] for row in alone]) for name in alone[0]},
        )

    def test_the_next_call_does_not_change_earlier_outputs(self, runtime: Runtime) -> None:
        first = runtime.run(PIXELS[:1])
        kept = {name: values.copy() for name, values in first.items()}
        runtime.run(PIXELS[1:2])
        for name, values in kept.items():
            np.testing.assert_array_equal(first[name], values)

    def test_the_memory_layout_of_pixels_does_not_change_outputs(self, runtime: Runtime) -> None:
        scattered = np.asfortranarray(PIXELS)
        sealed = PIXELS.copy()
        sealed.setflags(write=False)
        expected = runtime.run(PIXELS)
        equal(runtime.run(scattered), expected)
        equal(runtime.run(sealed), expected)

    def test_threads_that_share_a_model_get_the_outputs_of_one_thread(self, bundle: Bundle) -> None:
        with load(bundle, threads=1) as model, ThreadPoolExecutor(8) as pool:
            expected = [model.run(image[None]) for image in PIXELS]
            answers = pool.map(lambda index: model.run(PIXELS[index % 5][None]), range(200))
            for found, wanted in zip(answers, expected * 40, strict=True):
                for name, values in wanted.items():
                    np.testing.assert_array_equal(found[name], values)

    def test_the_number_of_threads_does_not_change_outputs(self, bundle: Bundle) -> None:
        with load(bundle, threads=1) as one, load(bundle, threads=2) as two:
            equal(two.run(PIXELS), one.run(PIXELS))


class TestErrors:
    def test_a_closed_engine_raises_an_error_and_can_be_closed_again(self, bundle: Bundle) -> None:
        runtime = load(bundle).runtime
        runtime.run(PIXELS[:1])
        runtime.close()
        runtime.close()
        with pytest.raises(EngineError, match=r"closed.*Load the bundle again"):
            runtime.run(PIXELS[:1])

    def test_pixels_that_do_not_fit_are_one_error_and_the_next_call_works(
        self, runtime: Runtime
    ) -> None:
        expected = runtime.run(PIXELS[:1])
        for misfit in (PIXELS[:1, :30], PIXELS[:1].astype(np.float32)):
            with pytest.raises(
                EngineError, match=rf"{misfit.dtype} \[1, {misfit.shape[1]}, 48, 3\]"
            ):
                runtime.run(misfit)
        equal(runtime.run(PIXELS[:1]), expected)

    def test_a_damaged_artifact_is_refused_in_one_line(
        self, built: BuiltArtifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        broken = replace(built, files=dict.fromkeys(built.files, b"no model at all"))
        with pytest.raises(EngineError, match="export the model again") as caught:
            load(write(tmp_path / "broken.dermedge", broken))
        assert built.artifact.path in str(caught.value)
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_the_artifact_of_another_model_is_refused(
        self, built: BuiltArtifact, tmp_path: Path
    ) -> None:
        diagnosis, malignancy = SPEC.tasks
        fewer = replace(SPEC, tasks=(replace(diagnosis, labels=diagnosis.labels[:2]), malignancy))
        with pytest.raises(
            EngineError, match=r"'diagnosis' is float32 \[.*3\], not float32 \[.*2\]"
        ):
            load(write(tmp_path / "fewer.dermedge", built, fewer))
        other = replace(SPEC, tasks=(replace(diagnosis, name="severity"), malignancy))
        with pytest.raises(
            EngineError, match=r"\['diagnosis', 'malignancy'\].*\['malignancy', 'severity'\]"
        ):
            load(write(tmp_path / "other.dermedge", built, other))


class TestBundle:
    def test_the_bundle_verifies(self, bundle: Bundle) -> None:
        assert verify(bundle.path).status == "passed"

    def test_the_zipped_bundle_verifies(self, bundle: Bundle, tmp_path: Path) -> None:
        assert verify(bundle.save(tmp_path / "contract.zip", zipped=True).path).status == "passed"

    def test_the_engine_is_named_and_prints_nothing(
        self, bundle: Bundle, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with load(bundle) as model:
            model.run(PIXELS)
            name, version = model.provenance.engine.split(" ")
        assert (name, version[0].isdigit()) == (model.runtime.name, True)
        assert capfd.readouterr() == ("", "")


SILENT = """
import json, os, sys, threading
import numpy as np
from dermedge_runtime.model import load
with load(sys.argv[1]) as model:
    model.run(np.zeros((1, 48, 48, 3), np.uint8))
if sys.argv[2] == "openvino":
    from dermedge_runtime.telemetry import no_telemetry
    with no_telemetry():
        import nncf
    assert type(nncf.telemetry.telemetry).__name__ == "MagicMock", nncf.telemetry.telemetry
print(json.dumps([name for name in sys.modules if name.startswith("openvino_telemetry")]))
print(json.dumps("ORT_DISABLE_TELEMETRY" in os.environ))
"""


def test_an_engine_sends_no_telemetry_and_leaves_no_file(
    engine: str, bundle: Bundle, tmp_path: Path
) -> None:
    """Check that no device id and no queue of events appears in the user's folders."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "ORT_DISABLE_TELEMETRY")
    }
    answer = subprocess.run(
        [sys.executable, "-c", SILENT, bundle.path, engine],
        env={
            **kept,
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert [json.loads(line) for line in answer.stdout.splitlines()] == [[], False]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


SIGNALLED = """
import signal, sys, threading
import numpy as np
from dermedge_runtime.model import load
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append("caught"))
first, second, third = (load(sys.argv[1]) for _ in range(3))
for model in (first, second, third):
    model.run(np.zeros((1, 48, 48, 3), np.uint8))
first.close()
second.close()
closer = threading.Thread(target=third.close)
closer.start()
closer.join()
signal.raise_signal(signal.SIGUSR1)
print(*caught)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_after_models_were_closed_in_any_order_is_survived(bundle: Bundle) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", SIGNALLED, bundle.path], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout) == (0, "caught\n"), answer.stderr


FORKED = """
import os, signal, sys
import numpy as np
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.litert import LiteRtRuntime
runtime = LiteRtRuntime.open(Bundle.open(sys.argv[1]), threads=2)
images = np.zeros((1, 32, 32, 3), np.uint8)
runtime.run(images)
if os.fork() == 0:
    signal.alarm(30)
    try:
        runtime.run(images)
    except Exception as error:
        print(error, flush=True)
else:
    os.wait()
"""
OPENED = """
import os, sys
from dermedge_runtime.model import load
if sys.argv[2] == "closed":
    os.close(2)
before = os.dup(1)
load(sys.argv[1]).close()
load(sys.argv[1]).close()
print(os.dup(1) == before + 1)  # The lowest free descriptor: none was left open.
if sys.argv[2] == "open":
    os.write(2, b"written")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed"
)
class TestLiteRt:
    @pytest.fixture
    def toy(self) -> Bundle:
        return Bundle.open(TOY_LITERT)

    def test_the_placement_counts_every_node_once(self, toy: Bundle) -> None:
        runtime = LiteRtRuntime.open(toy, threads=1)
        nodes = runtime._interpreter._get_ops_details()  # type: ignore[union-attr]
        placement = runtime.placement()
        runtime.close()
        counted = Counter[str]()
        for operators in placement.values():
            counted.update(operators)
        assert counted == Counter(
            node["op_name"] for node in nodes if node["op_name"] != "DELEGATE"
        )
        assert placement["XNNPACK"]["CONV_2D"] > 0
        # XNNPACK has neither a cast from uint8 nor this norm.
        assert placement["builtin"] == {"CAST": 1, "L2_NORMALIZATION": 1}

    def test_a_version_without_the_list_of_nodes_has_no_placement(
        self, toy: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        monkeypatch.delattr(Interpreter, "_get_ops_details")
        assert LiteRtRuntime.open(toy, threads=1).placement() == {}

    @pytest.mark.parametrize("closed", [False, True])
    def test_opening_leaves_stderr_as_it_was(self, closed: bool, toy: Bundle) -> None:
        """Check the descriptor, which is silenced while LiteRT prints its first line."""
        ran = subprocess.run(
            [sys.executable, "-c", OPENED, toy.path, "closed" if closed else "open"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr
        assert ran.stderr == ("" if closed else "written")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_process_does_not_use_the_threads_of_its_parent(self, toy: Bundle) -> None:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, toy.path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == "The LiteRT interpreter is closed. Load the bundle again.\n"

    def test_a_model_without_one_signature_is_refused(self, toy: Bundle) -> None:
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model_from_bytearray(bytearray(toy.read("model.tflite")))
        model.signatureDefs = []
        unnamed = Interpreter(
            model_content=bytes(flatbuffer_utils.convert_object_to_bytearray(model))
        )
        unnamed.allocate_tensors()
        with pytest.raises(
            EngineError, match=r"signatures are \[\], not one.*Export the model again"
        ):
            LiteRtRuntime(unnamed, toy.spec, "1.0")


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
class TestOpenVino:
    @pytest.fixture
    def made(self) -> BuiltArtifact:
        return load_entry(EXPORTERS["openvino"])(bench(), CPU, Candidate("fp32", "openvino"))

    @pytest.fixture
    def fp32(self, made: BuiltArtifact, tmp_path: Path) -> Bundle:
        return write(tmp_path / "fp32.dermedge", made)

    @pytest.fixture
    def bf16(self, made: BuiltArtifact, tmp_path: Path) -> Bundle:
        return write(
            tmp_path / "bf16.dermedge",
            replace(made, artifact=replace(made.artifact, precision="bf16")),
        )

    def test_both_hints_give_the_same_numbers(self, fp32: Bundle) -> None:
        images = np.concatenate([PIXELS] * 5)
        latency = OpenVinoRuntime.open(fp32, threads=2)
        throughput = OpenVinoRuntime.open(fp32, threads=2, hint="throughput")
        equal(throughput.run(images), latency.run(images))

    def test_an_unknown_hint_is_refused(self, fp32: Bundle) -> None:
        with pytest.raises(UsageError, match=r"'fast'\. Use 'latency' or 'throughput'"):
            OpenVinoRuntime.open(fp32, hint="fast")  # type: ignore[arg-type]

    def test_fp32_is_computed_in_float32_and_bf16_in_bfloat16(
        self, fp32: Bundle, bf16: Bundle
    ) -> None:
        if not {"avx512_bf16", "amx_bf16"} & set(describe_device()["flags"].split()):
            pytest.skip("this CPU has no bfloat16")
        exact, coarse = (
            OpenVinoRuntime.open(fp32).run(PIXELS),
            OpenVinoRuntime.open(bf16).run(PIXELS),
        )
        for name, values in exact.items():
            assert 1e-5 < np.abs(coarse[name] - values).max() < 0.05

    def test_a_precision_that_openvino_replaces_is_an_error(self, made: BuiltArtifact) -> None:
        import openvino

        core = openvino.Core()
        weights = openvino.Tensor(np.frombuffer(made.files["model/model.bin"], np.uint8))
        model = core.read_model(made.files["model/model.xml"], weights)
        # No CPU plugin computes in float16 on x86: it takes bfloat16 or float32 in its
        # place.
        with keep_signal_stack():
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f16"})
        if compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f16:
            pytest.skip("this CPU has float16")
        with pytest.raises(
            EngineError,
            match=r"computes in b?f(16|32), and the model was exported for f16\. Export it again",
        ):
            check_precision(compiled, "f16")
        with keep_signal_stack():
            check_precision(
                core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), "f32"
            )

    def test_an_artifact_without_its_weights_is_refused(
        self, made: BuiltArtifact, tmp_path: Path
    ) -> None:
        alone = replace(made, files={"model/model.xml": made.files["model/model.xml"]})
        with pytest.raises(
            EngineError, match=r"model holds \['model/model.xml'\], not one .xml and one .bin"
        ):
            load(write(tmp_path / "alone.dermedge", alone))
