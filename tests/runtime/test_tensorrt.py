"""Test the TensorRT runtime on an imitation of TensorRT, and its names on the real one."""

import ast
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import dermedge_runtime.tensorrt.api as trt_api
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.errors import ElsewhereError, EngineError
from dermedge_runtime.model import load
from dermedge_runtime.spec import Label, Preprocess, Spec, Task, to_json
from dermedge_runtime.tensorrt.api import TensorRt
from dermedge_runtime.tensorrt.cuda import Cuda
from dermedge_runtime.tensorrt.engine_cache import (
    EngineKey,
    cache_folder,
    find_cached_engine,
    find_usable_engine,
    read_plan,
    record_path,
    store_engine,
)
from dermedge_runtime.tensorrt.precision import read_precision
from dermedge_runtime.tensorrt.runtime import TensorRtRuntime
from support import fake_tensorrt, toy_onnx

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
GRAPH = fake_tensorrt.typed(toy_onnx.graph())
VERSIONS = pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])


@pytest.fixture
def machine():
    return fake_tensorrt.machine()


def engine_of(machine, graph=GRAPH):
    return machine.load(machine.build(graph, workspace=None, timings=b"")[0])


def runtime_of(machine, graph=GRAPH):
    return TensorRtRuntime(engine_of(machine, graph), toy_onnx.spec(), machine.version)


# What the variables of `trt_api` are, by NVIDIA's name for the class.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "image": "ITensor",
    "parser": "OnnxParser",
    "parser.get_error(index)": "ParserError",
    "config": "IBuilderConfig",
    "config.get_timing_cache()": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
}
# The lean bindings are for running engines; these are for building and inspecting them.
NOT_LEAN = (
    *(
        "Builder",
        "BuilderFlag",
        "EngineInspector",
        "IBuilderConfig",
        "INetworkDefinition",
        "ITensor",
        "ITimingCache",
    ),
    *(
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "ParserError",
        "ProfilingVerbosity",
    ),
)
# From NVIDIA's list of the Python names that 11 removed.
REMOVED = (
    *(
        "FP16",
        "INT8",
        "BF16",
        "FP8",
        "EXPLICIT_BATCH",
        "int8_calibrator",
        "set_calibration_profile",
    ),
    *(
        "algorithm_selector",
        "platform_has_fast_fp16",
        "platform_has_fast_int8",
        "device_memory_size",
    ),
)


