"""Test the ONNX Runtime engine on a tiny network whose outputs numpy computes."""

import numpy as np
import onnx
import pytest

from dermedge_runtime.errors import BundleError, EngineError
from dermedge_runtime.onnxruntime import CPU, OnnxRuntime, find_fallback
from support import toy_onnx

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def bundle_of(tmp_path):
    return lambda model: toy_onnx.write(tmp_path / "toy.dermedge", model)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_outputs_are_those_of_the_network_for_any_number_of_images(bundle_of, batch, threads):
    runtime = OnnxRuntime.open(bundle_of(toy_onnx.graph(batch=batch)), threads=threads)
    for count in (1, 5):
        outputs = runtime.run(PIXELS[:count])
        for name, expected in toy_onnx.forward(PIXELS[:count]).items():
            assert outputs[name].dtype == np.float32
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)
    runtime.close()


def test_outputs_of_one_call_survive_the_next(bundle_of):
    runtime = OnnxRuntime.open(bundle_of(toy_onnx.graph()))
    first = runtime.run(PIXELS[:1])
    kept = {name: values.copy() for name, values in first.items()}
    runtime.run(PIXELS[1:2])
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_the_engine_names_itself_and_prints_nothing(bundle_of, capfd):
    import onnxruntime

    runtime = OnnxRuntime.open(bundle_of(toy_onnx.graph()))
    runtime.run(PIXELS)
    assert (runtime.name, runtime.version) == ("onnxruntime", onnxruntime.__version__)
    assert capfd.readouterr() == ("", "")


MISFITS = {
    "input name": ({"input_name": "pixels"}, r"inputs are .*pixels.*not one 'image'"),
    "input type": (
        {"input_type": onnx.TensorProto.FLOAT},
        r"'image' float32 \[1, 48, 48, 3\], not one 'image' uint8",
    ),
    "size": ({"size": 64}, r"64, 64, 3.*\[N, 48, 48, 3\]"),
    "batch": ({"batch": 4}, "batches of 4"),
    "labels": ({"labels": 2}, r"'diagnosis' is float32 \[1, 2\], not float32 \[N, 3\]"),
    "task": (
        {"names": ("diagnosis", "severity")},
        r"\['diagnosis', 'severity'\].*\['diagnosis', 'malignancy'\]",
    ),
}


@pytest.mark.parametrize(("options", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_graph_that_does_not_fit_its_spec_is_refused(bundle_of, options, message):
    with pytest.raises(EngineError, match=message):
        OnnxRuntime.open(bundle_of(toy_onnx.graph(**options)))


def test_a_graph_that_onnxruntime_refuses_is_one_error(bundle_of, capfd):
    with pytest.raises(EngineError, match=r"refuses model\.onnx .*onnxruntime>=1\.17") as caught:
        OnnxRuntime.open(bundle_of(b"no graph at all"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_failing_call_is_one_error(bundle_of, capfd):
    runtime = OnnxRuntime.open(bundle_of(toy_onnx.graph()))
    with pytest.raises(EngineError, match=r"failed on uint8 \[1, 40, 48, 3\]"):
        runtime.run(PIXELS[:1, :40])
    assert capfd.readouterr() == ("", "")


def test_an_unknown_provider_is_refused_and_not_silently_replaced(bundle_of):
    with pytest.raises(EngineError, match=r"no NpuProvider, only .*CPUExecutionProvider"):
        OnnxRuntime.open(
            bundle_of(toy_onnx.graph()), providers=("NpuProvider", "CPUExecutionProvider")
        )


def test_placement_counts_the_nodes_that_the_cpu_computes(bundle_of):
    placement = OnnxRuntime.open(bundle_of(toy_onnx.graph())).placement()
    assert set(placement) == {CPU}
    assert placement[CPU]["Conv"] == 1
    assert placement[CPU]["Gemm"] == 2


def test_a_provider_that_leaves_everything_to_the_cpu_is_an_error(bundle_of):
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no node")
    bundle = bundle_of(toy_onnx.graph())
    with pytest.raises(
        EngineError,
        match=r"^AzureExecutionProvider cannot compute \d+ of \d+ nodes \(2 Gemm, .*fell back",
    ):
        OnnxRuntime.open(bundle, providers=("AzureExecutionProvider",))
    with pytest.raises(
        EngineError, match=r"^AzureExecutionProvider computes none of the \d+ nodes"
    ):
        OnnxRuntime.open(bundle, providers=("AzureExecutionProvider", CPU))


CUDA = "CUDAExecutionProvider"
SPLIT = {
    CUDA: {"Conv": 50, "Gemm": 2},
    CPU: {"Resize": 3, "Gather": 1, "Cast": 1, "A": 1, "B": 1, "C": 1},
}


class TestPlacement:
    def test_nodes_on_a_provider_that_was_not_named_are_described(self):
        assert find_fallback(SPLIT, (CUDA,)) == (
            "CUDAExecutionProvider cannot compute 8 of 60 nodes (3 Resize, 1 A, 1 B, 1 C, 1 Cast "
            "and 1 more), which fell back to CPUExecutionProvider. Add 'CPUExecutionProvider' to "
            "`providers` to accept that."
        )

    def test_a_named_provider_without_any_node_is_described_even_beside_the_cpu(self):
        assert find_fallback({CPU: SPLIT[CUDA]}, (CUDA, CPU)).startswith(
            "CUDAExecutionProvider computes none of the 52 nodes "
            "(CPUExecutionProvider: 50 Conv, 2 Gemm). Leave it out"
        )

    @pytest.mark.parametrize(
        ("placement", "providers"),
        [
            (SPLIT, (CUDA, CPU)),
            ({CPU: {"Conv": 1}}, (CPU,)),
            ({CUDA: {"Conv": 1}}, (CUDA, CPU)),
            ({}, (CUDA,)),
        ],
        ids=["the cpu takes the rest", "the cpu alone", "the cpu takes nothing", "not recorded"],
    )
    def test_a_placement_as_the_caller_named_it_has_no_fallback(self, placement, providers):
        assert find_fallback(placement, providers) == ""


def test_a_closed_session_raises_an_engine_error(bundle_of):
    runtime = OnnxRuntime.open(bundle_of(toy_onnx.graph()))
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.run(PIXELS)


def test_a_file_that_changed_after_opening_is_refused(bundle_of):
    bundle = bundle_of(toy_onnx.graph())
    (bundle.path / "model.onnx").write_bytes(toy_onnx.graph(labels=2))
    with pytest.raises(BundleError):
        OnnxRuntime.open(bundle)