def names_in_use() -> set[str]:
    """Return every name of TensorRT that `api` calls, such as `BuilderFlag.TF32`."""
    found = set()
    for node in ast.walk(ast.parse(Path(trt_api.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if chain := re.fullmatch(r"(?:.*\.)?trt\.([A-Za-z0-9_.]+)", ast.unparse(node)):
                found.add(chain[1])
            elif owner in CLASSES:
                found.add(f"{CLASSES[owner]}.{node.attr}")
    return found


class TestNames:
    def test_tensorrt_11_has_removed_none_of_the_names(self):
        used = names_in_use()
        assert {"Runtime.deserialize_cuda_engine", "BuilderFlag.TF32", "ParserError.desc"} <= used
        assert {name.partition(".")[0] for name in used} >= set(CLASSES.values())
        assert not {name.rpartition(".")[2] for name in used} & set(REMOVED)

    @pytest.mark.parametrize(
        "package", ["tensorrt", "tensorrt_bindings", "tensorrt_lean", "tensorrt_lean_bindings"]
    )
    def test_nvidias_bindings_have_all_names(self, package):
        bindings = pytest.importorskip(
            package, reason=f"{package} is not installed", exc_type=ImportError
        )
        expected = [
            n
            for n in names_in_use()
            if "lean" not in package or n.partition(".")[0] not in NOT_LEAN
        ]
        missing = [name for name in expected if not has(bindings, name)]
        assert not missing, f"{package} {bindings.__version__}"


def has(value, name):
    first, _, rest = name.partition(".")
    return hasattr(value, first) and (not rest or has(getattr(value, first), rest))


class TestEngine:
    @VERSIONS
    def test_outputs_are_those_of_the_network_for_any_number_of_images(self, version):
        runtime = runtime_of(fake_tensorrt.machine(version))
        for count in (1, 5):
            outputs = runtime.run(PIXELS[:count])
            for name, expected in toy_onnx.forward(PIXELS[:count]).items():
                assert outputs[name].dtype == np.float32
                np.testing.assert_allclose(outputs[name], expected, atol=0.02)

    def test_an_open_batch_becomes_one(self, machine):
        engine = engine_of(machine, fake_tensorrt.typed(toy_onnx.graph(batch="N")))
        assert engine.inputs["image"].shape == (1, 48, 48, 3)

    @VERSIONS
    def test_the_network_is_typed_by_its_file_alone(self, version):
        machine = fake_tensorrt.machine(version)
        machine.build(GRAPH, workspace=None, timings=b"")
        machine.build(GRAPH, workspace=1 << 20, timings=b"")
        first, second = machine.trt.builds
        assert first == {
            "tf32": False,
            "verbosity": "detailed",
            "workspace": None,
            "timings": b"",
            "typed": True,
        }
        assert second["workspace"] == 1 << 20

    def test_timings_of_the_same_device_are_used_again(self, machine):
        _, timings = machine.build(GRAPH, workspace=None, timings=b"")
        for data, used in ((timings, timings), (b"11.0.0 90\ntimings", b""), (b"damaged", b"")):
            machine.build(GRAPH, workspace=None, timings=data)
            assert machine.trt.builds[-1]["timings"] == used

    def test_a_model_that_tensorrt_refuses_is_one_error_with_its_reason(self, machine):
        with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 cannot read the model \(.*pars"):
            machine.build(b"no model", workspace=None, timings=b"")
        machine.trt.refuse = "Could not find any implementation for node conv"
        with pytest.raises(
            EngineError, match=r"cannot build an engine \(Could not find any .*--workspace"
        ):
            machine.build(GRAPH, workspace=None, timings=b"")

    def test_an_engine_of_another_tensorrt_is_refused(self, machine):
        plan, _ = machine.build(GRAPH, workspace=None, timings=b"")
        with pytest.raises(
            EngineError, match=r"refuses the engine \(The engine plan file is not compatible"
        ):
            fake_tensorrt.machine("11.4.0.106").load(plan)

    def test_a_run_that_fails_is_an_error_and_returns_no_old_outputs(self, machine):
        runtime = runtime_of(machine)
        machine.trt.refuse = "out of memory"
        with pytest.raises(EngineError, match="failed while running"):
            runtime.run(PIXELS)

    def test_threads_get_the_outputs_of_one_thread(self, machine):
        runtime = runtime_of(machine)
        expected = runtime.run(PIXELS)
        found = {}

        def ask(index):
            found[index] = runtime.run(PIXELS[index : index + 1])

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(PIXELS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, outputs in found.items():
            for name, values in outputs.items():
                np.testing.assert_array_equal(values[0], expected[name][index])
        assert len(found) == len(PIXELS)

    def test_closing_gives_all_memory_back(self):
        driver = fake_tensorrt.Driver()
        machine = TensorRt(fake_tensorrt.module(), Cuda(driver))
        runtime = runtime_of(machine)
        assert len(driver.blocks) == 3
        runtime.close()
        runtime.close()
        assert (driver.blocks, driver.streams) == ({}, 0)
        with pytest.raises(EngineError, match="closed"):
            runtime.run(PIXELS)

    def test_an_image_of_another_size_is_refused(self, machine):
        with pytest.raises(
            EngineError, match=r"takes uint8 \[N, 48, 48, 3\], not uint8 \[1, 40, 48, 3\]"
        ):
            runtime_of(machine).run(PIXELS[:1, :40])

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (toy_onnx.spec(64), r"not one 'image' uint8 \[N, 64, 64, 3\]"),
            (
                Spec("x", "1", (Task("severity", "binary"),), Preprocess(48)),
                r"tasks are \['severity'\]",
            ),
            (
                Spec(
                    "x",
                    "1",
                    (
                        Task("diagnosis", "classify", tuple(Label(i, i) for i in "ab")),
                        Task("malignancy", "binary"),
                    ),
                    Preprocess(48),
                ),
                r"'diagnosis' is float32 \[1, 3\], not float32 \[N, 2\]",
            ),
        ],
    )
    def test_an_engine_that_does_not_fit_its_spec_is_refused(self, machine, spec, message):
        with pytest.raises(EngineError, match=message):
            TensorRtRuntime(engine_of(machine), spec, machine.version)

    def test_half_outputs_are_refused(self, machine):
        import onnx

        model = onnx.load_model_from_string(GRAPH)
        for output in model.graph.output:
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        for node in model.graph.node:
            if node.op_type == "Cast" and node.output[0] in ("diagnosis", "malignancy"):
                node.attribute[0].i = onnx.TensorProto.FLOAT16
        with pytest.raises(EngineError, match=r"'diagnosis' is float16 \[1, 3\], not float32"):
            runtime_of(machine, model.SerializeToString())


class TestMachine:
    def test_the_gpu_is_named(self, machine):
        gpu = machine.gpu
        assert (gpu.name, gpu.sm, gpu.cuda, gpu.memory) == ("Orin (fake)", "87", "12.6", 8 << 30)

    @pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0", "101.0"])
    def test_an_unknown_major_version_is_refused(self, version):
        with pytest.raises(
            EngineError, match=rf"{re.escape(version)} is not supported\. Install 10 or 11"
        ):
            fake_tensorrt.machine(version)

    def test_without_tensorrt_the_error_gives_the_command_and_the_machine(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(ElsewhereError) as caught:
            TensorRt.open(Path("skin.dermedge"))
        assert "`dermedge build skin.dermedge`" in str(caught.value)
        assert "`dermedge verify skin.dermedge --engine onnxruntime`" in str(caught.value)

    def test_a_machine_without_a_gpu_is_an_error(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
        monkeypatch.setattr("ctypes.CDLL", lambda name: fake_tensorrt.Driver(devices=0))
        with pytest.raises(ElsewhereError, match="cuInit failed with CUDA_ERROR_NO_DEVICE"):
            TensorRt.open(Path("skin.dermedge"))

    def test_a_call_that_the_driver_refuses_is_one_error(self, machine):
        machine.cuda.activate()
        with pytest.raises(
            EngineError, match=r"cuMemFree_v2 failed with CUDA_ERROR_INVALID_VALUE \(1\)"
        ):
            machine.cuda.free(1)


def layer(
    kind="CaskConvolution", name="conv", weights=None, inputs=(), key="Format/Datatype", tactic=""
):
    text = {
        "Name": name,
        "LayerType": kind,
        "TacticName": tactic,
        "Inputs": [{key: text} for text in inputs],
    }
    return json.dumps(text | ({"Weights": {"Type": weights, "Count": 9}} if weights else {}))


class TestPrecision:
    """The texts are those that TensorRT 10 and 11 write."""

    @pytest.mark.parametrize(
        ("text", "width"),
        [
            (layer(weights="Half", inputs=["N/A due to dynamic shapes"]), "fp16"),
            (layer(weights="Int8", inputs=["Int8", "Half"]), "int8"),
            (layer(weights="Half", inputs=["Int8"]), "fp16"),
            (layer(inputs=["Row major linear FP16 format"]), "fp16"),
            (layer(inputs=["Channel major FP16 format where channel % 8 == 0"]), "fp16"),
            (layer(inputs=["Thirty-two wide channel vectorized row major Int8 format"]), "int8"),
            (layer(kind="gemm", inputs=["Half", "Half"], key="DataType"), "fp16"),
            (layer(kind="kgen", tactic="__myl_sm80_gemm", inputs=["Float"]), "fp32"),
            (layer(kind="correlation", inputs=["BFloat16"]), "bf16"),
        ],
    )
    def test_a_layers_precision_is_read(self, text, width):
        assert (
            dict(
                read_precision([text, layer(weights="Int8"), layer(weights="Half")], "fp16").counts
            )[width]
            >= 1
        )
        if width == "fp16":
            assert dict(read_precision([text], "fp16").counts) == {"fp16": 1}

    def test_layers_that_move_data_do_not_count(self):
        moves = [
            layer(kind="Reformat", inputs=["Int8"]),
            layer(kind="NoOp", inputs=["Int8"]),
            "not JSON",
            '"name"',
        ]
        found = read_precision(
            [*moves, layer(weights="Half"), layer("gemm", "head", "Float")], "fp16"
        )
        assert dict(found.counts) == {"fp16": 1, "fp32": 1}
        assert (found.layers, found.wider, found.unread) == (6, ("head",), 0)

    @pytest.mark.parametrize(
        ("layers", "precision"),
        [
            ([layer(weights="Float")], "fp16"),
            ([layer(weights="Half"), layer(kind="Reformat", inputs=["Int8"])], "int8+fp16"),
            ([layer(kind="Quantize", inputs=["Int8"]), layer(inputs=["Half"])], "int8+fp16"),
            (['"conv"'], "fp16"),
            ([], "fp16"),
        ],
    )
    def test_an_engine_in_a_wider_precision_than_requested_is_refused(self, layers, precision):
        with pytest.raises(
            EngineError, match=rf"asked for in {re.escape(precision)}, but no layer computes in"
        ):
            read_precision(layers, precision)

    def test_the_wider_layers_of_an_int8_engine_are_named(self):
        text = [
            layer(name="a", weights="Int8"),
            layer(name="b", weights="Half"),
            layer("gemm", "c", "Float"),
        ]
        found = read_precision(text, "int8+fp16")
        assert (found.asked, dict(found.counts), found.wider) == (
            "int8",
            {"fp16": 1, "fp32": 1, "int8": 1},
            ("b", "c"),
        )


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return toy_onnx.write(tmp_path / "skin.dermedge", GRAPH)


def record(opened, machine, **changes):
    """Build the bundle's engine, and write its record with some keys changed."""
    key = EngineKey(opened.files["model.onnx"], machine.version, machine.gpu.sm, {"batch": 1})
    engine = store_engine(opened.path, key, machine.build(GRAPH, workspace=None, timings=b"")[0])
    content = {
        "schema": "dermedge.device/1",
        "bundle": opened.id,
        "status": "passed",
        "allowed_failures": [],
    }
    record_path(opened.path).write_bytes(
        pretty_json(content | {"engine": to_json(engine)} | changes)
    )
    return engine


class TestUse:
    def test_a_built_engine_runs(self, bundle, machine):
        record(bundle, machine)
        runtime = TensorRtRuntime.open(bundle, machine=machine)
        np.testing.assert_allclose(
            runtime.run(PIXELS)["diagnosis"], toy_onnx.forward(PIXELS)["diagnosis"], atol=0.02
        )

    def test_the_engine_is_stored_beside_the_unchanged_bundle(self, bundle, machine):
        record(bundle, machine)
        assert Bundle.open(bundle.path).id == bundle.id
        names = {path.name for path in bundle.path.parent.iterdir()}
        assert names == {"skin.dermedge", "skin.device.json", "skin.cache"}
        assert record_path(Path("a/skin.dermedge.zip")) == Path("a/skin.device.json")

    def test_without_an_engine_the_error_gives_the_command(self, bundle, machine):
        with pytest.raises(
            EngineError,
            match=r"No engine is built for this device\. Run `dermedge build .*skin\.dermedge`",
        ):
            TensorRtRuntime.open(bundle, machine=machine)

    @pytest.mark.parametrize(("version", "sm"), [("10.3.0", "89"), ("10.3.1", "87")])
    def test_an_engine_of_another_device_is_not_used(self, bundle, machine, version, sm):
        record(bundle, machine)
        other = fake_tensorrt.machine(version, sm=sm)
        with pytest.raises(
            EngineError,
            match=rf"No engine is built for this device.*TensorRT {version} and SM {sm}",
        ):
            TensorRtRuntime.open(bundle, machine=other)

    def test_an_engine_of_another_bundle_is_not_used(self, bundle, machine):
        record(bundle, machine, bundle="0" * 64)
        with pytest.raises(EngineError, match="of bundle 0000000000000000 for"):
            TensorRtRuntime.open(bundle, machine=machine)

    def test_a_failed_engine_is_not_used_unless_that_was_allowed(self, bundle, machine):
        record(bundle, machine, status="failed")
        with pytest.raises(
            EngineError, match=r"failed its gate \(skin\.device\.json has the reasons\)"
        ):
            TensorRtRuntime.open(bundle, machine=machine)
        record(bundle, machine, status="failed", allowed_failures=["top1_agreement: ..."])
        assert find_usable_engine(bundle, machine.version, machine.gpu.sm)

    @pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"half"), Path.unlink])
    def test_a_damaged_or_lost_engine_is_not_used(self, bundle, machine, damage):
        record(bundle, machine)
        damage(next(cache_folder(bundle.path).glob("*.engine")))
        with pytest.raises(
            EngineError, match=r"engine .* (is damaged|cannot be read).*dermedge build"
        ):
            TensorRtRuntime.open(bundle, machine=machine)

    @pytest.mark.parametrize(
        "change", [{"schema": "dermedge.device/2"}, {"engine": {}}, {"engine": None}]
    )
    def test_a_record_that_is_not_understood_is_refused(self, bundle, machine, change):
        record(bundle, machine, **change)
        with pytest.raises(EngineError, match="dermedge build"):
            TensorRtRuntime.open(bundle, machine=machine)

    def test_the_cache_key_covers_all_inputs_of_a_build(self, bundle):
        key = EngineKey("a" * 64, "10.3.0", "87", {"batch": 1})
        engine = store_engine(bundle.path, key, b"plan")
        assert find_cached_engine(bundle.path, key) == engine
        assert read_plan(bundle.path, engine) == b"plan"
        others = [
            EngineKey("b" * 64, "10.3.0", "87", {"batch": 1}),
            EngineKey("a" * 64, "10.3.1", "87", {"batch": 1}),
            EngineKey("a" * 64, "10.3.0", "89", {"batch": 1}),
            EngineKey("a" * 64, "10.3.0", "87", {"batch": 1, "workspace_mb": 64}),
        ]
        assert [find_cached_engine(bundle.path, other) for other in others] == [None] * 4

    def test_load_starts_it_by_the_bundles_format(self, tmp_path, machine, monkeypatch):
        bundle = fake_tensorrt.bundle(tmp_path / "skin.dermedge")
        record(bundle, machine)
        monkeypatch.setattr(TensorRt, "open", classmethod(lambda cls, path: machine))
        with load(bundle.path) as model:
            assert model.provenance.engine == "tensorrt 10.3.0"
            assert model.predict(toy_onnx.draw_image(3)[0]).provenance.bundle == bundle.id
